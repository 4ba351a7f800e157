"""A shadow beside the active model: the cases that both saw, and where they decide unlike."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hscc_edge.serve.journal import Journal

LAST = 1_000
SHOWN = 20
NOTHING = "no result"
PAIRS = (
    "SELECT c.case_key, a.id, c.time, s.key, a.label, c.label, a.probabilities, c.probabilities, a.latency_ms, "
    "c.latency_ms, c.failed "
    "FROM (SELECT * FROM observations WHERE digest = ? AND shadow = 1 ORDER BY id DESC LIMIT ?) AS c "
    "JOIN observations AS a ON a.study = c.study AND a.case_key = c.case_key AND a.digest = ? AND a.shadow = 0 "
    "JOIN studies AS s ON s.uid = c.study ORDER BY c.id DESC, a.id DESC"
)
FAILED = (
    "SELECT COUNT(failed) FROM (SELECT failed FROM observations WHERE digest = ? AND shadow = 1 ORDER BY id DESC "
    "LIMIT ?)"
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
        agreement: share of cases with the same decision; "no result" is one.
        low, high: Wilson's interval of that share, 95 %.
        flips: (the active model's label, the shadow's) -> cases, where they differ.
        kl: mean divergence from the active model's probabilities to the shadow's, nats.
        difference: mean absolute difference of the probabilities of a case, the largest over its classes.
        latency_ms: medians of both, the active one's first; None if none was timed.
        failed: studies on which the shadow gave nothing at all.
    """

    cases: int
    agreement: float
    low: float
    high: float
    flips: Mapping[tuple[str, str], int]
    kl: float
    difference: float
    latency_ms: tuple[float, float] | None
    failed: int
    unlike: list[Unlike]


def compare(journal: Journal, active: str, shadow: str) -> Comparison:
    """Compare two bundles by digest on the shadow's last `LAST` observations; the newest of each case counts."""
    seen: dict[str, tuple[Any, ...]] = {}
    for row in journal.read(PAIRS, (shadow, LAST, active)):
        seen.setdefault(row[0], row)
    rows = [row for row in seen.values() if row[10] is None]
    unlike = [Unlike(row[3], row[2], _said(row[4], row[6]), _said(row[5], row[7])) for row in rows if row[4] != row[5]]
    differences = [_difference(row[6], row[7]) for row in rows]
    low, high = wilson(len(rows) - len(unlike), len(rows)) if rows else (0.0, 1.0)
    (failed,) = journal.read(FAILED, (shadow, LAST))[0]
    timed = np.asarray([row[8:10] for row in rows if None not in row[8:10]], np.float64).reshape(-1, 2)
    return Comparison(
        cases=len(rows),
        agreement=1.0 - len(unlike) / max(1, len(rows)),
        low=low,
        high=high,
        flips=Counter((row[4] or NOTHING, row[5] or NOTHING) for row in rows if row[4] != row[5]),
        kl=float(np.mean([_kl(json.loads(row[6]), json.loads(row[7])) for row in rows])) if rows else 0.0,
        difference=float(np.mean(differences)) if differences else 0.0,
        latency_ms=(float(np.median(timed[:, 0])), float(np.median(timed[:, 1]))) if len(timed) else None,
        failed=int(failed),
        unlike=unlike[:SHOWN],
    )


def wilson(count: int, of: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval (1927, JASA 22:209) of a share of `of` > 0 independent cases."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, width = count / of, z * z / of
    centre = (share + width / 2) / (1 + width)
    half = math.sqrt(share * (1 - share) * width + width * width / 4) / (1 + width)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def _kl(first: list[float], second: list[float]) -> float:
    """From rounded probabilities, so that shares below a millionth count as that; 0 where there are none."""
    if not first or len(first) != len(second):
        return 0.0
    p, q = (np.clip(np.asarray(values), 1e-6, 1 - 1e-6) for values in (first, second))
    if math.isclose(sum(first), 1.0, abs_tol=1e-3):
        return float(_relative(p / p.sum(), q / q.sum()))
    return float(_relative(p, q) + _relative(1 - p, 1 - q))


def _relative(p: NDArray[np.float64], q: NDArray[np.float64]) -> np.float64:
    """Relative entropy of positive shares."""
    return np.sum(p * np.log(p / q))


def _said(label: str | None, probabilities: str) -> str:
    values = json.loads(probabilities)
    return f"{label} {max(values):.2f}" if label and values else label or NOTHING


def _difference(first: str, second: str) -> float:
    pairs = list(zip(json.loads(first), json.loads(second), strict=False))
    return max((abs(one - other) for one, other in pairs), default=0.0)
