"""Time and memory of all statistics of two classifiers on 20,000 cases, for docs/statistics-cost.json.

    .venv/bin/python benchmarks/statistics_cost.py [--out docs/statistics-cost.json]

Four classes, four cases a patient, 10,000 resamples, one process. CPU seconds are given beside wall-clock ones, since
the machine may be shared.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hscc_edge import durable
from hscc_edge.model.decision import decide, parse_rule
from hscc_edge.model.head import Head
from hscc_edge.validate.auc import area_interval, areas, precision_areas
from hscc_edge.validate.calibration import calibration
from hscc_edge.validate.compare import compare
from hscc_edge.validate.machine import machine_facts
from hscc_edge.validate.metrics import at_thresholds, figures_of
from hscc_edge.validate.outcomes import Outcomes, outcomes
from hscc_edge.validate.predict import Case

LABELS = ("glioma", "meningioma", "notumor", "pituitary")
HEAD = Head("softmax", LABELS)
CASES, A_PATIENT = 20_000, 4
Step = Callable[[Outcomes], object]
STEPS: dict[str, Step] = {
    "shares, F1, kappa, likelihood ratios": figures_of,
    "the same at four operating points": lambda found: at_thresholds(found, dict.fromkeys(LABELS, 0.3)),
    "AUC, one-vs-rest and macro": lambda found: area_interval(
        areas(found.truth, found.scores, found.cases), [0.25] * 4
    ),
    "average precision": lambda found: precision_areas(found.truth, found.scores, found.cases),
    "Brier, calibration error, reliability": lambda found: calibration(found, HEAD),
}


def simulated(cases: int, noise: float) -> list[Case]:
    """Cases of a classifier; the same truth and much the same errors whatever the noise."""
    generator, own = np.random.default_rng(0), np.random.default_rng(int(1000 * noise))
    true = generator.integers(0, 4, cases)
    patient = np.repeat(generator.normal(size=(cases // A_PATIENT, 4)), A_PATIENT, axis=0)
    logits = 4 * np.eye(4)[true] + 1.5 * patient + generator.normal(size=(cases, 4))
    logits = (logits + noise * own.normal(size=(cases, 4))).astype(np.float32)
    rule = parse_rule({"unit": "image"})
    return [Case(str(i), str(i // A_PATIENT), LABELS[true[i]], decide(rule, HEAD, logits[i : i + 1]), logits[i : i + 1])
            for i in range(cases)]  # fmt: skip


def timed(step: Callable[[], object]) -> dict[str, float]:
    """Wall-clock and CPU seconds of a step."""
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return {"wall_s": round(time.perf_counter() - wall, 2), "cpu_s": round(time.process_time() - cpu, 2)}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/statistics-cost.json"))
    parser.add_argument("--cases", type=int, default=CASES)
    told = parser.parse_args(words)
    both = [simulated(told.cases, noise) for noise in (0.0, 0.3)]
    before = peak_mib()
    steps = {name: timed(lambda step=step: [step(outcomes(cases, LABELS)) for cases in both])
             for name, step in STEPS.items()}  # fmt: skip
    steps["paired comparison"] = timed(lambda: compare(*both, HEAD))
    facts: dict[str, Any] = {
        "cases": told.cases, "models": 2, "patients": told.cases // A_PATIENT, "steps": steps,
        "cpu_s": round(sum(step["cpu_s"] for step in steps.values()), 1),
        "wall_s": round(sum(step["wall_s"] for step in steps.values()), 1),
        "peak_mib": peak_mib(), "peak_mib_before": before, **machine_facts(),
    }  # fmt: skip
    durable.write_json(told.out, facts)
    print(facts)


def peak_mib() -> int:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
