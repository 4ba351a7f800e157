"""Figures over time for the charts: how many, how fast, how sure; each from so many last rows and no more."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hscc_edge.serve.chart import Line
from hscc_edge.serve.journal import Journal

LAST = 2_000
BINS = 40
HOURS = 48
MOST = 50_000


@dataclass(frozen=True, slots=True)
class Trend:
    """Lines of one chart, and how many rows they are of."""

    lines: list[Line]
    rows: int


def studies_per_hour(journal: Journal) -> Trend:
    """Studies by the hour in which something of them came last."""
    hour = int(time.time() // 3600)
    counts = dict(
        journal.read(
            "SELECT CAST(last_received / 3600 AS INTEGER), COUNT(*) FROM (SELECT last_received FROM studies "
            "WHERE last_received > ? ORDER BY last_received DESC LIMIT ?) GROUP BY 1",
            ((hour - HOURS + 1) * 3600.0, MOST),
        )
    )
    points = [(at * 3600.0, float(counts.get(at, 0))) for at in range(hour - HOURS + 1, hour + 1)]
    return Trend([Line("studies", points)], sum(counts.values()))


def turnaround(journal: Journal) -> Trend:
    """From a study's last byte to its report, and to the report's delivery, in seconds."""
    ended = "(SELECT MAX(d.ended) FROM deliveries AS d WHERE d.report = r.id AND d.state = 'delivered')"
    rows = journal.read(
        f"SELECT r.created, r.created - s.last_received, {ended} - s.last_received FROM (SELECT id, study, created, "
        "current FROM reports ORDER BY id DESC LIMIT ?) AS r JOIN studies AS s ON s.uid = r.study "
        "WHERE r.current = 1 AND r.created >= s.last_received",
        (LAST,),
    )
    median, tail = _shares(rows, 1)
    delivered, _ = _shares([row for row in rows if row[2] is not None], 2)
    lines = [Line("report, median", median), Line("report, 95 %", tail), Line("delivered, median", delivered)]
    return Trend(lines, len(rows))


def latency(journal: Journal, digest: str) -> Trend:
    """A bundle's time of inference in milliseconds."""
    rows = journal.read(
        "SELECT time, latency_ms FROM observations WHERE digest = ? AND latency_ms IS NOT NULL "
        "ORDER BY id DESC LIMIT ?",
        (digest, LAST),
    )
    median, tail = _shares(rows, 1)
    return Trend([Line("median", median), Line("95 %", tail)], len(rows))


Points = list[tuple[float, float | None]]


def _shares(rows: Sequence[tuple[float, ...]], column: int) -> tuple[Points, Points]:
    """(medians, 95th percentiles) of equally many rows each, in order of time."""
    if not rows:
        return [], []
    ordered = np.asarray(sorted((row[0], row[column]) for row in rows), np.float64)
    parts = np.array_split(ordered, min(BINS, max(1, len(ordered) // 5)))
    at = [float(part[:, 0].mean()) for part in parts]
    median, tail = ([float(np.percentile(part[:, 1], share)) for part in parts] for share in (50, 95))
    return list(zip(at, median, strict=True)), list(zip(at, tail, strict=True))
