"""What a received object says of itself without decoding a pixel: identifiers, digest, sameness of two encodings."""

from __future__ import annotations

import hashlib
import struct
import warnings
import zlib
from collections.abc import Mapping
from io import BytesIO

import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from hscc_edge.data.dicom import FAULTS

IDENTIFIERS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
UNPARSABLE = (*FAULTS, InvalidDicomError, struct.error, zlib.error)
LITTLE_ENDIAN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
META_START = 132  # preamble and prefix, PS3.10 section 7.1
META_LENGTH_END = META_START + 12


def identifiers(content: bytes) -> Mapping[str, str] | None:
    """The UIDs that an object cannot be kept without, None if it cannot be parsed or lacks one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(BytesIO(content), specific_tags=list(IDENTIFIERS), stop_before_pixels=True)
            found = {keyword: str(dataset.get(keyword) or "") for keyword in IDENTIFIERS}
        except UNPARSABLE:
            return None
    return found if all(found.values()) else None


def digest_of(content: bytes) -> str:
    """sha256 of a PS3.10 file's data set, as encoded, without preamble and file meta."""
    start = META_LENGTH_END + int.from_bytes(content[META_LENGTH_END - 4 : META_LENGTH_END], "little")
    return hashlib.sha256(memoryview(content)[start:]).hexdigest()


def same_data_set(first: bytes, second: bytes) -> bool:
    """Whether two PS3.10 files hold one data set, though a sender may have encoded it in another transfer syntax.

    Judged for Implicit and Explicit VR Little Endian; for other transfer syntaxes the answer is False.
    """
    forms = [_canonical(content) for content in (first, second)]
    return forms[0] is not None and forms[0] == forms[1]


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


def _plain(dataset: pydicom.Dataset) -> pydicom.Dataset:
    plain = pydicom.Dataset()
    for element in dataset:
        if element.tag.element == 0:
            continue
        if element.VR == "SQ":
            element.value = [_plain(item) for item in element.value]
            element.is_undefined_length = True
        plain.add(element)
    return plain
