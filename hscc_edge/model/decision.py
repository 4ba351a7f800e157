"""From the logits of a case's images to its decision: the one function of validation and of the daemon."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hscc_edge.errors import ConfigError
from hscc_edge.model.head import Head, Logits, energy, probabilities

UNITS = ("image", "series", "study")
AGGREGATES = ("mean", "max", "top-k")
# What `hscc-edge calibrate` fits to one set of weights: not the question that is asked, and not passed on to a child.
FITTED = ("temperature", "energy_limit")


@dataclass(frozen=True, slots=True)
class Rule:
    """How images become a case, and a case a decision.

    Attributes:
        unit: what one decision is about: image, series or study.
        aggregate: mean, max or mean of the k largest of the images' probabilities, label by label.
        k: images that count under top-k (at least 1).
        minimum_images: a case with fewer gets no decision.
        least_probability: a case whose decided label has less gets no decision.
        operating_points: label -> probability from which on that label is called, in figures of sensitivity and the
            like; the decision itself stays the most probable label.
        temperature: logits are divided by it (Guo et al. 2017, arXiv 1706.04599).
        energy_limit: a case with more free energy (`model.head.energy`, mean over its images) is unlike what the
            classifier was calibrated on, and gets no decision; None for no limit.
    """

    unit: str
    aggregate: str = "mean"
    k: int = 1
    minimum_images: int = 1
    least_probability: float = 0.0
    operating_points: Mapping[str, float] = field(default_factory=dict)
    temperature: float = 1.0
    energy_limit: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As `parse_rule` reads it; what says nothing is left out."""
        return {key: value for key, value in asdict(self).items() if key in ALWAYS or value != getattr(PLAIN, key)}


PLAIN = Rule("image")
ALWAYS = ("unit", "aggregate", "k", "minimum_images")


@dataclass(frozen=True, slots=True)
class Decision:
    """The label of a case with its probabilities, or no label and the reason."""

    label: str | None
    probabilities: tuple[float, ...]
    images: int
    reason: str | None = None


def parse_rule(raw: Mapping[str, Any]) -> Rule:
    """A rule from a bundle's JSON.

    Raises:
        ConfigError: if a key is unknown or a value is out of range.
    """
    known = Rule.__dataclass_fields__.keys()
    if unknown := sorted(raw.keys() - known):
        raise ConfigError(f"the decision has the unknown key '{unknown[0]}': expected {', '.join(known)}")
    rule = Rule(**raw)
    if rule.unit not in UNITS:
        raise ConfigError(f"the decision's unit is {rule.unit!r}: expected one of {', '.join(UNITS)}")
    if rule.aggregate not in AGGREGATES:
        raise ConfigError(f"the decision's aggregate is {rule.aggregate!r}: expected one of {', '.join(AGGREGATES)}")
    if rule.k < 1 or rule.minimum_images < 1:
        raise ConfigError(f"the decision has k={rule.k}, minimum_images={rule.minimum_images}: both must be at least 1")
    shares = {"least_probability": rule.least_probability, **rule.operating_points}
    if outside := [f"{name} = {value}" for name, value in shares.items() if not 0 <= value <= 1]:
        raise ConfigError(f"the decision has {outside[0]}: expected a probability, from 0 to 1")
    if not 0 < rule.temperature < np.inf:
        raise ConfigError(f"the decision has temperature = {rule.temperature}: expected a number over 0")
    return rule


def question(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A bundle's decision without what was fitted to its weights: equal for a classifier and the one made from it."""
    return {key: value for key, value in raw.items() if key not in FITTED}


def decide(rule: Rule, head: Head, logits: Logits) -> Decision:
    """Decide one case from its images' logits (images, n), ordered by SOP Instance UID.

    The label is the most probable one. Under softmax the aggregated probabilities are scaled to sum to 1.
    """
    images = len(logits)
    if images < rule.minimum_images:
        too_few = f"{images} images, the model needs at least {rule.minimum_images}"
        return Decision(None, (), images, too_few)
    if not np.all(np.isfinite(logits)):
        return Decision(None, (), images, "the model's output is not finite")
    wide = np.asarray(logits, dtype=np.float64) / rule.temperature
    scores = _aggregate(rule, probabilities(head, wide))
    if head.kind != "sigmoid":
        scores = scores / scores.sum()
    best = int(np.argmax(scores))
    reason = _doubt(rule, float(scores[best]), float(energy(head, logits).mean()))
    return Decision(None if reason else head.labels[best], tuple(scores.tolist()), images, reason)


def _doubt(rule: Rule, probability: float, free_energy: float) -> str | None:
    """Why a case gets no decision though the model gave an output."""
    if rule.energy_limit is not None and free_energy > rule.energy_limit:
        return "unlike what the model was calibrated on (free energy over the limit)"
    if probability < rule.least_probability:
        return f"the most probable finding has less than the probability {rule.least_probability:g}"
    return None


def _aggregate(rule: Rule, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    if rule.aggregate == "max":
        return np.asarray(scores.max(axis=0))
    if rule.aggregate == "top-k":
        return np.asarray(np.sort(scores, axis=0)[-rule.k :].mean(axis=0))
    return np.asarray(scores.mean(axis=0))
