"""How the calibration cohort looks to a bundle, case by case: what a device compares its own studies with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hscc_edge.bundle import Bundle
from hscc_edge.data.appearance import appearance, mean_appearance, row_spacing_mm
from hscc_edge.data.case import inputs_of, read
from hscc_edge.data.cohort import Cohort
from hscc_edge.data.dicom import read_dataset
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.errors import BundleError
from hscc_edge.model.decision import decide, parse_rule
from hscc_edge.model.head import energy, parse_head
from hscc_edge.runtime import Runtime

DRIFT = "reports/drift.json"
KIND, SCHEMA = "drift", 1
MOST_VALUES = 1000
SCORE, ENERGY = "score", "energy"
Progress = Callable[[int, str], None]


@dataclass(frozen=True, slots=True)
class Familiar:
    """What a cohort's cases look like.

    Attributes:
        values: feature -> its values, sorted; at most `MOST_VALUES` of them, evenly taken.
    """

    cases: int
    cohort: str
    values: dict[str, tuple[float, ...]]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object under a versioned schema."""
        return {
            "kind": KIND, "schema": SCHEMA, "cases": self.cases, "cohort": self.cohort,
            "values": {name: list(values) for name, values in self.values.items()},
        }  # fmt: skip


def familiar(
    bundle: Bundle, decision: dict[str, Any], runtime: Runtime, cohort: Cohort, progress: Progress | None = None
) -> Familiar:
    """Score, free energy and appearance of every case; one input in memory at a time.

    Args:
        decision: the rule as it will be served, with its temperature.
    """
    preprocess = parse_preprocess(bundle.spec.preprocess)
    rule, head = parse_rule(decision), parse_head(bundle.spec.head)
    found: dict[str, list[float]] = {}
    cases = cohort.cases(rule.unit)
    for members in cases.values():
        part = replace(cohort, instances=members)
        looks, logits = [], []
        for items in inputs_of(part, preprocess):
            image = read(part, items, preprocess)
            looks.append(appearance(image, row_spacing_mm(read_dataset(part.path(items[0]), pixels=False))))
            logits.append(runtime.infer(preprocess(image)[None]))
        every = np.concatenate(logits)
        decided = decide(rule, head, every)
        seen = mean_appearance(looks)
        seen[ENERGY] = float(energy(head, every).mean())
        if decided.probabilities:
            seen[SCORE] = max(decided.probabilities)
        for name, value in seen.items():
            found.setdefault(name, []).append(value)
        if progress is not None:
            progress(len(members), "")
    return Familiar(len(cases), cohort.digest, {name: _kept(values) for name, values in found.items()})


def parse_familiar(raw: Any, name: str) -> Familiar:
    """From a bundle's `reports/drift.json`, already parsed; `name` is what messages call it.

    Raises:
        BundleError: if it is malformed, or of another schema.
    """
    try:
        if (raw["kind"], raw["schema"]) != (KIND, SCHEMA):
            raise ValueError("another schema")
        values = {str(key): tuple(float(value) for value in held) for key, held in raw["values"].items()}
        return Familiar(int(raw["cases"]), str(raw["cohort"]), values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{DRIFT} of {name} is malformed: run hscc-edge calibrate again") from error


def _kept(values: list[float]) -> tuple[float, ...]:
    ordered: NDArray[np.float64] = np.sort(np.asarray(values))
    if len(ordered) > MOST_VALUES:
        ordered = ordered[np.linspace(0, len(ordered) - 1, MOST_VALUES).round().astype(int)]
    return tuple(float(f"{value:.6g}") for value in ordered)
