"""IHE ATNA: audit messages made of what the journal and the audit file say, kept in the journal until they are sent.

They are made by the upkeep process, in the same transaction that remembers up to where it has read: each event becomes
its messages once, and a repository that is away for a month misses none.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
from pydicom.errors import InvalidDicomError

from hscc_edge.errors import HsccError
from hscc_edge.serve import audit
from hscc_edge.serve.config import Config
from hscc_edge.serve.journal import Journal, put_fact
from hscc_edge.serve.operations import audit_message as message
from hscc_edge.serve.operations.audit_message import Event, Node, Participant, Subject
from hscc_edge.serve.operations.syslog import Sender, frame
from hscc_edge.serve.station import Station

LOG = logging.getLogger(__name__)
EVENTS, LINES = "atna_event", "atna_line"
AT_ONCE, MADE_AT_ONCE = 50, 500
FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 300.0
NAMED = ["PatientID", "PatientName", "SOPClassUID"]
LOGINS = {
    "login": (message.LOGIN, message.GOOD), "login-refused": (message.LOGIN, message.MINOR),
    "logout": (message.LOGOUT, message.GOOD),
}  # fmt: skip
# An audit line's action -> the type of its Security Alert, its outcome.
ALERTS = {
    "association-refused": (message.NODE_AUTHENTICATION, message.MINOR),
    "model-activate": (message.SOFTWARE, message.GOOD), "model-rollback": (message.SOFTWARE, message.GOOD),
    "recall": (message.RESTRICTED, message.GOOD), "state-export": (message.RESTRICTED, message.GOOD),
    "state-import": (message.RESTRICTED, message.GOOD), "audit-broken": (message.OBJECT_CHANGED, message.MINOR),
}  # fmt: skip


def collect(station: Station, journal: Journal) -> int:
    """Make the messages of what has happened since the last call, of audit lines up to the last seal; how many."""
    last = int(journal.fact(EVENTS) or 0)
    rows = journal.read(
        "SELECT id, time, study, kind, detail FROM events WHERE id > ? ORDER BY id LIMIT ?", (last, MADE_AT_ONCE)
    )
    seq, end = (int(part) for part in (journal.fact(LINES) or "0 0").split(" "))
    known = audit.head(journal, station.key)
    upto = known.seq if known is not None else 0
    lines, new_seq, new_end = audit.follow(station.config.state, seq, end, upto, MADE_AT_ONCE)
    made = [item for row in rows for item in _of_event(station, journal, *row)]
    made += [item for line in lines for item in _of_line(station.config, line)]
    if not rows and new_seq == seq:
        return 0
    with journal.transaction() as db:
        enqueue(db, made)
        put_fact(db, EVENTS, str(rows[-1][0] if rows else last))
        put_fact(db, LINES, f"{new_seq} {new_end}")
    return len(made)


def enqueue(db: sqlite3.Connection, events: list[Event]) -> None:
    """Keep messages until they are sent, inside a transaction."""
    db.executemany(
        "INSERT INTO audit_messages (time, content) VALUES (?, ?)", [(item.at, message.xml(item)) for item in events]
    )


def deleted(station: Station, journal: Journal, study: str) -> Event:
    """The message of a study whose files retention is about to remove."""
    return Event(
        message.STUDY_DELETED, "D", time.time(), [message.own(station.config.dicom.ae_title, requestor=True)],
        station.config.dicom.ae_title, about=_subject(station, journal, study),
    )  # fmt: skip


class Repository:
    """Sends what is kept, oldest first, to the configured audit repository; after a failure later and later."""

    def __init__(self, config: Config) -> None:
        audit_config = config.audit
        if audit_config.tls is None:
            raise ValueError("an audit repository without TLS")
        self._sender = Sender(audit_config.host, audit_config.port, audit_config.tls)
        self._pause_s, self._not_before = FIRST_PAUSE_S, 0.0

    def send(self, journal: Journal) -> int:
        """Send some; returns how many were taken."""
        if time.monotonic() < self._not_before:
            return 0
        rows = journal.read("SELECT id, time, content FROM audit_messages ORDER BY id LIMIT ?", (AT_ONCE,))
        if not rows:
            return 0
        try:
            self._sender.deliver([frame(content, at) for _, at, content in rows])
        except (OSError, HsccError) as error:
            self._not_before = time.monotonic() + self._pause_s
            LOG.warning("event=audit_repository_away reason=%s again_s=%.0f", type(error).__name__, self._pause_s)
            self._pause_s = min(2 * self._pause_s, LAST_PAUSE_S)
            return 0
        self._pause_s = FIRST_PAUSE_S
        with journal.transaction() as db:
            db.execute("DELETE FROM audit_messages WHERE id <= ?", (rows[-1][0],))
        return len(rows)

    def close(self) -> None:
        """Hang up."""
        self._sender.close()


def _of_event(
    station: Station, journal: Journal, number: int, at: float, study: str | None, kind: str, detail: str
) -> Iterator[Event]:
    make = OF_EVENT.get(kind)
    if make is not None and study is not None:
        yield from make(station, journal, number, at, study, json.loads(detail))


def _received(
    station: Station, journal: Journal, number: int, at: float, study: str, detail: dict[str, Any]
) -> Iterator[Event]:
    """Work on a complete study begins: all of it has come; but not again for a second try."""
    rows = journal.read(
        "SELECT kind, detail FROM events WHERE study = ? AND id < ? AND kind IN ('received', 'reopened', 'started') "
        "ORDER BY id DESC LIMIT 1",
        (study, number),
    )
    if not rows or rows[0][0] == "started":
        return
    arrival, title = json.loads(rows[0][1]), station.config.dicom.ae_title
    sender, _, address = str(arrival.get("peer", "")).partition("@")
    yield Event(
        message.TRANSFERRED, "C", at,
        [
            Participant(sender or str(arrival.get("door", "unknown")), True, message.SOURCE, address, sender),
            message.own(title, requestor=False, role=message.DESTINATION),
        ],
        title, about=_subject(station, journal, study),
    )  # fmt: skip


def _sent(
    station: Station, journal: Journal, number: int, at: float, study: str, detail: dict[str, Any]
) -> Iterator[Event]:
    title = station.config.dicom.ae_title
    name = str(detail.get("destination", ""))
    found = next((item for item in station.config.destination if item.name == name), None)
    where = Participant(name, False, message.DESTINATION)
    if found is not None and found.url:
        where = Participant(found.url, False, message.DESTINATION)
    elif found is not None:
        where = Participant(found.ae_title, False, message.DESTINATION, found.host, found.ae_title)
    sides = [message.own(title, requestor=True, role=message.SOURCE), where]
    subject = _report_subject(station, journal, study, at)
    yield Event(message.BEGIN_TRANSFERRING, "E", at, sides, title, about=subject)
    yield Event(message.TRANSFERRED, "R", at, sides, title, about=subject)


OF_EVENT: dict[str, Callable[..., Iterator[Event]]] = {"started": _received, "sent": _sent}


def _of_line(config: Config, line: audit.Line) -> Iterator[Event]:
    title, facts = config.dicom.ae_title, line.facts
    at = datetime.fromisoformat(line.time).timestamp()
    address = str(facts.get("address", facts.get("peer", "")))
    if line.action in ("started", "stopped"):
        kind = message.START if line.action == "started" else message.STOP
        sides = [message.own(title, requestor=False, role=message.APPLICATION)]
        yield Event(message.APPLICATION_ACTIVITY, "E", at, sides, title, kind)
    elif line.action in LOGINS:
        kind, outcome = LOGINS[line.action]
        sides = [Participant(str(facts.get("account") or "unknown"), True, address=address)]
        yield Event(message.USER_AUTHENTICATION, "E", at, sides, title, kind, outcome)
    elif line.action in ALERTS:
        kind, outcome = ALERTS[line.action]
        sides = [message.own(title, requestor=False)]
        if account := facts.get("account"):
            sides.append(Participant(str(account), True))
        told = " ".join(f"{name}={value}" for name, value in facts.items() if name not in ("address", "account"))
        about = Node(address or title, f"{line.action}: {told}")
        yield Event(message.SECURITY_ALERT, "E", at, sides, title, kind, outcome, about)


def _subject(station: Station, journal: Journal, study: str) -> Subject:
    classes = dict(
        journal.read("SELECT sop_class, COUNT(*) FROM instances WHERE study = ? GROUP BY sop_class", (study,))
    )
    for (file,) in journal.read("SELECT file FROM instances WHERE study = ? AND removed IS NULL LIMIT 3", (study,)):
        if (found := _named(station.spool().path(file))) is not None:
            return Subject(study, *found[:2], classes)
    for (content,) in journal.read("SELECT content FROM reports WHERE study = ? ORDER BY id DESC LIMIT 1", (study,)):
        if (found := _named(BytesIO(content))) is not None:
            return Subject(study, *found[:2], classes)
    return Subject(study, "", "", classes)


def _report_subject(station: Station, journal: Journal, study: str, at: float) -> Subject:
    """The patient as the report names them, and the report's own class."""
    rows = journal.read(
        "SELECT content FROM reports WHERE study = ? AND created <= ? ORDER BY id DESC LIMIT 1", (study, at)
    )
    for (content,) in rows:
        if (found := _named(BytesIO(content))) is not None:
            return Subject(study, *found[:2], {found[2]: 1})
    return _subject(station, journal, study)


def _named(source: Path | BytesIO) -> tuple[str, str, str] | None:
    """(Patient ID, patient's name, SOP class) of a DICOM file."""
    try:
        found = pydicom.dcmread(source, stop_before_pixels=True, specific_tags=NAMED)
        return str(found.get("PatientID") or ""), str(found.get("PatientName") or ""), str(found.get("SOPClassUID", ""))
    except (OSError, InvalidDicomError, ValueError, LookupError, TypeError):
        return None
