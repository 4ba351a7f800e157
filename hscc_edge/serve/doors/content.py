"""What a received file says of itself without decoding a pixel: headers, digest, sameness of two encodings."""

from __future__ import annotations

import re
import struct
import warnings
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.tag import Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)  # fmt: skip

from hscc_edge.data.dicom import FAULTS
from hscc_edge.digest import sha256_of

IDENTIFIERS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
EXPECTED, PRIORITY = "NumberOfStudyRelatedInstances", "RequestedProcedurePriority"
PIXELS = 0x7FE00000
UNPARSABLE = (*FAULTS, InvalidDicomError, struct.error, zlib.error)
LITTLE_ENDIAN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
PREFIX_END = 132  # preamble and "DICM", PS3.10 section 7.1
TRANSFER_SYNTAX = (2, 0x0010)
LONG_LENGTHS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
MOST_META = 1 << 16
TEXTS = (b"AE", b"AS", b"CS", b"DA", b"DS", b"IS", b"LO", b"SH", b"TM", b"UI")
MOST_HEAD = 1 << 14
MOST_NESTED = 10
UID = re.compile(r"[0-9.]{1,64}")


@dataclass(frozen=True, slots=True)
class Headers:
    """A data set's elements that matter before it is acknowledged; none of it leaves the journal.

    Attributes:
        syntax: UID of the transfer syntax.
        values: keyword -> values as text, of those that were asked for and are there.
    """

    syntax: str
    values: dict[str, tuple[str, ...]] = field(repr=False)

    def text(self, keyword: str) -> str:
        """The first value, "" if there is none."""
        return (self.values.get(keyword) or ("",))[0]


def read_headers(path: Path, keywords: Sequence[str], syntaxes: frozenset[str]) -> Headers | None:
    """Some headers of a PS3.10 file; None if it cannot be parsed, or is in none of `syntaxes`.

    It is read up to the last of these tags, and to the pixels if one of `IDENTIFIERS` was not found by then.

    Raises:
        OSError: if the disk cannot be read.
    """
    wanted = {tag: keyword for keyword in keywords if (tag := tag_for_keyword(keyword)) is not None}
    try:
        with path.open("rb") as file:
            found = _meta(file)
            if found is None or found[1] not in syntaxes or found[1] == DeflatedExplicitVRLittleEndian:
                return None
            start, syntax = found
            values = _quick_values(file, start, syntax, wanted)
            if values is None:
                values = _values(file, start, syntax, wanted, min(max(wanted) + 1, PIXELS))
            if not all(values.get(keyword) for keyword in IDENTIFIERS):
                values = _values(file, start, syntax, wanted, PIXELS)
    except UNPARSABLE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        return None
    return Headers(syntax, values)


def _quick_values(file: BinaryIO, start: int, syntax: str, wanted: dict[int, str]) -> dict[str, tuple[str, ...]] | None:
    """`_values` for the plain case, in a tenth of the time: ASCII values, no sequence of undefined length before them.

    None if it is not that plain.
    """
    if syntax == ExplicitVRBigEndian:
        return None
    file.seek(start)
    head, position, last = file.read(MOST_HEAD), 0, max(wanted)
    explicit, found = syntax != ImplicitVRLittleEndian, dict[str, tuple[str, ...]]()
    while position + 12 <= len(head):
        group, element, vr, length = struct.unpack_from("<HH2sH", head, position)
        tag, value = group << 16 | element, position + 8
        if tag > last:
            return found
        if not explicit:
            (length,) = struct.unpack_from("<I", head, position + 4)
        elif vr in LONG_LENGTHS:
            (length,) = struct.unpack_from("<I", head, value)
            value += 4
        position = value + length
        if position > len(head):
            return None
        if tag in wanted:
            text = head[value:position]
            if not text.isascii() or (explicit and vr not in TEXTS):
                return None
            parts = text.decode("ascii").split("\\") if text else []
            found[wanted[tag]] = tuple(part.strip(" \0") for part in parts)
    return None


def _values(file: BinaryIO, start: int, syntax: str, wanted: dict[int, str], end: int) -> dict[str, tuple[str, ...]]:
    file.seek(start)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = read_dataset(
            file,
            is_implicit_VR=syntax == ImplicitVRLittleEndian,
            is_little_endian=syntax != ExplicitVRBigEndian,
            stop_when=lambda tag, vr, length: tag >= end,
            specific_tags=[Tag(tag) for tag in wanted],
        )
        return {wanted[element.tag]: _texts(element.value) for element in dataset if element.tag in wanted}


def _texts(value: Any) -> tuple[str, ...]:
    if value is None or isinstance(value, pydicom.Sequence):
        return ()
    items = [value] if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__") else value
    return tuple(str(item).strip() for item in items)


def are_uids(headers: Headers) -> bool:
    """Whether the identifiers are there and made of what UIDs are made of (PS3.5 section 9)."""
    return all(UID.fullmatch(headers.text(keyword)) for keyword in IDENTIFIERS)


def _meta(file: BinaryIO) -> tuple[int, str] | None:
    """(start of the data set, transfer syntax UID), read by element, so that a wrong group length misleads nobody."""
    head = file.read(PREFIX_END + MOST_META)
    position, syntax = PREFIX_END, ""
    if head[128:PREFIX_END] != b"DICM":
        return None
    while position + 12 <= len(head):
        group, element, vr, length = struct.unpack_from("<HH2sH", head, position)
        if group != 2:
            return (position, syntax) if syntax else None
        value = position + 8
        if vr in LONG_LENGTHS:
            (length,) = struct.unpack_from("<I", head, value)
            value += 4
        position = value + length
        if (group, element) == TRANSFER_SYNTAX:
            syntax = head[value:position].decode("ascii", "replace").rstrip("\0 ")
    return None


def digest_of(content: bytes) -> str:
    """sha256 of a PS3.10 file's data set, as encoded, without preamble and file meta."""
    return _digest(BytesIO(content))


def digest_of_file(path: Path) -> str:
    """`digest_of` for a file, which is read in pieces.

    Raises:
        OSError: if it cannot be read, or has no file meta.
    """
    with path.open("rb") as file:
        return _digest(file)


def _digest(file: BinaryIO) -> str:
    found = _meta(file)
    if found is None:
        raise OSError("no file meta")
    file.seek(found[0])
    return sha256_of(file)


def same_data_set(content: bytes, others: Iterable[bytes]) -> bool:
    """Whether one of other PS3.10 files holds the same data set, though it may be in another transfer syntax.

    Judged for Implicit and Explicit VR Little Endian; for other transfer syntaxes the answer is False.
    """
    form = _canonical(content)
    return form is not None and any(form == _canonical(other) for other in others)


def _canonical(content: bytes) -> bytes | None:
    """The data set in Implicit VR Little Endian, with sequences of undefined length and no group lengths."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(BytesIO(content))
            if dataset.file_meta.TransferSyntaxUID not in LITTLE_ENDIAN:
                return None
            buffer = BytesIO()
            pydicom.dcmwrite(buffer, _plain(dataset), implicit_vr=True, little_endian=True)
        except UNPARSABLE:
            return None
    return buffer.getvalue()


def _plain(dataset: pydicom.Dataset, depth: int = 0) -> pydicom.Dataset:
    if depth > MOST_NESTED:  # pydicom's text of an error met within doubles with each level, to gigabytes
        raise ValueError("nested too deep")
    plain = pydicom.Dataset()
    for element in dataset:
        if element.tag.element == 0:
            continue
        if element.VR == "SQ":
            element.value = [_plain(item, depth + 1) for item in element.value]
            element.is_undefined_length = True
        plain.add(element)
    return plain
