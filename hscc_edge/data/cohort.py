"""A cohort: a table of labels and splits over DICOM files, which may stand anywhere.

    cohort.toml     name, unit, classes, where the files and labels come from, inclusion rules, coded findings
    instances.csv   one row a file, or a frame of one: see `Instance`
    cohort.lock     digest of all, once it is locked (`data/lock.py`)
    cohort.key      key of the pseudonyms, mode 0600; cohorts of made or public pictures have none
    dicom/          the files, where the product made them itself

The table names files and holds UIDs: it is as confidential as the files are.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from hscc_edge import durable
from hscc_edge.data.dicom import Image, read_image
from hscc_edge.data.lock import LOCK, verify_lock
from hscc_edge.data.pseudonym import pseudonym
from hscc_edge.data.split import SPLITS
from hscc_edge.errors import CohortError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

UNITS = ("image", "series", "study")


@dataclass(frozen=True, slots=True)
class Instance:
    """One file of a cohort, or one frame of it; what follows `digest` is "" where it is not known.

    Attributes:
        file: path below the cohort's `files`.
        patient: pseudonym of the patient, or the made-up identifier of a synthetic one.
        digest: sha256 of the file.
        frame: number of the frame from 0, "" for a file that is read as a whole.
        age_band: as in `data/facts.py`; never a date of birth.
        slice_position_mm: along the normal of the slice (PS3.3 C.7.6.2).
    """

    file: str
    patient: str = field(repr=False)
    study: str = field(repr=False)
    series: str = field(repr=False)
    sop: str = field(repr=False)
    label: str
    split: str
    digest: str
    frame: str = ""
    site: str = ""
    scanner: str = ""
    sex: str = ""
    age_band: str = ""
    field_strength_t: str = ""
    modality: str = ""
    body_part: str = ""
    orientation: str = ""
    slice_position_mm: str = ""
    contrast: str = ""
    transfer_syntax: str = ""
    rows: str = ""
    columns: str = ""


COLUMNS = tuple(item.name for item in dataclasses.fields(Instance))


@dataclass(frozen=True, slots=True)
class Cohort:
    """A cohort or a part of one.

    Attributes:
        unit: what one label is about: image, series or study.
        classes: label names, in the order of a classifier's outputs.
        codes: class -> coded triplet (value, scheme, meaning).
        files: directory that the files' paths start from.
        secret: key of the pseudonyms; where it is empty, one derived from name and classes, which hides nothing that
            is worth hiding.
    """

    root: Path
    name: str
    unit: str
    classes: tuple[str, ...]
    source: str
    codes: Mapping[str, Mapping[str, str]]
    instances: tuple[Instance, ...] = field(repr=False)
    files: Path = Path(".")
    secret: bytes = field(default=b"", repr=False)

    @property
    def digest(self) -> str:
        """sha256 over classes and, in order of file name, every file's digest, label and split."""
        lines = sorted(
            f"{item.file}{item.frame and f'#{item.frame}'} {item.digest} {item.label} {item.split}"
            for item in self.instances
        )
        return hashlib.sha256("\n".join([*self.classes, *lines]).encode()).hexdigest()

    @property
    def key(self) -> bytes:
        """Key of the pseudonyms that reports use for this cohort's cases."""
        return self.secret or hashlib.sha256("\n".join([self.name, *self.classes]).encode()).digest()

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
        return self.root / self.files / instance.file

    def read(self, instance: Instance) -> Image:
        """Decode the instance's file or frame.

        Raises:
            DicomError: if it cannot be read.
        """
        return read_image(self.path(instance), int(instance.frame) if instance.frame else None)

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
    """Write cohort.toml, instances.csv and the key, if there is one, into `root`; `facts` say how it came about."""
    head = {
        "name": cohort.name,
        "unit": cohort.unit,
        "source": cohort.source,
        "classes": list(cohort.classes),
        "digest": cohort.digest,
        "files": str(cohort.files),
        "facts": dict(facts or {}),
        "codes": {label: dict(code) for label, code in cohort.codes.items()},
    }
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(item) for item in cohort.instances)
    durable.write_text(root / "instances.csv", table.getvalue())
    durable.write_text(root / "cohort.toml", tomli_w.dumps(head))
    if cohort.secret:
        durable.write_bytes(root / "cohort.key", cohort.secret, mode=0o600)


def rewrite_cohort(cohort: Cohort, out: Path, *, replace: bool = False) -> Cohort:
    """Write a cohort with other rows: in place, or into `out`, which then points at the same files.

    Raises:
        CohortError: if it is locked and would change in place.
        StorageError: if `out` cannot be written.
    """
    head = _head(cohort.root)
    if out.resolve() == cohort.root.resolve():
        if (out / LOCK).is_file():
            raise CohortError(f"the cohort {out} is locked: write the change to a new one with --out")
        write_cohort(out, cohort, head.get("facts"))
        return cohort
    moved = dataclasses.replace(cohort, root=out, files=(cohort.root / cohort.files).resolve())
    with durable.new_directory(out, replace=replace) as draft:
        write_cohort(draft, moved, {**head.get("facts", {}), "parent": head.get("digest", "")})
    return moved


def read_facts(root: Path) -> dict[str, Any]:
    """How the cohort came about, as `write_cohort` was told."""
    return dict(_head(root).get("facts", {}))


def _head(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "cohort.toml").read_text(encoding="utf-8"))


def read_cohort(root: Path, *, locked: bool = True) -> Cohort:
    """Read a cohort's tables; the files themselves are not opened. Memory grows with its files, about 2 kB each.

    Args:
        locked: refuse tables that have changed since the cohort was locked.

    Raises:
        CohortError: if `root` is no cohort, a table is malformed, or it no longer fits its lock.
    """
    if not (root / "cohort.toml").is_file():
        raise CohortError(
            f"{root} is not a cohort: it has no cohort.toml; make one with hscc-edge cohort import or phantom"
        )
    try:
        head = _head(root)
        with (root / "instances.csv").open(newline="", encoding="utf-8") as file:
            instances = tuple(Instance(**row) for row in csv.DictReader(file))
        cohort = Cohort(
            root=root,
            name=head["name"],
            unit=head["unit"],
            classes=tuple(head["classes"]),
            source=head["source"],
            codes=head.get("codes", {}),
            instances=instances,
            files=Path(head.get("files", ".")),
            secret=key.read_bytes() if (key := root / "cohort.key").is_file() else b"",
        )
    except FileNotFoundError as error:
        raise CohortError(f"the cohort {root} has no instances.csv: make the cohort again") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise CohortError(f"the cohort {root} has malformed tables ({error}): make the cohort again") from error
    _check(cohort)
    if locked:
        verify_lock(cohort)
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
            raise CohortError(f"instances.csv of {cohort.root} names a file outside {cohort.files}: mend that row")
