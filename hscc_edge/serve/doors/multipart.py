"""A multipart/related body (RFC 2387) as it arrives: each part goes straight to a file, no part is whole in memory."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hscc_edge.errors import DicomError, extra
from hscc_edge.serve.doors.admission import discard

with extra("device"):
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header

MOST_PARTS = 10_000
HEADERS, HEADER_BYTES = 16, 4096
DICOM = b"application/dicom"
WRITE_BUFFER = 1 << 20
logging.getLogger("python_multipart").addHandler(logging.NullHandler())  # its warnings quote what was received


class TooLargeError(DicomError):
    """A part, or their number, is above what is accepted."""


@dataclass(frozen=True, slots=True)
class Part:
    """One whole part on disk.

    Attributes:
        path: its file, the caller's to keep or remove.
        first_byte: when it began to arrive, in seconds since 1970.
    """

    path: Path
    first_byte: float


def boundary_of(content_type: str) -> bytes | None:
    """The boundary of a multipart/related header of DICOM parts; None if the header is something else."""
    kind, options = parse_options_header(content_type)
    related = kind.lower() == b"multipart/related" and options.get(b"type", DICOM).lower() == DICOM
    return (options.get(b"boundary") or None) if related else None


class Parts:
    """Takes a body in pieces; what lies on disk is the caller's after `close`, or gone after `drop`."""

    def __init__(self, boundary: bytes, draft: Callable[[], Path], most_bytes: int) -> None:
        """Begin.

        Args:
            draft: names a new file for a part.
            most_bytes: that one part may have.

        Raises:
            DicomError: if the boundary is longer than RFC 2046 allows by far.
        """
        self.whole: list[Part] = []
        self.ended = False
        self._draft, self._most, self._size = draft, most_bytes, 0
        self._file: BinaryIO | None = None
        self._open: Part | None = None
        self._name, self._value, self._type = bytearray(), bytearray(), DICOM
        callbacks: Any = {
            "on_part_begin": self._begin, "on_part_data": self._take, "on_part_end": self._end,
            "on_header_begin": self._header, "on_header_field": self._on_name, "on_header_value": self._on_value,
            "on_header_end": self._on_header, "on_headers_finished": self._check_type, "on_end": self._finish,
        }  # fmt: skip
        try:
            self._parser = MultipartParser(boundary, callbacks, max_header_count=HEADERS, max_header_size=HEADER_BYTES)
        except FormParserError as error:
            raise DicomError("the multipart boundary is too long: expected at most 70 characters") from error

    def write(self, piece: bytes) -> None:
        """Take the next bytes.

        Raises:
            TooLargeError: if a part has more than `most_bytes`, or there are more than `MOST_PARTS`.
            DicomError: if this is no multipart body, or a part is not application/dicom.
            OSError: if the disk cannot take it.
        """
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise DicomError("the body is not multipart as its boundary says: send it anew") from error

    def close(self) -> list[Part]:
        """The whole parts, once the body has ended.

        Raises:
            DicomError: if it stops before its last boundary.
        """
        if not self.ended or self._open is not None:
            raise DicomError("the body stops before its last boundary: send it anew")
        return self.whole

    def drop(self) -> None:
        """Remove every file that was begun."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # on a full disk what is buffered cannot be written
                self._file.close()
        for part in [*self.whole, *([self._open] if self._open else [])]:
            discard(part.path)
        self.whole.clear()

    def _begin(self) -> None:
        if len(self.whole) >= MOST_PARTS:
            raise TooLargeError(f"the body has more than {MOST_PARTS} parts: send it in several requests")
        self._type, self._size = DICOM, 0
        self._open = Part(self._draft(), time.time())
        self._file = self._open.path.open("xb", buffering=WRITE_BUFFER)

    def _take(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        if self._size > self._most:
            raise TooLargeError(f"a part has more than {self._most >> 20} MiB: see max_object_mib in [dicom]")
        if self._file is not None:
            self._file.write(memoryview(data)[start:end])

    def _end(self) -> None:
        if self._file is not None and self._open is not None:
            self._file.close()
            self.whole.append(self._open)
        self._file = self._open = None

    def _finish(self) -> None:
        self.ended = True

    def _header(self) -> None:
        self._name.clear()
        self._value.clear()

    def _on_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header(self) -> None:
        if self._name.lower() == b"content-type":
            self._type = bytes(self._value)

    def _check_type(self) -> None:
        kind, _ = parse_options_header(self._type)
        if kind.lower() != DICOM:
            raise DicomError("a part is not application/dicom: send instances as PS3.10 files")
