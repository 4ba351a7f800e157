"""Steps on values: windows, percentiles, ranges, channels. Each maps a `Sample` to a `Sample`, in numpy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hscc_edge.data.dicom import Headers
from hscc_edge.data.percentiles import percentiles
from hscc_edge.errors import ConfigError

Pixels = NDArray[np.float32]
WINDOWS = ("linear", "linear_exact", "sigmoid", "header")


@dataclass(frozen=True, slots=True)
class Sample:
    """What goes from step to step.

    Attributes:
        pixels: float32, (C, H, W) or (C, D, H, W).
        affine: (4, 4), index (d, h, w, 1) -> mm (LPS); None for an image.
        headers: None once the channels are repeated.
        padding: bool, (H, W) or (D, H, W), true where nothing was imaged; None where all was, or after a step on space.
    """

    pixels: Pixels
    affine: NDArray[np.float64] | None = None
    headers: Headers | None = None
    padding: NDArray[np.bool_] | None = None

    def holding(self, pixels: NDArray[np.floating]) -> Sample:
        """The same place with other values."""
        return dataclasses.replace(self, pixels=np.asarray(pixels, dtype=np.float32))


def window(sample: Sample, *, center: float | None = None, width: float | None = None, source: str = "values",
           function: str = "linear") -> Sample:  # fmt: skip
    """VOI window to 0..1, with center and width or from the header: its first, or the file's own range if it has none.

    Args:
        function: linear (PS3.3 C.11.2.1.2.1), linear_exact or sigmoid (C.11.2.1.3); "header" takes the table that the
            header has, or else the function that it names.
    """
    headers, pixels = sample.headers, sample.pixels
    if function == "header" and headers and headers.voi_lut:
        return sample.holding(headers.voi_lut(pixels) / np.float32((1 << headers.voi_lut.bits) - 1))
    if function == "header":
        function = headers.voi_function.lower() if headers else "linear"
    if source == "header":
        low, high = float(pixels.min()), float(pixels.max())
        found = headers.window if headers else None
        if found and function == "linear" and found[1] < 1:
            found = None
        center, width = found or ((low + high) / 2 + 0.5, high - low + 1)
    if center is None or width is None:
        raise ConfigError('the step window has neither center and width nor source = "header": give one of them')
    if function == "linear_exact":
        return sample.holding(np.clip((pixels - center) / width + 0.5, 0, 1))
    if function == "sigmoid":
        return sample.holding(0.5 + 0.5 * np.tanh(2 * (pixels - center) / width))
    scale = max(width - 1, 1e-6)
    return sample.holding(np.clip((pixels - (center - 0.5)) / scale + 0.5, 0, 1))


def percentile(sample: Sample, *, lower: float, upper: float, padding: str = "count") -> Sample:
    """The given percentiles of the image to 0 and 1, clipped; a flat image to 0.

    Args:
        padding: whether pixels where nothing was imaged "count" or not ("exclude").
    """
    seen = sample.pixels
    if padding == "exclude" and sample.padding is not None:
        seen = seen[:, ~sample.padding]
    low, high = percentiles(seen, (lower, upper))
    if high <= low:
        return sample.holding(np.zeros_like(sample.pixels))
    scaled = np.subtract(sample.pixels, low, dtype=np.float64)
    scaled /= high - low  # in place: a new array of this size costs more than the arithmetic
    return sample.holding(np.clip(scaled, 0, 1, out=scaled))


def scale_range(sample: Sample, *, a_min: float, a_max: float, b_min: float = 0.0, b_max: float = 1.0,
                clip: bool = False) -> Sample:  # fmt: skip
    """The values a_min..a_max to b_min..b_max, as MONAI's ScaleIntensityRange."""
    scaled = (sample.pixels - a_min) / (a_max - a_min) * (b_max - b_min) + b_min
    return sample.holding(np.clip(scaled, b_min, b_max) if clip else scaled)


def channels(sample: Sample, *, count: int) -> Sample:
    """Repeat one channel, or average three into one."""
    if len(sample.pixels) == count:
        return sample
    grey = sample.pixels.mean(axis=0, keepdims=True, dtype=np.float32)
    return sample.holding(np.repeat(grey, count, axis=0))


def normalise(sample: Sample, *, mean: Sequence[float], std: Sequence[float]) -> Sample:
    """(x - mean) / std, channel by channel."""
    ones = (1,) * (sample.pixels.ndim - 1)
    centre, scale = (np.asarray(value, dtype=np.float32).reshape(-1, *ones) for value in (mean, std))
    return sample.holding((sample.pixels - centre) / scale)
