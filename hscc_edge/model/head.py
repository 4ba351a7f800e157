"""What the logits mean: softmax over classes, independent sigmoids, or one logit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hscc_edge.errors import ConfigError
from hscc_edge.model.logistic import expit, log_expit, log_softmax, logsumexp, softmax

KINDS = ("softmax", "sigmoid", "single_logit")
Logits = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Head:
    """A classifier's output: `kind` is one of KINDS, `labels` name the columns of its probabilities.

    `single_logit` has two labels, (negative, positive), and one logit: that of the positive one.
    """

    kind: str
    labels: tuple[str, ...]


def parse_head(raw: Mapping[str, Any]) -> Head:
    """A head from a bundle's JSON.

    Raises:
        ConfigError: if the kind is unknown or the labels do not fit it.
    """
    kind, labels = raw.get("kind"), tuple(raw.get("labels", ()))
    if kind not in KINDS:
        raise ConfigError(f"the head's kind is {kind!r}: expected one of {', '.join(KINDS)}")
    if (len(labels) < 2 and kind != "sigmoid") or not labels:
        raise ConfigError(
            f"the head has {len(labels)} labels: a {kind} head needs at least two; name them in the bundle"
        )
    if kind == "single_logit" and len(labels) != 2:
        raise ConfigError(f"the head has {len(labels)} labels: a single_logit head needs (negative, positive)")
    return Head(str(kind), tuple(str(label) for label in labels))


def probabilities(head: Head, logits: Logits) -> NDArray[np.float64]:
    """Probabilities (N, labels) of logits (N, n), in float64 so that sums do not depend on the machine's rounding."""
    wide = np.asarray(logits, dtype=np.float64)
    if head.kind == "softmax":
        return softmax(wide)
    if head.kind == "sigmoid":
        return expit(wide)
    positive = expit(wide[:, :1])
    return np.hstack([1.0 - positive, positive])


def kl(head: Head, reference: Logits, logits: Logits) -> NDArray[np.float64]:
    """Kullback-Leibler divergence (N,), in nats, from the reference's distribution to the other's, image by image.

    For sigmoid and single-logit heads it is the sum over the independent Bernoulli outputs.
    """
    first, second = np.asarray(reference, dtype=np.float64), np.asarray(logits, dtype=np.float64)
    if head.kind == "softmax":
        log_p, log_q = log_softmax(first), log_softmax(second)
        return np.asarray(np.sum(np.exp(log_p) * (log_p - log_q), axis=1))
    positive = expit(first) * (log_expit(first) - log_expit(second))
    negative = expit(-first) * (log_expit(-first) - log_expit(-second))
    return np.asarray(np.sum(positive + negative, axis=1))


def energy(head: Head, logits: Logits) -> NDArray[np.float64]:
    """Free energy (N,): low where the classifier knows what it sees (Liu et al. 2020, arXiv 2010.03759).

    `-logsumexp` of the logits under softmax. A sigmoid is a softmax over (-z/2, z/2), so that a certain "no" is as
    familiar as a certain "yes"; several are summed, as by Wang et al. 2021 (arXiv 2111.12797).
    """
    wide = np.asarray(logits, dtype=np.float64)
    if head.kind == "softmax":
        return -logsumexp(wide)
    return -np.asarray(np.logaddexp(wide / 2, -wide / 2).sum(axis=1))
