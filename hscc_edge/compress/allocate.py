"""One allocation for everything: pick one option a layer so that the loss is least under a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hscc_edge.errors import BudgetError
from hscc_edge.model.plan import Box


@dataclass(frozen=True, slots=True)
class Option:
    """One structure with its ranks, what it costs and what it is predicted to lose (0 for dense)."""

    structure: str
    ranks: tuple[int, ...]
    regions: tuple[Box, ...]
    flops: int
    params: int
    loss: float


@dataclass(frozen=True, slots=True)
class Budget:
    """A ceiling on one cost: `flops` or `params` of the whole network, as a ratio of the dense one's."""

    cost: str
    ratio: float

    def __str__(self) -> str:
        """As the user writes it: flops=6x."""
        return f"{self.cost}={self.ratio:g}x"


def parse_budget(text: str) -> Budget:
    """A budget such as "flops=6x" or "params=10x".

    Raises:
        BudgetError: if it is not written so, or the ratio is below 1.
    """
    cost, _, ratio = text.partition("=")
    if cost not in ("flops", "params") or not ratio.endswith("x"):
        raise BudgetError(f"the budget {text!r} is not understood: expected flops=6x or params=10x")
    try:
        value = float(ratio[:-1])
    except ValueError:
        raise BudgetError(f"the budget {text!r} has no number: expected flops=6x or params=10x") from None
    if not 1.0 <= value < float("inf"):
        raise BudgetError(f"the budget {text!r} is below 1x or endless: expected at least 1x, such as flops=6x")
    return Budget(cost, value)


def allocate(options: Sequence[Sequence[Option]], fixed: int, budget: Budget) -> list[Option]:
    """Choose one option a layer: never above the budget, and no better step of any layer would still fit.

    The Lagrangian `loss + lambda cost` is bisected (Everett 1963), then single steps fill what is left. Time grows
    with layers x options.

    Args:
        options: for each layer its options; the dense one (loss 0) among them.
        fixed: cost of what cannot be changed.

    Raises:
        BudgetError: if even the cheapest options are above the budget.
    """
    dense = fixed + sum(_cost(max(layer, key=lambda option: _cost(option, budget)), budget) for layer in options)
    return _allocate(options, fixed, budget, int(dense / budget.ratio))


def _allocate(options: Sequence[Sequence[Option]], fixed: int, budget: Budget, ceiling: int) -> list[Option]:
    cheapest = fixed + sum(min(_cost(option, budget) for option in layer) for layer in options)
    if cheapest > ceiling:
        largest = ceiling * budget.ratio / cheapest
        raise BudgetError(
            f"the budget {budget} is out of reach: the most that this network and method can give is "
            f"{budget.cost}={int(largest * 100) / 100:g}x"
        )
    chosen = _bisect(options, budget, ceiling - fixed)
    return _fill(options, chosen, budget, ceiling - fixed)


def _cost(option: Option, budget: Budget) -> int:
    return option.flops if budget.cost == "flops" else option.params


def _pick(options: Sequence[Sequence[Option]], budget: Budget, price: float) -> list[Option]:
    return [
        min(layer, key=lambda option: (option.loss + price * _cost(option, budget), _cost(option, budget)))
        for layer in options
    ]


def _total(chosen: Sequence[Option], budget: Budget) -> int:
    return sum(_cost(option, budget) for option in chosen)


def _bisect(options: Sequence[Sequence[Option]], budget: Budget, room: int) -> list[Option]:
    free = _pick(options, budget, 0.0)
    if _total(free, budget) <= room:
        return free
    low, high = 0.0, 1e-30
    while _total(_pick(options, budget, high), budget) > room:
        low, high = high, high * 16
    for _ in range(100):
        middle = (low * high) ** 0.5 if low > 0 else high / 2
        if _total(_pick(options, budget, middle), budget) > room:
            low = middle
        else:
            high = middle
    return _pick(options, budget, high)


def _fill(options: Sequence[Sequence[Option]], chosen: list[Option], budget: Budget, room: int) -> list[Option]:
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
