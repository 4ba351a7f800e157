"""What one classifier said about every case of a split: written where it ran, read where the report is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hscc_edge.bundle import Bundle
from hscc_edge.errors import InputError
from hscc_edge.model.decision import Rule, decide, parse_rule
from hscc_edge.model.head import Head, parse_head
from hscc_edge.validate.predict import Case


@dataclass(frozen=True, slots=True)
class Predictions:
    """One classifier's answers.

    Attributes:
        bundle: its name, digest, network, method, budget, costs, and what it declares: preprocess, head, decision.
        runtime: name and version of what ran it; `precision` is that of the graph.
        cases: one for every case of the split, under pseudonyms.
    """

    bundle: Mapping[str, Any]
    runtime: str
    precision: str
    cases: tuple[Case, ...]

    @property
    def head(self) -> Head:
        """What its logits mean."""
        return parse_head(self.bundle["head"])

    @property
    def rule(self) -> Rule:
        """Its unit of decision and aggregation."""
        return parse_rule(self.bundle["decision"])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: decisions are left out, since logits and the rule give them again, to the bit."""
        cases = [
            {"case": case.key, "patient": case.patient, "label": case.label, "logits": case.logits.tolist()}
            for case in self.cases
        ]
        return {"bundle": dict(self.bundle), "runtime": self.runtime, "precision": self.precision, "cases": cases}


def read_predictions(raw: Mapping[str, Any]) -> Predictions:
    """Predictions from their JSON; every decision is made anew by the bundle's rule.

    Raises:
        InputError: if it is malformed, or logits do not fit the head.
        ConfigError: if the head or the rule is unknown.
    """
    try:
        bundle = dict(raw["bundle"])
        head, rule = parse_head(bundle["head"]), parse_rule(bundle["decision"])
        cases = tuple(_case(item, head, rule) for item in raw["cases"])
        return Predictions(bundle, str(raw["runtime"]), str(raw["precision"]), cases)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(
            f"the predictions are malformed ({type(error).__name__}: {error}): collect them again with hscc-edge "
            "validate --collect"
        ) from error


def _case(raw: Mapping[str, Any], head: Head, rule: Rule) -> Case:
    logits = np.asarray(raw["logits"], dtype=np.float32)
    wanted = 1 if head.kind == "single_logit" else len(head.labels)
    if logits.ndim != 2 or logits.shape[1] != wanted:
        raise ValueError(f"logits of shape {logits.shape}, expected (images, {wanted})")
    return Case(str(raw["case"]), str(raw["patient"]), str(raw["label"]), decide(rule, head, logits), logits)


def bundle_facts(bundle: Bundle) -> dict[str, Any]:
    """What evidence says about a bundle, without its weights."""
    plan = bundle.spec.plan
    layers = None if plan is None else plan["layers"]
    costs = {
        name: None if layers is None else sum(layer[name] for layer in layers)
        for name in ("flops", "dense_flops", "params", "dense_params")
    }
    return {
        "name": bundle.spec.name,
        "version": bundle.spec.version,
        "digest": bundle.digest,
        "network": bundle.spec.network["name"],
        "method": "dense" if plan is None else plan["method"],
        "budget": None if plan is None else plan["budget"],
        **costs,
        "parent": bundle.spec.parent,
        "calibration": bundle.spec.calibration,
        "preprocess": bundle.spec.preprocess,
        "head": bundle.spec.head,
        "decision": bundle.spec.decision,
    }
