"""The outbox: reports are stored to the destination by C-STORE, retried with back-off, then a dead letter."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from io import BytesIO

import pydicom

from hscc_edge.errors import extra
from hscc_edge.serve import outbox
from hscc_edge.serve.config import Destination
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.station import Station

with extra("device"):
    from pynetdicom import AE

LOG = logging.getLogger(__name__)
TICK_S = 0.1


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


def run(station: Station) -> None:
    """The process that empties the outbox."""
    journal = station.journal()
    while not station.rest(TICK_S):
        for destination in station.config.destination:
            step(station, journal, destination)
    journal.close()


def step(station: Station, journal: Journal, destination: Destination) -> int:
    """Send what is due to one destination; returns how many it has taken."""
    items = outbox.due(journal, destination.name)
    if not items:
        return 0
    datasets = [pydicom.dcmread(BytesIO(item.content)) for item in items]
    statuses = store(datasets, destination, station.config.dicom.ae_title)
    return sum([_note(station, journal, destination, *pair) for pair in zip(items, statuses, strict=True)])


def _note(station: Station, journal: Journal, destination: Destination, item: outbox.Delivery, status: int) -> bool:
    who, tries = station.who(item.sop), item.attempts + 1
    if status == 0x0000 or status & 0xF000 == 0xB000:
        outbox.delivered(journal, item)
        LOG.info("event=delivered report=%s attempts=%d", who, tries)
        return True
    reason = f"status {status:#06x}" if status >= 0 else "no answer"
    if tries >= destination.attempts:
        outbox.bury(journal, item, reason)
        LOG.error("event=dead_letter report=%s status=%s attempts=%d", who, hex(status), tries)
        return False
    outbox.postpone(journal, item, _wait_s(destination, item.attempts), reason)
    LOG.warning("event=delivery_failed report=%s status=%s attempts=%d", who, hex(status), tries)
    return False


def _wait_s(destination: Destination, attempts: int) -> float:
    limit = min(destination.first_retry_s * 2.0 ** min(attempts, 30), destination.last_retry_s)
    return limit * random.uniform(0.5, 1.0)
