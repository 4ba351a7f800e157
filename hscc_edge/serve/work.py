"""From a complete study to its report: decode, preprocess, infer, decide, write, all by the code of `validate`."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pydicom
from numpy.typing import NDArray

from hscc_edge.bundle import Bundle, read_bundle
from hscc_edge.data.contained import ContainedReader
from hscc_edge.data.dicom import Headers, read_headers
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.data.steps import Pixels
from hscc_edge.errors import ConfigError, DicomError, StorageError
from hscc_edge.model.decision import Decision, decide, parse_rule
from hscc_edge.model.head import parse_head
from hscc_edge.runtime import Runtime, infer_batches
from hscc_edge.runtime.startup import Started, timed_open
from hscc_edge.serve import studies
from hscc_edge.serve.crash import crash_point
from hscc_edge.serve.instances import DAMAGED, NO_RESULT, RECEIVED, REPORTED, Instance, of_study
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.report import Decided, next_report
from hscc_edge.serve.spool import Spool
from hscc_edge.serve.station import Station

TICK_S = 0.1
LOG = logging.getLogger(__name__)
PAUSE_S = 5.0
ATTEMPTS = 2


@dataclass(frozen=True, slots=True)
class Usable:
    """An instance in scope with its logits (1, n)."""

    row: Instance
    headers: Headers
    logits: NDArray[np.float32]


def ready(station: Station, journal: Journal) -> list[Bundle]:
    """Open every model once, so that what is wrong with one is told before a port opens."""
    found = []
    for model in station.config.model:
        bundle = read_bundle(model.bundle)
        _open(station, bundle).runtime.close()
        found.append(bundle)
    return found


def _open(station: Station, bundle: Bundle) -> Started:
    wanted = station.config.work
    return timed_open(bundle, wanted.runtime, precision=wanted.precision, threads=wanted.threads)


def run(station: Station) -> None:
    """The process that works on complete studies until the station is to stop."""
    journal = station.journal()
    bundle = read_bundle(station.config.model[0].bundle)
    started = _open(station, bundle)
    LOG.info("event=runtime load_s=%.2f first_inference_ms=%.1f", started.load_s, started.first_inference_ms)
    worker = Worker(station, bundle, started.runtime, journal, station.spool())
    while not station.rest(TICK_S):
        worker.step()
    worker.close()
    journal.close()


class Worker:
    """Turns complete studies into reports, one study at a time; memory grows with a batch and a study's headers."""

    def __init__(self, station: Station, bundle: Bundle, runtime: Runtime, journal: Journal, spool: Spool) -> None:
        self._station, self._config, self._bundle, self._runtime = station, station.config, bundle, runtime
        self._journal, self._spool = journal, spool
        self._preprocess = parse_preprocess(bundle.spec.preprocess)
        if self._preprocess.volume:
            raise ConfigError(
                f"the bundle {bundle.root} is for volumes, which the daemon does not read yet: serve one for images"
            )
        self._rule, self._head = parse_rule(bundle.spec.decision), parse_head(bundle.spec.head)
        self._reader = ContainedReader()

    def close(self) -> None:
        """End the process that decodes, if there is one."""
        self._reader.close()

    def step(self) -> int:
        """Work on every study that is complete now; returns how many were finished.

        What fails for want of disk is tried again later; what fails otherwise is tried once more, and then ends
        without a result, so that one study never holds up the others.
        """
        done = 0
        for study in studies.due(self._journal, self._config.study.quiet_s, on_release=self._config.study.on_release):
            if self._station.stop.is_set():
                break
            self._station.beat()
            done += self._attempt(study)
        return done

    def _attempt(self, study: studies.Due) -> bool:
        try:
            studies.claim(self._journal, [study.uid])
            crash_point("study-claimed")
            self._process(study.uid)
            crash_point("study-finished")
            return True
        except (OSError, sqlite3.Error, StorageError) as error:
            LOG.error("event=study_postponed study=%s reason=%s", study.key, type(error).__name__)
            self._again(study, PAUSE_S, error, counts=False)
        except Exception as error:  # whatever a codec, a runtime or the report's library throws at hostile input
            LOG.error("event=study_failed study=%s reason=%s", study.key, type(error).__name__)
            if study.attempts + 1 < ATTEMPTS:
                self._again(study, 0.0, error, counts=True)
                return False
            self._give_up(study.uid, type(error).__name__)
            return True
        return False

    def _again(self, study: studies.Due, pause_s: float, error: Exception, *, counts: bool) -> None:
        try:
            studies.postpone(self._journal, study.uid, pause_s, type(error).__name__, counts=counts)
        except sqlite3.Error:
            self._station.rest(PAUSE_S)

    def _give_up(self, study: str, reason: str) -> None:
        rows = [row for row in of_study(self._journal, study) if row.state == RECEIVED]
        studies.finish(self._journal, study, [(row.id, NO_RESULT, f"failed: {reason}") for row in rows], [])

    def _process(self, study: str) -> None:
        rows = of_study(self._journal, study)
        usable, reasons = self._read(rows)
        cases = self._decide(usable)
        decided = {item.row.id for decision, members in cases if decision.label for item in members}
        for decision, members in cases:
            if not decision.label:
                reasons.update({item.row.id: str(decision.reason) for item in members})
        outcomes = [
            (row.id, REPORTED, None) if row.id in decided else (row.id, NO_RESULT, reasons[row.id]) for row in rows
        ]
        reports = self._report(study, cases)
        crash_point("report-built")
        studies.finish(self._journal, study, outcomes, reports)
        LOG.info("event=study_done study=%s images=%d reported=%d", self._station.who(study), len(rows), len(decided))

    def _read(self, rows: Sequence[Instance]) -> tuple[list[Usable], dict[int, str]]:
        usable: list[Usable] = []
        reasons: dict[int, str] = {}
        held: list[tuple[Instance, Headers, Pixels]] = []
        for row in rows:
            if not self._spool.holds(row.file, row.digest):
                reasons[row.id] = DAMAGED
                LOG.error("event=spool_damaged instance=%s", self._station.who(row.sop))
                continue
            try:
                headers = read_headers(self._spool.path(row.file))
                if headers.modality not in ("MR", "CT", "OT"):
                    reasons[row.id] = "out of scope: modality"
                    continue
                pixels = self._preprocess(self._reader.read(self._spool.path(row.file)))
            except DicomError:
                reasons[row.id] = "cannot be decoded"
                continue
            held.append((row, headers, pixels))
            if len(held) == self._config.work.batch:
                usable += self._infer(held)
                held.clear()
        return [*usable, *self._infer(held)], reasons

    def _infer(self, held: Sequence[tuple[Instance, Headers, Pixels]]) -> list[Usable]:
        if not held:
            return []
        logits = infer_batches(self._runtime, (pixels for _, _, pixels in held), len(held))
        return [Usable(row, headers, logits[i : i + 1]) for i, (row, headers, _) in enumerate(held)]

    def _decide(self, usable: Sequence[Usable]) -> list[tuple[Decision, list[Usable]]]:
        groups: dict[str, list[Usable]] = {}
        for item in usable:
            uid = {"image": item.row.sop, "series": item.row.series, "study": item.row.study}[self._rule.unit]
            groups.setdefault(uid, []).append(item)
        return [
            (decide(self._rule, self._head, np.concatenate([item.logits for item in members])), members)
            for members in groups.values()
        ]

    def _report(self, study: str, cases: Sequence[tuple[Decision, list[Usable]]]) -> list[studies.NewReport]:
        decided = [
            Decided(
                decision, tuple(self._headers(item.row) for item in members), tuple(item.row.digest for item in members)
            )
            for decision, members in cases
        ]
        name = self._config.model[0].name
        report = next_report(self._config, self._journal, study, name, self._bundle, decided, "no usable image")
        return [report] if report is not None else []

    def _headers(self, row: Instance) -> pydicom.Dataset:
        return pydicom.dcmread(self._spool.path(row.file), stop_before_pixels=True)
