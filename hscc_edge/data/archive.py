"""A folder as it came out of a PACS -> a cohort that points at its files, and a list of what was left out and why."""

from __future__ import annotations

import csv
import dataclasses
import io
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hscc_edge import durable
from hscc_edge.data import index
from hscc_edge.data.cohort import Cohort, Instance, read_cohort, write_cohort
from hscc_edge.data.cohort_spec import Spec
from hscc_edge.data.columns import columns_of
from hscc_edge.data.index import IMAGE, Row
from hscc_edge.data.labels import FOLDERS, Labels, folders_of, key_of, read_labels
from hscc_edge.data.pseudonym import pseudonym
from hscc_edge.data.selection import Selection, select_series
from hscc_edge.data.split import split_cohort
from hscc_edge.errors import CohortError

LEFT_OUT = "left-out.csv"
BAD_NAME = "name with characters that no table holds: rename it"
NO_LABEL, CONTRADICTING = "no label", "contradicting labels"
NO_PATIENT, COPY, OTHER = "no PatientID", "copy of another file", "another file has its SOP Instance UID"


@dataclass(frozen=True, slots=True)
class Imported:
    """A new cohort, with the files left out by reason and label keys that no file has."""

    cohort: Cohort
    left_out: Mapping[str, int]
    unmatched_labels: int


@dataclass(slots=True)
class _Collected:
    """What one pass over the index gathers; about 1 kB a file."""

    instances: list[Instance] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def import_archive(root: Path, index_path: Path, out: Path, spec: Spec, *, replace: bool = False) -> Imported:
    """Make a cohort of the files that the index of `root` lists; no pixel is decoded and no file copied.

    A cohort that is replaced gives its key and its splits to the new one, so that pseudonyms stay and no patient moves.
    Memory grows with the files, about 2 kB each.

    Raises:
        CohortError: if nothing is left, fewer than two classes are, or a rule names what the files do not have.
        StorageError: if `out` cannot be written.
    """
    earlier = read_cohort(out) if replace and (out / "cohort.toml").is_file() else None
    secret = (earlier.secret if earlier else b"") or secrets.token_bytes(32)
    if next(index.rows(index_path, IMAGE), None) is None:
        raise CohortError(
            f"{root} holds no DICOM image, and no picture in class folders: expected either, in two classes or more"
        )
    labels = read_labels(spec.labels, index.rows(index_path), root)
    collected, used = _collect(index_path, spec, labels, secret)
    collected = _consistent(collected, spec.unit)
    cohort = _cohort(root, out, spec, collected.instances, secret)
    cohort = split_cohort(_with_earlier_splits(cohort, earlier), spec.split)
    with durable.new_directory(out, replace=replace) as draft:
        reasons = Counter(reason for _, reason in collected.left_out)
        write_cohort(draft, cohort, {"left_out": dict(reasons.most_common()), "rules": spec.to_json()})
        durable.write_bytes(draft / LEFT_OUT, _table(collected.left_out), mode=0o600)
    return Imported(cohort, dict(reasons.most_common()), len(labels.by_key.keys() - used))


def _collect(index_path: Path, spec: Spec, labels: Labels, secret: bytes) -> tuple[_Collected, set[str]]:
    """Instances and what is left out, and the label keys that some image has."""
    selection = select_series(index.rows(index_path, IMAGE), spec.include, one=spec.one_series)
    doubled = dict(_doubled(index_path))
    found, used = _Collected(), set()
    for row in index.rows(index_path):
        if row.kind != IMAGE:
            found.left_out.append((row.path, row.fault or f"no image: {row.kind}"))
            continue
        key = key_of(row, spec.labels)
        used.add(key)
        reason = doubled.get(row.path) or _reason(row, key, spec, labels, selection)
        if reason:
            found.left_out.append((row.path, reason))
        else:
            found.instances.extend(_instances(row, labels.by_key[key][0], spec, secret))
    return found, used


def _reason(row: Row, key: str, spec: Spec, labels: Labels, selection: Selection) -> str:
    """Why a file is left out; "" if it is not."""
    if not row.path.isprintable() or "\\" in row.path:
        return BAD_NAME
    if key not in labels.by_key:
        return NO_LABEL
    if key in labels.contradicting:
        return CONTRADICTING
    if not _patient(row, spec):
        return NO_PATIENT
    return selection.reason(row)


def _patient(row: Row, spec: Spec) -> str:
    return row.study if spec.patient == "study" else row.patient


def _instances(row: Row, label: str, spec: Spec, secret: bytes) -> Iterator[Instance]:
    facts = row.facts
    if facts is None:
        raise CohortError(f"the index has no facts of {row.path}: delete the index and import again")
    single = Instance(
        file=row.path,
        patient=pseudonym(_patient(row, spec), secret),
        study=row.study,
        series=row.series,
        sop=row.sop,
        label=label,
        split=folders_of(row.path)[0] if spec.labels.source == FOLDERS else "",
        digest=row.digest or "",
        **columns_of(facts),
    )
    if facts.frames in (None, 1) or spec.frames == "together":
        yield single
        return
    for frame in range(facts.frames or 1):
        yield dataclasses.replace(single, frame=str(frame))


def _doubled(index_path: Path) -> Iterator[tuple[str, str]]:
    """Files to leave out since another has their SOP Instance UID: all of them if the contents differ."""
    for group in index.copies(index_path):
        first, *others = group.paths
        if group.equal:
            yield from ((path, COPY) for path in others)
        else:
            yield from ((path, OTHER) for path in (first, *others))


def _consistent(found: _Collected, unit: str) -> _Collected:
    """Without the cases whose files have different labels."""
    labels: dict[str, set[str]] = {}
    for item in found.instances:
        labels.setdefault(_case(item, unit), set()).add(item.label)
    torn = {case for case, names in labels.items() if len(names) > 1}
    kept = [item for item in found.instances if _case(item, unit) not in torn]
    aside = dict.fromkeys(item.file for item in found.instances if _case(item, unit) in torn)
    return _Collected(kept, [*found.left_out, *((file, CONTRADICTING) for file in aside)])


def _case(item: Instance, unit: str) -> str:
    return {"image": item.sop + item.frame, "series": item.series, "study": item.study}[unit]


def _cohort(root: Path, out: Path, spec: Spec, instances: Sequence[Instance], secret: bytes) -> Cohort:
    classes = spec.classes or tuple(sorted({item.label for item in instances}))
    if len({item.label for item in instances}) < 2:
        raise CohortError(
            f"{len(instances)} images in {len(classes)} classes are left of {root}: a classifier needs two classes; "
            "check the labels and the rules"
        )
    codes = {
        label: spec.codes.get(label) or {"value": label.upper()[:16], "scheme": "99HSCC", "meaning": label[:64]}
        for label in classes
    }
    source = f"labels of {spec.labels.source}" + ("" if spec.labels.source == FOLDERS else f" by {spec.labels.match}")
    return Cohort(
        root=out,
        name=spec.name or root.resolve().name,
        unit=spec.unit,
        classes=classes,
        source=source,
        codes=codes,
        instances=tuple(instances),
        files=root.resolve(),
        secret=secret,
    )


def _with_earlier_splits(cohort: Cohort, earlier: Cohort | None) -> Cohort:
    """Patients of the cohort that is replaced have their split already."""
    if earlier is None:
        return cohort
    splits = {item.patient: item.split for item in earlier.instances}
    instances = (dataclasses.replace(item, split=splits.get(item.patient) or item.split) for item in cohort.instances)
    return dataclasses.replace(cohort, instances=tuple(instances))


def _table(left_out: Sequence[tuple[str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("file", "reason"), *left_out])
    return text.getvalue().encode("utf-8", "surrogateescape")
