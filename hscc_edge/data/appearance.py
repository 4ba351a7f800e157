"""What an image looks like, in numbers that say nothing of its patient: what a change of scanner or protocol moves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean

import numpy as np
import pydicom
from numpy.typing import NDArray

from hscc_edge.data.dicom import FAULTS, Image
from hscc_edge.data.percentiles import percentiles
from hscc_edge.data.volume import Volume

FEATURES = ("window_centre", "window_width", "spacing_mm", "brightness", "contrast", "noise")
CROP, STEP = 128, 2
GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")


def appearance(image: Image | Volume, spacing_mm: float | None) -> dict[str, float]:
    """Some of FEATURES; what the file does not say is left out. Of a volume, its middle slice.

    Brightness is the median, contrast the range from the 1st to the 99th percentile, noise a share of the contrast,
    after Immerkaer (1996, Computer Vision and Image Understanding 64:300), in the middle of the picture.
    """
    plane = image.pixels[len(image.pixels) // 2] if isinstance(image, Volume) else image.pixels
    grey = plane.mean(axis=-1) if plane.ndim == 3 else plane
    low, middle, high = percentiles(grey[::STEP, ::STEP], (1, 50, 99))
    found = {"brightness": middle, "contrast": high - low}
    if high > low:
        found["noise"] = _noise(grey) / (high - low)
    if image.headers.window is not None:
        found["window_centre"], found["window_width"] = image.headers.window
    if spacing_mm:
        found["spacing_mm"] = spacing_mm
    return {name: float(value) for name, value in found.items() if np.isfinite(value)}


def mean_appearance(looks: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Of a case's images: each feature's mean over those that have it."""
    found: dict[str, list[float]] = {}
    for look in looks:
        for name, value in look.items():
            found.setdefault(name, []).append(value)
    return {name: fmean(values) for name, values in found.items()}


def row_spacing_mm(dataset: pydicom.Dataset) -> float | None:
    """Millimetres from row to row (PS3.3 10.7.1.3), of the first frame; None where the headers do not say."""
    try:
        for place in (dataset, *_measures(dataset)):
            for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
                value = place.get(keyword)
                if value:
                    return float(value[0])
    except FAULTS:
        return None
    return None


def _measures(dataset: pydicom.Dataset) -> list[pydicom.Dataset]:
    items = [dataset[name][0] for name in GROUPS if name in dataset and len(dataset[name].value)]
    return [item.PixelMeasuresSequence[0] for item in items if item.get("PixelMeasuresSequence")]


def _noise(grey: NDArray[np.float32]) -> float:
    """Standard deviation of the noise: what of a picture is neither flat nor an edge."""
    top, left = (max((side - CROP) // 2, 0) for side in grey.shape)
    part = grey[top : top + CROP, left : left + CROP]
    if min(part.shape) < 3:
        return 0.0
    rows = part[:-2] - 2 * part[1:-1] + part[2:]
    both = rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:]
    return float(np.sqrt(np.pi / 2) / 6 * np.abs(both).mean())
