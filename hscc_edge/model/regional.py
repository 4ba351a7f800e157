"""Layers that treat regions of their output map apart: ordinary convolutions, slices and concatenations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hscc_edge.errors import ModelError, extra
from hscc_edge.model.convolution import Conv, conv_like, numbers, padding_of
from hscc_edge.model.plan import Box, Clusters

with extra("workstation"):
    import torch
    from torch import nn
    from torch.nn import functional


class SharedReduce(nn.Module):
    """One convolution to r channels for the whole map, then per region its own pointwise expand and bias.

    No halo, and only the thin tensor is sliced: `y[rho] = U[rho] z[rho] + b[rho]`, `z = R x`.
    """

    def __init__(self, dense: Conv, rank: int, boxes: Sequence[Box]) -> None:
        super().__init__()
        self.boxes = tuple(boxes)
        self.reduce = conv_like(dense, dense.in_channels, rank)
        self.expands = nn.ModuleList(pointwise(dense, rank) for _ in boxes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, *positions) -> (B, m, *output positions)."""
        z = self.reduce(x)  # (B, r, *output positions)
        tiles = [expand(cut(z, box)) for box, expand in zip(self.boxes, self.expands, strict=True)]
        return join(self.boxes, tiles)


class OwnFactors(nn.Module):
    """Per region: a slice of the input with its halo, a convolution to r, a pointwise convolution to m."""

    def __init__(self, dense: Conv, ranks: Sequence[int], boxes: Sequence[Box]) -> None:
        super().__init__()
        self.boxes = tuple(boxes)
        self.halo = Halo(dense)
        none = (0,) * len(self.halo.stride)
        self.reduces = nn.ModuleList(conv_like(dense, dense.in_channels, rank, padding=none) for rank in ranks)
        self.expands = nn.ModuleList(pointwise(dense, rank) for rank in ranks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, *positions) -> (B, m, *output positions)."""
        padded = self.halo.pad(x)
        tiles = [
            expand(reduce(self.halo.cut(padded, box)))
            for box, reduce, expand in zip(self.boxes, self.reduces, self.expands, strict=True)
        ]
        return join(self.boxes, tiles)


class Clustered(nn.Module):
    """Per region, each cluster of input channels has its own reduce; one pointwise expand joins them.

    `y[rho] = sum over kappa of U[rho, kappa] R[rho, kappa] x[kappa] + b[rho]`; the expands of all clusters are one
    convolution on the concatenated reduced channels.
    """

    def __init__(self, dense: Conv, ranks: Sequence[int], boxes: Sequence[Box], clusters: Sequence[Clusters]) -> None:
        super().__init__()
        self.boxes = tuple(boxes)
        self.halo = Halo(dense)
        none = (0,) * len(self.halo.stride)
        left = list(ranks)
        self.reduces, self.expands = nn.ModuleList(), nn.ModuleList()
        for number, region in enumerate(clusters):
            own, left = left[: len(region)], left[len(region) :]
            pairs = zip(region, own, strict=True)
            self.reduces.append(nn.ModuleList(conv_like(dense, len(c), rank, padding=none) for c, rank in pairs))
            self.expands.append(pointwise(dense, sum(own)))
            for index, cluster in enumerate(region):
                name = f"channels_{number}_{index}"
                self.register_buffer(name, torch.tensor(cluster, dtype=torch.long), persistent=False)

    def reduces_of(self, number: int) -> list[Conv]:
        """The reduces of one region's clusters."""
        found: Any = self.reduces[number]
        return list(found)

    def features(self, padded: torch.Tensor, number: int) -> torch.Tensor:
        """The reduced channels of one region, of the padded input."""
        cutout = self.halo.cut(padded, self.boxes[number]) if self.boxes else padded
        parts = [
            reduce(cutout.index_select(1, getattr(self, f"channels_{number}_{index}")))
            for index, reduce in enumerate(self.reduces_of(number))
        ]
        return torch.cat(parts, dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, *positions) -> (B, m, *output positions)."""
        padded = self.halo.pad(x)
        tiles = [expand(self.features(padded, number)) for number, expand in enumerate(self.expands)]
        return join(self.boxes, tiles) if self.boxes else tiles[0]


class Halo:
    """Which part of the padded input a box of output positions needs."""

    def __init__(self, dense: Conv) -> None:
        if dense.padding_mode != "zeros":
            raise ModelError(f"padding {dense.padding_mode!r} has no own factors: use one-region or shared-reduce")
        self.stride = numbers(dense.stride)
        self.padding = padding_of(dense)
        kernel, dilation = numbers(dense.kernel_size), numbers(dense.dilation)
        self.reach = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """The input with its zeros around it."""
        if not any(self.padding):
            return x
        widths = [width for size in reversed(self.padding) for width in (size, size)]
        return functional.pad(x, widths)

    def cut(self, padded: torch.Tensor, box: Box) -> torch.Tensor:
        """The slice of the padded input that makes the outputs in `box`."""
        edges = zip(box.start, box.stop, self.stride, self.reach, strict=True)
        where = tuple(slice(start * stride, (stop - 1) * stride + reach) for start, stop, stride, reach in edges)
        return padded[(slice(None), slice(None), *where)]


def pointwise(dense: Conv, rank: int) -> Conv:
    """A 1 x 1 convolution from `rank` channels to the dense layer's, with a bias."""
    return conv_like(dense, rank, dense.out_channels, kernel=1, stride=1, padding=0, dilation=1, bias=True)


def cut(maps: torch.Tensor, box: Box) -> torch.Tensor:
    """The positions of `box` in maps (B, C, *positions)."""
    return maps[(slice(None), slice(None), *box.slices)]


def join(boxes: Sequence[Box], tiles: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate tiles (B, m, ...) of guillotine boxes into their common block.

    Raises:
        ModelError: if no straight cut separates the boxes.
    """
    if len(boxes) == 1:
        return tiles[0]
    for axis in range(len(boxes[0].start)):
        strips = _strips(boxes, axis)
        if len(strips) > 1:
            parts = [join([boxes[i] for i in strip], [tiles[i] for i in strip]) for strip in strips]
            return torch.cat(parts, dim=2 + axis)
    raise ModelError(f"{len(boxes)} regions cannot be cut apart by straight lines: mend the plan's regions")


def _strips(boxes: Sequence[Box], axis: int) -> list[list[int]]:
    """Indices of the boxes, grouped between the straight cuts across `axis`."""
    strips: list[list[int]] = []
    end = -1
    for index in sorted(range(len(boxes)), key=lambda i: boxes[i].start[axis]):
        if boxes[index].start[axis] >= end:
            strips.append([])
        strips[-1].append(index)
        end = max(end, boxes[index].stop[axis])
    return strips
