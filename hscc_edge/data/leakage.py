"""What must not be in a cohort: the same picture or the same patient on two sides, damaged files, a missing class."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hscc_edge.data.cohort import Cohort, Instance
from hscc_edge.data.dicom import Image, read_image
from hscc_edge.errors import DicomError

Progress = Callable[[int, str], None]


@dataclass(frozen=True, slots=True)
class Findings:
    """The result of a check; `duplicates` are groups of files with equal decoded pixels.

    `faults` are sentences, each about one file or group of files; no identifier is in them.
    """

    balance: dict[str, dict[str, int]]
    unreadable: tuple[str, ...]
    altered: tuple[str, ...]
    duplicates: tuple[tuple[Instance, ...], ...]
    shared_patients: int

    @property
    def across_splits(self) -> int:
        """Groups of equal pictures that stand in more than one split."""
        return sum(len({item.split for item in group}) > 1 for group in self.duplicates)

    @property
    def missing(self) -> tuple[str, ...]:
        """Splits that lack a class, as "split: class"."""
        return tuple(
            f"{split}: {label}" for split, counts in self.balance.items() for label, n in counts.items() if n == 0
        )

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
            "duplicates": {
                "exact": {
                    "groups": len(self.duplicates),
                    "files": sum(len(group) for group in self.duplicates),
                    "across_splits": self.across_splits,
                }
            },
        }


def check_cohort(cohort: Cohort, progress: Progress | None = None) -> Findings:
    """Decode every file once, one at a time; memory grows with the files' digests only."""
    unreadable, altered = [], []
    groups: dict[str, list[Instance]] = {}
    for item in cohort.instances:
        path = cohort.path(item)
        try:
            if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() != item.digest:
                altered.append(item.file)
            groups.setdefault(pixel_digest(read_image(path)), []).append(item)
        except DicomError:
            unreadable.append(item.file)
        if progress is not None:
            progress(1, "")
    return Findings(
        balance=_balance(cohort),
        unreadable=tuple(unreadable),
        altered=tuple(altered),
        duplicates=tuple(tuple(group) for group in groups.values() if len(group) > 1),
        shared_patients=_shared_patients(cohort.instances),
    )


def pixel_digest(image: Image) -> str:
    """sha256 over the decoded pixels and their shape."""
    return hashlib.sha256(str(image.pixels.shape).encode() + image.pixels.tobytes()).hexdigest()


def _balance(cohort: Cohort) -> dict[str, dict[str, int]]:
    counts = Counter((item.split, item.label) for item in cohort.instances)
    splits = [split for split in ("train", "val", "test") if any(item.split == split for item in cohort.instances)]
    return {split: {label: counts[split, label] for label in cohort.classes} for split in splits}


def _shared_patients(instances: Sequence[Instance]) -> int:
    sides: dict[str, set[str]] = {}
    for item in instances:
        sides.setdefault(item.patient, set()).add(item.split)
    return sum(len(splits) > 1 for splits in sides.values())
