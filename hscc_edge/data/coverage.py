"""How much of its pool a calibration subset covers: features, classes, and subgroups such as site and scanner."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hscc_edge.data.cohort import Cohort
from hscc_edge.data.subset import overlap, place, squared_distances

BLOCK = 1024
SUBGROUPS = ("site", "scanner", "sex", "age_band", "field_strength_t", "modality", "body_part", "contrast")


def coverage(
    whole: Cohort, pool: Cohort, chosen: Cohort, features: NDArray[np.float64] | None = None
) -> dict[str, Any]:
    """What a report says of a subset, as JSON; no identifier is in it.

    Time grows with images of the pool x (chosen + F) F; memory with BLOCK x chosen and F^2.

    Args:
        whole: with the test split, for the overlap.
        features: (N, F) of the pool, in its order.
    """
    found: dict[str, Any] = {
        "images": len(chosen.instances),
        "pool": len(pool.instances),
        "patients": len({item.patient for item in chosen.instances}),
        "pool_patients": len({item.patient for item in pool.instances}),
        "overlap_with_test": overlap(chosen, whole),
        "classes": shares(pool, chosen, "label"),
    }
    for column in SUBGROUPS:
        if any(getattr(item, column) for item in pool.instances):
            found[column] = shares(pool, chosen, column)
    if features is not None:
        row = {place(item): index for index, item in enumerate(pool.instances)}
        found |= variance_covered(features, [row[place(item)] for item in chosen.instances])
    return found


def shares(pool: Cohort, chosen: Cohort, column: str) -> dict[str, dict[str, float]]:
    """Value of the column ("" where it is not known) -> its share of the pool and of the chosen, and chosen images."""
    wanted = Counter(getattr(item, column) for item in pool.instances)
    held = Counter(getattr(item, column) for item in chosen.instances)
    return {
        name: {"pool": number / len(pool.instances), "chosen": held[name] / len(chosen.instances), "images": held[name]}
        for name, number in sorted(wanted.items())
    }


def variance_covered(features: NDArray[np.float64], chosen: list[int]) -> dict[str, float]:
    """Shares of the pool's variance, 0 to 1.

    `nearest`: 1 - mean squared distance to the nearest chosen image / total variance; below 0 where the pool's mean
    would serve better. `span`: the trace of the pool's covariance within the span of the chosen images about the
    pool's mean, over the whole trace. `radius`: the largest distance to the nearest chosen, in standard deviations.
    """
    centred = np.asarray(features, dtype=np.float64) - features.mean(axis=0)
    total = float((centred**2).sum(axis=1).mean())
    if total == 0:
        return {"nearest": 1.0, "span": 1.0, "radius": 0.0}
    some = centred[chosen]
    blocks = [squared_distances(centred[at : at + BLOCK], some).min(axis=1) for at in range(0, len(centred), BLOCK)]
    nearest = np.concatenate(blocks)
    _, values, basis = np.linalg.svd(some, full_matrices=False)
    kept = basis[values > 1e-9 * values[0]] if values[0] > 0 else basis[:0]
    span = float(((centred @ kept.T) ** 2).sum(axis=1).mean())
    return {
        "nearest": 1.0 - float(nearest.mean()) / total,
        "span": min(span / total, 1.0),
        "radius": float(np.sqrt(nearest.max() / total)),
    }
