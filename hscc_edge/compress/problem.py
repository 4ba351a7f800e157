"""What a method is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from hscc_edge.compress.allocate import Option
from hscc_edge.compress.cost import LayerShape
from hscc_edge.errors import extra
from hscc_edge.model.head import Head
from hscc_edge.model.plan import LayerPlan

with extra("workstation"):
    import torch
    from torch import nn

Batches = Callable[[], Iterable[Mapping[str, torch.Tensor]]]
Progress = Callable[[int, str], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a method may work.

    Attributes:
        parts: regions of a feature map, (rows, columns).
        structures: structures that the planner may choose from, beside dense.
        alignment: ranks are multiples of it (8 suits FP16 tensor cores), or smaller than it.
        refit: regress the factors on the original's outputs, layer by layer, after the plan stands.
        seed: of the sampled labels.
    """

    parts: tuple[int, int] = (3, 3)
    structures: tuple[str, ...] = ("one-region", "shared-reduce")
    alignment: int = 8
    refit: bool = True
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Problem:
    """A dense network, its layers that can be factorised, and a stream of calibration batches.

    `batches()` starts a new pass; each batch is a mapping with "image" (B, C, H, W).
    """

    network: nn.Module
    shapes: tuple[LayerShape, ...]
    head: Head
    batches: Batches
    settings: Settings
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class Candidates:
    """One layer's options, and how the module of any of them is made."""

    options: tuple[Option, ...]
    build: Callable[[LayerPlan], nn.Module]


Method = Callable[[Problem], dict[str, Candidates]]


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
