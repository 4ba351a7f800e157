"""Softmax and the logistic function in float64, stable for any logits.

scipy.special has them too, but importing it costs a device 17 MB and a tenth of a second.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def logsumexp(values: Values) -> Values:
    """`log(sum(exp(values)))` over the last axis, exact also where one value outweighs all others."""
    first = values.argmax(axis=-1, keepdims=True)
    top = np.take_along_axis(values, first, axis=-1)
    others = np.minimum(values - np.where(np.isfinite(top), top, 0.0), 0.0)
    np.put_along_axis(others, first, -np.inf, axis=-1)
    return np.asarray(top[..., 0] + np.log1p(np.exp(others).sum(axis=-1)))


def log_softmax(values: Values) -> Values:
    """Logarithms of `softmax`, over the last axis; values must be finite."""
    lower = values - values.max(axis=-1, keepdims=True)
    return np.asarray(lower - logsumexp(lower)[..., None])


def softmax(values: Values) -> Values:
    """`exp(values)` over their sum along the last axis; values must be finite."""
    weights = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def expit(values: Values) -> Values:
    """`1 / (1 + exp(-values))`."""
    small = np.exp(-np.abs(values))
    return np.asarray(np.where(values < 0, small, 1.0) / (1.0 + small))


def log_expit(values: Values) -> Values:
    """`log(expit(values))`."""
    return np.asarray(-np.logaddexp(0.0, -values))
