"""Structures whose predicted loss has no closed form: their reduced features are measured in a second pass.

With features z = R x fixed, the best linear map from z to y leaves tr(G (C_yy - C_yz C_zz^-1 C_zy)): the same unit as
the spectra of the other structures, cross-covariances between clusters or kernel rows included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Any

from hscc_edge.compress.gram import contributions, regress
from hscc_edge.compress.moments import Moments, add_rows, empty_moments, rows_of
from hscc_edge.compress.problem import Problem, affordable_batches
from hscc_edge.errors import extra
from hscc_edge.model.convolution import numbers, padding_of
from hscc_edge.model.plan import Box

with extra("workstation"):
    import torch
    from torch import nn
    from torch.nn import functional

INPUT_BATCHES = 3
FEATURE_BATCHES = 5
POSITIONS = 96
COLUMNS = 32


@dataclass
class Features:
    """Reduced features of one layer or one of its regions, in nested order.

    Attributes:
        rows: x (B, C, *positions) -> rows (N, d), one for each output position of the region, in the order of y's.
        size: d.
        box: the region; None for the whole map.
        payload: what the structure needs to write the reduce.
        moments: of (z, y) joined, d + m; None until measured.
    """

    rows: Callable[[torch.Tensor], torch.Tensor]
    size: int
    box: Box | None
    payload: Any
    moments: Moments | None = None

    def captured(self, weight: torch.Tensor) -> tuple[torch.Tensor, float]:
        """What the first 1, 2, ... d features keep (d,), and the whole, in the metric `weight` (m, m).

        What is left is scaled by (N - 1) / (N - 1 - d), as in the adjusted R^2: of few rows a regression keeps all.
        """
        moments, d = _measured(self), self.size
        covariance, rows = moments.covariance, moments.count - 1
        kept = torch.cumsum(contributions(covariance[:d, :d], covariance[d:, :d], weight), 0)
        whole = float((weight * covariance[d:, d:]).sum())
        free = (rows - torch.arange(1, d + 1)).clamp_min(0.5)
        return whole - (whole - kept) * rows / free, whole

    def expand(self, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """U (m, columns) of the first features and the bias (m,)."""
        moments, d = _measured(self), self.size
        found = regress(moments.covariance[:columns, :columns], moments.covariance[d:, :columns])
        return found, moments.mean[d:] - found @ moments.mean[:columns]


def _measured(features: Features) -> Moments:
    if features.moments is None:
        raise RuntimeError("these features were not measured yet: call measure() first")
    return features.moments


@dataclass
class InputMoments:
    """Second moments of a layer's input over a few batches.

    Attributes:
        channels: of the C_in channels, one for each region asked for (the first is the whole map).
        columns: of the C_in x kernel-height column patches; None where the kernel is no 2-D one.
    """

    channels: list[Moments]
    columns: Moments | None


def measure(problem: Problem, found: Mapping[str, Sequence[Features]]) -> None:
    """One forward pass over FEATURE_BATCHES batches that fills every `moments`, from POSITIONS of each image's map.

    Of a costly network fewer batches are read, and more positions. Time grows with images x (reduces + 96 (d + m)^2);
    memory with the sum of (d + m)^2.
    """
    batches = affordable_batches(problem, FEATURE_BATCHES)
    positions = POSITIONS * FEATURE_BATCHES // batches

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            for entry in found[name]:
                y = rows_of(output, entry.box, False)
                rows = torch.cat([_some(part, len(output), positions) for part in (entry.rows(args[0]), y)], dim=1)
                if entry.moments is None:
                    entry.moments = empty_moments(rows.shape[1])
                add_rows(entry.moments, rows)

        return hook

    _forward(problem, {name: watch(name) for name, entries in found.items() if entries}, batches)


def _some(rows: torch.Tensor, images: int, positions: int) -> torch.Tensor:
    """At most so many of each image's rows, at random but always the same."""
    found = rows.reshape(images, -1, rows.shape[1])
    area = found.shape[1]
    if area <= positions:
        return rows
    chosen = torch.randperm(area, generator=torch.Generator().manual_seed(area))[:positions]
    return found[:, chosen].flatten(0, 1)


def collect_inputs(
    problem: Problem, names: Sequence[str], boxes: Mapping[str, Sequence[Box]]
) -> dict[str, InputMoments]:
    """One forward pass over INPUT_BATCHES batches: the moments of the inputs of the convolutions `names`.

    Args:
        boxes: regions of a layer's output whose inputs are wanted apart.
    """
    found: dict[str, InputMoments] = {}
    batches = affordable_batches(problem, INPUT_BATCHES)
    positions = POSITIONS * INPUT_BATCHES // batches

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            x = args[0]
            wanted = [None, *(_source(box, x, output) for box in boxes.get(name, ()))]
            if name not in found:
                channels = [empty_moments(x.shape[1]) for _ in wanted]
                found[name] = InputMoments(channels, None)
            entry = found[name]
            for moments, box in zip(entry.channels, wanted, strict=True):
                add_rows(moments, _some(rows_of(x, box, False), len(x), positions))
            if isinstance(module, nn.Conv2d) and module.kernel_size[0] > 1 and module.kernel_size[1] > 1:
                rows = _some(column_rows(module, x), len(x), positions)
                if entry.columns is None:
                    entry.columns = empty_moments(rows.shape[1])
                add_rows(entry.columns, rows)

        return hook

    _forward(problem, {name: watch(name) for name in names}, batches)
    return found


def column_rows(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """(N, C kernel-height): the column patches that a kernel column sees, in at most COLUMNS input columns."""
    width = x.shape[3]
    if width > COLUMNS:
        x = x[..., torch.randperm(width, generator=torch.Generator().manual_seed(width))[:COLUMNS]]
    (top, _), (height, _), (down, _), (tall, _) = (
        padding_of(conv), numbers(conv.kernel_size), numbers(conv.stride), numbers(conv.dilation)
    )  # fmt: skip
    patches = functional.unfold(x, (height, 1), dilation=(tall, 1), padding=(top, 0), stride=(down, 1))
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])


def _source(box: Box, x: torch.Tensor, y: torch.Tensor) -> Box:
    """The part of the input that lies under a box of the output."""
    scales = [a / b for a, b in zip(x.shape[2:], y.shape[2:], strict=True)]
    start = tuple(int(value * scale) for value, scale in zip(box.start, scales, strict=True))
    stop = tuple(
        min(max(round(value * scale), low + 1), size)
        for value, scale, low, size in zip(box.stop, scales, start, x.shape[2:], strict=True)
    )
    return Box(start, stop)


def _forward(problem: Problem, hooks: Mapping[str, Callable[..., None]], batches: int) -> None:
    if not hooks:
        return
    with ExitStack() as stack, torch.no_grad():
        for name, hook in hooks.items():
            stack.callback(problem.network.get_submodule(name).register_forward_hook(hook).remove)
        for batch in islice(problem.batches(), batches):
            problem.call(problem.network, batch)
            if problem.progress is not None:
                problem.progress(len(next(iter(batch.values()))), "features")
