"""How long studies take, as histograms that grow with no study: the upkeep process adds each event to them once."""

from __future__ import annotations

import json
import sqlite3
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from hscc_edge.serve.journal import Journal, put_fact

BOUNDS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 86_400.0)
MARKER = "latency_event"
# from the last byte to the report, from that to its acceptance, from that to its commitment
REPORT, SENT, COMMITTED = "report", "sent", "committed"


@dataclass(frozen=True, slots=True)
class Histogram:
    """One stage's times.

    Attributes:
        destination: "" for what concerns none.
        counts: of each bucket of `BOUNDS_S` and of what is longer, not cumulative.
    """

    stage: str
    destination: str
    counts: tuple[int, ...]
    sum_s: float


def absorb(journal: Journal, limit: int = 500) -> int:
    """Add the next events to the histograms and count their kinds, in one transaction; returns how many there were."""
    last = int(journal.fact(MARKER) or 0)
    rows = journal.read(
        "SELECT id, time, study, kind, detail FROM events WHERE id > ? ORDER BY id LIMIT ?", (last, limit)
    )
    if not rows:
        return 0
    added: Counter[str] = Counter()
    for number, at, study, kind, detail in rows:
        added[f"event|{kind}"] += 1
        for stage, destination, seconds in _times(journal, number, at, study, kind, json.loads(detail)):
            added[f"latency|{stage}|{destination}|{bisect_left(BOUNDS_S, seconds)}"] += 1
            added[f"latency|{stage}|{destination}|ms"] += round(seconds * 1000)
    with journal.transaction() as db:
        _add(db, added)
        put_fact(db, MARKER, str(rows[-1][0]))
    return len(rows)


def histograms(journal: Journal) -> list[Histogram]:
    """Every stage that was seen."""
    cells: dict[tuple[str, str], dict[str, int]] = {}
    for name, value in journal.read("SELECT name, value FROM counters WHERE name >= 'latency|' AND name < 'latency}'"):
        _, stage, destination, cell = name.split("|")
        cells.setdefault((stage, destination), {})[cell] = value
    return [
        Histogram(
            *key, tuple(found.get(str(number), 0) for number in range(len(BOUNDS_S) + 1)), found.get("ms", 0) / 1000
        )
        for key, found in cells.items()
    ]


def events(journal: Journal) -> dict[str, int]:
    """Events by kind since the journal began."""
    rows = journal.read("SELECT name, value FROM counters WHERE name >= 'event|' AND name < 'event}'")
    return {name.partition("|")[2]: value for name, value in rows}


def _add(db: sqlite3.Connection, added: Counter[str]) -> None:
    db.executemany(
        "INSERT INTO counters VALUES (?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value", added.items()
    )


def _times(
    journal: Journal, number: int, at: float, study: str | None, kind: str, detail: dict[str, object]
) -> Iterator[tuple[str, str, float]]:
    """(stage, destination, seconds) that an event ends; a clock that was set back makes none negative."""
    destination = str(detail.get("destination", ""))
    if kind == "reported":
        ((last,),) = journal.read("SELECT MAX(received) FROM instances WHERE study = ? AND received <= ?", (study, at))
        began, stage = last, REPORT
    elif kind == "sent":
        began, stage = _before(journal, number, study, "reported", None), SENT
    elif kind == "committed":
        began, stage = _before(journal, number, study, "sent", destination), COMMITTED
    else:
        return
    if began is not None:
        yield stage, destination, max(0.0, at - began)


def _before(journal: Journal, number: int, study: str | None, kind: str, destination: str | None) -> float | None:
    """When the last event of a kind happened before another one of its study."""
    rows = journal.read(
        "SELECT time FROM events WHERE study = ? AND id < ? AND kind = ? "
        "AND (? IS NULL OR json_extract(detail, '$.destination') = ?) ORDER BY id DESC LIMIT 1",
        (study, number, kind, destination, destination),
    )
    return float(rows[0][0]) if rows else None
