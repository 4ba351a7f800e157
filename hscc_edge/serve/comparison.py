"""A shadow beside the active model: the cases that both saw, and where they decide unlike."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from hscc_edge.serve.journal import Journal

LAST = 1_000
SHOWN = 20
NOTHING = "no result"
PAIRS = (
    "SELECT c.id, a.id, c.time, s.key, a.label, c.label, a.probabilities, c.probabilities, a.latency_ms, c.latency_ms, "
    "c.failed FROM (SELECT * FROM observations WHERE digest = ? AND shadow = 1 ORDER BY id DESC LIMIT ?) AS c "
    "JOIN observations AS a ON a.study = c.study AND a.case_key = c.case_key AND a.digest = ? AND a.shadow = 0 "
    "JOIN studies AS s ON s.uid = c.study ORDER BY c.id DESC, a.id DESC"
)


@dataclass(frozen=True, slots=True)
class Unlike:
    """One case that the two decide unlike, in words."""

    key: str
    time: float
    active: str
    shadow: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the last cases that both saw say.

    Attributes:
        agreement: share of cases with the same decision.
        difference: mean absolute difference of the probabilities of a case, the largest over its classes.
        latency_ms: medians of both, the active one's first; None if none was timed.
        failed: cases on which the shadow gave nothing at all.
    """

    cases: int
    agreement: float
    difference: float
    latency_ms: tuple[float, float] | None
    failed: int
    unlike: list[Unlike]


def compare(journal: Journal, active: str, shadow: str) -> Comparison:
    """Compare two bundles by digest on the shadow's last `LAST` observations."""
    seen: dict[int, tuple[Any, ...]] = {}
    for row in journal.read(PAIRS, (shadow, LAST, active)):
        seen.setdefault(row[0], row)
    rows = list(seen.values())
    unlike = [Unlike(row[3], row[2], _said(row[4], row[6]), _said(row[5], row[7])) for row in rows if row[4] != row[5]]
    differences = [_difference(row[6], row[7]) for row in rows]
    timed = np.asarray([row[8:10] for row in rows if None not in row[8:10]], np.float64).reshape(-1, 2)
    return Comparison(
        cases=len(rows),
        agreement=1.0 - len(unlike) / max(1, len(rows)),
        difference=float(np.mean(differences)) if differences else 0.0,
        latency_ms=(float(np.median(timed[:, 0])), float(np.median(timed[:, 1]))) if len(timed) else None,
        failed=sum(row[10] is not None for row in rows),
        unlike=unlike[:SHOWN],
    )


def _said(label: str | None, probabilities: str) -> str:
    values = json.loads(probabilities)
    return f"{label} {max(values):.2f}" if label and values else label or NOTHING


def _difference(first: str, second: str) -> float:
    pairs = list(zip(json.loads(first), json.loads(second), strict=False))
    return max((abs(one - other) for one, other in pairs), default=0.0)
