"""One allocation for everything: pick one option a layer so that the loss is least under a budget."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from hscc_edge.errors import BudgetError
from hscc_edge.model.plan import Box, Clusters

BYTES_A_WEIGHT = 4
UNITS = {"flops": {"MFLOP": 1e6, "GFLOP": 1e9}, "params": {"k": 1e3, "M": 1e6},
         "bytes": {"KB": 1e3, "MB": 1e6}, "latency": {"ms": 1.0}}  # fmt: skip
COSTS = tuple(UNITS)


@dataclass(frozen=True, slots=True)
class Option:
    """One structure with its ranks, what it costs and what it is predicted to lose (0 for dense).

    `latency_ms` is NaN until it is timed.
    """

    structure: str
    ranks: tuple[int, ...]
    regions: tuple[Box, ...]
    flops: int
    params: int
    loss: float
    clusters: tuple[Clusters, ...] = ()
    latency_ms: float = math.nan

    def cost(self, name: str) -> float:
        """What it costs in one of COSTS; bytes are those of FP32 weights."""
        match name:
            case "flops":
                return self.flops
            case "params":
                return self.params
            case "bytes":
                return BYTES_A_WEIGHT * self.params
        return self.latency_ms


@dataclass(frozen=True, slots=True)
class Budget:
    """A ceiling on one cost of the whole network.

    Attributes:
        cost: one of COSTS.
        amount: how much; with unit "x", the dense network's cost divided by it.
        unit: "x", or one of the cost's UNITS.
    """

    cost: str
    amount: float
    unit: str = "x"

    def __str__(self) -> str:
        """As the user writes it: flops=6x, latency=3.5ms."""
        return f"{self.cost}={self.amount:g}{self.unit}"

    def ceiling(self, dense: float) -> float:
        """The largest cost that is allowed, where the dense network costs `dense`."""
        return dense / self.amount if self.unit == "x" else self.amount * UNITS[self.cost][self.unit]

    def written(self, cost: float, dense: float) -> str:
        """A cost in the unit of this budget, on its cautious side."""
        if self.unit == "x":
            return f"{self.cost}={math.floor(100 * dense / cost) / 100:g}x"
        return f"{self.cost}={math.ceil(1000 * cost / UNITS[self.cost][self.unit]) / 1000:g}{self.unit}"


def parse_budget(text: str) -> Budget:
    """A budget such as "flops=6x", "params=10x", "bytes=5MB" or "latency=3.5ms".

    Raises:
        BudgetError: if it is not written so, or the ratio is below 1.
    """
    cost, _, amount = text.partition("=")
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)([A-Za-z]+)", amount)
    if cost not in UNITS or found is None or found[2] not in ("x", *UNITS[cost]):
        raise BudgetError(
            f"the budget {text!r} is not understood: expected flops=6x, params=10x, bytes=5MB or latency=3.5ms"
        )
    value = float(found[1])
    if found[2] == "x" and value < 1.0:
        raise BudgetError(f"the budget {text!r} is below 1x: expected at least 1x, such as flops=6x")
    if value <= 0.0:
        raise BudgetError(f"the budget {text!r} is zero: expected more, such as flops=6x")
    return Budget(cost, value, found[2])


def allocate(options: Sequence[Sequence[Option]], fixed: float, budget: Budget, dense: float) -> list[Option]:
    """Choose one option a layer: never above the budget, and no better step of any layer would still fit.

    The Lagrangian `loss + lambda cost` is bisected (Everett 1963), then single steps fill what is left. Time grows
    with layers x options.

    Args:
        options: for each layer its options; the dense one (loss 0) among them.
        fixed: cost of what cannot be changed.
        dense: cost of the whole dense network.

    Raises:
        BudgetError: if even the cheapest options are above the budget.
    """
    check_reach(options, fixed, budget, dense)
    ceiling = budget.ceiling(dense)
    frontier = [efficient(layer, budget.cost) for layer in options]
    chosen = _bisect(frontier, budget, fixed, ceiling)
    return _fill(frontier, chosen, budget, ceiling - fixed)


def check_reach(options: Sequence[Sequence[Option]], fixed: float, budget: Budget, dense: float) -> None:
    """Raise BudgetError if even the cheapest options are above the budget."""
    cheapest = fixed + _total(_cheapest(options, budget), budget)
    if cheapest > budget.ceiling(dense):
        raise BudgetError(
            f"the budget {budget} is out of reach: the most that this network and method can give is "
            f"{budget.written(cheapest, dense)}; ask for that or less, or train a smaller network"
        )


def efficient(options: Sequence[Option], cost: str) -> list[Option]:
    """The options that no other beats in both cost and loss, in rising order of cost."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda item: (item.cost(cost), item.loss)):
        if not kept or option.loss < kept[-1].loss:
            kept.append(option)
    return kept


def _cost(option: Option, budget: Budget) -> float:
    return option.cost(budget.cost)


def _pick(options: Sequence[Sequence[Option]], budget: Budget, price: float) -> list[Option]:
    return [
        min(layer, key=lambda option: (option.loss + price * _cost(option, budget), _cost(option, budget)))
        for layer in options
    ]


def _cheapest(options: Sequence[Sequence[Option]], budget: Budget) -> list[Option]:
    return [min(layer, key=lambda option: (_cost(option, budget), option.loss)) for layer in options]


def _total(chosen: Sequence[Option], budget: Budget) -> float:
    return sum(_cost(option, budget) for option in chosen)


def _bisect(options: Sequence[Sequence[Option]], budget: Budget, fixed: float, ceiling: float) -> list[Option]:
    """The allocation of the least price that holds the budget; sums are rounded as in `check_reach`."""

    def above(price: float) -> bool:
        return fixed + _total(_pick(options, budget, price), budget) > ceiling

    if not above(0.0):
        return _pick(options, budget, 0.0)
    low, high = 0.0, 1e-30
    while above(high):
        low, high = high, high * 16
        if not math.isfinite(high):
            return _cheapest(options, budget)
    for _ in range(100):
        middle = (low * high) ** 0.5 if low > 0 else high / 2
        if above(middle):
            low = middle
        else:
            high = middle
    return _pick(options, budget, high)


def _fill(options: Sequence[Sequence[Option]], chosen: list[Option], budget: Budget, room: float) -> list[Option]:
    """Spend what is left on the single steps with the largest gain a cost, until none fits."""
    while True:
        left = room - _total(chosen, budget)
        steps = [
            (_gain(chosen[index], option, budget), index, option)
            for index, layer in enumerate(options)
            for option in layer
            if option.loss < chosen[index].loss and _cost(option, budget) - _cost(chosen[index], budget) <= left
        ]
        if not steps:
            return chosen
        _, index, option = max(steps, key=lambda step: step[:2])
        chosen = [*chosen[:index], option, *chosen[index + 1 :]]


def _gain(now: Option, then: Option, budget: Budget) -> float:
    extra_cost = _cost(then, budget) - _cost(now, budget)
    return (now.loss - then.loss) / extra_cost if extra_cost > 0 else float("inf")
