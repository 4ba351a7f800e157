"""An object while it arrives: written to a draft piece by piece, and given up when it is too large or the disk full."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydicom.uid import PYDICOM_IMPLEMENTATION_UID

from hscc_edge.serve.doors.admission import NO_RESOURCES, Verdict, discard

BUFFER = 1 << 18
LOOK_EVERY = 16 << 20
IMPLEMENTATION_VERSION = b"HSCC_EDGE "


class Draft:
    """What a data set's fragments are written to in place of memory.

    Attributes:
        path: of the PS3.10 file.
        refused: why it is not taken; what still comes is then read and forgotten, so that the sender gets a status.
        first_byte: when the object began, in seconds since 1970.
    """

    def __init__(self, path: Path, head: bytes, refusal: Callable[[int], Verdict | None], most: int) -> None:
        """Begin a file with `head`, preamble and file meta; `refusal` says whether so many bytes may be taken in.

        Nothing beyond twice `most` bytes is read: then the association is to be aborted.
        """
        self.path, self.refused, self.first_byte = path, refusal(0), time.time()
        self._refusal, self._most, self._head = refusal, most, head
        self._size, self._look = 0, LOOK_EVERY
        self._file: Any = None

    def write(self, piece: memoryview) -> None:
        """Add a fragment.

        Raises:
            ValueError: if the object goes on far beyond the limit.
        """
        self._size += len(piece)
        if self._size > 2 * self._most:
            raise ValueError("endless object")
        if self.refused is None:
            self.refused = self._add(piece)
            if self.refused is not None:
                self.give_up()

    def finish(self) -> Verdict | None:
        """All of it is here: close the file; why it cannot be taken, or None."""
        if self.refused is None and self._file is None:
            self.refused = self._add(memoryview(b""))
        if self._file is not None:
            file, self._file = self._file, None
            try:
                file.close()
            except OSError:
                self.refused = self.refused or Verdict(NO_RESOURCES, "storage failed")
        if self.refused is not None:
            self.give_up()
        return self.refused

    def give_up(self) -> None:
        """Remove the file."""
        file, self._file = self._file, None
        try:
            if file is not None:
                file.close()
        except OSError:  # what could not be written is not wanted any more
            pass
        discard(self.path)

    def _add(self, piece: memoryview) -> Verdict | None:
        if self._size > self._most:
            return Verdict(NO_RESOURCES, "object too large")
        if self._size > self._look:
            self._look += LOOK_EVERY
            if refused := self._refusal(self._size):
                return refused
        try:
            if self._file is None:
                self._file = self.path.open("xb", buffering=BUFFER)
                self._file.write(self._head)
            self._file.write(piece)
        except OSError:
            return Verdict(NO_RESOURCES, "storage failed")
        return None


def head_of(sop_class: str, sop: str, syntax: str) -> bytes:
    """Preamble, prefix and file meta of a file (PS3.10 section 7.1)."""
    elements = b"".join(
        (
            struct.pack("<HH2sHI", 2, 0x0001, b"OB", 0, 2) + b"\0\1",
            _uid(0x0002, sop_class), _uid(0x0003, sop), _uid(0x0010, syntax), _uid(0x0012, PYDICOM_IMPLEMENTATION_UID),
            _element(0x0013, b"SH", IMPLEMENTATION_VERSION),
        )
    )  # fmt: skip
    return bytes(128) + b"DICM" + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(elements)) + elements


def _uid(element: int, uid: str) -> bytes:
    value = uid.encode("ascii", "replace")
    return _element(element, b"UI", value + b"\0" * (len(value) % 2))


def _element(element: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", 2, element, vr, len(value)) + value
