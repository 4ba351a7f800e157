"""Factorised layers: ordinary dense convolutions, slices and concatenations, so that every runtime knows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from hscc_edge.errors import ModelError, extra
from hscc_edge.model.plan import Box, LayerPlan

with extra("workstation"):
    import torch
    from torch import nn
    from torch.nn import functional

Pair = tuple[int, int]


class SharedReduceConv2d(nn.Module):
    """One k x k convolution to r channels for the whole map, then per region its own 1 x 1 expand and bias.

    No halo, and only the thin tensor is sliced: `y[rho] = U[rho] z[rho] + b[rho]`, `z = R x`.
    """

    def __init__(self, dense: nn.Conv2d, rank: int, boxes: Sequence[Box]) -> None:
        super().__init__()
        self.boxes = tuple(boxes)
        self.reduce = _reduce_conv(dense, rank, _pair(dense.padding))
        self.expands = nn.ModuleList(nn.Conv2d(rank, dense.out_channels, 1) for _ in boxes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, m, H', W')."""
        z = self.reduce(x)  # (B, r, H', W')
        tiles = [
            expand(z[:, :, box.top : box.bottom, box.left : box.right])
            for box, expand in zip(self.boxes, self.expands, strict=True)
        ]
        return join(self.boxes, tiles)


class OwnFactorsConv2d(nn.Module):
    """Per region: a slice of the input with its halo, a k x k convolution to r, a 1 x 1 convolution to m."""

    def __init__(self, dense: nn.Conv2d, ranks: Sequence[int], boxes: Sequence[Box]) -> None:
        super().__init__()
        self.boxes = tuple(boxes)
        self.stride, self.padding = _pair(dense.stride), _pair(dense.padding)
        dilation, kernel = _pair(dense.dilation), _pair(dense.kernel_size)
        self.reach: Pair = (dilation[0] * (kernel[0] - 1) + 1, dilation[1] * (kernel[1] - 1) + 1)
        self.reduces = nn.ModuleList(_reduce_conv(dense, rank, (0, 0)) for rank in ranks)
        self.expands = nn.ModuleList(nn.Conv2d(rank, dense.out_channels, 1) for rank in ranks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, m, H', W')."""
        height, width = self.padding
        padded = functional.pad(x, (width, width, height, height))
        tiles = [
            expand(reduce(self._halo(padded, box)))
            for box, reduce, expand in zip(self.boxes, self.reduces, self.expands, strict=True)
        ]
        return join(self.boxes, tiles)

    def _halo(self, padded: torch.Tensor, box: Box) -> torch.Tensor:
        top, left = box.top * self.stride[0], box.left * self.stride[1]
        bottom = (box.bottom - 1) * self.stride[0] + self.reach[0]
        right = (box.right - 1) * self.stride[1] + self.reach[1]
        return padded[:, :, top:bottom, left:right]


def join(boxes: Sequence[Box], tiles: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate tiles (B, m, h, w) of guillotine boxes into their common rectangle.

    Raises:
        ModelError: if no straight cut separates the boxes.
    """
    if len(boxes) == 1:
        return tiles[0]
    for dimension in (2, 3):
        strips = _strips(boxes, dimension)
        if len(strips) > 1:
            parts = [join([boxes[i] for i in strip], [tiles[i] for i in strip]) for strip in strips]
            return torch.cat(parts, dim=dimension)
    raise ModelError(f"{len(boxes)} regions cannot be cut apart by straight lines: mend the plan's regions")


def _strips(boxes: Sequence[Box], dimension: int) -> list[list[int]]:
    """Indices of the boxes, grouped between the straight cuts across `dimension`."""
    spans = [(box.top, box.bottom) if dimension == 2 else (box.left, box.right) for box in boxes]
    strips: list[list[int]] = []
    end = -1
    for index in sorted(range(len(boxes)), key=lambda i: spans[i]):
        if spans[index][0] >= end:
            strips.append([])
        strips[-1].append(index)
        end = max(end, spans[index][1])
    return strips


def _pair(value: object) -> Pair:
    if isinstance(value, tuple):
        return cast(Pair, value)
    raise ModelError(f"a convolution with padding {value!r} cannot be factorised: give its padding as numbers")


def _reduce_conv(dense: nn.Conv2d, rank: int, padding: Pair) -> nn.Conv2d:
    return nn.Conv2d(
        dense.in_channels, rank, _pair(dense.kernel_size), stride=_pair(dense.stride), padding=padding,
        dilation=_pair(dense.dilation), bias=False,
    )  # fmt: skip


def _tucker_conv(dense: nn.Conv2d, ranks: Sequence[int]) -> nn.Sequential:
    outer, inner = ranks
    core = nn.Conv2d(
        inner, outer, _pair(dense.kernel_size), stride=_pair(dense.stride), padding=_pair(dense.padding),
        dilation=_pair(dense.dilation), bias=False,
    )  # fmt: skip
    first = nn.Conv2d(dense.in_channels, inner, 1, bias=False)
    return nn.Sequential(first, core, nn.Conv2d(outer, dense.out_channels, 1))


def factorised(dense: nn.Module, plan: LayerPlan) -> nn.Module:
    """The module, with fresh weights, that takes the place of `dense` under `plan`.

    Raises:
        ModelError: if the structure does not exist for this kind of layer.
    """
    if plan.structure == "dense":
        return dense
    if isinstance(dense, nn.Linear) and plan.structure == "one-region":
        (rank,) = plan.ranks
        return nn.Sequential(nn.Linear(dense.in_features, rank, bias=False), nn.Linear(rank, dense.out_features))
    if isinstance(dense, nn.Conv2d):
        return _factorised_conv(dense, plan)
    raise ModelError(f"the layer {plan.name} ({type(dense).__name__}) has no structure {plan.structure}: mend the plan")


def _factorised_conv(dense: nn.Conv2d, plan: LayerPlan) -> nn.Module:
    match plan.structure:
        case "one-region":
            reduce = _reduce_conv(dense, plan.ranks[0], _pair(dense.padding))
            return nn.Sequential(reduce, nn.Conv2d(plan.ranks[0], dense.out_channels, 1))
        case "shared-reduce":
            return SharedReduceConv2d(dense, plan.ranks[0], plan.regions)
        case "own-factors":
            return OwnFactorsConv2d(dense, plan.ranks, plan.regions)
        case "tucker-2":
            return _tucker_conv(dense, plan.ranks)
    raise ModelError(f"the layer {plan.name} has no structure {plan.structure}: mend the plan")


def replace(network: nn.Module, name: str, layer: nn.Module) -> None:
    """Put `layer` at the dotted `name` of `network`."""
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, layer)
