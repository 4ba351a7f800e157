"""Stored samples -> real-world values: modality LUT, palette, colour space, padding, and which end is bright."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels.processing import convert_color_space
from pydicom.uid import ExplicitVRBigEndian

from hscc_edge.data.decoders import Decoded
from hscc_edge.data.lookup import lut_of, palette_of
from hscc_edge.errors import DicomError

FLOAT_EXACT = 1 << 24
YBR = ("YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
PADDING = {
    "f4": ("FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit"),
    "f8": ("DoubleFloatPixelPaddingValue", "DoubleFloatPixelPaddingRangeLimit"),
}


@dataclass(frozen=True, slots=True)
class Values:
    """Real-world values of one frame.

    Attributes:
        pixels: float32, (H, W) or (H, W, 3), finite.
        padding: bool, (H, W), true where nothing was imaged; None where everything was.
        mirror: for MONOCHROME1, the number from which its values were subtracted.
    """

    pixels: NDArray[np.float32]
    padding: NDArray[np.bool_] | None
    mirror: float | None


def real_world(decoded: Decoded, frame: Dataset) -> Values:
    """Values of a decoded frame, by its own attributes (`frames.frame_dataset`); memory: a few times its pixels.

    Greyscale: the modality LUT or rescale (PS3.3 C.11.1; DoseGridScaling of an RT dose), then MONOCHROME1 subtracted
    from what its stored bits span, so that larger is brighter; a slope of 0 counts as 1. RealWorldValueMappingSequence
    is not applied. Padding (PixelPaddingValue to its RangeLimit, compared with the stored samples, PS3.3
    C.7.5.1.1.2, and samples that are not finite) gets the least value of the other pixels and is told in `padding`;
    where all would be padding, none is. Colour: RGB as stored; of a palette's 16 bits the upper 8, as dcmtk shows it.

    Raises:
        DicomError: if a colour space is not supported.
        ValueError, TypeError, AttributeError: if an attribute is malformed.
    """
    if decoded.photometric == "PALETTE COLOR":
        return Values(_coloured(decoded.samples, frame), None, None)
    if decoded.samples.ndim == 3:
        return Values(_rgb(decoded), None, None)
    padding = _padding(decoded.samples, frame)
    pixels, span = _modality(decoded.samples, frame)
    mirror = None
    if decoded.photometric == "MONOCHROME1":
        mirror = sum(span)
        pixels = np.asarray(mirror - pixels, dtype=np.float32)
    elif decoded.photometric != "MONOCHROME2":
        raise DicomError(f"it has one sample a pixel and calls that {decoded.photometric!r}: leave it out")
    return Values(*_filled(pixels, padding), mirror)


def little_endian(dataset: Dataset) -> bool:
    """The byte order of words in its OW elements."""
    return getattr(dataset, "file_meta", {}).get("TransferSyntaxUID") != ExplicitVRBigEndian


def _coloured(samples: NDArray[np.integer], frame: Dataset) -> NDArray[np.float32]:
    tables = palette_of(frame, little_endian=little_endian(frame))
    return np.floor(np.stack([table(samples) for table in tables], axis=-1) / (1 << (tables[0].bits - 8)))


def _rgb(decoded: Decoded) -> NDArray[np.float32]:
    samples, space = decoded.samples, decoded.photometric
    if space in YBR and samples.dtype == np.uint8:
        samples, space = convert_color_space(samples, "YBR_FULL", "RGB"), "RGB"
    if space != "RGB":
        raise DicomError(f"it has colours as {space!r} in {samples.dtype}: expected RGB or YBR of 8 bits; convert it")
    return samples.astype(np.float32)


def _modality(samples: NDArray[np.number], frame: Dataset) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """Values after the modality LUT, and the least and greatest that the stored bits can have."""
    low, high = _span(samples, frame)
    if items := frame.get("ModalityLUTSequence"):
        table = lut_of(items[0], little_endian=little_endian(frame), signed=samples.dtype.kind == "i")
        return table(samples), (0.0, float((1 << table.bits) - 1))
    slope = float(_number(frame, "RescaleSlope") or _number(frame, "DoseGridScaling") or 1.0)
    intercept = float(_number(frame, "RescaleIntercept") or 0.0)
    span = slope * low + intercept, slope * high + intercept
    if not max(abs(value) for value in span) < np.finfo(np.float32).max:
        raise ValueError(f"a rescale to {span}")
    exact = slope == 1.0 and intercept.is_integer() and max(map(abs, (low, high, *span))) <= FLOAT_EXACT
    values = samples.astype(np.float32 if exact or samples.dtype == np.float32 else np.float64)
    if slope != 1.0:
        np.multiply(values, slope, out=values)
    if intercept:
        np.add(values, intercept, out=values)
    return values.astype(np.float32, copy=False), span


def _number(frame: Dataset, keyword: str) -> float | None:
    value = frame.get(keyword)
    return None if value is None or value == "" else float(value)


def _span(samples: NDArray[np.number], frame: Dataset) -> tuple[float, float]:
    if samples.dtype.kind == "f":
        return 0.0, 0.0
    bits = int(frame.get("BitsStored") or 8 * samples.dtype.itemsize)
    return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if samples.dtype.kind == "i" else (0.0, 2.0**bits - 1)


def _padding(samples: NDArray[np.number], frame: Dataset) -> NDArray[np.bool_] | None:
    kind = samples.dtype.kind + str(samples.dtype.itemsize)
    keywords = PADDING.get(kind, ("PixelPaddingValue", "PixelPaddingRangeLimit"))
    ends = [_in_cell(end, samples) for end in (_number(frame, keyword) for keyword in keywords) if end is not None]
    masks = []
    if samples.dtype.kind == "f":
        masks.append(~np.isfinite(samples))
        if masks[0].all():
            raise ValueError("no sample is finite")
    if ends and frame.get(keywords[0]) is not None:
        padding = (samples >= min(ends)) & (samples <= max(ends))
        masks.append(masks[0] | padding if masks else padding)
    return next((mask for mask in reversed(masks) if mask.any() and not mask.all()), None)


def _in_cell(value: float, samples: NDArray[np.number]) -> float:
    """Writers give a negative padding value as the unsigned number with the same bits."""
    cell = 8 * samples.dtype.itemsize
    return value - 2.0**cell if samples.dtype.kind == "i" and value >= 2.0 ** (cell - 1) else value


def _filled(
    pixels: NDArray[np.float32], padding: NDArray[np.bool_] | None
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    if padding is None:
        return pixels, None
    pixels[padding] = pixels[~padding].min()
    return pixels, padding
