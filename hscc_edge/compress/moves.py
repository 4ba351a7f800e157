"""Coordinate moves: each layer's predicted loss is weighed anew where that lowers the KL that is measured.

The layers' losses add up only nearly: errors of one layer pass through the next. A move doubles or halves the weight
of one layer's losses, plans again under the same budget, and stays if the network's KL on calibration images falls.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hscc_edge.compress.allocate import Budget
from hscc_edge.compress.problem import Candidates, LayerwiseProposal
from hscc_edge.errors import extra
from hscc_edge.model.plan import Plan

with extra("workstation"):
    from torch import nn

FACTOR = 2.0
LEAST_GAIN = 0.01

Measure = Callable[[nn.Module], float]
Build = Callable[[Plan], "nn.Module"]


@dataclass(frozen=True, slots=True)
class Moved:
    """Where the moves ended; `kl` of the first plan and of the last, as measured."""

    proposal: LayerwiseProposal
    first_kl: float
    last_kl: float
    evaluations: int


def move(proposal: LayerwiseProposal, budget: Budget, build: Build, measure: Measure, evaluations: int) -> Moved:
    """Try moves layer by layer until no layer gains 1 % or the evaluations are used up.

    Time grows with evaluations x (`build` + `measure`).

    Raises:
        BudgetError: if the budget cannot be met.
    """
    weights = dict.fromkeys(proposal.candidates, 1.0)
    plan = proposal.plan(budget)
    seen = {_key(plan): measure(build(plan))}
    first = best = seen[_key(plan)]
    steps = {name: FACTOR for name in weights}
    improved = True
    while improved and len(seen) < evaluations:
        improved = False
        for name in weights:
            for factor in (steps[name], 1.0 / steps[name]):
                if len(seen) >= evaluations:
                    break
                trial = {**weights, name: weights[name] * factor}
                plan = weighed(proposal, trial).plan(budget)
                if _key(plan) not in seen:
                    seen[_key(plan)] = measure(build(plan))
                if seen[_key(plan)] < best * (1.0 - LEAST_GAIN):
                    best, weights, steps[name], improved = seen[_key(plan)], trial, factor, True
                    break
    return Moved(weighed(proposal, weights), first, best, len(seen))


def weighed(proposal: LayerwiseProposal, weights: Mapping[str, float]) -> LayerwiseProposal:
    """The proposal with every layer's losses multiplied by its weight."""
    found = {
        name: Candidates(
            tuple(dataclasses.replace(option, loss=option.loss * weights[name]) for option in entry.options),
            entry.build,
        )
        for name, entry in proposal.candidates.items()
    }
    return dataclasses.replace(proposal, candidates=found)


def _key(plan: Plan) -> tuple[tuple[str, tuple[int, ...], int], ...]:
    return tuple((layer.structure, layer.ranks, len(layer.regions)) for layer in plan.layers)
