"""The outbox: what is to be sent where; its bytes are kept before the first try, so that a retry is the same object."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from hscc_edge.serve.clock import ticks
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.tallies import by_state
from hscc_edge.serve.timeline import note

PENDING, STORED, DELIVERED, DEAD = "pending", "stored", "delivered", "dead"
WITHHELD = "withheld"  # its report was recalled, or a later one sent, before it was
IS_OPEN = "state IN ('pending', 'stored')"  # word for word as in the index, or SQLite does not use it


@dataclass(frozen=True, slots=True)
class NewDelivery:
    """One object for one destination.

    Attributes:
        destination: a name of the configuration.
        form: a key of `forms.FORMS`.
        sop: the SOP Instance UID of `content`, if it is a DICOM file.
        content: None where the report's own SR is meant.
    """

    destination: str
    form: str
    sop: str | None = field(default=None, repr=False)
    content: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One row of the outbox; `asked` is the Transaction UID of its commitment request (PS3.4 J.3)."""

    id: int
    study: str = field(repr=False)
    destination: str
    form: str
    sop: str = field(repr=False)
    content: bytes = field(repr=False)
    state: str
    attempts: int
    asked: str | None = field(repr=False)


SELECT = (
    "SELECT d.id, r.study, d.destination, d.form, COALESCE(d.sop, r.sop), COALESCE(d.content, r.content), d.state, "
    "d.attempts, d.asked FROM deliveries AS d JOIN reports AS r ON r.id = d.report "
)


def enqueue(db: sqlite3.Connection, report: int, deliveries: Sequence[NewDelivery]) -> None:
    """Add a report's deliveries, inside a transaction."""
    db.executemany(
        "INSERT INTO deliveries (report, destination, form, sop, content, state) VALUES (?, ?, ?, ?, ?, ?)",
        [(report, item.destination, item.form, item.sop, item.content, PENDING) for item in deliveries],
    )


def due(journal: Journal, destination: str, limit: int = 16) -> list[Delivery]:
    """What is to be sent to a destination now, oldest first; nothing while an earlier one of its study is open."""
    earlier = (
        "SELECT 1 FROM deliveries AS o JOIN reports AS p ON p.id = o.report WHERE p.study = r.study "
        f"AND o.destination = d.destination AND o.form = d.form AND o.id < d.id AND o.{IS_OPEN}"
    )
    rows = journal.read(
        SELECT + f"WHERE d.{IS_OPEN} AND d.state = ? AND d.destination = ? AND d.next_tick <= ? "
        f"AND NOT EXISTS ({earlier}) "
        "ORDER BY d.id LIMIT ?",
        (PENDING, destination, ticks(), limit),
    )
    return [Delivery(*row) for row in rows]


def awaiting(journal: Journal, destination: str, limit: int = 256) -> list[Delivery]:
    """What a destination has stored and not yet committed to, and whose time to ask (again) has come."""
    rows = journal.read(
        SELECT + f"WHERE d.{IS_OPEN} AND d.state = ? AND d.destination = ? AND d.next_tick <= ? ORDER BY d.id LIMIT ?",
        (STORED, destination, ticks(), limit),
    )
    return [Delivery(*row) for row in rows]


def any_awaiting(journal: Journal, items: Sequence[Delivery]) -> bool:
    """Whether one of these is still without commitment."""
    marks = ", ".join("?" * len(items))
    query = f"SELECT EXISTS (SELECT 1 FROM deliveries WHERE state = ? AND id IN ({marks}))"
    return bool(journal.read(query, (STORED, *(item.id for item in items)))[0][0])


def asked_as(journal: Journal, transaction_uid: str) -> list[Delivery]:
    """What one commitment request was about, and is not yet committed; a late answer to an old request counts too."""
    rows = journal.read(
        SELECT + "JOIN asks AS a ON a.delivery = d.id WHERE a.transaction_uid = ? AND d.state != ?",
        (transaction_uid, DELIVERED),
    )
    return [Delivery(*row) for row in rows]


def delivered(journal: Journal, item: Delivery, kind: str = "sent") -> bool:
    """The destination has it; `kind` is "committed" where it has promised to keep it. False if that was known."""
    with journal.transaction() as db:
        if not _set(db, item, DELIVERED, 0.0, None):
            return False
        db.execute(
            "UPDATE deliveries SET ended = ?, sent = COALESCE(sent, ?) WHERE id = ?", (*[time.time()] * 2, item.id)
        )
        db.execute("DELETE FROM asks WHERE delivery = ?", (item.id,))
        note(db, item.study, kind, destination=item.destination, form=item.form)
    return True


def stored(journal: Journal, item: Delivery) -> None:
    """The destination has stored it; its commitment is to be asked for."""
    with journal.transaction() as db:
        _set(db, item, STORED, 0.0, None)
        db.execute("UPDATE deliveries SET sent = ? WHERE id = ?", (time.time(), item.id))
        note(db, item.study, "sent", destination=item.destination, form=item.form)


def asked(journal: Journal, items: Sequence[Delivery], transaction_uid: str, patience_s: float) -> None:
    """Commitment is asked for; if no answer comes within `patience_s`, it is asked for again."""
    with journal.transaction() as db:
        db.executemany(
            "UPDATE deliveries SET asked = ?, next_tick = ?, attempts = attempts + 1 WHERE id = ? AND state = ?",
            [(transaction_uid, ticks() + patience_s, item.id, STORED) for item in items],
        )
        db.executemany("INSERT OR IGNORE INTO asks VALUES (?, ?)", [(transaction_uid, item.id) for item in items])


def unasked(journal: Journal, items: Sequence[Delivery], seconds: float, reason: str, *, counts: bool) -> None:
    """The request for commitment was not taken: ask again later."""
    with journal.transaction() as db:
        db.executemany(
            "UPDATE deliveries SET next_tick = ?, reason = ?, attempts = attempts - ? WHERE id = ? AND state = ?",
            [(ticks() + seconds, reason, 0 if counts else 1, item.id, STORED) for item in items],
        )


def postpone(journal: Journal, item: Delivery, seconds: float, reason: str, *, counts: bool = True) -> None:
    """Send it again later; told in the timeline where the reason is another one than before."""
    with journal.transaction() as db:
        (before,) = db.execute("SELECT reason FROM deliveries WHERE id = ?", (item.id,)).fetchone()
        _set(db, item, PENDING, ticks() + seconds, reason, counts=counts)
        if before != reason:
            note(db, item.study, "failed", destination=item.destination, form=item.form, reason=reason)


def withhold(db: sqlite3.Connection, report: str) -> None:
    """Do not send what of a report (its SOP Instance UID) was not sent yet, inside a transaction."""
    db.execute(
        "UPDATE deliveries SET state = ?, ended = ? WHERE state IN (?, ?) AND sent IS NULL "
        "AND report = (SELECT id FROM reports WHERE sop = ?)",
        (WITHHELD, time.time(), PENDING, DEAD, report),
    )


def replace(journal: Journal, item: Delivery, sop: str, content: bytes, reason: str) -> None:
    """Send other bytes instead, which the destination may take."""
    with journal.transaction() as db:
        _set(db, item, PENDING, 0.0, reason)
        db.execute("UPDATE deliveries SET sop = ?, content = ? WHERE id = ?", (sop, content, item.id))
        note(db, item.study, "failed", destination=item.destination, form=item.form, reason=reason)


def bury(journal: Journal, item: Delivery, reason: str) -> None:
    """Make it a dead letter, which only a person can send again."""
    with journal.transaction() as db:
        if not _set(db, item, DEAD, 0.0, reason):
            return
        db.execute("UPDATE deliveries SET ended = ? WHERE id = ?", (time.time(), item.id))
        note(db, item.study, "dead", destination=item.destination, form=item.form, reason=reason)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What was given up, for people to look at; `key` is the study's keyed hash."""

    id: int
    key: str
    destination: str
    form: str
    reason: str | None
    attempts: int


def dead_letters(journal: Journal, limit: int = 1000) -> list[DeadLetter]:
    """The oldest dead letters."""
    rows = journal.read(
        "SELECT d.id, s.key, d.destination, d.form, d.reason, d.attempts FROM deliveries AS d "
        "JOIN reports AS r ON r.id = d.report JOIN studies AS s ON s.uid = r.study WHERE d.state = ? "
        "ORDER BY d.id LIMIT ?",
        (DEAD, limit),
    )
    return [DeadLetter(*row) for row in rows]


def dead(journal: Journal) -> set[int]:
    """The ids of all dead letters."""
    return {number for (number,) in journal.read("SELECT id FROM deliveries WHERE state = ?", (DEAD,))}


def redrive(journal: Journal, numbers: Sequence[int] | None = None) -> int:
    """Send dead letters again, all of them or those with these ids; returns how many.

    One whose destination has been sent a later report of the study meanwhile is withheld: the older would come last.
    """
    later = (
        "EXISTS (SELECT 1 FROM deliveries AS n JOIN reports AS q ON q.id = n.report WHERE q.study = r.study "
        "AND q.model = r.model AND n.destination = d.destination AND n.form = d.form AND n.id > d.id "
        "AND n.sent IS NOT NULL)"
    )
    with journal.transaction() as db:
        rows = db.execute(
            f"SELECT d.id, r.study, d.destination, d.form, {later} FROM deliveries AS d "
            "JOIN reports AS r ON r.id = d.report WHERE d.state = ?",
            (DEAD,),
        ).fetchall()
        chosen = [row for row in rows if numbers is None or row[0] in numbers]
        for number, study, destination, form, superseded in chosen:
            state, kind, ended = (WITHHELD, "withheld", time.time()) if superseded else (PENDING, "redriven", None)
            db.execute(
                "UPDATE deliveries SET state = ?, attempts = 0, next_tick = 0, ended = ? WHERE id = ?",
                (state, ended, number),
            )
            note(db, study, kind, destination=destination, form=form)
    return sum(not row[4] for row in chosen)


def counts(journal: Journal) -> dict[str, int]:
    """Deliveries by state."""
    return by_state(journal, "deliveries")


def _set(
    db: sqlite3.Connection, item: Delivery, state: str, next_tick: float, reason: str | None, *, counts: bool = True
) -> bool:
    changed = db.execute(
        "UPDATE deliveries SET state = ?, next_tick = ?, reason = ?, attempts = attempts + ? "
        "WHERE id = ? AND state != ?",
        (state, next_tick, reason, int(counts), item.id, DELIVERED),
    )
    return changed.rowcount > 0
