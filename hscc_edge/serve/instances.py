"""Kept instances: each has one row, and that row ends in exactly one terminal state."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from hscc_edge.serve.clock import ticks
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.tallies import by_state
from hscc_edge.serve.timeline import note

RECEIVED, REPORTED, NO_RESULT, CONFLICT = "received", "reported", "no-result", "conflict"
TERMINAL = (REPORTED, NO_RESULT, CONFLICT)
DAMAGED = "spool file damaged"
OTHER_CONTENT = "same UID, other content"


@dataclass(frozen=True, slots=True)
class Receipt:
    """An object whose file is on disk, to be recorded before it is acknowledged.

    Attributes:
        digest: sha256 of the data set as received, without file meta, in hexadecimal.
        file: name in the spool.
        bytes: size of that file.
        door: "dimse", "stow" or "folder".
        key: the study's keyed hash.
        first_byte: when the object began to arrive, in seconds since 1970.
        priority: 0 for routine, 1 for high, 2 for stat.
        expected: instances of the whole study, if its headers tell.
        peer: who sent it, as AE title@address.
    """

    sop: str = field(repr=False)
    sop_class: str
    digest: str
    series: str = field(repr=False)
    study: str = field(repr=False)
    file: str
    bytes: int
    door: str
    key: str
    first_byte: float
    priority: int = 0
    expected: int | None = None
    peer: str = ""


@dataclass(frozen=True, slots=True)
class Instance:
    """One kept instance; identifiers stay out of its repr."""

    id: int
    sop: str = field(repr=False)
    sop_class: str
    digest: str
    series: str = field(repr=False)
    study: str = field(repr=False)
    file: str
    bytes: int
    state: str
    reason: str | None


COLUMNS = "id, sop, sop_class, digest, series, study, file, bytes, state, reason"


def receive(journal: Journal, receipts: Sequence[Receipt]) -> list[str]:
    """Record instances in one commit; returns for each the file that its row stands for.

    That is another file than the receipt's if the same instance is recorded already. The same UID with other content
    is recorded in the terminal state CONFLICT. Time grows with the number of receipts, not with the journal.
    """
    with journal.transaction() as db:
        return [_receive(db, receipt) for receipt in receipts]


def _receive(db: sqlite3.Connection, receipt: Receipt) -> str:
    known = dict(db.execute("SELECT digest, file FROM instances WHERE sop = ?", (receipt.sop,)).fetchall())
    if receipt.digest in known:
        return str(known[receipt.digest])
    now = time.time()
    _touch_study(db, receipt, now)
    state, reason = (CONFLICT, OTHER_CONTENT) if known else (RECEIVED, None)
    db.execute(
        "INSERT INTO instances (sop, sop_class, digest, series, study, file, bytes, door, state, reason, received) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            receipt.sop, receipt.sop_class, receipt.digest, receipt.series, receipt.study, receipt.file, receipt.bytes,
            receipt.door, state, reason, now,
        ),
    )  # fmt: skip
    if known:
        note(db, receipt.study, "conflict")
    return receipt.file


def _touch_study(db: sqlite3.Connection, receipt: Receipt, now: float) -> None:
    found = db.execute(
        "SELECT EXISTS (SELECT 1 FROM instances WHERE study = uid AND state = ?) FROM studies WHERE uid = ?",
        (RECEIVED, receipt.study),
    ).fetchone()
    db.execute(
        "INSERT INTO studies (uid, key, priority, expected, first_byte, last_received, last_tick) "
        "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (uid) DO UPDATE SET priority = MAX(priority, excluded.priority), "
        "expected = COALESCE(excluded.expected, expected), last_received = excluded.last_received, "
        "last_tick = excluded.last_tick, released = 0",
        (receipt.study, receipt.key, receipt.priority, receipt.expected, receipt.first_byte, now, ticks()),
    )
    if found is None:
        note(db, receipt.study, "received", at=receipt.first_byte, door=receipt.door, peer=receipt.peer)
    elif not found[0]:
        note(db, receipt.study, "reopened", door=receipt.door, peer=receipt.peer)


def versions(journal: Journal, sop: str) -> dict[str, str]:
    """Digest -> file of everything that came under one SOP Instance UID."""
    return dict(journal.read("SELECT digest, file FROM instances WHERE sop = ?", (sop,)))


def restore(journal: Journal, old: str, new: str) -> None:
    """A re-sent instance takes the place of its damaged file; if that was why it had no result, it is due again."""
    with journal.transaction() as db:
        db.execute("UPDATE instances SET state = ? WHERE file = ? AND reason = ?", (RECEIVED, old, DAMAGED))
        db.execute("UPDATE instances SET reason = NULL WHERE file = ? AND state = ?", (old, RECEIVED))
        db.execute("UPDATE instances SET file = ?, removed = NULL WHERE file = ?", (new, old))
        db.execute(
            "UPDATE studies SET last_tick = ?, last_received = ? "
            "WHERE uid = (SELECT study FROM instances WHERE file = ?)",
            (ticks(), time.time(), new),
        )


def of_study(journal: Journal, study: str) -> list[Instance]:
    """A study's instances but conflicting ones, ordered by SOP Instance UID."""
    rows = journal.read(
        f"SELECT {COLUMNS} FROM instances WHERE study = ? AND state != ? ORDER BY sop", (study, CONFLICT)
    )
    return [Instance(*row) for row in rows]


def any_removed(journal: Journal, study: str) -> bool:
    """Whether retention has removed files of a study, so that it cannot be looked at as a whole."""
    return bool(journal.read("SELECT 1 FROM instances WHERE study = ? AND removed IS NOT NULL LIMIT 1", (study,)))


def counts(journal: Journal) -> dict[str, int]:
    """Instances by state."""
    return by_state(journal, "instances")


def files(journal: Journal) -> set[str]:
    """Every spool file that a row stands for and that was not removed by retention."""
    return {row[0] for row in journal.read("SELECT file FROM instances WHERE removed IS NULL")}
