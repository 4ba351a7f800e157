"""What is fitted to a bundle's weights on a split that is never tested on: temperature and limit of free energy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hscc_edge.bundle import Bundle
from hscc_edge.data.cohort import Cohort
from hscc_edge.errors import InputError
from hscc_edge.model.decision import Rule, decide, parse_rule
from hscc_edge.model.head import Head, parse_head
from hscc_edge.runtime import open_runtime
from hscc_edge.validate.calibration import calibration, log_loss, temperature
from hscc_edge.validate.familiarity import Caught, alarms, caught, limit
from hscc_edge.validate.intervals import Estimate, Proportion
from hscc_edge.validate.machine import machine_facts
from hscc_edge.validate.outcomes import one_hot, outcomes
from hscc_edge.validate.predict import Case, predict

KIND, SCHEMA = "calibration", 1
Progress = Callable[[int, str], None]
Scaling = tuple[float | None, tuple[float, float] | None, tuple[Estimate, Estimate] | None]


@dataclass(frozen=True, slots=True)
class Fitted:
    """What was fitted, and its effect on the split that it was fitted on; None for what was not asked for.

    Attributes:
        decision: the bundle's decision with what was fitted in it.
        log_loss: nats an image, without and with the temperature.
        error: expected calibration error of the cases, likewise.
        false_alarms: of the limit, on the split that it was fitted on.
    """

    decision: dict[str, Any]
    split: dict[str, Any]
    temperature: float | None
    log_loss: tuple[float, float] | None
    error: tuple[Estimate, Estimate] | None
    energy_limit: float | None
    false_alarms: Proportion | None
    caught: tuple[Caught, ...]
    machine: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON objects under a versioned schema."""
        return {"kind": KIND, "schema": SCHEMA, **asdict(self)}


def fit(
    bundle: Bundle, cohort: Cohort, *, with_temperature: bool, false_alarms: float | None, progress: Progress | None
) -> Fitted:
    """Fit to a bundle on a split, by ONNX Runtime; time grows with the images (six inferences each).

    Args:
        cohort: the split alone.
        false_alarms: share of the split's cases that the limit may turn away; None for no limit.

    Raises:
        InputError: if the split is the test split.
        CohortError: if classes differ, or there are too few cases.
    """
    if any(item.split == "test" for item in cohort.instances):
        raise InputError("the split to fit on is test: nothing is fitted on what figures are taken on; give val")
    head, rule = parse_head(bundle.spec.head), parse_rule(bundle.spec.decision)
    runtime = open_runtime(bundle, "ort")
    cases = predict(bundle, runtime, cohort, progress)
    scale, losses, errors = _temperature(cases, rule, head) if with_temperature else (None, None, None)
    energy_limit, rate = None, None
    seen: tuple[Caught, ...] = ()
    if false_alarms is not None:
        energy_limit = limit(cases, head, false_alarms)
        rate = alarms(cases, head, energy_limit)
        seen = caught(bundle, runtime, cohort, energy_limit, head, progress)
    runtime.close()
    fitted = dataclasses.replace(rule, temperature=scale or rule.temperature, energy_limit=energy_limit)
    facts = {"cohort": cohort.digest, "splits": sorted({item.split for item in cohort.instances}), "cases": len(cases)}
    return Fitted(fitted.to_json(), facts, scale, losses, errors, energy_limit, rate, seen, machine_facts())


def _temperature(cases: Sequence[Case], rule: Rule, head: Head) -> Scaling:
    """The temperature; log loss and calibration error without and with it."""
    logits = np.concatenate([case.logits for case in cases])
    truth = one_hot([case.label for case in cases for _ in case.logits], head.labels)
    found = temperature(logits, truth, head)
    plain = dataclasses.replace(rule, temperature=1.0, energy_limit=None)
    first, second = (
        calibration(outcomes(_decided(cases, tried, head), head.labels), head).error
        for tried in (plain, dataclasses.replace(plain, temperature=found))
    )
    return found, (log_loss(logits, truth, head), log_loss(logits / found, truth, head)), (first, second)


def _decided(cases: Sequence[Case], rule: Rule, head: Head) -> list[Case]:
    return [dataclasses.replace(case, decision=decide(rule, head, case.logits)) for case in cases]
