"""What a method is given, and what it gives back."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from hscc_edge.compress.allocate import Budget, Option, allocate
from hscc_edge.compress.cost import LayerShape
from hscc_edge.errors import ModelError, extra
from hscc_edge.model.head import Head
from hscc_edge.model.layers import replace
from hscc_edge.model.plan import Box, LayerPlan, Plan

with extra("workstation"):
    import torch
    from torch import nn

SECOND_PASS_FLOPS = 4e11
FEWEST_BATCHES = 2
Batch = Mapping[str, torch.Tensor]
Batches = Callable[[], Iterable[Batch]]
Call = Callable[[nn.Module, Batch], "tuple[torch.Tensor, ...]"]
Progress = Callable[[int, str], None]
Metric = Callable[[str, "Box | None"], "torch.Tensor | None"]


def call_image(network: nn.Module, batch: Batch) -> tuple[torch.Tensor, ...]:
    """Logits (B, n) of each head, from a batch with "image"; a network with one head gives a bare tensor."""
    found = network(batch["image"])
    return tuple(found) if isinstance(found, (tuple, list)) else (found,)


@dataclass(frozen=True, slots=True)
class Settings:
    """How a method may work.

    Attributes:
        cells: the finest regions of a feature map that are measured, one number an axis.
        regions: the most regions a layer may have.
        clusters: the most clusters of input channels a region may have.
        structures: structures that hscc may choose from, beside dense.
        alignment: ranks are multiples of it (8 suits FP16 tensor cores), or smaller than it.
        damping: of G, as a share of its mean diagonal.
        seed: of the random factors of the Fisher.
    """

    cells: tuple[int, ...] = (6, 6)
    regions: int = 9
    clusters: int = 4
    structures: tuple[str, ...] = ("one-region", "shared-reduce", "own-factors", "separable", "tucker-2")
    alignment: int = 8
    damping: float = 1e-3
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Problem:
    """A dense network, its layers that can be factorised, and a stream of calibration batches.

    Attributes:
        batches: starts a new pass; each batch is what `call` reads.
        call: runs a network on a batch; logits (B, n), one for each head.
        cache: a file for the statistics of this network on this cohort; None for none.
    """

    network: nn.Module
    shapes: tuple[LayerShape, ...]
    heads: tuple[Head, ...]
    batches: Batches
    settings: Settings = field(default_factory=Settings)
    progress: Progress | None = None
    call: Call = call_image
    cache: Path | None = None


def affordable_batches(problem: Problem, most: int) -> int:
    """How many batches a further pass may read: `most`, of at most SECOND_PASS_FLOPS, but at least FEWEST_BATCHES.

    Whoever reads fewer takes more positions of each image instead. On VGG16 3 batches did as well as 8.
    """
    size = next((len(next(iter(batch.values()))) for batch in problem.batches()), 1)
    dense = size * sum(shape.flops for shape in problem.shapes)
    return min(max(int(SECOND_PASS_FLOPS / max(dense, 1)), FEWEST_BATCHES), most)


@dataclass(frozen=True, slots=True)
class Candidates:
    """One layer's options, and how the module of any of them is made."""

    options: tuple[Option, ...]
    build: Callable[[LayerPlan], nn.Module]


class Proposal(Protocol):
    """What a method found out about a problem: plans for any budget, and their networks, without another pass."""

    def plan(self, budget: Budget) -> Plan:
        """The plan of least loss under a budget."""

    def build(self, plan: Plan) -> nn.Module:
        """A new network that follows a plan; the dense one is left as it is."""


Method = Callable[[Problem], Proposal]


def dense_option(shape: LayerShape) -> Option:
    """Leave the layer as it is."""
    return Option("dense", (), (), shape.flops, shape.params, 0.0)


def aligned_ranks(shape: LayerShape, alignment: int, largest: int) -> list[int]:
    """Ranks to try: multiples of `alignment` below the rank at which a pair costs more than the dense layer."""
    limit = min(largest, (shape.outputs * shape.patch - 1) // (shape.outputs + shape.patch))
    ranks = list(range(alignment, limit + 1, alignment))
    return ranks or ([limit] if limit > 0 else [])


def pair_option(shape: LayerShape, rank: int, loss: float) -> Option:
    """One reduce and one expand for the whole map."""
    return Option("one-region", (rank,), (), shape.pair_flops(rank), shape.pair_params(rank), loss)


@dataclass(frozen=True, slots=True)
class LayerwiseProposal:
    """Options for each layer by itself; one allocation picks.

    Attributes:
        fixed_latency_ms: what the network takes beside these layers; NaN until they are timed.
        metric: G (m, m) per position of a layer or one of its regions; None where the method or the layer has none.
    """

    method: str
    network: nn.Module
    shapes: tuple[LayerShape, ...]
    candidates: Mapping[str, Candidates]
    fixed_latency_ms: float = math.nan
    metric: Metric | None = None

    def plan(self, budget: Budget) -> Plan:
        """See `Proposal`.

        Raises:
            BudgetError: if the budget cannot be met.
            ModelError: if it is a latency and nothing was timed.
        """
        names = [shape.name for shape in self.shapes if shape.name in self.candidates]
        kept = [dense_option(shape) for shape in self.shapes if shape.name not in self.candidates]
        timed = budget.cost == "latency"
        fixed = self.fixed_latency_ms if timed else sum(option.cost(budget.cost) for option in kept)
        options = [self.candidates[name].options for name in names]
        dense = fixed + sum(layer[0].cost(budget.cost) for layer in options)
        if math.isnan(dense):
            raise ModelError(f"the budget {budget} needs timed candidates: time them first, or give flops, as flops=6x")
        chosen = dict(zip(names, self._choose(options, fixed, budget, dense), strict=True))
        return Plan(
            self.method, str(budget), tuple(self._layer(shape, chosen.get(shape.name)) for shape in self.shapes)
        )

    def _choose(self, options: Sequence[Sequence[Option]], fixed: float, budget: Budget, dense: float) -> list[Option]:
        """One option a layer, of least loss in all."""
        return allocate(options, fixed, budget, dense)

    def _layer(self, shape: LayerShape, option: Option | None) -> LayerPlan:
        dense = self.candidates[shape.name].options[0] if shape.name in self.candidates else dense_option(shape)
        return layer_plan(shape, option or dense, dense)

    def build(self, plan: Plan) -> nn.Module:
        """See `Proposal`."""
        return build_layers(self.network, plan, {name: entry.build for name, entry in self.candidates.items()})


def build_layers(network: nn.Module, plan: Plan, builders: Mapping[str, Callable[[LayerPlan], nn.Module]]) -> nn.Module:
    """A copy of `network` with the layers of `plan` made by their builders."""
    made = copy.deepcopy(network)
    for layer in plan.layers:
        if layer.structure != "dense":
            replace(made, layer.name, builders[layer.name](layer))
    return made.eval()


def layer_plan(shape: LayerShape, option: Option, dense: Option) -> LayerPlan:
    """A layer's entry in the plan."""
    timed = not math.isnan(option.latency_ms)
    return LayerPlan(
        name=shape.name,
        structure=option.structure,
        ranks=option.ranks,
        regions=option.regions,
        shape=shape.text,
        flops=option.flops,
        dense_flops=shape.flops,
        params=option.params,
        dense_params=shape.params,
        loss=option.loss,
        reason=shape.reason or ("cheaper or safer dense" if option.structure == "dense" else ""),
        clusters=option.clusters,
        latency_ms=option.latency_ms if timed else None,
        dense_latency_ms=dense.latency_ms if timed else None,
    )
