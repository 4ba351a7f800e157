"""The journal: SQLite in WAL mode with synchronous=FULL, so that a commit survives a power loss.

One file for every process of the daemon. It is only kept here; what its tables mean stands in the files named by them:
`instances`, `studies`, `outbox`, `models`, `observations`, `timeline`, `tallies`. Identifiers are in it in clear, since
it lies in the state directory (mode 0700), and leave it only as keyed hashes (`studies.key`).
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hscc_edge.errors import StorageError
from hscc_edge.serve import tallies
from hscc_edge.serve.clock import boot_id, ticks

VERSION = 2
SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS studies (
    uid TEXT PRIMARY KEY, key TEXT NOT NULL UNIQUE, priority INTEGER NOT NULL DEFAULT 0, expected INTEGER,
    first_byte REAL NOT NULL, last_received REAL NOT NULL, last_tick REAL NOT NULL, released INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0, crashes INTEGER NOT NULL DEFAULT 0,
    not_before REAL NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS studies_last ON studies (last_received);
CREATE TABLE IF NOT EXISTS instances (
    id INTEGER PRIMARY KEY, sop TEXT NOT NULL, sop_class TEXT NOT NULL, digest TEXT NOT NULL, series TEXT NOT NULL,
    study TEXT NOT NULL REFERENCES studies, file TEXT NOT NULL UNIQUE, bytes INTEGER NOT NULL, door TEXT NOT NULL,
    state TEXT NOT NULL, reason TEXT, received REAL NOT NULL, removed REAL, UNIQUE (sop, digest));
CREATE INDEX IF NOT EXISTS instances_study ON instances (study, state);
CREATE INDEX IF NOT EXISTS instances_open ON instances (state, study) WHERE state = 'received';
CREATE INDEX IF NOT EXISTS instances_aside ON instances (id) WHERE state IN ('no-result', 'conflict');
CREATE INDEX IF NOT EXISTS instances_kept ON instances (received) WHERE removed IS NULL;
CREATE TABLE IF NOT EXISTS reports (
    id INTEGER PRIMARY KEY, sop TEXT NOT NULL UNIQUE, study TEXT NOT NULL REFERENCES studies, model TEXT NOT NULL,
    digest TEXT NOT NULL, content BLOB NOT NULL, result TEXT NOT NULL, predecessor TEXT, current INTEGER NOT NULL,
    recalled INTEGER NOT NULL DEFAULT 0, created REAL NOT NULL);
CREATE INDEX IF NOT EXISTS reports_study ON reports (study);
CREATE UNIQUE INDEX IF NOT EXISTS one_current_report ON reports (study, model) WHERE current = 1;
CREATE TABLE IF NOT EXISTS deliveries (
    id INTEGER PRIMARY KEY, report INTEGER NOT NULL REFERENCES reports, destination TEXT NOT NULL, form TEXT NOT NULL,
    sop TEXT, content BLOB, state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, next_tick REAL NOT NULL DEFAULT 0,
    reason TEXT, asked TEXT, sent REAL, ended REAL, UNIQUE (report, destination, form));
CREATE INDEX IF NOT EXISTS deliveries_open ON deliveries (destination, state, id)
    WHERE state IN ('pending', 'stored');
CREATE INDEX IF NOT EXISTS deliveries_dead ON deliveries (state) WHERE state = 'dead';
CREATE TABLE IF NOT EXISTS asks (
    transaction_uid TEXT NOT NULL, delivery INTEGER NOT NULL REFERENCES deliveries,
    PRIMARY KEY (transaction_uid, delivery)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY, time REAL NOT NULL, study TEXT, kind TEXT NOT NULL, detail TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS events_study ON events (study);
CREATE TABLE IF NOT EXISTS models (
    digest TEXT PRIMARY KEY, name TEXT NOT NULL, version INTEGER NOT NULL, folder TEXT NOT NULL, state TEXT NOT NULL,
    reason TEXT, since REAL NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS one_active_model ON models (name) WHERE state = 'active';
CREATE TABLE IF NOT EXISTS observations (
    id INTEGER PRIMARY KEY, time REAL NOT NULL, study TEXT NOT NULL, case_key TEXT NOT NULL, model TEXT NOT NULL,
    digest TEXT NOT NULL, shadow INTEGER NOT NULL, label TEXT, probabilities TEXT NOT NULL, energy REAL,
    inputs TEXT NOT NULL, latency_ms REAL, failed TEXT);
CREATE INDEX IF NOT EXISTS observations_study ON observations (study);
CREATE INDEX IF NOT EXISTS observations_model ON observations (digest, id);
CREATE TABLE IF NOT EXISTS audit_messages (id INTEGER PRIMARY KEY, time REAL NOT NULL, content BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS promises (
    id INTEGER PRIMARY KEY, transaction_uid TEXT NOT NULL, peer TEXT NOT NULL, asked TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, next_tick REAL NOT NULL, state TEXT NOT NULL, UNIQUE (peer, transaction_uid));
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""


class Journal:
    """One connection of one process behind one lock; open it after a fork, never before."""

    def __init__(self, path: Path) -> None:
        """Open, and make the tables if they are not there.

        Raises:
            StorageError: if the file cannot be opened, is no journal, or was written by a newer version.
        """
        self.path, self._lock = path, threading.RLock()
        self._turn = os.open(path.with_suffix(".turn"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._make()
        except sqlite3.Error as error:
            raise StorageError(
                f"the journal {path} cannot be opened ({error}): check the disk and its rights, or restore a backup "
                "with hscc-edge state import"
            ) from error

    def _make(self) -> None:
        (found,) = self._db.execute("PRAGMA user_version").fetchone()
        if found not in (0, VERSION):
            raise StorageError(
                f"the journal {self.path} has format {found}, this version reads {VERSION}: install the version that "
                "wrote it, or set another state directory"
            )
        if found == VERSION:
            return
        with self.transaction() as db:
            for statement in [*SCHEMA.split(";"), *tallies.statements()]:
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {VERSION}")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing. Processes wait for their turn in a lock of the kernel's, first come, first served."""
        with self._lock:
            fcntl.flock(self._turn, fcntl.LOCK_EX)
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            finally:
                fcntl.flock(self._turn, fcntl.LOCK_UN)

    def read(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The rows of one query."""
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def fact(self, name: str) -> str | None:
        """A named text that outlives the process."""
        found = self.read("SELECT value FROM facts WHERE name = ?", (name,))
        return str(found[0][0]) if found else None

    def set_fact(self, name: str, value: str) -> None:
        """Keep a named text."""
        with self.transaction() as db:
            put_fact(db, name, value)

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter that has no row of its own elsewhere, such as refused instances."""
        with self.transaction() as db:
            db.execute(
                "INSERT INTO counters VALUES (?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value",
                (name, by),
            )

    def begin_boot(self) -> None:
        """After a boot, ticks start anew: whatever waited for one is due, and each study is quiet from now on."""
        boot = boot_id()
        if self.fact("boot") == boot:
            return
        with self.transaction() as db:
            db.execute("UPDATE studies SET last_tick = ?, not_before = 0", (ticks(),))
            db.execute("UPDATE deliveries SET next_tick = 0")
            db.execute("UPDATE promises SET next_tick = 0")
            put_fact(db, "boot", boot)

    def close(self) -> None:
        """Checkpoint and close."""
        with self._lock:
            self._db.close()
            os.close(self._turn)


def put_fact(db: sqlite3.Connection, name: str, value: str) -> None:
    """Keep a named text, inside a transaction."""
    db.execute("INSERT INTO facts VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", (name, value))
