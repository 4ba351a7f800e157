"""A few images of every class: their grey values, and a contact sheet."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageOps
from numpy.typing import NDArray

from hscc_edge.data.cohort import Cohort, Instance
from hscc_edge.errors import DicomError

PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)
SIDE, GAP, CAPTION = 112, 4, 14
PAPER, INK = 255, 40


@dataclass(frozen=True, slots=True)
class Sample:
    """Images of one class.

    Attributes:
        splits: of each image.
        quantiles: (n, len(PERCENTILES)) of each image's values, after the modality LUT.
        thumbs: uint8 (SIDE, SIDE) each.
        unreadable: files that were tried and could not be read.
    """

    label: str
    splits: tuple[str, ...]
    quantiles: NDArray[np.float64]
    thumbs: tuple[NDArray[np.uint8], ...]
    unreadable: int


def sample(cohort: Cohort, per_class: int = 8) -> list[Sample]:
    """Up to `per_class` images of each class, spread evenly over the table; one is in memory at a time."""
    found = []
    for label in cohort.classes:
        members = [item for item in cohort.instances if item.label == label]
        places = {round(place) for place in np.linspace(0, len(members) - 1, per_class)} if members else set()
        found.append(_sample(cohort, label, [members[place] for place in sorted(places)]))
    return found


def _sample(cohort: Cohort, label: str, items: list[Instance]) -> Sample:
    splits, quantiles, thumbs, unreadable = [], [], [], 0
    for item in items:
        try:
            pixels = cohort.read(item).pixels
        except DicomError:
            unreadable += 1
            continue
        grey = pixels.mean(axis=-1) if pixels.ndim == 3 else pixels
        splits.append(item.split)
        quantiles.append(np.percentile(grey, PERCENTILES))
        thumbs.append(_thumb(grey))
    return Sample(label, tuple(splits), np.array(quantiles), tuple(thumbs), unreadable)


def _thumb(grey: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The image within a square, its 1st to 99th percentile from black to white."""
    low, high = np.percentile(grey, (1, 99))
    levels = np.clip((grey - low) / max(high - low, 1e-6), 0, 1)
    picture = PIL.ImageOps.contain(PIL.Image.fromarray((255 * levels).astype(np.uint8)), (SIDE, SIDE))
    square = PIL.Image.new("L", (SIDE, SIDE), 0)
    square.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    return np.asarray(square)


def contact_sheet(samples: list[Sample]) -> bytes:
    """A PNG with a row a class, each image's split below it; its pixels may show burnt-in text."""
    columns = max((len(found.thumbs) for found in samples), default=0)
    height = len(samples) * (SIDE + CAPTION + GAP)
    sheet = PIL.Image.new("L", (max(columns, 1) * (SIDE + GAP), max(height, 1)), PAPER)
    draw = PIL.ImageDraw.Draw(sheet)
    for row, found in enumerate(samples):
        for column, (thumb, split) in enumerate(zip(found.thumbs, found.splits, strict=True)):
            left, top = column * (SIDE + GAP), row * (SIDE + CAPTION + GAP)
            sheet.paste(PIL.Image.fromarray(thumb), (left, top))
            draw.text((left + 2, top + SIDE + 1), f"{found.label[:12]} {split}", fill=INK)
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    return file.getvalue()
