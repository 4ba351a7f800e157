"""The journal: SQLite in WAL mode with synchronous=FULL, so that a commit survives a power loss.

Every acknowledged instance has one row, and that row ends in exactly one terminal state.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hscc_edge.errors import StorageError

RECEIVED, REPORTED, NO_RESULT, CONFLICT = "received", "reported", "no-result", "conflict"
TERMINAL = (REPORTED, NO_RESULT, CONFLICT)
PENDING, DELIVERED, DEAD = "pending", "delivered", "dead"
DAMAGED = "spool file damaged"

SCHEMA = """
CREATE TABLE IF NOT EXISTS instances (
    id INTEGER PRIMARY KEY, sop TEXT NOT NULL, digest TEXT NOT NULL, series TEXT NOT NULL, study TEXT NOT NULL,
    file TEXT NOT NULL UNIQUE, state TEXT NOT NULL, reason TEXT, received REAL NOT NULL, UNIQUE (sop, digest));
CREATE INDEX IF NOT EXISTS instances_study ON instances (study, state);
CREATE INDEX IF NOT EXISTS instances_state ON instances (state, study, received);
CREATE TABLE IF NOT EXISTS reports (
    id INTEGER PRIMARY KEY, sop TEXT NOT NULL UNIQUE, study TEXT NOT NULL, model TEXT NOT NULL, content BLOB NOT NULL,
    predecessor TEXT, current INTEGER NOT NULL, state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
    next_try REAL NOT NULL DEFAULT 0, created REAL NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS one_current_report ON reports (study) WHERE current = 1;
CREATE INDEX IF NOT EXISTS reports_state ON reports (state, next_try);
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One kept instance; identifiers stay out of its repr."""

    id: int
    sop: str = field(repr=False)
    digest: str
    series: str = field(repr=False)
    study: str = field(repr=False)
    file: str
    state: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class Report:
    """One report as it was, or will be, sent."""

    id: int
    sop: str = field(repr=False)
    study: str = field(repr=False)
    content: bytes = field(repr=False)
    state: str
    attempts: int


class Journal:
    """One connection behind one lock; each method is one transaction."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(SCHEMA)
        except sqlite3.Error as error:
            raise StorageError(
                f"the journal {path} cannot be opened ({error}): check the disk and its rights"
            ) from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def receive(self, sop: str, digest: str, series: str, study: str, file: str) -> str:
        """Record an instance before it is acknowledged; returns the file that its row stands for.

        That is another file than `file` if the same instance is recorded already. The same UID with other content is
        recorded in the terminal state CONFLICT.
        """
        with self._transaction() as db:
            known = dict(db.execute("SELECT digest, file FROM instances WHERE sop = ?", (sop,)).fetchall())
            if digest in known:
                return str(known[digest])
            state, reason = (CONFLICT, "same UID, other content") if known else (RECEIVED, None)
            db.execute(
                "INSERT INTO instances (sop, digest, series, study, file, state, reason, received) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (sop, digest, series, study, file, state, reason, time.time()),
            )
            return file

    def versions(self, sop: str) -> dict[str, str]:
        """Digest -> file of everything that came under one SOP Instance UID."""
        with self._lock:
            return dict(self._db.execute("SELECT digest, file FROM instances WHERE sop = ?", (sop,)).fetchall())

    def restore(self, old: str, new: str) -> None:
        """A re-sent instance takes the place of its damaged file; if that was why it had no result, it is due again."""
        with self._transaction() as db:
            db.execute("UPDATE instances SET state = ? WHERE file = ? AND reason = ?", (RECEIVED, old, DAMAGED))
            db.execute("UPDATE instances SET reason = NULL WHERE file = ? AND state = ?", (old, RECEIVED))
            db.execute("UPDATE instances SET file = ?, received = ? WHERE file = ?", (new, time.time(), old))

    def waiting(self) -> Iterator[tuple[int, str, str]]:
        """(id, file, digest) of every instance that is still to be worked on."""
        with self._lock:
            rows = self._db.execute("SELECT id, file, digest FROM instances WHERE state = ?", (RECEIVED,)).fetchall()
        yield from rows

    def complete_studies(self, quiet_s: float) -> list[str]:
        """Studies with instances to work on, of which nothing new came for `quiet_s`."""
        with self._lock:
            rows = self._db.execute(
                "SELECT study FROM instances WHERE state = ? GROUP BY study HAVING MAX(received) <= ?",
                (RECEIVED, time.time() - quiet_s),
            )
            return [row[0] for row in rows]

    def instances(self, study: str) -> list[Row]:
        """A study's instances but conflicting ones, ordered by SOP Instance UID."""
        with self._lock:
            rows = self._db.execute(
                "SELECT id, sop, digest, series, study, file, state, reason FROM instances "
                "WHERE study = ? AND state != ? ORDER BY sop",
                (study, CONFLICT),
            )
            return [Row(*row) for row in rows]

    def current_report(self, study: str) -> Report | None:
        """The study's current report."""
        return next(iter(self._reports("study = ? AND current = 1", (study,))), None)

    def finish(
        self, outcomes: Sequence[tuple[int, str, str | None]], report: tuple[str, str, str, bytes] | None
    ) -> None:
        """Give instances their terminal states and the study its new current report, all or nothing.

        Args:
            outcomes: (instance id, state, reason).
            report: (SOP Instance UID, study, model digest, DICOM bytes).
        """
        with self._transaction() as db:
            db.executemany(
                "UPDATE instances SET state = ?, reason = ? WHERE id = ?",
                [(state, reason, number) for number, state, reason in outcomes],
            )
            if report is None:
                return
            sop, study, model, content = report
            old = db.execute("SELECT sop FROM reports WHERE study = ? AND current = 1", (study,)).fetchone()
            if old is not None and old[0] == sop:
                return
            db.execute("UPDATE reports SET current = 0 WHERE study = ?", (study,))
            db.execute(
                "INSERT INTO reports (sop, study, model, content, predecessor, current, state, created) "
                "VALUES (?, ?, ?, ?, ?, 1, ?, ?) ON CONFLICT (sop) DO UPDATE SET current = 1",
                (sop, study, model, content, old[0] if old else None, PENDING, time.time()),
            )

    def due_reports(self) -> list[Report]:
        """Reports to be sent now, oldest first; none while an earlier one of its study still waits."""
        earlier = "SELECT 1 FROM reports AS other WHERE other.study = reports.study AND other.id < reports.id"
        return self._reports(
            f"state = ? AND next_try <= ? AND NOT EXISTS ({earlier} AND other.state = ?) ORDER BY id LIMIT 16",
            (PENDING, time.time(), PENDING),
        )

    def _reports(self, condition: str, values: tuple[object, ...]) -> list[Report]:
        with self._lock:
            rows = self._db.execute(
                f"SELECT id, sop, study, content, state, attempts FROM reports WHERE {condition}", values
            )
            return [Report(*row) for row in rows]

    def delivered(self, report: Report) -> None:
        """The destination has acknowledged the report."""
        self._set_report(report, DELIVERED, 0.0)

    def postpone(self, report: Report, seconds: float) -> None:
        """Try the report again later."""
        self._set_report(report, PENDING, time.time() + seconds)

    def bury(self, report: Report) -> None:
        """Make the report a dead letter."""
        self._set_report(report, DEAD, 0.0)

    def _set_report(self, report: Report, state: str, next_try: float) -> None:
        with self._transaction() as db:
            db.execute(
                "UPDATE reports SET state = ?, next_try = ?, attempts = attempts + 1 WHERE id = ?",
                (state, next_try, report.id),
            )

    def busy(self) -> bool:
        """Whether anything is still to be worked on or sent."""
        with self._lock:
            found = self._db.execute(
                "SELECT EXISTS (SELECT 1 FROM instances WHERE state = ?) "
                "OR EXISTS (SELECT 1 FROM reports WHERE state = ?)",
                (RECEIVED, PENDING),
            ).fetchone()
        return bool(found[0])

    def counts(self) -> dict[str, dict[str, int]]:
        """Instances and reports by state; no identifier is in it."""
        with self._lock:
            return {
                table: dict(self._db.execute(f"SELECT state, COUNT(*) FROM {table} GROUP BY state").fetchall())
                for table in ("instances", "reports")
            }

    def files(self) -> set[str]:
        """Every spool file that a row stands for."""
        with self._lock:
            return {row[0] for row in self._db.execute("SELECT file FROM instances")}

    def close(self) -> None:
        """Checkpoint and close."""
        with self._lock:
            self._db.close()
