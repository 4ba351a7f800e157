"""Labels of a cohort: from a table (CSV, Excel), from DICOM SR, or from folders; what does not match is listed."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import pydicom

from hscc_edge.data.dicom import FAULTS
from hscc_edge.data.index import Row
from hscc_edge.errors import CohortError, DicomError, extra

FOLDERS, REPORTS = "folders", "reports"
MATCHES = ("sop", "series", "study", "accession", "patient")
CONCEPT = ("121071", "DCM")
SR_CLASSES = "1.2.840.10008.5.1.4.1.1.88."
SPLIT_FOLDERS = {
    "train": "train", "training": "train", "val": "val", "validation": "val", "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class LabelRule:
    """Where labels come from and what they are about.

    Attributes:
        source: "folders" (the topmost folder, or the one below train, val or test), "reports" (DICOM SR among the
            files), or a .csv or .xlsx table.
        match: what a row's key names: sop, series, study (UIDs), accession or patient; of folders always the file.
        key, column: the table's columns that hold the key and the label.
        concept: code and scheme of the SR's content item whose coded value is the label; by default (121071, DCM,
            "Finding").
        classes: value as it is found -> class; a value that is not there is left out. Empty: every value is a class.
    """

    source: str = FOLDERS
    match: str = "study"
    key: str = "key"
    column: str = "label"
    concept: tuple[str, str] = CONCEPT
    classes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.match not in MATCHES:
            raise CohortError(f"labels are to match by {self.match!r}: expected one of {', '.join(MATCHES)}")


@dataclass(frozen=True, slots=True)
class Labels:
    """Key -> the distinct classes that were found for it; more than one contradict each other.

    Attributes:
        other: values that are in no class, with how often each was met.
    """

    by_key: Mapping[str, tuple[str, ...]] = field(repr=False)
    other: Mapping[str, int]

    @property
    def contradicting(self) -> frozenset[str]:
        """Keys with more than one class."""
        return frozenset(key for key, found in self.by_key.items() if len(found) > 1)


def read_labels(rule: LabelRule, rows: Iterable[Row], root: Path) -> Labels:
    """The labels of a rule; memory grows with their number.

    Args:
        rows: of the index, for labels from folders and from reports.
        root: the folder that was scanned.

    Raises:
        CohortError: if the table or its columns are missing, or no label is found at all.
        DicomError: if an SR cannot be read.
    """
    pairs: Iterator[tuple[str, str]]
    if rule.source == FOLDERS:
        pairs = ((row.path, folders_of(row.path)[1]) for row in rows)
    elif rule.source == REPORTS:
        pairs = (pair for row in rows if row.sop_class.startswith(SR_CLASSES) for pair in _report(root, row, rule))
    else:
        pairs = _table(Path(rule.source), rule)
    return _collect(pairs, rule)


def folders_of(path: str) -> tuple[str, str]:
    """(split, label) as the folders of [SPLIT/]LABEL/.../file say; "" for what they do not."""
    parts = PurePath(path).parts[:-1]
    split = SPLIT_FOLDERS.get(parts[0].lower(), "") if parts else ""
    return split, next(iter(parts[bool(split) :]), "")


def key_of(row: Row, rule: LabelRule) -> str:
    """What names the row's label under the rule."""
    return row.path if rule.source == FOLDERS else str(getattr(row, rule.match))


def _collect(pairs: Iterable[tuple[str, str]], rule: LabelRule) -> Labels:
    found: dict[str, dict[str, None]] = {}
    other: dict[str, int] = {}
    for key, value in pairs:
        label = rule.classes.get(value, "") if rule.classes else value
        if label and key:
            found.setdefault(key, {})[label] = None
        elif key:
            other[value] = other.get(value, 0) + 1
    if not found:
        raise CohortError(
            f"{rule.source} gives no label (column {rule.column!r}, {len(other)} values that are no class): expected "
            "one a key; mend the table or the classes"
        )
    return Labels({key: tuple(labels) for key, labels in found.items()}, other)


def _table(path: Path, rule: LabelRule) -> Iterator[tuple[str, str]]:
    if not path.is_file():
        raise CohortError(f"the labels {path} do not exist: give a .csv or .xlsx file, folders or reports")
    lines = _excel(path) if path.suffix.lower() == ".xlsx" else _csv(path)
    head = [_text(cell) for cell in next(lines, ())]
    for column in (rule.key, rule.column):
        if head.count(column) != 1:
            raise CohortError(
                f"the labels {path} have {head.count(column)} columns named {column!r}: expected one of {head}; name it"
            )
    key, label = head.index(rule.key), head.index(rule.column)
    for number, line in enumerate(lines, start=2):
        cells = [_text(cell) for cell in line]
        if not any(cells):
            continue
        if len(cells) <= max(key, label):
            raise CohortError(f"line {number} of {path} has {len(cells)} cells: expected {len(head)}; mend it")
        yield cells[key], cells[label]


def _csv(path: Path) -> Iterator[Sequence[Any]]:
    """Rows of a CSV in UTF-8, comma, semicolon or tab as its first line says."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            delimiter = max(",;\t", key=first.count)
            yield from csv.reader(itertools.chain([first], file), delimiter=delimiter, strict=True)
    except UnicodeDecodeError as error:
        raise CohortError(f"{path} is not UTF-8 text (byte {error.start}): save it as CSV UTF-8") from error
    except csv.Error as error:
        raise CohortError(f"{path} is no CSV table ({error}): save it again") from error


def _excel(path: Path) -> Iterator[Sequence[Any]]:
    with extra("workstation"):
        import openpyxl
        from openpyxl.utils.exceptions import InvalidFileException
    from zipfile import BadZipFile

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (InvalidFileException, BadZipFile, KeyError, OSError, ValueError) as error:
        raise CohortError(f"{path} is no Excel table ({type(error).__name__}): save it as .xlsx or .csv") from error
    try:
        yield from book.worksheets[0].iter_rows(values_only=True)
    finally:
        book.close()


def _text(cell: Any) -> str:
    """A cell as text; whole numbers without the ".0" that Excel gives them."""
    if cell is None:
        return ""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()


def _report(root: Path, row: Row, rule: LabelRule) -> Iterator[tuple[str, str]]:
    """(key, code meaning) for all that an SR's finding is about: its evidence, PS3.3 C.17.2."""
    try:
        dataset = pydicom.dcmread(root / row.path)
        values = list(_values(dataset, rule.concept))
        keys = sorted(_evidence(dataset, row, rule.match))
    except FAULTS as error:
        raise DicomError(
            f"an SR among the files cannot be read ({type(error).__name__}): mend it, or take labels from a table"
        ) from error
    yield from itertools.product(keys, values)


def _values(item: pydicom.Dataset, concept: tuple[str, str]) -> Iterator[str]:
    """Code meanings of the content items that have the concept name, at any depth (PS3.3 C.17.3)."""
    for child in item.get("ContentSequence") or ():
        names = child.get("ConceptNameCodeSequence") or [pydicom.Dataset()]
        if (names[0].get("CodeValue"), names[0].get("CodingSchemeDesignator")) == concept:
            yield from (str(code.CodeMeaning) for code in child.get("ConceptCodeSequence") or ())
        yield from _values(child, concept)


def _evidence(dataset: pydicom.Dataset, row: Row, match: str) -> set[str]:
    if match in ("accession", "patient"):
        return {str(getattr(row, match))}
    studies = list(dataset.get("CurrentRequestedProcedureEvidenceSequence") or ())
    series = [item for study in studies for item in study.get("ReferencedSeriesSequence") or ()]
    if match == "study":
        return {str(study.StudyInstanceUID) for study in studies} or {row.study}
    if match == "series":
        return {str(item.SeriesInstanceUID) for item in series}
    return {str(sop.ReferencedSOPInstanceUID) for item in series for sop in item.get("ReferencedSOPSequence") or ()}
