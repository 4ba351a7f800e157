"""Storage commitment as its user (PS3.4 J): a result counts as delivered when the archive has promised to keep it.

The archive answers by N-EVENT-REPORT on the association of the request, or later on one of its own, which the intake
receives; both come to `on_event_report`, and an answer to an earlier request counts as well.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import pydicom
from pydicom import dcmread
from pydicom.uid import generate_uid

from hscc_edge.errors import StorageError, extra
from hscc_edge.serve import outbox
from hscc_edge.serve.audit import audit
from hscc_edge.serve.config import Destination
from hscc_edge.serve.crash import crash_point
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.results.outcome import BUSY, REFUSED, TAKEN, UNANSWERED, UNREACHABLE, UNSUPPORTED, Outcome
from hscc_edge.serve.results.storage_user import PLAIN, UnsupportedError, association
from hscc_edge.serve.station import Station

with extra("device"):
    from pynetdicom import evt

LOG = logging.getLogger(__name__)
PUSH_MODEL = "1.2.840.10008.1.20.1"  # Storage Commitment Push Model SOP Class (PS3.4 J.3.5)
INSTANCE = "1.2.840.10008.1.20.1.1"  # and its well-known instance
REQUEST = 1  # Action Type ID
LINGER_S = 2.0  # so long an answer may come on the association of the request
SUCCESS, PROCESSING_FAILURE, MISSING_ATTRIBUTE = 0x0000, 0x0110, 0x0120


def ask(station: Station, journal: Journal, destination: Destination, items: Sequence[outbox.Delivery]) -> Outcome:
    """Ask a destination to commit to what it has stored; the journal knows the request before it goes out."""
    transaction = generate_uid(prefix=None)
    request = pydicom.Dataset()
    request.TransactionUID = transaction
    request.ReferencedSOPSequence = [_reference(item) for item in items]
    outbox.asked(journal, items, transaction, destination.commitment_s)

    def answered(event: Any) -> tuple[int, None]:
        return on_event_report(journal, station, event.event_information), None

    try:
        with association(
            destination, station.config.dicom.ae_title, [(PUSH_MODEL, PLAIN)], [(evt.EVT_N_EVENT_REPORT, answered)]
        ) as peer:
            outcome = _request(peer, request)
            crash_point("commitment-asked")
            if outcome.kind == TAKEN:
                _linger(station, journal, peer, items)
            return outcome
    except UnsupportedError as error:
        return Outcome(UNSUPPORTED, str(error))
    except ConnectionError as error:
        return Outcome(UNREACHABLE, str(error))


def on_event_report(journal: Journal, station: Station, dataset: pydicom.Dataset) -> int:
    """Take an archive's answer into the journal; returns the status to answer it with.

    What it has committed to counts as delivered; what it has not is stored again. An unknown transaction changes
    nothing and is answered with success, so that nobody repeats it for ever.
    """
    transaction = dataset.get("TransactionUID")
    if not transaction:
        return MISSING_ATTRIBUTE
    kept = {str(item.ReferencedSOPInstanceUID) for item in dataset.get("ReferencedSOPSequence") or ()}
    lost = {
        str(item.ReferencedSOPInstanceUID): int(item.get("FailureReason", 0) or 0)
        for item in dataset.get("FailedSOPSequence") or ()
    }
    try:
        for item in outbox.asked_as(journal, str(transaction)):
            _note(station, journal, item, item.sop in kept, lost.get(item.sop))
        crash_point("commitment-answered")
    except (sqlite3.Error, StorageError) as error:
        LOG.error("event=commitment_not_noted reason=%s", type(error).__name__)
        return PROCESSING_FAILURE
    return SUCCESS


def _note(station: Station, journal: Journal, item: outbox.Delivery, kept: bool, failure: int | None) -> None:
    who = station.who(item.sop)
    if failure is not None and item.state == outbox.STORED:
        outbox.postpone(journal, item, 0.0, f"not committed, failure reason {failure:#06x}")
        LOG.warning("event=not_committed report=%s reason=%#06x", who, failure)
    elif kept and failure is None and outbox.delivered(journal, item, "committed"):
        LOG.info("event=committed report=%s destination=%s", who, item.destination)
        audit(station, "report-committed", report=who, destination=item.destination)


def _reference(item: outbox.Delivery) -> pydicom.Dataset:
    found = pydicom.Dataset()
    found.ReferencedSOPClassUID = sop_class_of(item.content)
    found.ReferencedSOPInstanceUID = item.sop
    return found


def sop_class_of(content: bytes) -> str:
    """The SOP class that a PS3.10 file names in its meta information."""
    return str(dcmread(BytesIO(content), specific_tags=[]).file_meta.MediaStorageSOPClassUID)


def _request(peer: Any, request: pydicom.Dataset) -> Outcome:
    try:
        answer, _ = peer.send_n_action(request, REQUEST, PUSH_MODEL, INSTANCE)
    except (RuntimeError, ValueError):
        return Outcome(UNANSWERED, "no answer")
    if "Status" not in answer:
        peer.abort()  # as in `storage_user.send`
        return Outcome(UNANSWERED, "no answer")
    status = int(answer.Status)
    if status == 0x0000 or status & 0xF000 == 0xB000:
        return Outcome(TAKEN)
    return Outcome(BUSY if status == 0x0213 else REFUSED, f"status {status:#06x}")


def _linger(station: Station, journal: Journal, peer: Any, items: Sequence[outbox.Delivery]) -> None:
    """Wait a moment for the answer on this association."""
    left = LINGER_S
    while left > 0 and peer.is_established and outbox.any_awaiting(journal, items):
        if station.stop.wait(0.05):
            return
        left -= 0.05
