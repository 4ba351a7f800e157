"""What must not be in a cohort: one picture or patient on two sides, damaged files, a missing class, a way to cheat."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hscc_edge.data.cohort import Cohort, Instance
from hscc_edge.data.inspection import Seen, inspect_files, workers
from hscc_edge.data.near import Pair, compare, groups, near_pairs, owners
from hscc_edge.data.shortcut import FAMILIES, Shortcut, find_shortcuts
from hscc_edge.data.split import SPLITS
from hscc_edge.errors import MissingExtraError

Progress = Callable[[int, str], None]
Group = tuple[Instance, ...]


@dataclass(frozen=True, slots=True)
class Findings:
    """The result of a check.

    Attributes:
        duplicates: groups of files with equal decoded pixels.
        near: groups of files that show the same picture, though their pixels differ; copies of one patient's are not
            looked for.
        neighbouring: groups of files of different patients as alike as neighbouring slices of one.
        skipped: sentences about what was not looked for, and why.
    """

    balance: dict[str, dict[str, int]]
    unreadable: tuple[str, ...]
    altered: tuple[str, ...]
    duplicates: tuple[Group, ...]
    shared_patients: int
    near: tuple[Group, ...] = ()
    neighbouring: tuple[Group, ...] = ()
    shortcuts: tuple[Shortcut, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def across_splits(self) -> int:
        """Groups of equal or nearly equal pictures that stand in more than one split."""
        return sum(_split(group) for group in (*self.duplicates, *self.near))

    @property
    def missing(self) -> tuple[str, ...]:
        """Splits that lack a class, as "split: class"."""
        return tuple(
            f"{split}: {label}" for split, counts in self.balance.items() for label, n in counts.items() if n == 0
        )

    @property
    def contradictions(self) -> int:
        """Groups of duplicates with more than one label."""
        near = {item.file for group in self.near for item in group}
        whole = [*self.near, *(group for group in self.duplicates if group[0].file not in near)]
        return sum(len({item.label for item in group}) > 1 for group in whole)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about what does not spoil the cohort by itself, but must be known before a figure is believed."""
        found = [
            f"{item.family} ({FAMILIES[item.family]}) tell the label: balanced accuracy {item.balanced_accuracy:.2f} "
            f"where chance is {item.chance:.2f}" + (f"; above all {', '.join(item.classes)}" if item.classes else "")
            for item in self.shortcuts
            if item.verdict == "predicts"
        ]
        if self.contradictions:
            found.append(f"{self.contradictions} groups of duplicates have more than one label")
        if across := sum(_split(group) for group in self.neighbouring):
            found.append(
                f"{across} groups of pictures across splits are as alike as neighbouring slices of one patient"
            )
        return tuple(found)

    @property
    def ok(self) -> bool:
        """True if nothing found here spoils a figure taken on the cohort."""
        return not (self.unreadable or self.altered or self.across_splits or self.shared_patients or self.missing)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON objects."""
        return {
            "ok": self.ok,
            "balance": self.balance,
            "missing": list(self.missing),
            "unreadable": list(self.unreadable),
            "altered": list(self.altered),
            "patients_in_two_splits": self.shared_patients,
            "duplicates": {"exact": _counts(self.duplicates), "near": _counts(self.near)},
            "neighbouring": _counts(self.neighbouring),
            "contradicting_labels": self.contradictions,
            "shortcuts": {item.family: item.to_json() for item in self.shortcuts},
            "warnings": list(self.warnings),
            "skipped": list(self.skipped),
        }


def check_cohort(
    cohort: Cohort, progress: Progress | None = None, *, near: bool = True, shortcuts: bool = True, jobs: int = 1
) -> Findings:
    """Decode every file once, in `jobs` processes; memory grows with the files, about 6 kB each.

    Near duplicates cost more than that for large cohorts: see `near.near_pairs`.
    """
    with workers(jobs) as spread:
        seen = inspect_files(cohort, spread, progress)
        read = [index for index, item in enumerate(seen.items) if item.digest]
        equal = _equal(read, seen)
        pairs = _pairs(cohort.instances, seen, equal, spread, progress) if near else []
    joined = [(pair.one, pair.other) for pair in pairs if pair.duplicate]
    copies = [(group[0], other) for group in equal for other in group[1:]]
    found, skipped = _shortcuts(cohort, seen, read, [*joined, *copies]) if shortcuts else ((), ["shortcuts: as asked"])
    return Findings(
        balance=_balance(cohort),
        unreadable=tuple(cohort.instances[i].file for i, item in enumerate(seen.items) if not item.digest),
        altered=tuple(cohort.instances[i].file for i, item in enumerate(seen.items) if item.altered),
        duplicates=_named(cohort, (group for group in equal if len(group) > 1)),
        shared_patients=_shared_patients(cohort.instances),
        near=_named(cohort, _joined(joined, copies, len(seen.items))),
        neighbouring=_named(cohort, groups(((p.one, p.other) for p in pairs if not p.duplicate), len(seen.items))),
        shortcuts=found,
        skipped=(*([] if near else ["near duplicates: as asked"]), *skipped),
    )


def without_leaks(cohort: Cohort, findings: Findings) -> Cohort:
    """The cohort less those files whose equal or nearly equal picture stands in an earlier split: train, val, test."""
    dropped = set()
    for group in (*findings.duplicates, *findings.near):
        first = min(SPLITS.index(item.split) for item in group)
        dropped |= {(item.file, item.frame) for item in group if SPLITS.index(item.split) > first}
    kept = tuple(item for item in cohort.instances if (item.file, item.frame) not in dropped)
    return dataclasses.replace(cohort, instances=kept)


def patients_together(findings: Findings) -> dict[str, str]:
    """Patient -> group, of those whose pictures are equal, nearly equal or like neighbouring slices.

    For `SplitRule.groups`: a split by them leaves no such picture on two sides. One of its patients names a group.
    """
    alike = [
        tuple(dict.fromkeys(item.patient for item in group))
        for group in (*findings.duplicates, *findings.near, *findings.neighbouring)
    ]
    names = sorted({patient for patients in alike for patient in patients})
    place = {patient: index for index, patient in enumerate(names)}
    links = [(place[patients[0]], place[other]) for patients in alike for other in patients[1:]]
    found: dict[int, str] = {}
    return {name: found.setdefault(int(own), name) for name, own in zip(names, owners(links, len(names)), strict=True)}


def _equal(read: Sequence[int], seen: Seen) -> list[list[int]]:
    """Numbers of the instances by equal pixels."""
    found: dict[str, list[int]] = {}
    for index in read:
        found.setdefault(seen.items[index].digest, []).append(index)
    return list(found.values())


def _pairs(
    instances: Sequence[Instance], seen: Seen, equal: list[list[int]], spread: Any, progress: Progress | None
) -> list[Pair]:
    """Near pairs among the first of each equal pictures; what shows one grey alone is left out."""
    firsts = [group for group in equal if seen.items[group[0]].row >= 0]
    if len(firsts) < 2:
        return []
    rows = np.array([seen.items[group[0]].row for group in firsts])
    owner = [{instances[index].patient for index in group} for group in firsts]
    # a picture that several patients share is compared with everyone's
    names = [next(iter(own)) if len(own) == 1 else str(group) for own, group in zip(owner, firsts, strict=True)]
    patients = np.unique(names, return_inverse=True)[1].astype(np.int64)
    found = near_pairs(
        seen.thumbs[rows],
        seen.signatures[rows],
        patients,
        spread=lambda parts: spread(compare, parts),
        progress=progress,
    )
    return [dataclasses.replace(p, one=firsts[p.one][0], other=firsts[p.other][0]) for p in found]


def _joined(near: list[tuple[int, int]], copies: list[tuple[int, int]], count: int) -> Iterable[NDArray[np.int64]]:
    """Groups with at least one near pair, and every equal copy of their pictures."""
    touched = {end for pair in near for end in pair}
    return (group for group in groups([*near, *copies], count) if touched & set(group.tolist()))


def _shortcuts(
    cohort: Cohort, seen: Seen, read: list[int], links: list[tuple[int, int]]
) -> tuple[tuple[Shortcut, ...], list[str]]:
    firsts: dict[str, int] = {}
    same = [(index, firsts.setdefault(cohort.instances[index].patient, index)) for index in read]
    owner = owners([*links, *same], len(seen.items))
    labels = [cohort.instances[index].label for index in read]
    try:
        return find_shortcuts([seen.items[i].features for i in read], labels, owner[read].tolist()), []
    except MissingExtraError as error:
        return (), [f"shortcuts: {error}"]


def _named(cohort: Cohort, found: Iterable[Iterable[int]]) -> tuple[Group, ...]:
    return tuple(tuple(cohort.instances[int(index)] for index in group) for group in found)


def _split(group: Group) -> bool:
    return len({item.split for item in group}) > 1


def _counts(found: Sequence[Group]) -> dict[str, int]:
    return {"groups": len(found), "files": sum(map(len, found)), "across_splits": sum(map(_split, found))}


def _balance(cohort: Cohort) -> dict[str, dict[str, int]]:
    counts = Counter((item.split, item.label) for item in cohort.instances)
    splits = [split for split in SPLITS if any(item.split == split for item in cohort.instances)]
    return {split: {label: counts[split, label] for label in cohort.classes} for split in splits}


def _shared_patients(instances: Sequence[Instance]) -> int:
    sides: dict[str, set[str]] = {}
    for item in instances:
        sides.setdefault(item.patient, set()).add(item.split)
    return sum(len(splits) > 1 for splits in sides.values())
