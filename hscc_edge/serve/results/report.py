"""A study's next report: whether there is one, what it takes the place of, and every byte that is to be sent for it.

Whether, the journal says; the writing needs none, and is done where a crash or a hang costs one study.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pydicom
from pydicom.uid import UID

from hscc_edge.bundle import Bundle
from hscc_edge.model.decision import Decision
from hscc_edge.serve.config import Config
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.results.forms import deliveries
from hscc_edge.serve.results.sr import Reference, derived_uid, report_uid
from hscc_edge.serve.studies import NewReport


@dataclass(frozen=True, slots=True)
class Order:
    """A report that is to be written.

    Attributes:
        digest: the bundle's.
        uid: its SOP Instance UID.
        predecessor: the SOP Instance UID of the report that it takes the place of, and `old` that report.
        told: which of the cases it tells, by their numbers.
    """

    model: str
    digest: str
    uid: UID = field(repr=False)
    predecessor: str | None = field(repr=False)
    old: bytes | None = field(repr=False)
    told: tuple[int, ...]


def next_report(
    config: Config,
    journal: Journal,
    study: str,
    model: str,
    bundle: Bundle,
    cases: Sequence[tuple[Decision, Sequence[str]]],
    reason: str = "",
) -> Order | NewReport | None:
    """The report that a model's decisions on a study call for; None if there is none.

    One that takes back an earlier report because no case is left is written here. A case without a label is told where
    the configuration says so (`[report] no_result`) and where an earlier report of the study must be taken back. What
    the current report says already is not said again.

    Args:
        model: the model's name in the configuration.
        cases: all of the study's decisions, each with `instances.digest` of its images.
        reason: why there is no case at all, such as "out of scope: modality".
    """
    old = _current(journal, study, model)
    every = old or config.report.no_result
    told = tuple(number for number, (decision, _) in enumerate(cases) if every or decision.label)
    if not told:
        return _taken_back(config, model, old, reason) if old else None
    inputs = [digest for _, digests in cases for digest in digests]
    if old and old.sop == report_uid(bundle, inputs, old.predecessor):
        return None
    predecessor, content = (old.sop, old.content) if old else (None, None)
    return Order(model, bundle.digest, report_uid(bundle, inputs, predecessor or ""), predecessor, content, told)


def write_report(
    config: Config,
    bundle: Bundle,
    order: Order,
    head: pydicom.Dataset,
    cases: Sequence[tuple[Decision, Sequence[Reference]]],
) -> NewReport:
    """The report with its deliveries, every byte that is to be sent for it.

    Args:
        head: headers of one of its images.
        cases: the decisions that are told, each with the images that it is about.
    """
    from hscc_edge.serve.results.measurement_report import build_report

    content = build_report(bundle, head, cases, order.uid, order.old)
    result = {
        "cases": [
            {"label": found.label, "probabilities": found.probabilities, "reason": found.reason} for found, _ in cases
        ]
    }
    sent = deliveries(config, content)
    return NewReport(order.model, order.digest, str(order.uid), content, result, sent, order.predecessor)


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
