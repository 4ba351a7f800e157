"""What comes of a study that was read and inferred: terminal states, reports, observations; nothing is written here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hscc_edge.data.appearance import mean_appearance
from hscc_edge.serve.instances import NO_RESULT, REPORTED, Instance
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.observations import Observation, Observed
from hscc_edge.serve.results.report import Order, next_report
from hscc_edge.serve.results.sr import Reference
from hscc_edge.serve.station import Station
from hscc_edge.serve.studies import NewReport
from hscc_edge.serve.worker.lane import Case, Lane
from hscc_edge.serve.worker.models import FAILED
from hscc_edge.serve.worker.reading import Reading
from hscc_edge.serve.worker.writing import Writing

NOTHING_USABLE = "no usable image"


@dataclass(frozen=True, slots=True)
class Ending:
    """What `studies.finish` writes of one study.

    Attributes:
        states: (instance id, terminal state, reason).
        writings: reports that are still to be written, beside the `reports` that are there.
        failed: model's name -> why it gave no output.
    """

    states: tuple[tuple[int, str, str | None], ...]
    writings: tuple[Writing, ...]
    reports: tuple[NewReport, ...]
    observed: tuple[Observed, ...]
    failed: dict[str, str]

    @property
    def reported(self) -> int:
        """Instances that a report is about."""
        return sum(state == REPORTED for _, state, _ in self.states)


def ending(station: Station, journal: Journal, reading: Reading, lanes: Sequence[Lane]) -> Ending:
    """Decide the study's cases by every model that looked at it, and say which reports they call for.

    An instance is reported if any model's report is about it; else it has no result for the reasons of all. One that
    was reported before stays so where a model failed on it now.
    """
    reasons: dict[int, dict[str, str]] = {row.id: {} for row in reading.rows}
    reported: set[int] = set()
    reports: list[Writing | NewReport] = []
    observed: list[Observed] = []
    failed: dict[str, str] = {}
    for lane in lanes:
        dropped = reading.dropped(lane.name)
        for row in reading.rows:
            if (reason := reading.reason(row, lane.name)) is not None:
                reasons[row.id][lane.name] = reason
        if reading.study in lane.failed:
            failed[lane.name] = lane.failed[reading.study]
            seen = [Observation(station.who(reading.study), failed=failed[lane.name])]
            _give(
                reasons, lane.name, (row for row in reading.rows if row.id not in dropped), FAILED + failed[lane.name]
            )
        else:
            cases = lane.decided(reading.study, dropped)
            for case in cases:
                if case.decision.label:
                    reported |= {row.id for row in case.rows}
                else:
                    _give(reasons, lane.name, case.rows, str(case.decision.reason))
            reports += _reports(station, journal, reading, lane, cases)
            seen = [observation(station, case) for case in cases]
        observed.append(Observed(lane.name, lane.bundle.digest, seen))
    kept = {row.id for row in reading.rows if row.state == REPORTED and row.id not in reported} if failed else set()
    states = tuple(
        (row.id, REPORTED, None) if row.id in reported else (row.id, NO_RESULT, _joined(reasons[row.id]))
        for row in reading.rows
        if row.id not in kept
    )
    writings = tuple(item for item in reports if isinstance(item, Writing))
    return Ending(
        states, writings, tuple(item for item in reports if not isinstance(item, Writing)), tuple(observed), failed
    )


def observation(station: Station, case: Case) -> Observation:
    """What is kept of a case for drift and comparisons."""
    means = mean_appearance(output.given.looks for output in case.outputs)
    inputs: dict[str, float | str] = {name: float(f"{value:.6g}") for name, value in means.items()}
    if scanner := next((output.given.scanner for output in case.outputs if output.given.scanner), ""):
        inputs["scanner"] = scanner
    return Observation(
        station.who(case.uid), case.decision.label, case.decision.probabilities, round(case.energy, 6), inputs,
        round(sum(output.milliseconds for output in case.outputs), 3),
    )  # fmt: skip


def _reports(
    station: Station, journal: Journal, reading: Reading, lane: Lane, cases: Sequence[Case]
) -> Iterator[Writing | NewReport]:
    decided = [(case.decision, [row.digest for row in case.rows]) for case in cases]
    reasons = sorted({reading.reason(row, lane.name) or NOTHING_USABLE for row in reading.rows})
    reason = reasons[0] if len(reasons) == 1 else NOTHING_USABLE
    found = next_report(station.config, journal, reading.study, lane.name, lane.bundle, decided, reason)
    if isinstance(found, Order):
        told = [cases[number] for number in found.told]
        pairs = [
            (case.decision, [(row.study, row.sop_class, row.sop, row.series) for row in case.rows]) for case in told
        ]
        yield Writing(found, lane.bundle, told[0].rows[0].file, pairs)
    elif found is not None:
        yield found


def _reference(row: Instance) -> Reference:
    return row.study, row.sop_class, row.sop, row.series


def _give(
    reasons: dict[int, dict[str, str]], model: str, rows: Iterator[Instance] | Sequence[Instance], why: str
) -> None:
    for row in rows:
        reasons[row.id][model] = why


def _joined(reasons: dict[str, str]) -> str:
    """One reason, or where models differ, each with its model."""
    if len(set(reasons.values())) == 1:
        return next(iter(reasons.values()))
    return "; ".join(f"{model}: {why}" for model, why in reasons.items())
