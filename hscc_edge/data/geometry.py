"""Where a slice lies in the patient (PS3.3 C.7.6.2), and how slices lie on each other.

highdicom's `get_volume_positions` answers yes or no for a whole series; here the answer names the place and what to do,
with the core packages alone. The tests hold both, and SimpleITK, to the same voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pydicom
from numpy.typing import NDArray

from hscc_edge.errors import DicomError

Vector = tuple[float, float, float]
Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = ("sagittal", "coronal", "axial")
SAME_MM = 0.01
SAME_COSINE = 1e-3
REGULAR = 0.01


@dataclass(frozen=True, slots=True)
class Geometry:
    """The place of one slice, in mm of the patient's coordinates: x to the left, y to the back, z to the head (LPS).

    Attributes:
        origin: centre of the first pixel (ImagePositionPatient).
        row: unit vector along a row, the way the column index grows; `column`: along a column.
        spacing: mm between rows, and between columns (PixelSpacing).
    """

    origin: Vector
    row: Vector
    column: Vector
    spacing: tuple[float, float]

    @property
    def normal(self) -> Vector:
        """Unit vector across the slice: row x column."""
        x, y, z = np.cross(self.row, self.column)
        return float(x), float(y), float(z)

    @property
    def position(self) -> float:
        """mm along the normal."""
        return float(np.dot(self.origin, self.normal))

    @property
    def plane(self) -> Plane:
        """The anatomical plane that lies nearest."""
        return PLANES[int(np.argmax(np.abs(self.normal)))]

    def parallel(self, other: Geometry) -> bool:
        """Whether rows and columns point the same way, to a thousandth."""
        mine, its = (*self.row, *self.column), (*other.row, *other.column)
        return bool(np.abs(np.subtract(mine, its)).max() <= SAME_COSINE)


def geometry_of(dataset: pydicom.Dataset) -> Geometry | None:
    """The geometry that a data set's top-level attributes give; None where one is absent or empty.

    Raises:
        DicomError: if the attributes are no numbers, the cosines no right angle, or the spacing not above 0.
    """
    keywords = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
    raw = [dataset.get(keyword) for keyword in keywords]
    if any(value is None or value == "" or len(value) == 0 for value in raw if not isinstance(value, (int, float))):
        return None
    try:
        origin, cosines, spacing = ([float(number) for number in value] for value in raw)
    except (TypeError, ValueError):
        raise DicomError(f"a slice has a malformed {' or '.join(keywords)}: expected numbers; leave it out") from None
    if [len(origin), len(cosines), len(spacing)] != list(keywords.values()):
        raise DicomError(
            f"a slice has {len(origin)}, {len(cosines)} and {len(spacing)} numbers for {', '.join(keywords)}: "
            "expected 3, 6 and 2; leave it out"
        )
    _check([*origin, *cosines, *spacing], cosines, spacing)
    row, column = np.asarray(cosines[:3]), np.asarray(cosines[3:])
    return Geometry(
        _vector(origin),
        _vector(row / np.linalg.norm(row)),
        _vector(column / np.linalg.norm(column)),
        (spacing[0], spacing[1]),
    )


def _check(numbers: Sequence[float], cosines: Sequence[float], spacing: Sequence[float]) -> None:
    row, column = np.asarray(cosines[:3]), np.asarray(cosines[3:])
    finite = all(math.isfinite(number) for number in numbers)
    unit = finite and all(abs(float(np.linalg.norm(side)) - 1) < 0.01 for side in (row, column))
    if not unit or abs(float(np.dot(row, column))) > 0.01:
        raise DicomError(
            "a slice has an ImageOrientationPatient that is not two unit vectors at a right angle (PS3.3 C.7.6.2.1.1): "
            "leave it out"
        )
    if min(spacing) <= 0:
        raise DicomError(f"a slice has PixelSpacing {list(spacing)}: expected millimetres above 0; leave it out")


def _vector(numbers: Any) -> Vector:
    x, y, z = (float(number) for number in numbers)
    return x, y, z


@dataclass(frozen=True, slots=True)
class Stack:
    """How parallel slices lie on each other.

    Attributes:
        slots: the place of each slice along the normal, from 0; slices at one position share it.
        depth: number of places, the empty ones counted.
        spacing_mm: mm between places, along the normal.
        origin: of the slice at place 0.
        gaps: (place before, slices that are missing, mm before, mm after) of each gap.
        irregular: (mm before, mm after) of the first step that is no whole number of spacings, if there is one.
        drift: (D, 2) mm by which each place lies along column and row from place 0.
    """

    slots: tuple[int, ...]
    depth: int
    spacing_mm: float
    origin: Vector
    gaps: tuple[tuple[int, int, float, float], ...]
    irregular: tuple[float, float] | None
    drift: NDArray[np.float64]

    @property
    def empty(self) -> tuple[int, ...]:
        """The places without a slice."""
        return tuple(place + i for place, missing, _, _ in self.gaps for i in range(1, missing + 1))

    @property
    def tilt_deg(self) -> float:
        """Angle between the stack and the normal of its slices."""
        height = self.spacing_mm * (self.depth - 1)
        return math.degrees(math.atan2(float(np.hypot(*self.drift[-1])), height)) if height else 0.0


def stack_of(slices: Sequence[Geometry], *, close: bool = False, thickness: float = 0.0) -> Stack:
    """How parallel slices lie, in any order; cost grows as n log n.

    Positions closer than SAME_MM are one place; a step is regular if it is a whole number of spacings (the median step,
    or else the smallest) to a hundredth of it. A slice that is missing at either end leaves no trace.

    Args:
        close: leave out the gaps: places are numbered as they come.
        thickness: spacing of a stack of one place, in mm.

    Raises:
        DicomError: if the slices do not lie on one line, to half a pixel.
    """
    levels, own = _levels([item.position for item in slices])
    steps = np.diff(levels)
    spacing, counts, faults = _spacing(steps) if len(steps) else (thickness, np.zeros(0, int), np.zeros(0, int))
    if close:
        counts = np.ones_like(counts)
    places = np.concatenate([[0], np.cumsum(counts)]).astype(int)
    depth = int(places[-1]) + 1
    slots = tuple(int(places[level]) for level in own)
    first = slices[slots.index(0)]
    return Stack(
        slots=slots,
        depth=depth,
        spacing_mm=float(levels[-1] - levels[0]) / (depth - 1) if depth > 1 and not close else spacing,
        origin=first.origin,
        gaps=tuple(
            (int(places[i]), int(counts[i]) - 1, float(levels[i]), float(levels[i + 1]))
            for i in np.flatnonzero(counts > 1)
        ),
        irregular=(float(levels[faults[0]]), float(levels[faults[0] + 1])) if len(faults) else None,
        drift=_drift(slices, first) * np.interp(np.arange(depth), places, _share(levels))[:, None],
    )


def _levels(positions: Sequence[float]) -> tuple[NDArray[np.float64], list[int]]:
    """The distinct positions from low to high, and the index of each slice's own."""
    levels: list[float] = []
    own = [0] * len(positions)
    for index in np.argsort(positions, kind="stable"):
        if not levels or positions[index] - levels[-1] > SAME_MM:
            levels.append(positions[index])
        own[int(index)] = len(levels) - 1
    return np.asarray(levels), own


def _spacing(steps: NDArray[np.float64]) -> tuple[float, NDArray[np.int_], NDArray[np.int_]]:
    """The spacing, how many of it each step has, and which steps have no whole number."""
    ranked = np.sort(steps)
    median = float(ranked[(len(steps) - 1) // 2])
    for spacing in (median, float(ranked[0])):
        counts = np.maximum(np.rint(steps / spacing), 1).astype(int)
        faults = np.flatnonzero(np.abs(steps - counts * spacing) > REGULAR * spacing + SAME_MM)
        if not len(faults):
            return spacing, counts, faults
    counts = np.maximum(np.rint(steps / median), 1).astype(int)
    return median, counts, np.flatnonzero(np.abs(steps - counts * median) > REGULAR * median + SAME_MM)


def _share(levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far along the stack each level is, from 0 to 1."""
    return np.asarray((levels - levels[0]) / max(float(levels[-1] - levels[0]), SAME_MM))


def _drift(slices: Sequence[Geometry], first: Geometry) -> NDArray[np.float64]:
    """mm along column and row from the first slice to the last; refuses slices off the line between."""
    offsets = np.asarray([np.subtract(item.origin, first.origin) for item in slices])
    across, along = offsets @ np.asarray([first.column, first.row]).T, offsets @ np.asarray(first.normal)
    last = across[int(np.argmax(along))]
    share = along / max(float(along.max()), SAME_MM)
    apart = np.abs(across - share[:, None] * last) / first.spacing
    if apart.max() > 0.5:
        raise DicomError(
            f"the slices of the series do not lie on one line: one is {apart.max():.1f} pixels aside, expected at most "
            "0.5; read its parts one by one"
        )
    return np.asarray(last, dtype=np.float64)
