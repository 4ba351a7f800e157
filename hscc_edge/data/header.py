"""One file of unknown kind -> its row of the index, read no further than its headers unless a digest is wanted."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_partial, read_sequence_item
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, MediaStorageDirectoryStorage
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from hscc_edge.data.facts import GROUPS, KEYWORDS, MALFORMED, clean, facts_of, quiet
from hscc_edge.data.index import DICOMDIR, FAULT, IMAGE, OBJECT, Row
from hscc_edge.digest import sha256_of

IDENTITY = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "AccessionNumber")
TAGS: list[BaseTag | int] = [Tag(keyword) for keyword in (*IDENTITY, *KEYWORDS) if keyword != GROUPS[0]]
PER_FRAME = Tag(GROUPS[0])
PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
DIRECTORY = (0x00041130, 0x00041141, 0x00041200, 0x00041202, 0x00041212, 0x00041220)
STOPS = frozenset((PER_FRAME, *PIXELS, *DIRECTORY))
UNDEFINED = 0xFFFFFFFF
HEAD = 1024
FIRST = 64 << 10  # bytes that most headers fit in
SMALL = 8 << 20  # bytes that are held at once; one header that is longer is a fault
INFLATED = 64 << 20  # of a deflated file; headers that are longer are a fault
CHARSET: list[BaseTag | int] = [Tag("SpecificCharacterSet")]
DEFLATED = b"\x02\x00\x10\x00UI\x16\x00" + DeflatedExplicitVRLittleEndian.encode()
PLAIN = b"\x02\x00\x10\x00UI\x16\x00" + b"1.2.840.10008.1.2.1\0\0\0"
HEADERLESS = re.compile(rb"[\x02\x08]\x00.\x00(?:[A-Z]{2}|..\x00\x00)|\x00\x08\x00.[A-Z]{2}", re.DOTALL)
SIGNATURES = (
    (b"PK\x03\x04", "zip archive"), (b"\x1f\x8b", "gzip archive"), (b"7z\xbc\xaf", "7z archive"),
    (b"Rar!", "rar archive"), (b"%PDF", "pdf"), (b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpeg"), (b"BM", "bmp"),
    (b"GIF8", "gif"), (b"II*\x00", "tiff"), (b"MM\x00*", "tiff"), (b"MZ", "program"), (b"\x7fELF", "program"),
    (b"\x00\x05\x16\x07", "apple double"), (b"\x00\x00\x00\x01Bud1", "folder settings"),
)  # fmt: skip
NAMED_DICOM = (".dcm", ".dicom", ".dic", ".ima")


def examine(root: str, digest: bool, key: bytes, rows: Sequence[Row]) -> list[Row]:
    """Fill in the rows of files below `root`; a row that has a kind already is left as it is.

    No file raises: one that cannot be used gets a fault. Memory grows with the headers of one file, and holds the whole
    file if that is below 8 MiB and its digest is wanted.

    Args:
        key: of the stations' pseudonyms.
    """
    with quiet():
        return [row if row.kind else _examined(row, os.path.join(root, row.path), digest, key) for row in rows]


def _examined(row: Row, path: str, digest: bool, key: bytes) -> Row:
    try:
        with open(path, "rb", opener=_open) as file:
            status = os.fstat(file.fileno())
            row = dataclasses.replace(row, size=status.st_size, mtime_ns=status.st_mtime_ns)
            head = os.pread(file.fileno(), HEAD, 0)
            if head[128:132] != b"DICM":
                return _other(row, head, path)
            source: BinaryIO = file
            if digest and row.size <= SMALL:
                content = file.read()
                row = dataclasses.replace(row, digest=hashlib.sha256(content).hexdigest())
                source = io.BytesIO(content)
            elif digest:
                row = dataclasses.replace(row, digest=sha256_of(file))
            return _described(row, source, DEFLATED in head, key)
    except OSError as error:
        return dataclasses.replace(
            row,
            mtime_ns=-1,
            kind=FAULT,
            fault=f"the file cannot be read ({error.strerror}): check its rights and the disk",
        )


def _open(path: str, flags: int) -> int:
    """Neither follows a link that has taken a file's place meanwhile nor waits for the other end of a pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _other(row: Row, head: bytes, path: str) -> Row:
    """The kind of a file that does not begin as PS3.10 7.1 says."""
    kind = _kind(head)
    if kind in ("text", "unknown") and HEADERLESS.match(head):
        return _fault(
            row, "it is DICOM without its header of 132 bytes (PS3.10 7.1): export it anew, or write the header"
        )
    if path.lower().endswith(NAMED_DICOM) and kind != "apple double":
        return _fault(row, f"its name says DICOM and its content does not ({kind}): fetch it again")
    return dataclasses.replace(row, kind=kind)


def _kind(head: bytes) -> str:
    if not head:
        return "empty"
    if not head.strip(b"\0"):
        return "zeros"
    for signature, kind in SIGNATURES:
        if head.startswith(signature):
            return kind
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:9].lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "web page or xml"
    printable = all(byte >= 32 or byte in b"\t\n\r\f\x1b" for byte in head)
    return "text" if printable else "unknown"


def _described(row: Row, source: BinaryIO, deflated: bool, key: bytes) -> Row:
    try:
        found = _header(source, row.size, deflated)
    except Exception as error:  # whatever a broken file makes pydicom raise: no file ends the scan of a folder
        if isinstance(error, OSError) and error.errno is not None:
            raise
        return _fault(row, f"the file is damaged ({type(error).__name__}): fetch it again")
    if found.directory:
        return dataclasses.replace(row, kind=DICOMDIR)
    values = (_identity(found.dataset, keyword) for keyword in IDENTITY)
    sop_class, sop, series, study, patient, accession = values
    row = dataclasses.replace(
        row, kind=IMAGE if found.pixels else OBJECT, sop_class=sop_class, sop=sop, series=series, study=study,
        patient=patient, accession=accession, facts=facts_of(found.dataset, key),
    )  # fmt: skip
    if found.cut:
        return _fault(row, found.cut)
    if not (sop_class and sop and series and study):
        return _fault(row, "it lacks a SOP, series or study UID (PS3.3 C.12.1, C.7): leave it out")
    return row


def _fault(row: Row, sentence: str) -> Row:
    return dataclasses.replace(row, kind=FAULT, fault=sentence)


def _identity(dataset: Dataset, keyword: str) -> str:
    try:
        value = dataset.get(keyword) or ""
        return "\\".join(map(clean, value)) if isinstance(value, MultiValue) else clean(value)
    except MALFORMED:
        return ""


@dataclass(frozen=True, slots=True)
class _Header:
    """What was read: `cut` says in a sentence that the file is not whole, `stopped` that more follows."""

    dataset: Dataset
    pixels: bool
    directory: bool
    cut: str
    stopped: bool = True


@dataclass(slots=True)
class _Stop:
    """Ends reading before the pixels, the frames' functional groups, or a directory, and remembers where.

    Raises:
        ValueError: on call, if a header that is wanted claims more than 8 MiB.
    """

    tag: int = 0
    vr: str | None = None
    length: int = 0

    def __call__(self, tag: BaseTag, vr: str | None, length: int) -> bool:
        if tag not in STOPS:
            if SMALL < length < UNDEFINED and tag in TAGS:
                raise ValueError(f"a header of {length} bytes")
            return False
        self.tag, self.vr, self.length = int(tag), vr, length
        return True

    @property
    def start(self) -> int:
        """Bytes from the element's tag to its value (PS3.5 7.1.2 and 7.1.3)."""
        return 12 if self.vr in EXPLICIT_VR_LENGTH_32 else 8


def _header(source: BinaryIO, size: int, deflated: bool) -> _Header:
    source.seek(0)
    if deflated:
        found = _read(_inflated(source), 1 << 62)
        found.dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        return found
    if size > FIRST and not isinstance(source, io.BytesIO):
        found_first = _beginning(source, size)
        if found_first:
            return found_first
        source.seek(0)
    return _read(source, size)


def _beginning(source: BinaryIO, size: int) -> _Header | None:
    """The headers if they lie within the first 64 KiB, which are read at once; None if they do not."""
    start = io.BytesIO(source.read(FIRST))
    try:
        found = _read(start, size)
    except MALFORMED:
        return None
    return found if found.stopped and start.tell() < FIRST else None


def _read(source: BinaryIO, size: int) -> _Header:
    """Read the headers of a file of `size` bytes; of an enhanced object, the functional groups of the first frame."""
    stop = _Stop()
    dataset = read_partial(source, stop, specific_tags=TAGS)
    meta = str(dataset.file_meta.get("MediaStorageSOPClassUID") or "")
    if stop.tag in DIRECTORY or meta == MediaStorageDirectoryStorage:
        return _Header(dataset, False, True, "")
    if stop.tag == PER_FRAME:
        dataset.PerFrameFunctionalGroupsSequence = _first_frame(source, dataset, stop)
    unknown = stop.tag == PER_FRAME  # of undefined length: reading on would mean reading every frame's headers
    image = "Rows" in dataset or "Image Storage" in UID(_identity(dataset, "SOPClassUID")).name
    pixels = stop.tag in PIXELS or (unknown and image)
    cut = "it has no pixels: it was cut off, or holds headers alone; fetch it again" if image and not pixels else ""
    if stop.tag in PIXELS and stop.length != UNDEFINED and source.tell() + stop.start + stop.length > size:
        cut = "the file ends within its pixels: fetch it again"
    if not pixels and (source.tell() > size or _is_short(dataset)):
        cut = "the file ends within its headers: fetch it again"
    return _Header(dataset, pixels, False, cut, bool(stop.tag))


def _is_short(dataset: Dataset) -> bool:
    """Whether the last element that was kept ends before its length."""
    last = dataset.get_item(list(dataset.keys())[-1]) if dataset else None
    return isinstance(last, RawDataElement) and len(last.value or b"") < last.length < UNDEFINED


def _first_frame(source: BinaryIO, dataset: Dataset, stop: _Stop) -> list[Dataset]:
    """The first item of the sequence that reading stopped before; reads on to the pixels if its length is given."""
    implicit, little = dataset.original_encoding
    charset = dataset.original_character_set
    length, start = stop.length, source.tell() + stop.start
    source.seek(start)
    item = read_sequence_item(source, bool(implicit), bool(little), charset) if length else None
    if length != UNDEFINED:
        stop.tag = 0
        source.seek(start + length)
        read_dataset(source, bool(implicit), bool(little), stop_when=stop, specific_tags=CHARSET)
    return [] if item is None else [item]


def _inflated(source: BinaryIO) -> BinaryIO:
    """A deflated file (PS3.5 A.5) as an explicit little endian one, up to 64 MiB of it.

    Raises:
        ValueError: if the file meta information does not say its own length (PS3.10 7.1).
    """
    content = source.read(INFLATED)
    if content[132:140] != b"\x02\x00\x00\x00UL\x04\x00":
        raise ValueError("no length of the file meta information")
    end = 144 + int(struct.unpack_from("<L", content, 140)[0])
    data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content[end:], INFLATED)
    return io.BytesIO(content[:end].replace(DEFLATED, PLAIN) + data)
