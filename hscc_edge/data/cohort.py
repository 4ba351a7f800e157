"""A cohort: a directory of DICOM files with a table of labels and splits.

    cohort.toml     name, unit, classes, source, coded findings
    instances.csv   one row a file: file, patient, study, series, sop, label, split, digest
    dicom/          the files

The table holds identifiers as the files do, and is as confidential as they are.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from numpy.typing import NDArray

from hscc_edge import durable
from hscc_edge.data.dicom import read_image
from hscc_edge.data.preprocess import Preprocess
from hscc_edge.data.pseudonym import pseudonym
from hscc_edge.errors import CohortError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SPLITS = ("train", "val", "test")
UNITS = ("image", "series", "study")


@dataclass(frozen=True, slots=True)
class Instance:
    """One file of a cohort; `digest` is the sha256 of the file."""

    file: str
    patient: str = field(repr=False)
    study: str = field(repr=False)
    series: str = field(repr=False)
    sop: str = field(repr=False)
    label: str
    split: str
    digest: str


COLUMNS = tuple(item.name for item in dataclasses.fields(Instance))


@dataclass(frozen=True, slots=True)
class Cohort:
    """A cohort or a part of one.

    Attributes:
        unit: what one label is about: image, series or study.
        classes: label names, in the order of a classifier's outputs.
        codes: class -> coded triplet (value, scheme, meaning).
    """

    root: Path
    name: str
    unit: str
    classes: tuple[str, ...]
    source: str
    codes: Mapping[str, Mapping[str, str]]
    instances: tuple[Instance, ...] = field(repr=False)

    @property
    def digest(self) -> str:
        """sha256 over classes and, in order of file name, every file's digest, label and split."""
        lines = sorted(f"{item.file} {item.digest} {item.label} {item.split}" for item in self.instances)
        return hashlib.sha256("\n".join([*self.classes, *lines]).encode()).hexdigest()

    @property
    def key(self) -> bytes:
        """Key of the pseudonyms that reports use for this cohort's cases."""
        return hashlib.sha256("\n".join([self.name, *self.classes]).encode()).digest()

    def select(self, split: str) -> Cohort:
        """The part of one split.

        Raises:
            CohortError: if the split is unknown or empty.
        """
        part = tuple(item for item in self.instances if item.split == split)
        if not part:
            held = sorted({item.split for item in self.instances})
            raise CohortError(f"the cohort {self.root} has no split {split!r}: it has {', '.join(held) or 'none'}")
        return dataclasses.replace(self, instances=part)

    def label_index(self, instance: Instance) -> int:
        """Where the instance's label stands in `classes`."""
        return self.classes.index(instance.label)

    def path(self, instance: Instance) -> Path:
        """The instance's file."""
        return self.root / instance.file

    def cases(self, unit: str | None = None) -> dict[str, tuple[Instance, ...]]:
        """UID of the unit -> its instances ordered by SOP Instance UID."""
        found: dict[str, list[Instance]] = {}
        for item in sorted(self.instances, key=lambda item: item.sop):
            uid = {"image": item.sop, "series": item.series, "study": item.study}[unit or self.unit]
            found.setdefault(uid, []).append(item)
        return {uid: tuple(items) for uid, items in found.items()}

    def pseudonym(self, uid: str) -> str:
        """The pseudonym of a case's or patient's identifier."""
        return pseudonym(uid, self.key)


def write_cohort(root: Path, cohort: Cohort, facts: Mapping[str, Any] | None = None) -> None:
    """Write cohort.toml and instances.csv into `root`, which holds the files already."""
    head = {
        "name": cohort.name,
        "unit": cohort.unit,
        "source": cohort.source,
        "classes": list(cohort.classes),
        "digest": cohort.digest,
        "facts": dict(facts or {}),
        "codes": {label: dict(code) for label, code in cohort.codes.items()},
    }
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(item) for item in cohort.instances)
    durable.write_text(root / "instances.csv", table.getvalue())
    durable.write_text(root / "cohort.toml", tomli_w.dumps(head))


def read_cohort(root: Path) -> Cohort:
    """Read a cohort's tables; the files themselves are not opened. Memory grows with its files, about 1 kB each.

    Raises:
        CohortError: if `root` is no cohort, or a table is malformed.
    """
    if not (root / "cohort.toml").is_file():
        raise CohortError(
            f"{root} is not a cohort: it has no cohort.toml; make one with hscc-edge cohort import or phantom"
        )
    try:
        head = tomllib.loads((root / "cohort.toml").read_text(encoding="utf-8"))
        with (root / "instances.csv").open(newline="", encoding="utf-8") as file:
            instances = tuple(Instance(**row) for row in csv.DictReader(file))
        cohort = Cohort(
            root, head["name"], head["unit"], tuple(head["classes"]), head["source"], head.get("codes", {}), instances
        )
    except FileNotFoundError as error:
        raise CohortError(f"the cohort {root} has no instances.csv: make the cohort again") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise CohortError(f"the cohort {root} has malformed tables ({error}): make the cohort again") from error
    _check(cohort)
    return cohort


def _check(cohort: Cohort) -> None:
    if cohort.unit not in UNITS:
        raise CohortError(f"the cohort {cohort.root} has unit {cohort.unit!r}: expected one of {', '.join(UNITS)}")
    if not cohort.instances:
        raise CohortError(f"the cohort {cohort.root} is empty: make it again from a folder with images")
    for item in cohort.instances:
        if item.label not in cohort.classes or item.split not in SPLITS:
            raise CohortError(
                f"{item.file} in {cohort.root} has label {item.label!r} and split {item.split!r}: expected a label of "
                f"{list(cohort.classes)} and one of {', '.join(SPLITS)}"
            )
        if Path(item.file).is_absolute() or ".." in Path(item.file).parts:
            raise CohortError(f"instances.csv of {cohort.root} names a file outside it: mend that row")


def stream(cohort: Cohort, preprocess: Preprocess) -> Iterator[tuple[Instance, NDArray[np.float32]]]:
    """Each instance with its preprocessed image (C, H, W), one at a time."""
    for item in cohort.instances:
        yield item, preprocess(read_image(cohort.path(item)))


def split_of(patients: Sequence[str], labels: Sequence[str], fractions: Mapping[str, float], seed: int) -> list[str]:
    """A split for each patient, stratified by label, the same for the same seed.

    Args:
        fractions: of val and test; the rest is train.
    """
    generator = np.random.default_rng(seed)
    splits = ["train"] * len(patients)
    for label in sorted(set(labels)):
        members = [index for index, own in enumerate(labels) if own == label]
        order = [members[int(i)] for i in generator.permutation(len(members))]
        start = 0
        for split, fraction in fractions.items():
            stop = start + round(fraction * len(members))
            for index in order[start:stop]:
                splits[index] = split
            start = stop
    return splits
