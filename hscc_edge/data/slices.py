"""What the headers of a series say of its slices: where each lies, how its values are read, what tells it apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom

from hscc_edge.data.dicom import FAULTS, read_dataset
from hscc_edge.data.facts import quiet
from hscc_edge.data.frames import frame_count, frame_dataset
from hscc_edge.data.geometry import Geometry, geometry_of, stack_of
from hscc_edge.errors import DicomError

Fact = tuple[float, str]
# What may tell images at one position apart: time, echo, diffusion, kind of value. The surest stand first.
GROUPS = (
    "TemporalPositionIndex", "TemporalPositionIdentifier", "EchoNumbers", "EchoTime", "DiffusionBValue",
    "DiffusionGradientOrientation", "InversionTime", "TriggerTime", "ComplexImageComponent", "ImageType",
    "AcquisitionNumber", "AcquisitionTime",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Slice:
    """What is asked of one frame before its pixels are read.

    Attributes:
        unit: how its values are to be read: photometric interpretation, RescaleType, whether it is rescaled at all.
        facts: in the order of GROUPS.
    """

    source: Path = field(repr=False)
    frame: int
    series: str = field(repr=False)
    reference: str = field(repr=False)
    geometry: Geometry | None
    shape: tuple[int, int]
    unit: tuple[str, str, bool]
    localiser: bool
    thickness_mm: float
    facts: tuple[Fact, ...]
    modality: str
    description: str = field(repr=False)
    contrast: bool


def slices_of(path: Path) -> list[Slice]:
    """What the headers of a file say of each of its frames; the pixels stay unread.

    Raises:
        DicomError: if the file or its geometry is malformed.
    """
    dataset = read_dataset(path, pixels=False)
    with quiet():
        try:
            return [_slice(path, index, frame_dataset(dataset, index)) for index in range(frame_count(dataset))]
        except DicomError as error:
            raise DicomError(f"{path}: {error}") from error
        except FAULTS as error:
            raise DicomError(f"{path} has malformed headers ({type(error).__name__}): leave it out") from error


def _slice(path: Path, index: int, dataset: pydicom.Dataset) -> Slice:
    def text(keyword: str) -> str:
        return str(dataset.get(keyword) or "").strip()

    agent = text("ContrastBolusAgent").upper()
    return Slice(
        source=path,
        frame=index,
        series=text("SeriesInstanceUID"),
        reference=text("FrameOfReferenceUID"),
        geometry=geometry_of(dataset),
        shape=(_number(dataset, "Rows"), _number(dataset, "Columns")),
        unit=(text("PhotometricInterpretation"), text("RescaleType"), "RescaleSlope" in dataset),
        localiser="LOCALIZER" in [str(part).upper() for part in dataset.get("ImageType") or ()],
        thickness_mm=_first(dataset, "SpacingBetweenSlices") or _first(dataset, "SliceThickness"),
        facts=tuple(_fact(keyword, dataset.get(keyword)) for keyword in GROUPS),
        modality=text("Modality"),
        description=text("SeriesDescription"),
        contrast=agent not in ("", "NO", "NONE", "N"),
    )


def _number(dataset: pydicom.Dataset, keyword: str) -> int:
    return int(_first(dataset, keyword))


def _first(dataset: pydicom.Dataset, keyword: str) -> float:
    """The first number of an attribute; 0 where there is none."""
    value = dataset.get(keyword)
    try:
        return float(value[0] if isinstance(value, (list, pydicom.multival.MultiValue)) else value)
    except (TypeError, ValueError, IndexError):
        return 0.0


def _fact(keyword: str, value: Any) -> Fact:
    """A value that compares with others of its attribute: numbers by size, to a thousandth, before words."""
    parts = list(value) if isinstance(value, pydicom.multival.MultiValue) else [value]
    parts = parts[2:] if keyword == "ImageType" else parts
    rest = "\\".join(str(part or "") for part in parts[1:])
    try:
        return round(float(parts[0]), 3), rest
    except (TypeError, ValueError, IndexError):
        return 0.0, "\\".join(str(part or "") for part in parts)


def check_alike(slices: Sequence[Slice]) -> None:
    """See that all slices are of one series, size, spacing, orientation and unit, and have a geometry.

    Raises:
        DicomError: that counts those which are not.
    """
    if absent := sum(item.geometry is None for item in slices):
        raise DicomError(
            f"{absent} of the {len(slices)} slices have no position, orientation or pixel spacing (PS3.3 C.7.6.2): "
            "a volume needs all three; read them as images"
        )
    for what, key in ALIKE.items():
        counts = Counter(key(item) for item in slices).most_common()
        if len(counts) > 1:
            shown = ", ".join(f"{count} slices {_shown(value)}".rstrip() for value, count in counts[:4])
            raise DicomError(
                f"the slices have {len(counts)} different {what} ({shown}): expected one; read the parts one by one"
            )
    first = geometry_in(slices[0])
    turned = sum(not geometry_in(item).parallel(first) for item in slices)
    if turned:
        planes = Counter(geometry_in(item).plane for item in slices)
        raise DicomError(
            f"{turned} of the {len(slices)} slices lie in another orientation than the first ("
            f"{', '.join(f'{count} {plane}' for plane, count in sorted(planes.items()))}): expected one; choose a plane"
        )


ALIKE: dict[str, Callable[[Slice], Any]] = {
    "series": lambda item: item.series,
    "frames of reference": lambda item: item.reference,
    "sizes": lambda item: item.shape,
    "pixel spacings": lambda item: tuple(round(mm, 3) for mm in geometry_in(item).spacing),
    "units (photometric interpretation, rescale type, whether rescaled)": lambda item: item.unit,
}


def _shown(value: Any) -> str:
    """A value for a message; UIDs stay out."""
    return "" if isinstance(value, str) else f"of {value}"


def geometry_in(item: Slice) -> Geometry:
    """The geometry of a slice that `check_alike` has seen."""
    if item.geometry is None:
        raise DicomError("a slice has no geometry: read it as an image")
    return item.geometry


def one_group(slices: Sequence[Slice], group: int) -> Sequence[Slice]:
    """The slices of one echo, time point or the like, where several share positions and their facts tell them apart.

    A fact tells apart where it differs at a position; its value is the group, or where values drift from slice to slice
    (trigger times), its rank at each position.

    Raises:
        DicomError: if there is no such group, or one has holes that its facts do not place.
    """
    slots = stack_of([geometry_in(item) for item in slices], close=True, thickness=1.0).slots
    places: dict[int, list[Slice]] = {}
    for slot, item in zip(slots, slices, strict=True):
        places.setdefault(slot, []).append(item)
    telling = [i for i in range(len(GROUPS)) if any(len({item.facts[i] for item in p}) > 1 for p in places.values())]
    if not telling and group > 1:
        raise DicomError(f"the series has one image at each position: expected {group} groups; take group 1")
    if not telling:
        return slices
    keys = {place: sorted({_key(item, telling) for item in items}) for place, items in places.items()}
    count, names = max(len(key) for key in keys.values()), " and ".join(GROUPS[i] for i in telling)
    if not 1 <= group <= count:
        raise DicomError(
            f"the series has up to {count} different images at a position, told apart by {names}: expected one; choose "
            f"group 1 to {count}"
        )
    whole = sorted({key for found in keys.values() for key in found})
    if len(whole) != count and any(len(key) != count for key in keys.values()):
        raise DicomError(
            f"the series has {count} images at some positions and fewer at others, told apart by {names}: expected as "
            "many at each; fetch all of it"
        )
    chosen = {p: whole[group - 1] if len(whole) == count else keys[p][group - 1] for p in keys}
    return [item for slot, item in zip(slots, slices, strict=True) if _key(item, telling) == chosen[slot]]


def _key(item: Slice, telling: Sequence[int]) -> tuple[Fact, ...]:
    return tuple(item.facts[i] for i in telling)
