"""What a report says, read from its own content tree, so that each other form of it says the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO

import pydicom

from hscc_edge.bundle import Code
from hscc_edge.serve.results.evaluation import REASON

FINDING = Code("121071", "DCM", "Finding")
SITE, PROCEDURE, GROUP = "363698007", "121058", "125007"
ALGORITHM_NAME, ALGORITHM_VERSION = "111001", "111003"


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement group: a finding with the probability of each class, or none and the reason.

    Attributes:
        probabilities: ("probability of" a finding, 0 to 1).
        images: (SOP Class UID, SOP Instance UID) of the images that it is about.
    """

    finding: Code | None
    reason: Code | None
    site: Code
    probabilities: tuple[tuple[Code, float], ...]
    images: tuple[tuple[str, str], ...] = field(repr=False)

    @property
    def why(self) -> str:
        """The reason in words, where there is no finding."""
        return self.reason.meaning if self.reason else "not stated"


@dataclass(frozen=True, slots=True)
class Result:
    """A report and what it says.

    Attributes:
        dataset: the SR, for the attributes of patient and study that each form carries.
        model: name of the classifier; `version`: digest of its bundle.
    """

    dataset: pydicom.Dataset = field(repr=False)
    model: str
    version: str
    procedure: Code
    cases: tuple[Case, ...]

    @property
    def sop(self) -> str:
        """The report's SOP Instance UID."""
        return str(self.dataset.SOPInstanceUID)

    @property
    def made(self) -> str:
        """When the report was made, YYYYMMDDHHMMSS in local time."""
        return f"{self.dataset.ContentDate}{str(self.dataset.ContentTime)[:6]}"

    @property
    def predecessor(self) -> str | None:
        """The SOP Instance UID of the report that this one takes the place of."""
        found = list(references(self.dataset.get("PredecessorDocumentsSequence") or ()))
        return found[0][2] if found else None

    def lines(self) -> list[str]:
        """The result in words, without anything about the patient."""
        found = ["Classifier result: PRELIMINARY, NOT VERIFIED"]
        for number, case in enumerate(self.cases, start=1):
            name = f"Case {number}: " if len(self.cases) > 1 else ""
            if case.finding is None:
                found.append(f"{name}no result: {case.why}")
                continue
            found.append(f"{name}{case.finding.meaning}, {case.site.meaning}")
            found += [f"  {what.meaning}: {value:.3f}" for what, value in case.probabilities]
        return [*found, f"Model {self.model}, {self.version[:12]}"]


def read_result(report: bytes) -> Result:
    """What a report that `sr.build_report` or `sr.withdraw` made says."""
    dataset = pydicom.dcmread(BytesIO(report))
    cases = tuple(_case(group) for group in groups(dataset))
    items = {name: item for group in groups(dataset)[:1] for name, item in _named(group)}
    procedure = next(item for name, item in _named(dataset) if name == PROCEDURE)
    return Result(
        dataset,
        str(items[ALGORITHM_NAME].TextValue),
        str(items[ALGORITHM_VERSION].TextValue),
        _code(procedure.ConceptCodeSequence[0]),
        cases,
    )


def groups(dataset: pydicom.Dataset) -> list[pydicom.Dataset]:
    """The measurement groups (TID 1501) of a report's content tree, to read or to change."""
    return [
        group
        for part in dataset.ContentSequence
        if part.ValueType == "CONTAINER"
        for group in part.get("ContentSequence", ())
        if group.ConceptNameCodeSequence[0].CodeValue == GROUP
    ]


def references(evidence: Sequence[pydicom.Dataset]) -> Iterator[tuple[str, str, str, str]]:
    """(study, SOP class, SOP instance, series) of a hierarchical reference macro (PS3.3 table C.17-3)."""
    for study in evidence:
        for series in study.ReferencedSeriesSequence:
            for item in series.ReferencedSOPSequence:
                yield (
                    str(study.StudyInstanceUID), str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID),
                    str(series.SeriesInstanceUID),
                )  # fmt: skip


def _named(item: pydicom.Dataset) -> Iterator[tuple[str, pydicom.Dataset]]:
    for child in item.ContentSequence:
        if child.get("ConceptNameCodeSequence"):
            yield str(child.ConceptNameCodeSequence[0].CodeValue), child


def _case(group: pydicom.Dataset) -> Case:
    named = list(_named(group))
    codes = {name: _code(item.ConceptCodeSequence[0]) for name, item in named if item.ValueType == "CODE"}
    return Case(
        finding=codes.get(FINDING.value),
        reason=codes.get(REASON.value),
        site=codes[SITE],
        probabilities=tuple(
            (
                _code(item.ConceptNameCodeSequence[0]),
                float(item.MeasuredValueSequence[0].NumericValue),
            )
            for _, item in named
            if item.ValueType == "NUM"
        ),
        images=tuple(
            (str(image.ReferencedSOPClassUID), str(image.ReferencedSOPInstanceUID))
            for _, item in named
            if item.ValueType == "IMAGE"
            for image in item.ReferencedSOPSequence
        ),
    )


def _code(item: pydicom.Dataset) -> Code:
    return Code(str(item.CodeValue), str(item.CodingSchemeDesignator), str(item.CodeMeaning))
