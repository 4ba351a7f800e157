"""Whether today's studies are unlike those that a model was calibrated on; docs/drift.md says how often it errs.

Each feature of the last cases (`observations`) is compared with the calibration cohort's, which `hscc-edge calibrate`
has put into the bundle, or with the device's own first cases where there is none: by the population stability index,
from which its expectation without any drift is taken, and by a test that the difference is no chance.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hscc_edge.bundle import Bundle
from hscc_edge.serve.config import Drift
from hscc_edge.serve.journal import Journal, put_fact
from hscc_edge.serve.timeline import note
from hscc_edge.validate.drift import DRIFT, ENERGY, SCORE, parse_familiar

BINS = 10
CHANCE = 1e-4
LOOKS_A_WINDOW = 4
SMOOTHING = 0.5
END = 1 << 62
CASE = ""  # a column of every case, alike in all
Value = float | str
Columns = dict[str, list[Value]]


@dataclass(frozen=True, slots=True)
class Shift:
    """How far a feature has moved.

    Attributes:
        psi: population stability index less what it is expected to be without drift; 0 or more.
        chance: probability of so large a difference without drift (Kolmogorov and Smirnov, or chi squared).
        alarm: whether an alarm stands for it.
    """

    feature: str
    psi: float
    chance: float
    alarm: bool


@dataclass(frozen=True, slots=True)
class Look:
    """One comparison of the last cases with the reference; `reference` says what that is."""

    reference: str
    cases: int
    shifts: tuple[Shift, ...]

    @property
    def drifted(self) -> tuple[Shift, ...]:
        """The features with an alarm."""
        return tuple(shift for shift in self.shifts if shift.alarm)


def look(
    journal: Journal, settings: Drift, bundle: Bundle, standing: Sequence[str] = (), until: int = END
) -> Look | None:
    """Compare a bundle's last cases with its reference; None while too few were seen.

    Args:
        standing: features for which an alarm stands, which ends only below `settings.off`.
        until: the observation that is the last, for a look at how it was.
    """
    size = settings.window
    words, reference, after = _reference(journal, bundle, size)
    recent = _columns(journal, bundle.digest, "id > ? AND id <= ? ORDER BY id DESC LIMIT ?", (after, until, size))
    if not reference or len(recent.get(CASE, ())) < size:
        return None
    # A category of this device, such as its scanner, has no reference but the device's own first cases.
    own = reference if after else _columns(journal, bundle.digest, "id > ? ORDER BY id LIMIT ?", (0, size))
    shifts = []
    for feature, values in sorted(recent.items()):
        if feature == CASE:
            continue
        before = reference.get(feature) or own.get(feature, [])
        if len(before) < BINS or len(values) < size // 2:
            continue
        psi, chance = distance(before, values)
        alarm = psi >= settings.off if feature in standing else psi >= settings.on and chance < CHANCE
        shifts.append(Shift(feature, round(psi, 4), chance, alarm))
    return Look(words, size, tuple(shifts))


def distance(before: Sequence[Value], now: Sequence[Value]) -> tuple[float, float]:
    """(population stability index less its expectation, probability of so much by chance) of two samples.

    Without drift the index is about chi squared times `1/n + 1/m` (Yurdakul and Naranjo 2020, Journal of Risk Model
    Validation 14(4)). A feature with few values is compared value by value, others in tenths of the reference.
    """
    from scipy.special import chdtrc, kolmogorov, rel_entr  # 17 MB that a daemon without drift need not hold

    few = isinstance(before[0], str) or len(set(before)) <= BINS
    if few:
        first, second = (Counter(str(value) for value in values) for values in (before, now))
        names = sorted(first.keys() | second.keys())
        counts = [np.array([found[name] for name in names], np.float64) for found in (first, second)]
    else:
        old, new = (np.sort(np.asarray(values, np.float64)) for values in (before, now))
        edges = np.unique(np.quantile(old, np.linspace(0, 1, BINS + 1)[1:-1]))
        counts = [
            np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1).astype(np.float64)
            for values in (old, new)
        ]
    bins, scale = len(counts[0]), 1 / len(before) + 1 / len(now)
    p, q = ((count + SMOOTHING) / (count.sum() + SMOOTHING * bins) for count in counts)
    index = float((rel_entr(p, q) + rel_entr(q, p)).sum())
    chance = float(chdtrc(bins - 1, index / scale)) if few and bins > 1 else 1.0
    if not few:
        chance = float(kolmogorov(_ks(old, new) / np.sqrt(scale)))
    return max(index - (bins - 1) * scale, 0.0), chance


def _ks(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Largest difference of two empirical distributions; both sorted."""
    every = np.concatenate([first, second])
    shares = [np.searchsorted(values, every, side="right") / len(values) for values in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())


class Watch:
    """Looks at a served bundle's cases a few times a window, and keeps the alarm in the journal."""

    def __init__(self, journal: Journal, settings: Drift, name: str, bundle: Bundle) -> None:
        self._journal, self._settings, self._name, self._bundle = journal, settings, name, bundle
        self._unseen = settings.window
        if (standing := journal.fact(fact_of(name))) and json.loads(standing)["digest"] != bundle.digest:
            self._end()

    def seen(self, cases: int) -> str | None:
        """So many cases more were decided; why an alarm was raised, if one was raised now."""
        self._unseen += cases
        if self._unseen * LOOKS_A_WINDOW < self._settings.window:
            return None
        self._unseen = 0
        standing = self._journal.fact(fact_of(self._name))
        found = look(self._journal, self._settings, self._bundle, json.loads(standing)["features"] if standing else ())
        if found is None:
            return None
        if found.drifted:
            return self._raise(found, new=standing is None)
        if standing is not None:
            self._end()
        return None

    def _raise(self, found: Look, *, new: bool) -> str | None:
        reason = ", ".join(f"{shift.feature} (PSI {shift.psi:.2f})" for shift in found.drifted)
        state = {
            "digest": self._bundle.digest, "since": time.time(), "reference": found.reference,
            "features": [shift.feature for shift in found.drifted],
        }  # fmt: skip
        with self._journal.transaction() as db:
            put_fact(db, fact_of(self._name), json.dumps(state))
            if new:
                note(db, None, "drift", model=self._name, reason=reason)
        return reason if new else None

    def _end(self) -> None:
        with self._journal.transaction() as db:
            db.execute("DELETE FROM facts WHERE name = ?", (fact_of(self._name),))
            note(db, None, "drift-over", model=self._name)


def fact_of(name: str) -> str:
    """The journal's fact that stands while an alarm does."""
    return f"drift:{name}"


def _reference(journal: Journal, bundle: Bundle, size: int) -> tuple[str, Columns, int]:
    """What it is, its columns, and the observation after which cases are compared with it."""
    if DRIFT in bundle.files:
        found = parse_familiar(json.loads(bundle.path(DRIFT).read_bytes()), bundle.spec.name)
        columns: Columns = {name: list(values) for name, values in found.values.items()}
        return f"{found.cases} cases of the calibration cohort", columns, 0
    rows = journal.read(
        "SELECT id FROM observations WHERE digest = ? AND shadow = 0 AND failed IS NULL ORDER BY id LIMIT 1 OFFSET ?",
        (bundle.digest, size - 1),
    )
    if not rows:
        return "", {}, 0
    last = int(rows[0][0])
    columns = _columns(journal, bundle.digest, "id <= ? ORDER BY id LIMIT ?", (last, size))
    return f"the first {size} cases on this device", columns, last


def _columns(journal: Journal, digest: str, which: str, values: tuple[object, ...]) -> Columns:
    rows = journal.read(
        "SELECT probabilities, energy, inputs FROM observations WHERE digest = ? AND shadow = 0 AND failed IS NULL AND "
        + which,
        (digest, *values),
    )
    found: Columns = {}
    for probabilities, energy, inputs in rows:
        seen: dict[str, Any] = {**json.loads(inputs), CASE: 0.0}
        if energy is not None:
            seen[ENERGY] = energy
        if shares := json.loads(probabilities):
            seen[SCORE] = max(shares)
        for name, value in seen.items():
            found.setdefault(name, []).append(value)
    return found
