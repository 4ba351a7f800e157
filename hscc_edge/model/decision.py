"""From the logits of a case's images to its decision: the one function of validation and of the daemon."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hscc_edge.errors import ConfigError
from hscc_edge.model.head import Head, Logits, probabilities

UNITS = ("image", "series", "study")
AGGREGATES = ("mean", "max", "top-k")


@dataclass(frozen=True, slots=True)
class Rule:
    """How images become a case, and a case a decision.

    Attributes:
        unit: what one decision is about: image, series or study.
        aggregate: mean, max or mean of the k largest of the images' probabilities, label by label.
        k: images that count under top-k (at least 1).
        minimum_images: a case with fewer gets no decision.
    """

    unit: str
    aggregate: str = "mean"
    k: int = 1
    minimum_images: int = 1


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
    if unknown := sorted(raw.keys() - {"unit", "aggregate", "k", "minimum_images"}):
        raise ConfigError(
            f"the decision has the unknown key '{unknown[0]}': expected unit, aggregate, k, minimum_images"
        )
    rule = Rule(**raw)
    if rule.unit not in UNITS:
        raise ConfigError(f"the decision's unit is {rule.unit!r}: expected one of {', '.join(UNITS)}")
    if rule.aggregate not in AGGREGATES:
        raise ConfigError(f"the decision's aggregate is {rule.aggregate!r}: expected one of {', '.join(AGGREGATES)}")
    if rule.k < 1 or rule.minimum_images < 1:
        raise ConfigError(f"the decision has k={rule.k}, minimum_images={rule.minimum_images}: both must be at least 1")
    return rule


def decide(rule: Rule, head: Head, logits: Logits) -> Decision:
    """Decide one case from its images' logits (images, n), ordered by SOP Instance UID.

    The label is the most probable one. Under softmax the aggregated probabilities are scaled to sum to 1.
    """
    images = len(logits)
    if images < rule.minimum_images:
        reason = f"{images} images, the model needs at least {rule.minimum_images}"
        return Decision(None, (), images, reason)
    if not np.all(np.isfinite(logits)):
        return Decision(None, (), images, "the model's output is not finite")
    scores = _aggregate(rule, probabilities(head, logits))
    if head.kind != "sigmoid":
        scores = scores / scores.sum()
    return Decision(head.labels[int(np.argmax(scores))], tuple(scores.tolist()), images)


def _aggregate(rule: Rule, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    if rule.aggregate == "max":
        return np.asarray(scores.max(axis=0))
    if rule.aggregate == "top-k":
        return np.asarray(np.sort(scores, axis=0)[-rule.k :].mean(axis=0))
    return np.asarray(scores.mean(axis=0))
