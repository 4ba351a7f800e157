"""What happened to a study, in order, from its first byte to the commitment of its report; no identifier but the key's.

Events are written in the transaction of what they tell, so that the timeline and the tables never disagree.
"""

from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import dataclass
from typing import Any

from hscc_edge.serve.journal import Journal

KINDS = (
    "received", "reopened", "conflict", "started", "retried", "reported", "no-result", "sent", "committed", "failed",
    "dead", "redriven", "withheld", "recalled", "removed", "released",
    "activated", "rolled-back", "drift", "drift-over",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a timeline; `time` in seconds since 1970, `detail` without identifiers."""

    time: float
    kind: str
    detail: dict[str, Any]


def note(db: sqlite3.Connection, study: str | None, kind: str, at: float | None = None, **detail: object) -> None:
    """Add an event inside a transaction; `study` is a Study Instance UID, None for what concerns no study."""
    moment = time.time() if at is None else at
    db.execute(
        "INSERT INTO events (time, study, kind, detail) VALUES (?, ?, ?, ?)", (moment, study, kind, json.dumps(detail))
    )


def timeline(journal: Journal, study: str) -> list[Event]:
    """A study's events, oldest first."""
    rows = journal.read("SELECT time, kind, detail FROM events WHERE study = ? ORDER BY id", (study,))
    return [Event(at, kind, json.loads(detail)) for at, kind, detail in rows]
