"""Charts of how many, how fast and how sure, each from so many last rows and no more."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from hscc_edge.bundle import read_bundle
from hscc_edge.errors import BundleError
from hscc_edge.serve.config import Drift
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.web.chart import Limit, Line, draw
from hscc_edge.serve.worker.drift import LOOKS_A_WINDOW, Look, look

LAST = 2_000
BINS = 40
HOURS = 48
MOST = 50_000
MODELS = 8
LOOKS, FEATURES = 12, 3


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart as a page shows it, drawn and as figures; where too little is there to draw, `empty` says so."""

    title: str
    unit: str
    lines: list[Line]
    note: str
    limits: Sequence[Limit] = ()
    empty: str = "Too little has been seen yet."

    @property
    def drawn(self) -> str:
        """Inline SVG."""
        return draw(self.title, self.unit, self.lines, self.limits)

    @property
    def figures(self) -> list[tuple[float, list[float | None]]]:
        """(time, a value of each line), the last first."""
        times = sorted({at for line in self.lines for at, _ in line.points}, reverse=True)
        values = [dict(line.points) for line in self.lines]
        return [(at, [known.get(at) for known in values]) for at in times]


def charts(journal: Journal, settings: Drift) -> list[Chart]:
    """Every chart, those of each active bundle last."""
    rows = journal.read(
        "SELECT name, digest, folder FROM models WHERE state = 'active' ORDER BY name LIMIT ?", (MODELS,)
    )
    found = [studies_per_hour(journal), turnaround(journal)]
    for name, digest, folder in rows:
        found += [latency(journal, name, digest), certainty(journal, name, digest)]
        found.append(drifting(journal, settings, name, digest, journal.path.parent / folder))
    return found


def studies_per_hour(journal: Journal) -> Chart:
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
    return Chart(
        "Studies an hour", "", [Line("studies", points, bars=True)], f"{sum(counts.values())} in the last {HOURS} hours"
    )


def turnaround(journal: Journal) -> Chart:
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
    return Chart("From the last byte to the result", "s", lines, _note(len(rows), "reports"))


def latency(journal: Journal, name: str, digest: str) -> Chart:
    """A bundle's time of inference in milliseconds."""
    rows = journal.read(
        "SELECT time, latency_ms FROM observations WHERE digest = ? AND latency_ms IS NOT NULL "
        "ORDER BY id DESC LIMIT ?",
        (digest, LAST),
    )
    median, tail = _shares(rows, 1)
    lines = [Line("median", median), Line("95 %", tail)]
    return Chart(f"Inference by {name}", "ms", lines, _note(len(rows), "cases"))


def certainty(journal: Journal, name: str, digest: str) -> Chart:
    """How probable the decided class was held to be."""
    rows = journal.read(
        "SELECT time, probabilities FROM observations WHERE digest = ? AND label IS NOT NULL ORDER BY id DESC LIMIT ?",
        (digest, LAST),
    )
    median, _ = _shares([(at, max(json.loads(values), default=0.0)) for at, values in rows], 1)
    lines = [Line("median", median)]
    return Chart(f"Certainty of {name}", "", lines, f"{_note(len(rows), 'cases')}, probability of the decided class")


def drifting(journal: Journal, settings: Drift, name: str, digest: str, root: Path) -> Chart:
    """How far the features that moved most are from the reference, at the last looks a quarter of a window apart."""
    step = max(1, settings.window // LOOKS_A_WINDOW)
    rows = journal.read(
        "SELECT id / ?, MAX(id), MAX(time) FROM (SELECT id, time FROM observations WHERE digest = ? AND shadow = 0 "
        "ORDER BY id DESC LIMIT ?) GROUP BY 1 ORDER BY 1 DESC LIMIT ?",
        (step, digest, LAST, LOOKS),
    )
    title, limits = f"Drift of {name}", (Limit("alarm", settings.on), Limit("over", settings.off))
    try:
        looks = _looks(journal, settings, root, rows)
    except BundleError:
        return Chart(title, "PSI", [], "", limits, "The active bundle cannot be read: install it again.")
    if not looks:
        few = f"Nothing to compare before {settings.window} cases; twice as many without a calibration cohort."
        return Chart(title, "PSI", [], "", limits, few)
    now = sorted(looks[-1][1].shifts, key=lambda shift: -shift.psi)
    moved = [shift.feature for shift in now[:FEATURES]]
    series = {feature: [(at, _psi(found, feature)) for at, found in looks] for feature in moved}
    rest = ", ".join(f"{shift.feature} {shift.psi:.2f}" for shift in now[FEATURES:])
    note = f"population stability index against {looks[-1][1].reference}{f'; less moved: {rest}' if rest else ''}"
    return Chart(title, "", [Line(feature, points) for feature, points in series.items()], note, limits)


def _looks(
    journal: Journal, settings: Drift, root: Path, rows: Sequence[tuple[int, int, float]]
) -> list[tuple[float, Look]]:
    found = [(at, _look(journal, settings, root, last)) for _, last, at in reversed(rows)]
    return [(at, seen) for at, seen in found if seen is not None]


@lru_cache(maxsize=256)
def _look(journal: Journal, settings: Drift, root: Path, last: int) -> Look | None:
    """What a look at that observation says; it never changes."""
    return look(journal, settings, read_bundle(root, verify=False), until=last)


def _psi(found: Look, feature: str) -> float | None:
    return next((shift.psi for shift in found.shifts if shift.feature == feature), None)


def _note(count: int, of: str) -> str:
    return f"the last {count} {of}, in parts of equal number"


Points = list[tuple[float, float | None]]


def _shares(rows: Sequence[tuple[float, ...]], column: int) -> tuple[Points, Points]:
    """(medians, 95th percentiles) of equally many rows each, in order of time."""
    if not rows:
        return [], []
    ordered = np.asarray(sorted((row[0], row[column]) for row in rows), np.float64)
    parts = np.array_split(ordered, min(BINS, max(1, len(ordered) // 3)))
    at = [float(part[:, 0].mean()) for part in parts]
    median, tail = ([float(np.percentile(part[:, 1], share)) for part in parts] for share in (50, 95))
    return list(zip(at, median, strict=True)), list(zip(at, tail, strict=True))
