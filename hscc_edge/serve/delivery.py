"""The outbox: reports are stored to the destination by C-STORE, retried with back-off, then a dead letter."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from io import BytesIO

import pydicom

from hscc_edge.data.pseudonym import pseudonym
from hscc_edge.errors import extra
from hscc_edge.serve.config import Destination
from hscc_edge.serve.journal import Journal, Report

with extra("device"):
    from pynetdicom import AE

LOG = logging.getLogger(__name__)


def store(datasets: Sequence[pydicom.Dataset], destination: Destination, calling: str) -> list[int]:
    """Send data sets over one association; their status codes, 0x0000 for stored, -1 for no answer."""
    entity, wait_s = AE(ae_title=calling), destination.timeout_s
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = wait_s
    for pair in {(item.SOPClassUID, item.file_meta.TransferSyntaxUID) for item in datasets}:
        entity.add_requested_context(*pair)
    association = entity.associate(destination.host, destination.port, ae_title=destination.ae_title)
    if not association.is_established:
        return [-1] * len(datasets)
    try:
        return [_send(association, item) for item in datasets]
    finally:
        association.release()


def _send(association: object, dataset: pydicom.Dataset) -> int:
    try:
        answer = association.send_c_store(dataset)  # type: ignore[attr-defined]
    except (RuntimeError, ValueError, AttributeError):
        return -1
    return int(answer.Status) if "Status" in answer else -1


class Delivery:
    """Sends the bytes that the journal holds, so that a retry is the same report."""

    def __init__(self, journal: Journal, destination: Destination, calling: str, key: bytes) -> None:
        self._journal, self._destination, self._calling, self._key = journal, destination, calling, key

    def step(self, stopping: Callable[[], bool] = lambda: False) -> int:
        """Try every report that is due; returns how many were delivered."""
        reports = self._journal.due_reports()
        if not reports or stopping():
            return 0
        datasets = [pydicom.dcmread(BytesIO(report.content)) for report in reports]
        statuses = store(datasets, self._destination, self._calling)
        return sum([self._note(report, status) for report, status in zip(reports, statuses, strict=True)])

    def _note(self, report: Report, status: int) -> bool:
        who, tries = pseudonym(report.sop, self._key), report.attempts + 1
        if status == 0x0000 or status & 0xF000 == 0xB000:
            self._journal.delivered(report)
            LOG.info("event=delivered report=%s attempts=%d", who, tries)
            return True
        if tries >= self._destination.attempts:
            self._journal.bury(report)
            LOG.error("event=dead_letter report=%s status=%s attempts=%d", who, hex(status), tries)
            return False
        self._journal.postpone(report, self._wait_s(report.attempts))
        LOG.warning("event=delivery_failed report=%s status=%s attempts=%d", who, hex(status), tries)
        return False

    def _wait_s(self, attempts: int) -> float:
        limit = min(self._destination.first_retry_s * 2.0 ** min(attempts, 30), self._destination.last_retry_s)
        return limit * random.uniform(0.5, 1.0)
