"""Which images calibrate: a stratified random choice."""

from __future__ import annotations

import dataclasses

import numpy as np

from hscc_edge.data.cohort import Cohort, Instance
from hscc_edge.errors import CohortError


def choose(cohort: Cohort, count: int, seed: int) -> Cohort:
    """`count` instances, each class as often as its share allows, the same for the same seed.

    Raises:
        CohortError: if `count` is below 1 or above the cohort's size.
    """
    if not 1 <= count <= len(cohort.instances):
        raise CohortError(
            f"{count} calibration images were asked for: the cohort has {len(cohort.instances)} to choose from"
        )
    generator = np.random.default_rng(seed)
    queues: dict[str, list[Instance]] = {}
    for label in cohort.classes:
        members = [item for item in cohort.instances if item.label == label]
        queues[label] = [members[int(i)] for i in generator.permutation(len(members))]
    share = {label: len(queue) / len(cohort.instances) for label, queue in queues.items()}
    taken = dict.fromkeys(queues, 0)
    chosen: list[Instance] = []
    while len(chosen) < count:
        open_labels = [label for label, queue in queues.items() if taken[label] < len(queue)]
        label = max(open_labels, key=lambda name: share[name] * (len(chosen) + 1) - taken[name])
        chosen.append(queues[label][taken[label]])
        taken[label] += 1
    return dataclasses.replace(cohort, instances=tuple(chosen))
