"""From a complete study to its report: decode, preprocess, infer, decide, write, all by the code of `validate`."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pydicom
from numpy.typing import NDArray

from hscc_edge.bundle import Bundle
from hscc_edge.data.contained import ContainedReader
from hscc_edge.data.dicom import Headers, read_headers
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.data.pseudonym import pseudonym
from hscc_edge.data.steps import Pixels
from hscc_edge.errors import ConfigError, DicomError, StorageError
from hscc_edge.model.decision import Decision, decide, parse_rule
from hscc_edge.model.head import parse_head
from hscc_edge.runtime import Runtime, infer_batches
from hscc_edge.serve.config import Config
from hscc_edge.serve.journal import DAMAGED, NO_RESULT, RECEIVED, REPORTED, Journal, Row
from hscc_edge.serve.spool import Spool
from hscc_edge.serve.sr import build_report, report_uid

LOG = logging.getLogger(__name__)
PAUSE_S = 5.0
ATTEMPTS = 2


@dataclass(frozen=True, slots=True)
class Usable:
    """An instance in scope with its logits (1, n)."""

    row: Row
    headers: Headers
    logits: NDArray[np.float32]


class Worker:
    """Turns complete studies into reports, one study at a time; memory grows with a batch and a study's headers."""

    def __init__(self, config: Config, bundle: Bundle, runtime: Runtime, journal: Journal, spool: Spool, key: bytes):
        self._config, self._bundle, self._runtime = config, bundle, runtime
        self._journal, self._spool, self._key = journal, spool, key
        self._preprocess = parse_preprocess(bundle.spec.preprocess)
        if self._preprocess.volume:
            raise ConfigError(
                f"the bundle {bundle.root} is for volumes, which the daemon does not read yet: serve one for images"
            )
        self._rule, self._head = parse_rule(bundle.spec.decision), parse_head(bundle.spec.head)
        self._reader = ContainedReader()
        self._not_before: dict[str, float] = {}
        self._failures: dict[str, int] = {}

    def close(self) -> None:
        """End the process that decodes, if there is one."""
        self._reader.close()

    def step(self, stopping: Callable[[], bool] = lambda: False) -> int:
        """Work on every study that is complete now; returns how many were finished.

        What fails for want of disk is tried again later; what fails otherwise is tried once more, and then ends
        without a result, so that one study never holds up the others.
        """
        now, done = time.monotonic(), 0
        for study in self._journal.complete_studies(self._config.quiet_s):
            if stopping():
                break
            if self._not_before.get(study, 0.0) <= now:
                done += self._attempt(study)
        return done

    def _attempt(self, study: str) -> bool:
        try:
            self._process(study)
        except (OSError, sqlite3.Error, StorageError) as error:
            self._not_before[study] = time.monotonic() + PAUSE_S
            LOG.error("event=study_postponed study=%s reason=%s", self._who(study), type(error).__name__)
            return False
        except Exception as error:  # whatever a codec, a runtime or the report's library throws at hostile input
            LOG.error("event=study_failed study=%s reason=%s", self._who(study), type(error).__name__)
            self._failures[study] = self._failures.get(study, 0) + 1
            if self._failures[study] < ATTEMPTS:
                return False
            self._give_up(study, type(error).__name__)
        self._not_before.pop(study, None)
        self._failures.pop(study, None)
        return True

    def _give_up(self, study: str, reason: str) -> None:
        rows = [row for row in self._journal.instances(study) if row.state == RECEIVED]
        self._journal.finish([(row.id, NO_RESULT, f"failed: {reason}") for row in rows], None)

    def _who(self, study: str) -> str:
        return pseudonym(study, self._key)

    def _process(self, study: str) -> None:
        rows = self._journal.instances(study)
        usable, reasons = self._read(rows)
        cases = self._decide(usable)
        decided = {item.row.id for decision, members in cases if decision.label for item in members}
        for decision, members in cases:
            if not decision.label:
                reasons.update({item.row.id: str(decision.reason) for item in members})
        outcomes = [
            (row.id, REPORTED, None) if row.id in decided else (row.id, NO_RESULT, reasons[row.id]) for row in rows
        ]
        report = self._report(study, [case for case in cases if case[0].label])
        self._journal.finish(outcomes, report)
        LOG.info("event=study_done study=%s images=%d reported=%d", self._who(study), len(rows), len(decided))

    def _read(self, rows: Sequence[Row]) -> tuple[list[Usable], dict[int, str]]:
        usable: list[Usable] = []
        reasons: dict[int, str] = {}
        held: list[tuple[Row, Headers, Pixels]] = []
        for row in rows:
            if not self._spool.holds(row.file, row.digest):
                reasons[row.id] = DAMAGED
                LOG.error("event=spool_damaged instance=%s", self._who(row.sop))
                continue
            try:
                headers = read_headers(self._spool.path(row.file))
                if headers.modality not in self._config.modalities:
                    reasons[row.id] = "out of scope: modality"
                    continue
                pixels = self._preprocess(self._reader.read(self._spool.path(row.file)))
            except DicomError:
                reasons[row.id] = "cannot be decoded"
                continue
            held.append((row, headers, pixels))
            if len(held) == self._config.batch:
                usable += self._infer(held)
                held.clear()
        return [*usable, *self._infer(held)], reasons

    def _infer(self, held: Sequence[tuple[Row, Headers, Pixels]]) -> list[Usable]:
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

    def _report(self, study: str, cases: Sequence[tuple[Decision, list[Usable]]]) -> tuple[str, str, str, bytes] | None:
        if not cases:
            return None
        headers = {item.row.id: self._headers(item.row) for _, members in cases for item in members}
        uid = report_uid(self._bundle, [item.row.digest for _, members in cases for item in members])
        old = self._journal.current_report(study)
        predecessor = old.content if old is not None and old.sop != uid else None
        content = build_report(
            self._bundle,
            list(headers.values()),
            [(decision, [headers[item.row.id] for item in members]) for decision, members in cases],
            uid,
            predecessor,
        )
        return str(uid), study, self._bundle.digest, content

    def _headers(self, row: Row) -> pydicom.Dataset:
        return pydicom.dcmread(self._spool.path(row.file), stop_before_pixels=True)
