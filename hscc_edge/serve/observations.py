"""What each model said of each case, and how the case looked: for drift, error rates, and a shadow's comparison.

A row is written in the transaction of the result that it tells of. No identifier is in it but the study's own, by which
the journal's tables are joined; `case_key` is a keyed hash.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hscc_edge.serve.journal import Journal


@dataclass(frozen=True, slots=True)
class Observation:
    """One case of one model, or a study that it failed on.

    Attributes:
        case_key: keyed hash of the case's UID.
        label: what was decided; None for no result.
        probabilities: by label, in the bundle's order; empty where there are none.
        energy: mean free energy of the case's images.
        inputs: `data.appearance.FEATURES`, means over the images, and "scanner", a keyed hash.
        latency_ms: of the network, for all of the case's images.
        failed: why the model gave no output at all; None where it did.
    """

    case_key: str
    label: str | None = None
    probabilities: Sequence[float] = ()
    energy: float | None = None
    inputs: Mapping[str, float | str] = field(default_factory=dict)
    latency_ms: float | None = None
    failed: str | None = None


@dataclass(frozen=True, slots=True)
class Observed:
    """What one model saw of a study."""

    model: str
    digest: str
    seen: Sequence[Observation]


def record(db: sqlite3.Connection, study: str, observed: Observed, *, shadow: bool = False) -> None:
    """Add a study's observations, inside a transaction."""
    db.executemany(
        "INSERT INTO observations (time, study, case_key, model, digest, shadow, label, probabilities, energy, inputs, "
        "latency_ms, failed) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                time.time(), study, item.case_key, observed.model, observed.digest, shadow, item.label,
                json.dumps([round(value, 6) for value in item.probabilities]), item.energy, json.dumps(item.inputs),
                item.latency_ms, item.failed,
            )
            for item in observed.seen
        ],
    )  # fmt: skip


def failures(journal: Journal, digest: str, last: int = 100) -> tuple[int, int]:
    """(failed, of) the last studies that a bundle was asked about since it is active, each by its newest row."""
    rows = journal.read(
        "SELECT failed FROM observations WHERE id IN (SELECT MAX(id) FROM observations WHERE digest = ? AND shadow = 0 "
        "AND time >= (SELECT since FROM models WHERE digest = ?) GROUP BY study) ORDER BY id DESC LIMIT ?",
        (digest, digest, last),
    )
    return sum(failed is not None for (failed,) in rows), len(rows)
