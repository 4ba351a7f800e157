"""From a complete study to its report: decode, preprocess, infer, decide, write, all by the code of `validate`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pydicom
from numpy.typing import NDArray

from hscc_edge.bundle import Bundle
from hscc_edge.data.dicom import Headers, read_headers, read_image
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.data.pseudonym import pseudonym
from hscc_edge.errors import DicomError
from hscc_edge.model.decision import Decision, decide, parse_rule
from hscc_edge.model.head import parse_head
from hscc_edge.runtime import Runtime, infer_each
from hscc_edge.serve.config import Config
from hscc_edge.serve.journal import NO_RESULT, REPORTED, Journal, Row
from hscc_edge.serve.spool import Spool
from hscc_edge.serve.sr import build_report, report_uid

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Usable:
    """An instance in scope with its logits (1, n)."""

    row: Row
    headers: Headers
    logits: NDArray[np.float32]


class Worker:
    """Turns complete studies into reports, one study at a time; memory grows with one image and a study's headers."""

    def __init__(self, config: Config, bundle: Bundle, runtime: Runtime, journal: Journal, spool: Spool, key: bytes):
        self._config, self._bundle, self._runtime = config, bundle, runtime
        self._journal, self._spool, self._key = journal, spool, key
        self._preprocess = parse_preprocess(bundle.spec.preprocess)
        self._rule, self._head = parse_rule(bundle.spec.decision), parse_head(bundle.spec.head)

    def step(self) -> int:
        """Work on every study that is complete now; returns how many there were."""
        studies = self._journal.complete_studies(self._config.quiet_s)
        for study in studies:
            self._process(study)
        return len(studies)

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
        who = pseudonym(study, self._key)
        LOG.info("event=study_done study=%s images=%d reported=%d", who, len(rows), len(decided))

    def _read(self, rows: Sequence[Row]) -> tuple[list[Usable], dict[int, str]]:
        usable, reasons = [], {}
        for row in rows:
            try:
                headers = read_headers(self._spool.path(row.file))
                if headers.modality not in self._config.modalities:
                    reasons[row.id] = "out of scope: modality"
                    continue
                pixels = self._preprocess(read_image(self._spool.path(row.file)))
                usable.append(Usable(row, headers, infer_each(self._runtime, [pixels])))
            except DicomError:
                reasons[row.id] = "cannot be decoded"
        return usable, reasons

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
        return pydicom.dcmread(BytesIO(self._spool.path(row.file).read_bytes()), stop_before_pixels=True)
