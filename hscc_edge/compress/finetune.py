"""Fine-tuning with labels: the training loop of `model/train.py` once more, from the compressed weights."""

from __future__ import annotations

import copy

from hscc_edge.compress.problem import Progress
from hscc_edge.data.cohort import Cohort
from hscc_edge.data.preprocess import Preprocess
from hscc_edge.errors import ModelError, extra
from hscc_edge.model.head import Head
from hscc_edge.model.recipe import Schedule
from hscc_edge.model.train import deterministic, fit

with extra("workstation"):
    from torch import nn


def finetune(
    compressed: nn.Module,
    cohort: Cohort,
    preprocess: Preprocess,
    head: Head,
    schedule: Schedule,
    progress: Progress | None = None,
) -> float:
    """Train a compressed network with one head in place on the cohort's train split; the smoothed loss at the end.

    The network comes back in evaluation mode. A module that shares the compressed one's parameters and rounds them in
    its forward pass may stand in its place: that is quantisation-aware training.

    Args:
        progress: called with (optimiser steps done, note) after each step.

    Raises:
        ModelError: if the loss stops being finite; the network then holds its start again.
        CohortError: if there is no train split.
    """
    start = copy.deepcopy(compressed.state_dict())
    try:
        with deterministic(schedule.seed):
            return fit(compressed, cohort.select("train"), preprocess, head, schedule, progress)
    except ModelError:
        compressed.load_state_dict(start)
        raise
    finally:
        compressed.eval()
