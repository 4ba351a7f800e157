"""How often the non-inferiority gate passes what it must not, and what it should; how often the paired interval holds.

python benchmarks/type_one.py --out docs/noninferiority   (writes .json, .svg and .md)

Independent cases: exact, by adding up the probabilities of all tables. Several cases a patient: by simulation.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from paired_candidates import CANDIDATES, Design, draw, table
from scipy.stats import binom, norm, t
from type_one_page import markdown, plot

from hscc_edge import durable
from hscc_edge.validate.machine import machine_facts
from hscc_edge.validate.paired import effect_of, score
from hscc_edge.validate.power import Shares, power

ALPHA = 0.025
CASES = (49, 100, 157, 300, 500, 1000, 2000)
MARGINS = (0.01, 0.02, 0.03, 0.05, 0.10)
EXTRA = (0.0, 0.005, 0.01, 0.02, 0.05, 0.10)
UNEQUAL = tuple(int(size) for size in np.random.default_rng(7).geometric(0.2, size=157))
PATIENTS = {
    "20 patients of 5": (5,) * 20, "40 patients of 20": (20,) * 40, "157 patients of 5": (5,) * 157,
    "157 patients of 1 to 25": UNEQUAL, "400 patients of 2": (2,) * 400,
}  # fmt: skip
SINGLE = {f"{cases} patients of 1": (1,) * cases for cases in (49, 157, 500)}
CORRELATIONS = (0.0, 0.1, 0.5)
COMPARED = (0.01, 0.03)


def main() -> None:
    """Run all and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="path without suffix")
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--slow", type=int, default=500, help="simulations in which the candidates are compared")
    parser.add_argument("--render", action="store_true", help="make the page of the JSON that is there")
    arguments = parser.parse_args()
    found = arguments.out.with_suffix(".json")
    if not arguments.render:
        durable.write_json(found, measure(arguments.simulations, arguments.slow))
    result = json.loads(found.read_text())
    durable.write_text(arguments.out.with_suffix(".svg"), plot(result))
    durable.write_text(arguments.out.with_suffix(".md"), markdown(result))


def measure(simulations: int, slow: int) -> dict[str, Any]:
    """All figures of the page."""
    started = time.perf_counter()
    generator = np.random.default_rng(20_260_423)
    found = {
        "simulations": simulations,
        "slow_simulations": min(slow, simulations),
        "exact": [exact_row(cases, margin, extra) for cases in CASES for margin in MARGINS for extra in EXTRA],
        "power": [power_row(cases, margin) for margin in (0.02, 0.03, 0.05) for cases in POWER_CASES],
        "clustered": [
            clustered_row(name, margin, extra, correlation, simulations, generator)
            for name in PATIENTS for correlation in CORRELATIONS for margin in (0.02, 0.05) for extra in (0.0, 0.03)
        ],
        "coverage": [
            coverage_row(name, correlation, shares, (simulations, slow), generator)
            for name in SINGLE | PATIENTS for correlation in (CORRELATIONS if name in PATIENTS else (0.0,))
            for shares in ((0.01, 0.01), (0.01, 0.03), (0.05, 0.05))
        ],
    }  # fmt: skip
    return {**machine_facts(), "seconds": round(time.perf_counter() - started), **found}


POWER_CASES = (50, 100, 200, 300, 500, 700, 1000, 1500, 2000, 3000)


def rejects(cases: int, gain: float, loss: float, margin: float) -> float:
    """The exact chance that `cases` independent ones are found non-inferior."""
    losses = np.arange(int(binom.ppf(1 - 1e-12, cases, loss)) + 2)
    gains = np.arange(int(binom.ppf(1 - 1e-12, cases, gain)) + 2 if gain > 0 else 1)
    loss_grid, gain_grid = np.meshgrid(losses, gains, indexing="ij")
    chance = binom.pmf(loss_grid, cases, loss) * binom.pmf(gain_grid, cases - loss_grid, gain / (1 - loss))
    passes = score(gain_grid, loss_grid, cases, -margin) > norm.ppf(1 - ALPHA)
    return float(chance[passes & (loss_grid + gain_grid <= cases)].sum())


def exact_row(cases: int, margin: float, extra: float) -> dict[str, Any]:
    """Type-I error of independent cases; `extra` is the discordance beyond the margin."""
    return {
        "cases": cases, "margin": margin, "discordance": margin + extra,
        "type_one": rejects(cases, extra / 2, margin + extra / 2, margin),
    }  # fmt: skip


def power_row(cases: int, margin: float) -> dict[str, Any]:
    """Exact and predicted power where both are equally good, 5 % discordant."""
    return {
        "cases": cases, "margin": margin, "discordance": 0.05, "exact": rejects(cases, 0.025, 0.025, margin),
        "predicted": power(Shares(0.0, 0.05), margin, cases),
    }  # fmt: skip


def clustered_row(
    name: str, margin: float, extra: float, correlation: float, simulations: int, generator: np.random.Generator
) -> dict[str, Any]:
    """Type-I error at the margin and power at equality, over patients and as if cases were independent."""
    sizes = PATIENTS[name]
    null = Design(sizes, correlation, extra / 2, margin + extra / 2)
    level = (margin + extra) / 2
    equal = Design(sizes, correlation, level, level)
    errors, powers = (passes(design, margin, simulations, generator) for design in (null, equal))
    return {
        "patients": name, "cases": null.cases, "correlation": correlation, "margin": margin,
        "discordance": margin + extra, "type_one": errors[0], "type_one_as_independent": errors[1],
        "power": powers[0], "power_of_the_true_design_effect":
        power(Shares(0.0, margin + extra, equal.design_effect), margin, equal.cases),
    }  # fmt: skip


def passes(design: Design, margin: float, simulations: int, generator: np.random.Generator) -> tuple[float, float]:
    """Share of simulations found non-inferior: over patients, and as if cases were independent."""
    drawn = draw(design, simulations, generator)
    limit = float(t.ppf(1 - ALPHA, len(design.sizes) - 1)) * effects(design, drawn) ** 0.5
    found = statistic(design, drawn, -margin)
    return float(np.mean(found > limit)), float(np.mean(found > norm.ppf(1 - ALPHA)))


def statistic(design: Design, drawn: NDArray[np.int64], bound: float) -> NDArray[np.float64]:
    """Tango's score of every draw."""
    return score(drawn[:, :, 0].sum(axis=1), drawn[:, :, 1].sum(axis=1), design.cases, bound)


def effects(design: Design, drawn: NDArray[np.int64]) -> NDArray[np.float64]:
    """The design effect of every draw."""
    sizes = np.broadcast_to(np.array(design.sizes), drawn.shape[:2])[:, :, None]
    return effect_of(np.concatenate([drawn, sizes], axis=2).astype(np.float64))


def coverage_row(
    name: str,
    correlation: float,
    shares: tuple[float, float],
    simulations: tuple[int, int],
    generator: np.random.Generator,
) -> dict[str, Any]:
    """How often each interval holds the true difference; the candidates where shares are COMPARED, over fewer."""
    design = Design((SINGLE | PATIENTS)[name], correlation, *shares)
    drawn = draw(design, simulations[0], generator)
    single, normal = max(design.sizes) == 1, float(norm.ppf(1 - ALPHA))
    quantile = normal if single else float(t.ppf(1 - ALPHA, len(design.sizes) - 1))
    limit = quantile * (1.0 if single else effects(design, drawn) ** 0.5)
    far = np.abs(statistic(design, drawn, design.difference))
    return {
        "patients": name, "cases": design.cases, "correlation": correlation, "gain": shares[0], "loss": shares[1],
        "coverage": float(np.mean(far <= limit)), "as_independent": float(np.mean(far <= normal)),
        "candidates": candidates(design, drawn[: simulations[1]]) if shares == COMPARED else {},
    }  # fmt: skip


def candidates(design: Design, drawn: NDArray[np.int64]) -> dict[str, dict[str, float]]:
    """Every candidate's coverage, misses on the side that would pass a worse classifier, mean width, zero widths."""
    cases, truth, found = design.clusters(), design.difference, {}
    tables = [table(design, one, cases) for one in drawn]
    for name, candidate in CANDIDATES.items():
        ends = np.array([candidate(design, one, cases, pair) for one, pair in zip(drawn, tables, strict=True)])
        found[name] = {
            "coverage": float(np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1]))),
            "low_above": float(np.mean(ends[:, 0] > truth)),
            "width": float(np.mean(ends[:, 1] - ends[:, 0])),
            "zero_width": float(np.mean(ends[:, 1] - ends[:, 0] < 1e-12)),
        }
    return found


if __name__ == "__main__":
    main()
