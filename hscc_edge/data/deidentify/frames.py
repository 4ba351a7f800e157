"""What Pixel Data hold beside pixels: trailing bytes, overlays in unused bits, comments in codestreams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
from pydicom import DataElement, Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.utils import get_expected_length

from hscc_edge.data.deidentify.lists import MALFORMED
from hscc_edge.errors import DicomError

SOI, SOC = b"\xff\xd8", b"\xff\x4f"
SOS, SOT, COM, J2K_COM = 0xDA, 0x90, 0xFE, 0x64
# JFIF, HP's and SPIFF's colour transform, Adobe's: without them a decoder may get the colours wrong
APPLICATIONS = {0xE0, 0xE8, 0xEE}


def clean_pixel_data(dataset: Dataset, result: Dataset, counts: Counter[str]) -> None:
    """Cut off what is no pixel from `result`'s Pixel Data, in place; the pixels themselves stay.

    Raises:
        DicomError: if compressed frames cannot be told apart.
    """
    if "PixelData" not in result or not result.PixelData:
        return
    try:
        clean = _compressed if dataset.file_meta.TransferSyntaxUID.is_encapsulated else _native
        changed = clean(dataset, result)
    except MALFORMED as error:
        raise DicomError(
            f"the pixel data cannot be told from what may hide in them ({type(error).__name__}): leave the file out"
        ) from error
    if changed is None:
        return
    element = result["PixelData"]
    result["PixelData"] = DataElement(element.tag, element.VR, changed, is_undefined_length=element.is_undefined_length)
    for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        if keyword in result:
            del result[keyword]
    counts["beside pixels"] += 1


def _native(dataset: Dataset, result: Dataset) -> bytes | None:
    raw = bytes(result.PixelData)
    length = get_expected_length(dataset, unit="bytes")
    kept = raw[:length]
    if _has_embedded_overlay(dataset) and dataset.BitsAllocated in (8, 16):
        kept = _stored_bits(kept, dataset)
    kept += b"\0" * (len(kept) % 2)
    return kept if kept != raw else None


def _has_embedded_overlay(dataset: Dataset) -> bool:
    """Retired overlays live in the unused bits of pixels (PS3.3 C.9.2, Overlay Bit Position)."""
    return any(
        tag.group & 0xFF01 == 0x6000 and tag.elem == 0x0102 and dataset[tag].value for tag in sorted(dataset.keys())
    )


def _stored_bits(raw: bytes, dataset: Dataset) -> bytes:
    order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
    allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
    low = int(dataset.HighBit) + 1 - stored
    values = np.frombuffer(raw, dtype=f"{order}u{allocated // 8}")
    clean = values & values.dtype.type(((1 << stored) - 1) << low)
    if dataset.get("PixelRepresentation"):  # the sign fills the bits above
        signed = clean.astype(np.int32)
        clean = np.where(signed >> (low + stored - 1), signed - (1 << (low + stored)), signed)
    return bytes(clean.astype(values.dtype).tobytes())


def _compressed(dataset: Dataset, result: Dataset) -> bytes | None:
    count = int(dataset.get("NumberOfFrames") or 1)
    frames = list(generate_frames(bytes(result.PixelData), number_of_frames=count))
    clean = [without_comments(frame) for frame in frames]
    return encapsulate(clean) if clean != frames else None


def without_comments(frame: bytes) -> bytes:
    """A JPEG, JPEG-LS or JPEG 2000 codestream without comments, EXIF and other applications' segments in its header.

    Anything else is returned as it is.
    """
    if frame[:2] not in (SOI, SOC):
        return frame
    end = SOS if frame[:2] == SOI else SOT
    segments = list(_segments(frame, end))
    kept = b"".join(frame[start:stop] for marker, start, stop in segments if not _is_beside(marker, frame, start, stop))
    return frame[:2] + kept + frame[segments[-1][2] if segments else 2 :]


def _segments(frame: bytes, end: int) -> Iterator[tuple[int, int, int]]:
    """(marker, start, stop) of each segment before the first scan or tile."""
    place = 2
    while place + 4 <= len(frame) and frame[place] == 0xFF and frame[place + 1] != end:
        stop = place + 2 + int.from_bytes(frame[place + 2 : place + 4], "big")
        yield frame[place + 1], place, stop
        place = stop


def _is_beside(marker: int, frame: bytes, start: int, stop: int) -> bool:
    if frame[:2] == SOC:
        return marker == J2K_COM
    if marker == 0xE0:  # with a thumbnail it is longer
        return not (frame[start + 4 : start + 9] == b"JFIF\0" and stop - start <= 18)
    return marker == COM or (0xE0 <= marker <= 0xEF and marker not in APPLICATIONS)
