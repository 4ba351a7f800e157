"""One DICOM file -> pixels in real-world values and the headers that matter."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, convert_color_space

from hscc_edge.errors import DicomError

FAULTS = (
    AttributeError, EOFError, IndexError, KeyError, NotImplementedError, OSError, OverflowError, RuntimeError,
    TypeError, ValueError, MemoryError,
)  # fmt: skip
MAX_PIXELS = 1 << 28


@dataclass(frozen=True, slots=True)
class Headers:
    """What the product reads of a data set; identifiers stay out of its repr.

    `window` is the first (WindowCenter, WindowWidth), PS3.3 C.11.2.
    """

    sop_class_uid: str
    sop_instance_uid: str = field(repr=False)
    series_uid: str = field(repr=False)
    study_uid: str = field(repr=False)
    patient_id: str = field(repr=False)
    modality: str
    body_part: str
    series_description: str = field(repr=False)
    photometric: str
    transfer_syntax_uid: str
    rows: int
    columns: int
    frames: int
    instance_number: int | None
    window: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Image:
    """One decoded image.

    Attributes:
        pixels: float32, (H, W), or (H, W, 3) for colour; after the modality LUT (PS3.3 C.11.1), MONOCHROME1 inverted
            so that larger is brighter.
    """

    pixels: NDArray[np.float32]
    headers: Headers


def read_headers(source: Path | BinaryIO) -> Headers:
    """The headers of a file, without its pixels.

    Raises:
        DicomError: if it is not DICOM or lacks a UID.
    """
    return _headers(_read(source, stop_before_pixels=True), source)


def read_image(source: Path | BinaryIO) -> Image:
    """Decode a single-frame file; memory grows with rows x columns.

    Raises:
        DicomError: if it is not DICOM, has no pixels, several frames, or cannot be decoded.
    """
    dataset = _read(source, stop_before_pixels=False)
    headers = _headers(dataset, source)
    name = _name(source)
    if not any(keyword in dataset for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise DicomError(f"{name} has no pixels ({headers.modality or 'no modality'}): expected an image; leave it out")
    if headers.frames != 1:
        raise DicomError(f"{name} has {headers.frames} frames: expected one; multi-frame images are not read yet")
    if not 0 < headers.rows * headers.columns <= MAX_PIXELS:
        raise DicomError(f"{name} claims {headers.rows} x {headers.columns} pixels: expected 1 to {MAX_PIXELS}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pixels = _decode(dataset, headers)
        except FAULTS as error:
            raise DicomError(
                f"{name} cannot be decoded ({type(error).__name__}, transfer syntax {headers.transfer_syntax_uid}): "
                "the file is damaged, or its decoder is not installed"
            ) from error
    return Image(np.ascontiguousarray(pixels, dtype=np.float32), headers)


def _read(source: Path | BinaryIO, *, stop_before_pixels: bool) -> pydicom.Dataset:
    if isinstance(source, Path) and not source.is_file():
        raise DicomError(f"{source} does not exist or is no file: give a DICOM file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return pydicom.dcmread(source, stop_before_pixels=stop_before_pixels)
        except InvalidDicomError as error:
            raise DicomError(f"{_name(source)} is not a DICOM file: expected one with a PS3.10 header") from error
        except FAULTS as error:
            raise DicomError(f"{_name(source)} is damaged ({type(error).__name__}): fetch it again") from error


def _name(source: Path | BinaryIO) -> str:
    return str(source) if isinstance(source, Path) else "the object received"


def _headers(dataset: pydicom.Dataset, source: Path | BinaryIO) -> Headers:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = _parse(dataset)
        except FAULTS as error:
            raise DicomError(f"{_name(source)} has malformed headers ({type(error).__name__}): leave it out") from error
    if not (found.sop_class_uid and found.sop_instance_uid and found.study_uid and found.series_uid):
        raise DicomError(f"{_name(source)} lacks a SOP, series or study UID (PS3.3 C.12.1, C.7): leave it out")
    return found


def _parse(dataset: pydicom.Dataset) -> Headers:
    def text(keyword: str) -> str:
        return str(dataset.get(keyword) or "")

    number = dataset.get("InstanceNumber")
    return Headers(
        sop_class_uid=text("SOPClassUID"),
        sop_instance_uid=text("SOPInstanceUID"),
        series_uid=text("SeriesInstanceUID"),
        study_uid=text("StudyInstanceUID"),
        patient_id=text("PatientID"),
        modality=text("Modality"),
        body_part=text("BodyPartExamined"),
        series_description=text("SeriesDescription"),
        photometric=text("PhotometricInterpretation"),
        transfer_syntax_uid=str(getattr(dataset, "file_meta", {}).get("TransferSyntaxUID") or ""),
        rows=int(dataset.get("Rows") or 0),
        columns=int(dataset.get("Columns") or 0),
        frames=int(dataset.get("NumberOfFrames") or 1),
        instance_number=None if number in (None, "") else int(number),
        window=_window(dataset),
    )


def _window(dataset: pydicom.Dataset) -> tuple[float, float] | None:
    pair = [_first(dataset.get(keyword)) for keyword in ("WindowCenter", "WindowWidth")]
    if pair[0] is None or pair[1] is None or pair[1] < 1:
        return None
    return pair[0], pair[1]


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    return float(value[0]) if isinstance(value, (list, pydicom.multival.MultiValue)) else float(value)


def _decode(dataset: pydicom.Dataset, headers: Headers) -> NDArray[Any]:
    array = dataset.pixel_array
    if headers.photometric == "PALETTE COLOR":
        array = apply_color_lut(array, dataset)
        return np.asarray(array, dtype=np.float32) / (255.0 if array.dtype == np.uint8 else 65535.0) * 255.0
    if array.ndim == 3:
        if headers.photometric.startswith("YBR"):
            # pixel_array has converted to RGB already where pydicom's decoder could; the header says what remains
            current = dataset.PhotometricInterpretation
            array = array if current == "RGB" else convert_color_space(array, current, "RGB")
        return np.asarray(array, dtype=np.float32)
    values = np.asarray(apply_modality_lut(array, dataset), dtype=np.float32)
    if headers.photometric == "MONOCHROME1":
        values = _inverted(values, dataset)
    return values


def _inverted(values: NDArray[np.float32], dataset: pydicom.Dataset) -> NDArray[np.float32]:
    """MONOCHROME1 turned over about the range that its stored bits span (PS3.3 C.7.6.3.1.2)."""
    bits = int(dataset.get("BitsStored", 16))
    low, high = (
        (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if dataset.get("PixelRepresentation") else (0, (1 << bits) - 1)
    )
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    return np.asarray(slope * (low + high) + 2 * intercept - values, dtype=np.float32)
