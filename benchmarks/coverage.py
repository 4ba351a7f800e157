"""How often a 95 % interval holds the true value: simulation of declared cells, for docs/coverage.{json,md}.

    .venv/bin/python benchmarks/coverage.py --state coverage.json [--simulations 10000] [--only share]
    .venv/bin/python benchmarks/coverage.py --state coverage.json --render docs

A cell is a sampling situation: patients, cases a patient, true value, intra-class correlation. Each is simulated in one
process, one after the other, and the state is written after each, so that the script goes on where it was stopped. The
intervals are those of hscc_edge.validate; the naive and the textbook ones stand beside them for contrast.
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import coverage_table
import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtri, stdtrit
from scipy.stats import binom

from hscc_edge import durable
from hscc_edge.validate.auc import area_interval, areas, average_precision, precision_areas
from hscc_edge.validate.calibration import calibration_error, mean_estimate
from hscc_edge.validate.intervals import Estimate, Proportion, share, wilson
from hscc_edge.validate.machine import machine_facts
from hscc_edge.validate.metrics import class_figures, composites
from hscc_edge.validate.outcomes import Outcomes
from hscc_edge.validate.resampling import Clusters

SIMULATIONS = 10_000
LABELS = ("a", "b", "c")
PRIOR = np.array([0.5, 0.3, 0.2])
PREVALENCE = 0.3
RESAMPLES = 400
LARGE = 2_000_000
Interval = tuple[float, float]
Found = dict[str, Interval | None]
Draw = Callable[[np.random.Generator], Found]


@dataclass(frozen=True, slots=True)
class Cell:
    """`size` cases a patient on average: 1, or uniform from 1 to 2 size - 1, or log-normal if `uneven`."""

    kind: str
    patients: int
    size: int
    truth: float
    icc: float
    uneven: bool = False

    @property
    def name(self) -> str:
        """What the state is keyed by."""
        sizes = f"{self.size} uneven" if self.uneven else str(self.size)
        return f"{self.kind} | {self.patients} patients | {sizes} cases | {self.truth} | {self.icc}"


def cells() -> Iterator[Cell]:
    """The declared cells."""
    for patients in (50, 100, 300, 1000):
        yield from (Cell("share", patients, 1, p, 0.0) for p in (0.5, 0.8, 0.9, 0.95))
    for patients in (30, 100, 300):
        yield from (Cell("share", patients, 5, p, icc) for p in (0.8, 0.9, 0.95) for icc in (0.1, 0.3, 0.6))
    yield from (Cell("share", 50, 10, 0.9, icc, uneven=True) for icc in (0.1, 0.5))
    for area in (0.75, 0.9, 0.97):
        yield from (Cell("area", patients, 1, area, 0.0) for patients in (50, 300))
        yield Cell("area", 100, 5, area, 0.5)
    yield from (Cell("decisions", 100, 1, p, 0.0) for p in (0.8, 0.9))
    yield from (Cell("decisions", 50, 5, p, 0.3) for p in (0.8, 0.9))
    yield from (Cell("brier", n, size, 1.0, 0.5 * (size > 1)) for n, size in ((100, 1), (300, 1), (50, 5)))
    yield from (Cell("calibration", n, size, slope, 0.5 * (size > 1))
                for slope in (1.0, 0.5) for n, size in ((100, 1), (300, 1), (50, 5)))  # fmt: skip
    yield from (Cell("precision", n, size, area, 0.5 * (size > 1))
                for area in (0.8, 0.95) for n, size in ((150, 1), (100, 5)))  # fmt: skip


def sizes_of(cell: Cell, generator: np.random.Generator) -> NDArray[np.int64]:
    """Cases of each patient."""
    if cell.uneven:
        drawn = np.rint(generator.lognormal(np.log(cell.size) - 0.5, 1.0, cell.patients))
        return np.asarray(np.maximum(drawn, 1), dtype=np.int64)
    return generator.integers(1, 2 * cell.size, cell.patients)


def owners_of(cell: Cell, generator: np.random.Generator) -> NDArray[np.int64]:
    """(cases,): the patient of each case."""
    return np.repeat(np.arange(cell.patients), sizes_of(cell, generator))


def hits_of(cell: Cell, owner: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.bool_]:
    """Beta-binomial: each patient has a share of its own, of mean `truth` and intra-class correlation `icc`."""
    if not cell.icc:
        return generator.random(len(owner)) < cell.truth
    spread = (1 - cell.icc) / cell.icc
    own = generator.beta(cell.truth * spread, (1 - cell.truth) * spread, cell.patients)
    return np.asarray(generator.random(len(owner)) < own[owner])


def shares(cell: Cell) -> tuple[dict[str, float], Draw]:
    """A share: ours, naive, and Wilson with the usual design effect (Rao-Scott), that with t (Korn-Graubard)."""

    def draw(generator: np.random.Generator) -> Found:
        owner = owners_of(cell, generator)
        hits = hits_of(cell, owner, generator)
        cases = Clusters(owner, np.zeros(cell.patients, dtype=np.int64))
        return {"ours": ends(share(hits, cases)), **textbook(hits, cases)}

    return dict.fromkeys(("ours", "naive", "Rao-Scott", "Korn-Graubard"), cell.truth), draw


def enumerated(cell: Cell) -> dict[str, Any]:
    """Wilson's interval of independent cases: its exact coverage, over all counts that there can be."""
    counts = np.arange(cell.patients + 1)
    chance = binom.pmf(counts, cell.patients, cell.truth)
    low, high = np.array([wilson(int(count), cell.patients) for count in counts]).T
    row = {
        "true": cell.truth,
        "coverage": float(chance[(low <= cell.truth) & (cell.truth <= high)].sum()),
        "too_high": float(chance[low > cell.truth].sum()),
        "too_low": float(chance[high < cell.truth].sum()),
        "undefined": 0.0,
        "width": float(chance @ (high - low)),
    }
    return {**asdict(cell), "simulations": SIMULATIONS, "exact": True, "rows": {"Wilson": row}}


def textbook(hits: NDArray[np.bool_], cases: Clusters) -> Found:
    """Naive, Rao-Scott's and Korn-Graubard's intervals, by the formula of Wilson's."""
    right, size = cases.sums(np.stack([hits, np.ones(len(hits))], axis=1)).T
    total, rate, count = size.sum(), float(hits.mean()), cases.count
    variance = float(((right - rate * size) ** 2).sum()) / total**2 * count / (count - 1)
    chance = rate * (1 - rate) / total
    effect = variance / chance if chance > 0 else 1.0
    shorter = (ndtri(0.975) / stdtrit(count - 1, 0.975)) ** 2
    effective = {"naive": total, "Rao-Scott": total / effect, "Korn-Graubard": total / effect * shorter}
    return {name: wilson_of(rate, float(n)) for name, n in effective.items()}


def wilson_of(rate: float, n: float) -> Interval:
    """Wilson's interval of a rate among n."""
    z = float(ndtri(0.975))
    centre, half = rate + z**2 / (2 * n), z * (rate * (1 - rate) / n + z**2 / (4 * n**2)) ** 0.5
    return (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)


def decisions(cell: Cell) -> tuple[dict[str, float], Draw]:
    """All figures of decisions among three classes, decided rightly with probability `truth`."""
    columns, p, wrong = np.arange(len(LABELS)), cell.truth, (1 - cell.truth) / 2

    def draw(generator: np.random.Generator) -> Found:
        label = generator.choice(3, cell.patients, p=PRIOR)
        owner = owners_of(cell, generator)
        right = hits_of(cell, owner, generator)
        true = label[owner]
        decided = np.where(right, true, (true + generator.integers(1, 3, len(owner))) % 3)
        cases, blank = Clusters(owner, label), np.full((len(owner), 3), np.nan)
        told = Outcomes(LABELS, true[:, None] == columns, decided[:, None] == columns, blank, cases)
        one = class_figures("c", true == 2, decided == 2, cases)
        items = (*composites(told), one.sensitivity, one.specificity, one.ppv, one.npv, one.positive_ratio,
                 one.negative_ratio)  # fmt: skip
        return {name: ends(item) for name, item in zip(truths, items, strict=True)}

    confusion = PRIOR[:, None] * np.where(np.eye(3) > 0, p, wrong)
    called = confusion.sum(axis=0)
    chance = float(called @ PRIOR)
    f1 = 2 * np.diag(confusion) / (called + PRIOR)
    truths = {
        "balanced accuracy": p, "macro F1": float(f1.mean()), "micro F1": p,
        "kappa": (p - chance) / (1 - chance), "sensitivity": p, "specificity": 1 - wrong,
        "PPV": float(confusion[2, 2] / called[2]),
        "NPV": float((confusion[:2, :2].sum()) / (1 - called[2])),
        "LR+": p / wrong, "LR-": (1 - p) / (1 - wrong),
    }  # fmt: skip
    return truths, draw


def scored(cell: Cell, generator: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.float64], Clusters]:
    """Binormal scores with an AUC of `truth`; a patient has the finding in all cases or in none."""
    owner = owners_of(cell, generator)
    sick = generator.random(cell.patients) < PREVALENCE
    own = generator.normal(size=cell.patients)[owner] * cell.icc**0.5
    noise = own + generator.normal(size=len(owner)) * (1 - cell.icc) ** 0.5
    return sick[owner], noise + sick[owner] * float(ndtri(cell.truth)) * 2**0.5, Clusters(owner, 1 * sick)


def area(cell: Cell) -> tuple[dict[str, float], Draw]:
    """AUC: ours, DeLong's plain interval over patients (Obuchowski), and DeLong's as if cases were independent."""

    def draw(generator: np.random.Generator) -> Found:
        truth, scores, cases = scored(cell, generator)
        found = areas(truth[:, None], scores[:, None], cases)
        plain = {"Obuchowski" if cell.size > 1 else "DeLong": symmetric(float(found.values[0]), found.covariance[0, 0])}
        if cell.size > 1:
            alone = Clusters(np.arange(len(truth)), np.zeros(len(truth), dtype=np.int64))
            naive = areas(truth[:, None], scores[:, None], alone)
            plain["naive DeLong"] = symmetric(float(naive.values[0]), naive.covariance[0, 0])
        return {"ours": ends(area_interval(found, [1.0])), **plain}

    names = ("ours", "Obuchowski", "naive DeLong") if cell.size > 1 else ("ours", "DeLong")
    return dict.fromkeys(names, cell.truth), draw


def symmetric(value: float, variance: float) -> Interval:
    """value -+ 1.96 standard errors, cut at 1, as pROC reports it."""
    half = float(ndtri(0.975)) * variance**0.5
    return value - half, min(value + half, 1.0)


def precision(cell: Cell) -> tuple[dict[str, float], Draw]:
    """Average precision; its true value is that of two million cases."""
    generator = np.random.default_rng(7)
    sick = generator.random(LARGE) < PREVALENCE
    large = generator.normal(size=LARGE) + sick * float(ndtri(cell.truth)) * 2**0.5
    true = float(average_precision(sick, large, np.ones((1, LARGE)))[0])

    def draw(generator: np.random.Generator) -> Found:
        truth, scores, cases = scored(cell, generator)
        return {"ours": ends(precision_areas(truth[:, None], scores[:, None], cases, resamples=RESAMPLES)[0])}

    return {"ours": true}, draw


def claims(cell: Cell, generator: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.bool_], Clusters]:
    """Probabilities of logits N(0, 4), right with the probability of `truth` times the logit: 1 is calibrated."""
    owner = owners_of(cell, generator)
    own = generator.normal(size=cell.patients)[owner] * cell.icc**0.5
    logits = 2 * (own + generator.normal(size=len(owner)) * (1 - cell.icc) ** 0.5)
    right = generator.random(len(owner)) < expit(cell.truth * logits)
    return expit(logits), right, Clusters(owner, np.zeros(cell.patients, dtype=np.int64))


def brier(cell: Cell) -> tuple[dict[str, float], Draw]:
    """The Brier score by BCa over patients, with 400 resamples instead of 10,000."""
    scores, right, _ = claims(Cell("", LARGE, 1, cell.truth, 0.0), np.random.default_rng(7))

    def draw(generator: np.random.Generator) -> Found:
        found, was, cases = claims(cell, generator)
        return {"ours": ends(mean_estimate((found - was) ** 2, cases, resamples=RESAMPLES))}

    return {"ours": float(((scores - right) ** 2).mean())}, draw


def calibrated(cell: Cell) -> tuple[dict[str, float], Draw]:
    """The expected calibration error, with 400 resamples; 0 for a slope of 1."""
    scores, _, _ = claims(Cell("", LARGE, 1, cell.truth, 0.0), np.random.default_rng(7))
    logit = np.log(scores / (1 - scores))
    where = np.clip(np.ceil(scores * 15).astype(int) - 1, 0, 14)
    true = float(np.abs(np.bincount(where, weights=scores - expit(cell.truth * logit))).sum() / LARGE)

    def draw(generator: np.random.Generator) -> Found:
        found, was, cases = claims(cell, generator)
        return {"ours": ends(calibration_error(found[:, None], was[:, None], cases, resamples=RESAMPLES))}

    return {"ours": true}, draw


KINDS = {
    "share": shares, "area": area, "decisions": decisions, "brier": brier, "calibration": calibrated,
    "precision": precision,
}  # fmt: skip


def ends(item: Proportion | Estimate) -> Interval | None:
    """Its limits; an upper limit of None beside a lower one is infinite."""
    if item.low is None:
        return None
    return item.low, float("inf") if item.high is None else item.high


def simulate(cell: Cell, simulations: int) -> dict[str, Any]:
    """Coverage of every interval of a cell; an undefined one does not cover."""
    if cell.kind == "share" and cell.size == 1:
        return enumerated(cell)
    truths, draw = KINDS[cell.kind](cell)
    generator = np.random.default_rng([zlib.crc32(cell.name.encode()), simulations])
    start = time.process_time()
    bounds = {name: np.full((simulations, 2), np.nan) for name in truths}
    for index in range(simulations):
        for name, found in draw(generator).items():
            if found is not None:
                bounds[name][index] = found
    rows = {name: covered(bounds[name], true) for name, true in truths.items()}
    return {**asdict(cell), "simulations": simulations, "cpu_s": round(time.process_time() - start, 1), "rows": rows}


def covered(bounds: NDArray[np.float64], true: float, slack: float = 1e-12) -> dict[str, float]:
    """Coverage, misses on either side, share undefined, median width."""
    low, high = bounds.T
    return {
        "true": true,
        "coverage": float(((low <= true + slack) & (true <= high + slack)).mean()),
        "too_high": float((low > true + slack).mean()),
        "too_low": float((high < true - slack).mean()),
        "undefined": float(np.isnan(low).mean()),
        "width": float(np.nanmedian(high - low)),
    }


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True, help="JSON of the cells so far; made if missing")
    parser.add_argument("--simulations", type=int, default=SIMULATIONS)
    parser.add_argument("--only", choices=sorted(KINDS), help="cells of one kind")
    parser.add_argument("--render", type=Path, help="write coverage.json and coverage.md there instead")
    told = parser.parse_args(words)
    state = json.loads(told.state.read_text()) if told.state.is_file() else {"cells": {}}
    if told.render is not None:
        waiting = [cell.name for cell in cells() if cell.name not in state["cells"]]
        durable.write_json(told.render / "coverage.json", {**state, "not_run": waiting})
        durable.write_text(told.render / "coverage.md", coverage_table.render(state, waiting))
        return
    for cell in cells():
        if cell.name in state["cells"] or told.only not in (None, cell.kind):
            continue
        state["cells"][cell.name] = simulate(cell, told.simulations)
        state["made"] = machine_facts()
        durable.write_json(told.state, state)
        print(cell.name, state["cells"][cell.name]["rows"], flush=True)


if __name__ == "__main__":
    main()
