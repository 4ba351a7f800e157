"""A study's next report: whether there is one, what it takes the place of, and every byte that is to be sent for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pydicom

from hscc_edge.bundle import Bundle
from hscc_edge.model.decision import Decision
from hscc_edge.serve.config import Config
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.results.forms import deliveries
from hscc_edge.serve.results.sr import derived_uid, report_uid
from hscc_edge.serve.studies import NewReport


@dataclass(frozen=True, slots=True)
class Decided:
    """One case that a model was asked about.

    Attributes:
        decision: with its label, or with the reason why there is none.
        images: its images: headers of the first, which the report carries, and what `sr.neutral` keeps of the others.
        digests: `instances.digest` of each.
    """

    decision: Decision
    images: tuple[pydicom.Dataset, ...] = field(repr=False)
    digests: tuple[str, ...] = field(repr=False)


def next_report(
    config: Config, journal: Journal, study: str, model: str, bundle: Bundle, cases: Sequence[Decided], reason: str = ""
) -> NewReport | None:
    """The report that a model's decisions on a study call for, with its deliveries' bytes; None if there is none.

    A case without a label is told where the configuration says so (`[report] no_result`) and where an earlier report of
    the study must be taken back. What the current report says already is not said again.

    Args:
        model: the model's name in the configuration.
        cases: all of the study's cases, decided or not.
        reason: why there is no case at all, such as "out of scope: modality".
    """
    old = _current(journal, study, model)
    told = list(cases) if old or config.report.no_result else [case for case in cases if case.decision.label]
    if not told:
        return _taken_back(config, model, old, reason) if old else None
    inputs = [digest for case in cases for digest in case.digests]
    if old and old.sop == report_uid(bundle, inputs, old.predecessor):
        return None
    uid = report_uid(bundle, inputs, old.sop if old else "")
    images = {str(image.SOPInstanceUID): image for case in told for image in case.images}
    pairs = [(case.decision, case.images) for case in told]
    from hscc_edge.serve.results.measurement_report import build_report

    content = build_report(bundle, list(images.values()), pairs, uid, old.content if old else None)
    result = {
        "cases": [
            {"label": found.label, "probabilities": found.probabilities, "reason": found.reason} for found, _ in pairs
        ]
    }
    sent, predecessor = deliveries(config, content), old.sop if old else None
    return NewReport(model, bundle.digest, str(uid), content, result, sent, predecessor)


@dataclass(frozen=True, slots=True)
class _Current:
    sop: str
    content: bytes
    predecessor: str
    digest: str


def _current(journal: Journal, study: str, model: str) -> _Current | None:
    rows = journal.read(
        "SELECT sop, content, COALESCE(predecessor, ''), digest FROM reports "
        "WHERE study = ? AND model = ? AND current = 1",
        (study, model),
    )
    return _Current(*rows[0]) if rows else None


def _taken_back(config: Config, model: str, old: _Current, reason: str) -> NewReport | None:
    if old.sop == derived_uid("withdrawn", old.predecessor, reason):
        return None
    return withdrawal(config, model, old.digest, old.sop, old.content, reason)


def withdrawal(config: Config, model: str, digest: str, sop: str, content: bytes, reason: str) -> NewReport:
    """The report that takes back another one and says why."""
    from hscc_edge.serve.results.measurement_report import withdraw

    uid = derived_uid("withdrawn", sop, reason)
    result = {"cases": [{"label": None, "probabilities": [], "reason": reason}], "withdrawn": True}
    notice = withdraw(content, reason, uid)
    return NewReport(model, digest, str(uid), notice, result, deliveries(config, notice), sop)
