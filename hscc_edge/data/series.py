"""From the files of a series to one volume, ordered by where the slices lie: never by file name or InstanceNumber.

A fault of the series is refused in one sentence, or mended as `VolumeRules` say. What is missing at either end of a
series leaves no trace in its geometry: ask for `minimum_slices`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hscc_edge.data.dicom import Image, read_frames
from hscc_edge.data.geometry import PLANES, Geometry, Stack, stack_of
from hscc_edge.data.slices import GROUPS, Slice, check_alike, geometry_in, one_group, slices_of
from hscc_edge.data.volume import Volume
from hscc_edge.errors import ConfigError, DicomError

MAX_VOXELS = 1 << 29
MOST_FILLED = 0.1


@dataclass(frozen=True, slots=True)
class VolumeRules:
    """How a series becomes a volume.

    Attributes:
        plane: keep only slices of this plane (axial, coronal, sagittal); "" expects one orientation.
        group: which image to take where several share each position (echoes, time points, b-values), from 1, in the
            order of GROUPS; 0 expects one.
        missing: a gap is refused ("refuse"), filled by linear interpolation between its neighbours ("fill", at most
            one slice in ten), or left out ("allow": positions beyond it are then wrong).
        tilt: slices that lean (gantry tilt) are refused ("refuse"), or shifted within their planes onto an upright
            grid, wide enough for all ("resample").
        minimum_slices: fewer are refused.
    """

    plane: str = ""
    group: int = 0
    missing: str = "refuse"
    tilt: str = "refuse"
    minimum_slices: int = 1


RULES = VolumeRules()
CHOICES: dict[str, tuple[str, ...]] = {
    "plane": ("", *PLANES),
    "missing": ("refuse", "fill", "allow"),
    "tilt": ("refuse", "resample"),
}


@dataclass(frozen=True, slots=True)
class SeriesRules:
    """Which series of a case is read; a rule that is empty leaves all.

    Attributes:
        modality: as in the header: MR, CT, ...
        description: a regular expression that SeriesDescription holds, in any case; `exclude`: one that it does not.
        plane: of most of its slices: axial, coronal or sagittal.
        contrast: whether a contrast agent is named.
        minimum_slices: localisers are not counted.
    """

    modality: str = ""
    description: str = ""
    exclude: str = ""
    plane: str = ""
    contrast: bool | None = None
    minimum_slices: int = 1


def read_volume(paths: Iterable[Path], rules: VolumeRules = RULES) -> Volume:
    """Read the files of one series, single-frame or multi-frame, in any order.

    Two passes: headers, then pixels into their places. Memory: the volume in float32, and one slice; time grows with
    the bytes of the files.

    Raises:
        DicomError: if a file cannot be read, or the slices are no volume by the rules.
    """
    found = [item for path in paths for item in slices_of(path)]
    kept = [item for item in found if not item.localiser and _in_plane(item, rules.plane)]
    if len(kept) < max(rules.minimum_slices, 1):
        raise DicomError(
            f"the series has {len(kept)} slices, {len(found) - len(kept)} more set apart: expected at least "
            f"{max(rules.minimum_slices, 1)}; fetch all of it"
        )
    check_alike(kept)
    kept = sorted(one_group(kept, rules.group), key=lambda item: (str(item.source), item.frame))
    stack = _stack(kept, rules)
    if (places := len(set(stack.slots))) < rules.minimum_slices:
        raise DicomError(
            f"the series has slices at {places} positions: expected at least {rules.minimum_slices}; fetch all of it"
        )
    return dataclasses.replace(_read(kept, stack), apart=len(found) - len(kept))


def _in_plane(item: Slice, plane: str) -> bool:
    return not plane or (item.geometry is not None and item.geometry.plane == plane)


def _stack(slices: Sequence[Slice], rules: VolumeRules) -> Stack:
    """How the slices lie; refuses gaps, uneven steps and tilt, as the rules say."""
    thickness = max(item.thickness_mm for item in slices)
    stack = stack_of([geometry_in(item) for item in slices], close=rules.missing == "allow", thickness=thickness)
    if stack.spacing_mm <= 0:
        raise DicomError("the series has one position and no slice thickness: a volume needs one; read it as an image")
    if stack.irregular and rules.missing != "allow":
        low, high = stack.irregular
        raise DicomError(
            f"the slices at {low:.2f} and {high:.2f} mm are {high - low:.2f} mm apart, others {stack.spacing_mm:.2f}: "
            "expected even steps; read the parts one by one, or allow missing slices"
        )
    if stack.gaps and rules.missing == "refuse":
        place, missing, low, high = stack.gaps[0]
        raise DicomError(
            f"the series lacks {missing} slice(s) between {low:.2f} and {high:.2f} mm (after slice {place + 1}), and "
            f"{len(stack.empty)} of {stack.depth} in all: fetch all of the series, or fill missing slices"
        )
    if len(stack.empty) > MOST_FILLED * stack.depth:
        raise DicomError(
            f"the series lacks {len(stack.empty)} of {stack.depth} slices: at most one in ten is filled; fetch it all"
        )
    if rules.tilt == "refuse" and _leans(stack, geometry_in(slices[0])):
        raise DicomError(
            f"the slices are tilted by {stack.tilt_deg:.1f} degrees against their stack (gantry tilt): expected "
            "upright ones; resample them by the rule tilt"
        )
    return stack


def _leans(stack: Stack, geometry: Geometry) -> bool:
    """Whether first and last slice are aside of each other by more than a pixel."""
    return bool((np.abs(stack.drift[-1]) > geometry.spacing).any())


def _read(slices: Sequence[Slice], stack: Stack) -> Volume:
    geometry, canvas = geometry_in(slices[0]), _canvas(slices[0], stack)
    size = (stack.depth, *canvas.size)
    if math.prod(size) > MAX_VOXELS:
        raise DicomError(
            f"the volume would have {size} voxels: expected at most {MAX_VOXELS}; read a part of the series"
        )
    pixels, padding = np.empty(size, dtype=np.float32), None
    if canvas.shifts is not None:
        padding = np.stack([canvas.outside(slices[0].shape, slot) for slot in range(stack.depth)])
    sources: list[tuple[Path, int] | None] = [None] * stack.depth
    headers, duplicates = None, 0
    middle = slices[stack.slots.index(sorted(stack.slots)[len(slices) // 2])]
    slots = {(item.source, item.frame): slot for slot, item in zip(stack.slots, slices, strict=True)}
    for key, image in _images(slots):
        slot, plane = slots[key], _grey(image.pixels, slices[0].shape)
        placed = canvas.place(plane, slot)
        if sources[slot] is None:
            sources[slot], pixels[slot] = key, placed
        elif np.array_equal(pixels[slot], placed):
            duplicates += 1
        else:
            raise DicomError(
                f"two slices at {slot * stack.spacing_mm:.2f} mm from the first have different pixels, and nothing "
                f"tells them apart ({', '.join(GROUPS[:5])} ...): leave one of them out"
            )
        if image.padding is not None and padding is None:
            padding = np.zeros(size, dtype=bool)
        if image.padding is not None and padding is not None:
            padding[slot] |= canvas.place(image.padding.astype(np.float32), slot) > 0.5
        if key == (middle.source, middle.frame):
            headers = image.headers
    if headers is None or sources.count(None) != len(stack.empty):
        raise DicomError("a file of the series has fewer frames than its header claims: fetch it again")
    for place, missing, _, _ in stack.gaps:
        _fill(pixels, place, missing)
    spacing, affine = (stack.spacing_mm, *geometry.spacing), canvas.affine(stack, geometry)
    return Volume(
        pixels, spacing, affine, headers, tuple(sources), duplicates, tilt_deg=stack.tilt_deg, padding=padding
    )


def _images(wanted: Mapping[tuple[Path, int], int]) -> Iterator[tuple[tuple[Path, int], Image]]:
    """The frames asked for, file by file, one at a time."""
    for path in dict.fromkeys(source for source, _ in wanted):
        for frame, image in enumerate(read_frames(path)):
            if (path, frame) in wanted:
                yield (path, frame), image


def _grey(pixels: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    if pixels.shape != shape:
        raise DicomError(
            f"a slice has pixels of shape {pixels.shape}: expected {shape}, one grey value each; read it as an image"
        )
    return pixels


def _fill(pixels: NDArray[np.float32], place: int, missing: int) -> None:
    """The slices of a gap on the line between its neighbours."""
    low, high = pixels[place], pixels[place + missing + 1]
    for step in range(1, missing + 1):
        pixels[place + step] = low + (high - low) * np.float32(step / (missing + 1))


@dataclass(frozen=True, slots=True)
class Canvas:
    """The grid that slices are laid on: their own, or for tilted ones a wider one that holds them all upright.

    Attributes:
        size: its rows and columns.
        corner: mm along column and row from the first slice's origin to the canvas's.
        shifts: (D, 2) pixels by which each slice is moved on it; None for none.
    """

    size: tuple[int, int]
    corner: NDArray[np.float64]
    shifts: NDArray[np.float64] | None

    def place(self, plane: NDArray[np.float32], slot: int) -> NDArray[np.float32]:
        """A slice on the canvas, by linear interpolation; around it its smallest value."""
        return plane if self.shifts is None else self._moved(plane, slot, float(plane.min()))

    def outside(self, shape: tuple[int, int], slot: int) -> NDArray[np.bool_]:
        """Where a slice of `shape` leaves the canvas empty."""
        if self.shifts is None:
            return np.zeros(self.size, dtype=bool)
        return self._moved(np.ones(shape, dtype=np.float32), slot, 0.0) < 0.5

    def _moved(self, plane: NDArray[np.float32], slot: int, around: float) -> NDArray[np.float32]:
        from scipy import ndimage  # a third of a second, which upright series need not pay

        wide = np.full(self.size, around, dtype=np.float32)
        wide[: plane.shape[0], : plane.shape[1]] = plane
        shift = self.shifts[slot] if self.shifts is not None else 0
        return np.asarray(ndimage.shift(wide, shift, order=1, mode="grid-constant", cval=around), dtype=np.float32)

    def affine(self, stack: Stack, geometry: Geometry) -> NDArray[np.float64]:
        """Index (d, h, w) on the canvas -> mm, LPS."""
        across = np.asarray([geometry.column, geometry.row])
        step = np.asarray(geometry.normal) * stack.spacing_mm
        if self.shifts is None and stack.depth > 1:
            step = step + stack.drift[-1] @ across / (stack.depth - 1)
        affine = np.eye(4)
        affine[:3, 0] = step
        affine[:3, 1:3] = across.T * geometry.spacing
        affine[:3, 3] = stack.origin + self.corner @ across
        return affine


def _canvas(item: Slice, stack: Stack) -> Canvas:
    geometry = geometry_in(item)
    if not _leans(stack, geometry):
        return Canvas(item.shape, np.zeros(2), None)
    corner = stack.drift.min(axis=0)
    shifts = (stack.drift - corner) / geometry.spacing
    rows, columns = (size + int(np.ceil(extra)) for size, extra in zip(item.shape, shifts.max(axis=0), strict=True))
    return Canvas((rows, columns), corner, shifts)


def choose(slices: Iterable[Slice], rules: SeriesRules) -> list[Slice]:
    """The slices of the one series of a case that fits the rules.

    Raises:
        DicomError: if none fits, or several do; with counts, without names.
    """
    series: dict[str, list[Slice]] = {}
    for item in slices:
        series.setdefault(item.series, []).append(item)
    fitting, left = list(series.values()), [f"{len(series)} in all"]
    for name, fits in FITS.items():
        if getattr(rules, name) not in ("", None):
            fitting = [items for items in fitting if fits(items, getattr(rules, name))]
            left.append(f"{len(fitting)} after {name}")
    if not fitting:
        raise DicomError(f"no series of the case fits the rules ({', '.join(left)}): loosen the rule that leaves none")
    if len(fitting) > 1:
        counts = ", ".join(str(len(items)) for items in sorted(fitting, key=len, reverse=True))
        raise DicomError(
            f"{len(fitting)} series of the case fit the rules, of {counts} slices ({', '.join(left)}): expected one; "
            "add a rule"
        )
    return fitting[0]


FITS: dict[str, Callable[[list[Slice], Any], bool]] = {
    "modality": lambda items, wanted: items[0].modality == wanted,
    "description": lambda items, wanted: bool(re.search(wanted, items[0].description, re.IGNORECASE)),
    "exclude": lambda items, wanted: not re.search(wanted, items[0].description, re.IGNORECASE),
    "plane": lambda items, wanted: 2 * sum(_in_plane(item, wanted) for item in items) > len(items),
    "contrast": lambda items, wanted: any(item.contrast for item in items) == wanted,
    "minimum_slices": lambda items, wanted: sum(not item.localiser for item in items) >= wanted,
}


def parse_volume_rules(raw: Mapping[str, Any]) -> VolumeRules:
    """Rules from a TOML table.

    Raises:
        ConfigError: if a key is unknown or a value is none that it may have.
    """
    return VolumeRules(**_checked(raw, VolumeRules))


def parse_series_rules(raw: Mapping[str, Any]) -> SeriesRules:
    """Rules from a TOML table.

    Raises:
        ConfigError: if a key is unknown or a value is none that it may have.
    """
    return SeriesRules(**_checked(raw, SeriesRules))


def _checked(raw: Mapping[str, Any], rules: type) -> dict[str, Any]:
    known: dict[str, Any] = {item.name: item.default for item in dataclasses.fields(rules)}
    for key, value in raw.items():
        if key not in known:
            raise ConfigError(f"the rules of a series have the unknown key {key!r}: expected one of {', '.join(known)}")
        kind = bool if known[key] is None else type(known[key])
        if type(value) is not kind or (kind is int and value < 0):
            raise ConfigError(f"the rule {key} of a series is {value!r}: expected a {kind.__name__}, not below 0")
        if value not in CHOICES.get(key, (value,)):
            raise ConfigError(f"the rule {key} of a series is {value!r}: expected one of {', '.join(CHOICES[key])}")
        if key in ("description", "exclude"):
            _compiled(value, key)
    return dict(raw)


def _compiled(pattern: Any, key: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"the rule {key} of a series is no regular expression ({error}): mend it") from error
