"""Subgroups of a cohort, counted by patient; cells that are too small to say anything are flagged."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hscc_edge.data.cohort import Cohort

COLUMNS = ("sex", "age_band", "scanner", "site", "field_strength_t", "modality", "body_part", "orientation", "contrast")
SLICES = "slice_position"
SMALL = 20  # patients; a sensitivity of 90 % then has a 95 % interval from 70 to 97 % (Wilson)
UNKNOWN = "unknown"
MIXED = "mixed"


@dataclass(frozen=True, slots=True)
class Cell:
    """One value of one column: its patients, images, and patients by split and label."""

    column: str
    value: str
    patients: int
    images: int
    by_split: dict[str, int]
    by_label: dict[str, int]

    @property
    def small(self) -> bool:
        """Whether the test split has fewer patients of it than SMALL."""
        return self.by_split.get("test", 0) < SMALL


def subgroups(cohort: Cohort) -> list[Cell]:
    """Every value of every column that is known for some image; values in order of their name."""
    found = []
    for column, values in columns_of(cohort).items():
        found.extend(_cells(cohort, column, values))
    return found


def columns_of(cohort: Cohort) -> dict[str, list[str]]:
    """The columns that are known for some image -> the value of every instance."""
    found = {column: [getattr(item, column) for item in cohort.instances] for column in COLUMNS}
    found[SLICES] = _thirds(cohort)
    return {column: [value or UNKNOWN for value in values] for column, values in found.items() if any(values)}


def by_case(cohort: Cohort, unit: str) -> dict[str, tuple[str, ...]]:
    """The columns -> the value of every case, in the order of `Cohort.cases`; MIXED where its images differ."""
    place = {(item.file, item.frame): index for index, item in enumerate(cohort.instances)}
    cases = [[place[item.file, item.frame] for item in items] for items in cohort.cases(unit).values()]
    return {
        column: tuple(_common([values[index] for index in members]) for members in cases)
        for column, values in columns_of(cohort).items()
    }


def _common(values: list[str]) -> str:
    return values[0] if len(set(values)) == 1 else MIXED


def _cells(cohort: Cohort, column: str, values: list[str]) -> list[Cell]:
    images = Counter(values)
    patients: dict[str, set[tuple[str, str, str]]] = {}
    for value, item in zip(values, cohort.instances, strict=True):
        patients.setdefault(value, set()).add((item.patient, item.split, item.label))
    return [
        Cell(
            column,
            value,
            patients=len({patient for patient, _, _ in patients[value]}),
            images=images[value],
            by_split=_count(patients[value], 1),
            by_label=_count(patients[value], 2),
        )
        for value in sorted(patients)
    ]


def _count(members: set[tuple[str, str, str]], place: int) -> dict[str, int]:
    pairs = {(member[0], member[place]) for member in members}
    return dict(sorted(Counter(name for _, name in pairs).items()))


def _thirds(cohort: Cohort) -> list[str]:
    """Where a slice lies within its series: first, middle or last third; "" in a series of fewer than three."""
    positions: dict[str, set[float]] = {}
    for item in cohort.instances:
        if item.slice_position_mm:
            positions.setdefault(item.series, set()).add(float(item.slice_position_mm))
    ends = {series: (min(found), max(found)) for series, found in positions.items() if len(found) >= 3}
    names = []
    for item in cohort.instances:
        if item.series not in ends or not item.slice_position_mm:
            names.append("")
            continue
        low, high = ends[item.series]
        place = (float(item.slice_position_mm) - low) / (high - low)
        names.append(("first third", "middle third", "last third")[min(int(3 * place), 2)])
    return names
