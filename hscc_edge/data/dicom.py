"""One DICOM file -> pixels in real-world values and the headers that matter."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from os import SEEK_END
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import filereader
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from hscc_edge.data.decoders import Decoded, decode, decode_each
from hscc_edge.data.frames import PIXELS, frame_count, frame_dataset
from hscc_edge.data.limits import LIMITS, Limits
from hscc_edge.data.lookup import Lut
from hscc_edge.data.pixels import little_endian, real_world
from hscc_edge.data.voi import Function, first_window, mirrored_window, voi_function, voi_lut
from hscc_edge.errors import DicomError

# What pydicom raises on files that are damaged or lie; a RecursionError, from deep nesting, is a RuntimeError.
FAULTS = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, NotImplementedError, OSError, RuntimeError,
    TypeError, ValueError, MemoryError, struct.error, zlib.error, BytesLengthException,
)  # fmt: skip
PREAMBLE = 132  # with the prefix "DICM", PS3.10 section 7.1
MOST_INFLATION = 1032  # of deflate's output to its input, https://zlib.net/zlib_tech.html
META_GROUP, TRANSFER_SYNTAX = 2, Tag("TransferSyntaxUID")


@dataclass(frozen=True, slots=True)
class Headers:
    """What the product reads of a data set; identifiers stay out of its repr.

    Of an image, `window` (first centre and width), `voi_function` and `voi_lut` (PS3.3 C.11.2) are for its `pixels`
    as they are: where MONOCHROME1 was turned over, so were they. `instance_number` is a frame's number, from 1, in a
    file of several `frames`.
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
    voi_function: Function = "LINEAR"
    voi_lut: Lut | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """One decoded frame; `pixels.real_world` says what its values are.

    Attributes:
        pixels: float32, (H, W), or (H, W, 3) for colour (RGB); finite; larger is brighter.
        padding: bool, (H, W), true where nothing was imaged (PixelPaddingValue, PS3.3 C.7.5.1.1.2): such pixels have
            the least value of the others, and should set no percentile; None where there are none.
        decoder: what decoded the pixels: "native", or a package such as "pylibjpeg-openjpeg".
    """

    pixels: NDArray[np.float32]
    headers: Headers
    padding: NDArray[np.bool_] | None = None
    decoder: str = ""


def read_headers(source: Path | BinaryIO) -> Headers:
    """The headers of a file, without its pixels.

    Raises:
        DicomError: if it is not DICOM or lacks a UID.
    """
    return headers_of(read_dataset(source, pixels=False), _name(source))


def read_image(source: Path | BinaryIO, frame: int | None = None, *, limits: Limits = LIMITS) -> Image:
    """Decode one frame, counted from 0; memory grows with the file and with rows x columns.

    Raises:
        DicomError: if the file is not DICOM, has no pixels, is over a limit or cannot be decoded, if there is no such
            frame, or if there are several and none was named.
    """
    dataset, headers = _image_dataset(source, limits)
    return image_of(dataset, headers, _name(source), frame, limits=limits)


def image_of(
    dataset: pydicom.Dataset, headers: Headers, name: str, frame: int | None = None, *, limits: Limits = LIMITS
) -> Image:
    """`read_image` of a data set that is parsed, its pixels too; `name` is what messages call it."""
    if frame is None and headers.frames > 1:
        raise DicomError(
            f"{name} has {headers.frames} frames: expected one; name one from 0 to {headers.frames - 1}, or read each"
        )
    with _told(name):
        return _image(decode(dataset, _known(frame or 0, headers.frames), limits), dataset, frame or 0, headers)


def read_frames(source: Path | BinaryIO, *, limits: Limits = LIMITS) -> Iterator[Image]:
    """Decode every frame in order, one at a time; memory grows with the file and one frame.

    Raises:
        DicomError: as `read_image` does; also if the file ends before its last frame.
    """
    dataset, headers = _image_dataset(source, limits)
    with _told(_name(source)):
        for index, decoded in enumerate(decode_each(dataset, limits)):
            yield _image(decoded, dataset, index, headers)


def read_dataset(source: Path | BinaryIO, *, pixels: bool, limits: Limits = LIMITS) -> pydicom.Dataset:
    """Parse a PS3.10 file, with or without its pixels; memory grows with what is read of it.

    Elements are parsed when they are asked for, so that a malformed one raises one of `FAULTS` then.

    Raises:
        DicomError: if there is no such file, it is not DICOM, is damaged, or is over a limit as it is or inflated.
    """
    name = _name(source)
    if isinstance(source, Path) and not source.is_file():
        raise DicomError(f"{source} does not exist or is no file: give a DICOM file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if not isinstance(source, Path):
                return _parsed(source, name, pixels, limits)
            with source.open("rb") as file:
                return _parsed(file, name, pixels, limits)
        except InvalidDicomError as error:
            raise DicomError(f"{name} is not a DICOM file: expected one with a PS3.10 header") from error
        except FAULTS as error:
            raise DicomError(f"{name} is damaged ({type(error).__name__}): fetch it again") from error


def headers_of(dataset: pydicom.Dataset, name: str) -> Headers:
    """The headers of a parsed data set; `name` is what messages call it.

    Raises:
        DicomError: if they are malformed or lack a UID.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = _parse(dataset)
        except DicomError as error:
            raise DicomError(f"{name}: {error}") from error
        except FAULTS as error:
            raise DicomError(f"{name} has malformed headers ({type(error).__name__}): leave it out") from error
    if not (found.sop_class_uid and found.sop_instance_uid and found.study_uid and found.series_uid):
        raise DicomError(f"{name} lacks a SOP, series or study UID (PS3.3 C.12.1, C.7): leave it out")
    return found


def _parsed(file: BinaryIO, name: str, pixels: bool, limits: Limits) -> pydicom.Dataset:
    start = file.tell()
    size = file.seek(0, SEEK_END) - start
    if size > limits.file_bytes:
        raise DicomError(f"{name} has {size} bytes: expected at most {limits.file_bytes}; leave it out")
    if size * MOST_INFLATION > limits.inflated_bytes:
        file.seek(start)
        _check_inflation(file, name, limits)
    file.seek(start)
    return pydicom.dcmread(file, stop_before_pixels=not pixels)


def _check_inflation(file: BinaryIO, name: str, limits: Limits) -> None:
    """Refuse a deflated data set that is larger than is allowed, which pydicom would inflate whole."""
    if file.read(PREAMBLE)[128:] != b"DICM":
        raise InvalidDicomError
    meta = filereader.read_dataset(
        file, False, True, stop_when=lambda tag, vr, length: tag.group != META_GROUP, specific_tags=[TRANSFER_SYNTAX]
    )
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        inflater.decompress(file.read(), limits.inflated_bytes)
        if inflater.unconsumed_tail:
            raise DicomError(f"{name} inflates to over {limits.inflated_bytes} bytes: expected no more; leave it out")


def _image_dataset(source: Path | BinaryIO, limits: Limits) -> tuple[pydicom.Dataset, Headers]:
    dataset = read_dataset(source, pixels=True, limits=limits)
    headers = headers_of(dataset, _name(source))
    if not any(keyword in dataset for keyword in PIXELS):
        raise DicomError(
            f"{_name(source)} has no pixels ({headers.modality or 'no modality'}): expected an image; leave it out"
        )
    return dataset, headers


def _known(index: int, count: int) -> int:
    if not 0 <= index < count:
        raise DicomError(f"there is no frame {index}: the file has {count}, counted from 0; choose one of them")
    return index


def _image(decoded: Decoded, dataset: pydicom.Dataset, index: int, headers: Headers) -> Image:
    own = dataset
    if headers.frames > 1 or "SharedFunctionalGroupsSequence" in dataset:
        own = frame_dataset(dataset, index)
        headers = replace(_parse(own), frames=headers.frames)
    values = real_world(decoded, own)
    if values.mirror is not None:
        headers = _mirrored(headers, values.mirror)
    return Image(np.ascontiguousarray(values.pixels), headers, values.padding, decoded.decoder)


def _mirrored(headers: Headers, total: float) -> Headers:
    window, table = headers.window, headers.voi_lut
    return replace(
        headers,
        window=mirrored_window(window, headers.voi_function, total) if window else None,
        voi_lut=table.mirrored(total) if table else None,
    )


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Name the file in an error; what decoding raises beyond our own errors is one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except DicomError as error:
            raise DicomError(f"{name}: {error}") from error
        except MemoryError as error:
            raise DicomError(f"{name} needs more memory than there is: leave it out, or give more") from error
        except FAULTS as error:
            raise DicomError(
                f"{name} has malformed attributes of its pixels ({type(error).__name__}): leave it out"
            ) from error


def _name(source: Path | BinaryIO) -> str:
    return str(source) if isinstance(source, Path) else "the object received"


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
        frames=frame_count(dataset),
        instance_number=None if number in (None, "") else int(number),
        window=first_window(dataset),
        voi_function=voi_function(dataset),
        voi_lut=voi_lut(dataset, little_endian=little_endian(dataset)),
    )
