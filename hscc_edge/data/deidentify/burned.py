"""Where text may be burnt into pixels: what the header says, and rows of small, sharp, equally high shapes.

This finds files that a person should look at. It reads no text, misses handwriting, small, rotated or faint text, and
whatever it does not list is not thereby free of text (PS3.15 E.3.1, Clean Pixel Data, is not claimed).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from scipy import ndimage

# modalities whose pictures often carry the patient's name (PS3.15 E.3.1 and its note on Burned In Annotation)
KNOWN = frozenset(["US", "IVUS", "SC", "OT", "XC", "ES", "GM", "DOC", "HC", "XA", "RF", "OP", "ECG", "DG", "TG", "RG"])
HEADS = frozenset(["CT", "MR", "PT"])
# of a letter: height and width in pixels, share of its box that it fills
HEIGHTS, WIDTHS, FILLS = (5, 48), (1, 48), (0.12, 0.95)
LETTERS = 5


def header_warnings(dataset: Dataset) -> list[str]:
    """Why the header of a data set lets one expect text or a face in its pixels."""
    if not any(keyword in dataset for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        return []
    found = []
    stated, modality = str(dataset.get("BurnedInAnnotation") or "").strip(), str(dataset.get("Modality") or "")
    if stated != "NO":
        found.append(f"Burned In Annotation is {stated}" if stated == "YES" else "Burned In Annotation is not stated")
    if modality in KNOWN:
        found.append(f"modality {modality} often carries burnt-in text")
    if "SECONDARY" in str(dataset.get("ImageType") or "") and modality not in KNOWN:
        found.append("Image Type SECONDARY: a screen or a film may have been captured")
    if modality in HEADS and str(dataset.get("RecognizableVisualFeatures") or "") != "NO":
        found.append("a face can be rebuilt from slices of a head")
    return found


def has_text_like(pixels: NDArray[np.float32]) -> bool:
    """Whether a picture holds rows of small shapes, sharp against what surrounds them, as letters are.

    Cost grows with the number of pixels, about 0.2 s for a megapixel.

    Args:
        pixels: (H, W) or (H, W, 3); a constant picture has none.
    """
    grey = pixels if pixels.ndim == 2 else pixels.max(axis=2)
    low, high = float(grey.min()), float(grey.max())
    if not high > low:
        return False
    scaled = (grey - low) / (high - low)
    return any(_has_row(_letters(mask)) for mask in (_strokes(scaled), _strokes(1 - scaled)))


def _strokes(scaled: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Thin bright shapes: far above the opening of the picture around them, and near the brightest level."""
    opened = ndimage.grey_opening(scaled, size=(9, 9))
    return np.asarray((scaled - opened > 0.4) & (scaled > 0.6))


def _letters(mask: NDArray[np.bool_]) -> Iterator[tuple[slice, slice]]:
    """Boxes of connected shapes of a letter's size and fill."""
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        height, width = (part.stop - part.start for part in box)
        if HEIGHTS[0] <= height <= HEIGHTS[1] and WIDTHS[0] <= width <= WIDTHS[1]:
            fill = float((labels[box] == number).mean())
            if FILLS[0] <= fill <= FILLS[1] or width <= 3:
                yield box


def _has_row(boxes: Iterator[tuple[slice, slice]]) -> bool:
    """Whether enough letters of like height follow one another on one line, upright."""
    found = sorted(boxes, key=lambda box: (box[0].stop, box[1].start))
    for first in found:
        height = first[0].stop - first[0].start
        row = sorted(
            (box for box in found
             if abs(box[0].stop - first[0].stop) <= max(1, height // 8)
             and abs((box[0].stop - box[0].start) - height) <= max(1, height // 3)),
            key=lambda box: box[1].start,
        )  # fmt: skip
        run = 1
        for before, after in pairwise(row):
            run = run + 1 if after[1].start - before[1].stop <= 2 * height else 1
            if run >= LETTERS:
                return True
    return False
