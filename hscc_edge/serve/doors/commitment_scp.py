"""Storage commitment as its provider (PS3.4 J): a promise to keep, given only where the retention deletes nothing.

A sender may delete its own copy on our word. So an instance is committed to if it is on disk with its digest, came
under its UID with one content only, and `[retention]` sets no limit. A request is in the journal before it is answered,
and its report is tried until the sender has taken it: on an association of our own to those in `commitment_peers`, on
the one of the request to all others.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pydicom

from hscc_edge.errors import HsccError, extra
from hscc_edge.serve.clock import ticks
from hscc_edge.serve.config import Config, Listener
from hscc_edge.serve.crash import crash_point
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.results.commitment import INSTANCE, PUSH_MODEL, REQUEST
from hscc_edge.serve.results.storage_user import PLAIN
from hscc_edge.serve.spool import Spool
from hscc_edge.serve.station import Station
from hscc_edge.serve.tls import client_context

with extra("device"):
    from pynetdicom import AE, build_role

LOG = logging.getLogger(__name__)
ALL_KEPT, SOME_FAILED = 1, 2  # Event Type IDs
SUCCESS, MISSING_ATTRIBUTE, NO_SUCH_ACTION, NO_SUCH_INSTANCE = 0x0000, 0x0120, 0x0123, 0x0112  # PS3.7 annex C
# Failure Reason (0008,1197), PS3.3 section C.14.1.1
PROCESSING_FAILURE, NOT_HERE, CLASS_CONFLICT, NO_PLACE_FOR_EVER = 0x0110, 0x0112, 0x0119, 0x0213
OPEN, TOLD, DEAD = "open", "told", "dead"
MOST_ATTEMPTS, LONGEST_PAUSE_S, CLAIM_S = 12, 300.0, 90.0


@dataclass(frozen=True, slots=True)
class Promise:
    """A request that is to be answered by a report; `asked` are (SOP class, SOP instance) UIDs."""

    id: int
    transaction: str = field(repr=False)
    peer: str
    asked: tuple[tuple[str, str], ...] = field(repr=False)
    attempts: int


def request(journal: Journal, peer: str, event: Any) -> tuple[int, int | None]:
    """Note a request (N-ACTION) of an AE title in the journal; (status of the answer, the promise's id)."""
    if event.action_type != REQUEST:
        return NO_SUCH_ACTION, None
    if event.request.RequestedSOPInstanceUID != INSTANCE:
        return NO_SUCH_INSTANCE, None
    wanted = event.action_information
    asked = [
        (str(item.get("ReferencedSOPClassUID", "")), str(item.get("ReferencedSOPInstanceUID", "")))
        for item in wanted.get("ReferencedSOPSequence") or ()
    ]
    transaction = str(wanted.get("TransactionUID", ""))
    if not transaction or not asked or not all(all(pair) for pair in asked):
        return MISSING_ATTRIBUTE, None
    with journal.transaction() as db:
        (number,) = db.execute(
            "INSERT INTO promises (transaction_uid, peer, asked, next_tick, state) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (peer, transaction_uid) DO UPDATE SET asked = excluded.asked, attempts = 0, "
            "next_tick = excluded.next_tick, state = excluded.state RETURNING id",
            (transaction, peer, json.dumps(asked), ticks(), OPEN),
        ).fetchone()
    LOG.info("event=commitment_requested instances=%d", len(asked))
    return SUCCESS, int(number)


def report(config: Config, journal: Journal, spool: Spool, promise: Promise) -> tuple[int, pydicom.Dataset]:
    """(Event Type ID, event information): what is kept for ever, and why the rest is not. Reads every file."""
    kept, failed = [], []
    for sop_class, sop in promise.asked:
        item = pydicom.Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop
        reason = failure(config, journal, spool, sop_class, sop)
        if reason is None:
            kept.append(item)
        else:
            item.FailureReason = reason
            failed.append(item)
    found = pydicom.Dataset()
    found.TransactionUID = promise.transaction
    if kept:
        found.RetrieveAETitle = config.dicom.ae_title
        found.ReferencedSOPSequence = kept
    if failed:
        found.FailedSOPSequence = failed
    return SOME_FAILED if failed else ALL_KEPT, found


def failure(config: Config, journal: Journal, spool: Spool, sop_class: str, sop: str) -> int | None:
    """Why we do not promise to keep an instance; None if we do."""
    rows = journal.read("SELECT sop_class, digest, file FROM instances WHERE sop = ? AND removed IS NULL", (sop,))
    if not rows:
        return NOT_HERE
    if any(row[0] != sop_class for row in rows):
        return CLASS_CONFLICT
    if config.retention.keep_days or config.retention.max_gib:
        return NO_PLACE_FOR_EVER
    if len(rows) > 1 or not spool.holds(rows[0][2], rows[0][1]):
        return PROCESSING_FAILURE
    return None


def promise(journal: Journal, number: int) -> Promise | None:
    """An open promise, claimed: no other process reports it for a while."""
    with journal.transaction() as db:
        found = db.execute(
            "UPDATE promises SET next_tick = ?, attempts = attempts + 1 WHERE id = ? AND state = ? AND next_tick <= ? "
            "RETURNING id, transaction_uid, peer, asked, attempts",
            (ticks() + CLAIM_S, number, OPEN, ticks()),
        ).fetchone()
    if found is None:
        return None
    asked = tuple((str(first), str(second)) for first, second in json.loads(found[3]))
    return Promise(found[0], found[1], found[2], asked, found[4])


def tell(station: Station, journal: Journal, spool: Spool, given: Promise, peer: Any) -> None:
    """Send the report over an association, and note whether its peer has taken it."""
    if not peer.is_established:  # then no file is read in vain
        state = _note(journal, given, taken=False)
        LOG.warning("event=commitment_failed reason=no_association state=%s instances=%d", state, len(given.asked))
        return
    kind, information = report(station.config, journal, spool, given)
    crash_point("commitment-reported")
    try:
        answer, _ = peer.send_n_event_report(information, kind, PUSH_MODEL, INSTANCE)
        taken = "Status" in answer and int(answer.Status) == SUCCESS
    except (RuntimeError, ValueError):  # the association has ended, or has no context for it
        taken = False
    state = _note(journal, given, taken=taken)
    failures = len(information.get("FailedSOPSequence") or ())
    LOG.info("event=commitment_reported state=%s instances=%d failed=%d", state, len(given.asked), failures)


def _note(journal: Journal, given: Promise, *, taken: bool) -> str:
    """Whether the report was taken; if not it is due again later, for so many times. Returns the promise's state."""
    state, pause = (TOLD, 0.0) if taken else (OPEN, min(LONGEST_PAUSE_S, 2.0**given.attempts))
    if not taken and given.attempts >= MOST_ATTEMPTS:
        state = DEAD
    with journal.transaction() as db:
        db.execute("UPDATE promises SET state = ?, next_tick = ? WHERE id = ?", (state, ticks() + pause, given.id))
    return state


def step(station: Station, journal: Journal, spool: Spool) -> None:
    """Report what is due to those who have an address, over associations of our own."""
    for peer, (host, port) in addresses(station.config.dicom).items():
        due = journal.read(
            "SELECT id FROM promises WHERE peer = ? AND state = ? AND next_tick <= ? ORDER BY id LIMIT 16",
            (peer, OPEN, ticks()),
        )
        given = [found for (number,) in due if (found := promise(journal, number)) is not None]
        if given:
            _call(station, journal, spool, peer, (host, port), given)


def _call(
    station: Station, journal: Journal, spool: Spool, peer: str, address: tuple[str, int], given: Sequence[Promise]
) -> None:
    door = station.config.dicom
    entity = AE(ae_title=door.ae_title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = door.idle_s
    entity.add_requested_context(PUSH_MODEL, list(PLAIN))
    try:
        tls = (client_context(door.tls), address[0]) if door.tls else None
    except HsccError as error:
        LOG.error("event=commitment_failed reason=%s", type(error).__name__)
        return
    role = build_role(PUSH_MODEL, scp_role=True)
    found = entity.associate(*address, ae_title=peer, ext_neg=[role], tls_args=tls)
    for one in given:
        tell(station, journal, spool, one, found)
    if found.is_established:
        found.release()


def addresses(door: Listener) -> dict[str, tuple[str, int]]:
    """AE title -> (host, port), of `commitment_peers`."""
    found = {}
    for text in door.commitment_peers:
        title, _, address = text.partition("@")
        host, _, port = address.rpartition(":")
        found[title] = host.strip("[]"), int(port)
    return found
