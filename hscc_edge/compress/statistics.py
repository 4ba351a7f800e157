"""One streamed pass over the calibration cohort: second moments of every layer's outputs and of their gradients.

`C` is the covariance of the outputs y, `G` the second moment of g = dL/dy under the model's own output: the true Fisher
(Martens and Grosse 2015, arXiv 1503.05671), from one random factor of the logits' Fisher an image. Both live in output
space, m x m, so that no im2col patch is ever formed. Sums over cells of positions add up to those of any union of
cells, and shards merge.

A pointwise layer with n < m is measured in input space instead (its dual): the covariance of x and the second moment
of dL/dx = W^T g, n x n. A Linear on a flat vector with m > SAMPLED_ABOVE keeps its rows: no m x m matrix at all.

Memory: sum over layers of 16 cells m^2 bytes (16 n^2 for a dual, 8 images m for kept rows), and one batch. A layer has
as many cells as keep it within 192 MiB, and never less than one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from hscc_edge.compress.cost import LayerShape
from hscc_edge.compress.moments import Moments, add_rows, empty_moments, rows_of
from hscc_edge.compress.problem import Batch, Problem
from hscc_edge.compress.regions import grid
from hscc_edge.compress.statistics_file import load_statistics, save_statistics
from hscc_edge.errors import CohortError, ModelError, extra
from hscc_edge.model.head import Head
from hscc_edge.model.plan import Box

with extra("workstation"):
    import torch
    from torch import nn

SAMPLED_ABOVE = 1024
LARGEST_LAYER_BYTES = 192 * 2**20
BYTES_A_MOMENT = 16
FEWEST_IMAGES = 8
SAVE_EVERY_S = 60.0


@dataclass(slots=True)
class Samples:
    """The rows themselves; `2 N m` float32 numbers."""

    outputs: list[torch.Tensor] = field(default_factory=list)
    gradients: list[torch.Tensor] = field(default_factory=list)


@dataclass(slots=True)
class LayerStatistics:
    """What one layer's outputs (or inputs, if `dual`) and their gradients were, cell by cell, over `images` images."""

    boxes: tuple[Box, ...]
    cells: list[Moments]
    samples: Samples | None = None
    dual: bool = False
    images: int = 0


def collect(problem: Problem, cells: Sequence[int]) -> dict[str, LayerStatistics]:
    """Run every calibration image forward and backward once.

    Time grows with images x (three forward passes + sum of positions x m^2).

    Args:
        cells: pieces of a map, one number an axis.

    Raises:
        CohortError: if there are fewer than FEWEST_IMAGES images, one is not finite, or their shapes differ.
        ModelError: if a logit or a layer's output is not finite, or the outputs do not fit the heads.
    """
    shapes = [shape for shape in problem.shapes if not shape.reason]
    found = {shape.name: empty_statistics(shape, tuple(cells)) for shape in shapes}
    done = load_statistics(problem.cache, found) if problem.cache is not None else 0
    network = problem.network
    images, saved = 0, time.monotonic()
    sides: dict[str, tuple[int, ...]] = {}
    with ExitStack() as stack:
        for parameter in network.parameters():
            stack.callback(parameter.requires_grad_, parameter.requires_grad)
        for name, entry in found.items():
            module = network.get_submodule(name)
            hook = module.register_forward_pre_hook if entry.dual else module.register_forward_hook
            stack.callback(hook(_dual_hook(entry) if entry.dual else _hook(entry)).remove)
        network.requires_grad_(False)
        for number, batch in enumerate(problem.batches()):
            size = len(next(iter(batch.values())))
            images += size
            if images > done:
                _check_images(batch, sides)
                _pass(problem, batch, number, found)
                for entry in found.values():
                    entry.images += size
            if problem.progress is not None:
                problem.progress(size, "statistics")
            if problem.cache is not None and time.monotonic() - saved > SAVE_EVERY_S:
                save_statistics(problem.cache, found)
                saved = time.monotonic()
    if images == 0:
        raise CohortError("the calibration cohort has no image: give a cohort with a train split")
    if images < FEWEST_IMAGES:
        raise CohortError(
            f"the number of calibration images is {images}: second moments need at least {FEWEST_IMAGES}, and some "
            "hundreds do best; give more"
        )
    _check_finite(found)
    if problem.cache is not None and images > done:
        save_statistics(problem.cache, found)
    return found


def empty_statistics(shape: LayerShape, cells: tuple[int, ...]) -> LayerStatistics:
    """No image seen yet; a map of m channels in c cells takes 16 c m^2 bytes, and c is cut until that is 192 MiB."""
    if shape.area * shape.calls == 1 and shape.outputs > SAMPLED_ABOVE:
        return LayerStatistics((), [], Samples())
    if shape.taps == 1 and shape.inputs < shape.outputs:
        return LayerStatistics((), [empty_moments(shape.inputs)], dual=True)
    if not shape.kernel:
        return LayerStatistics((), [empty_moments(shape.outputs)])
    boxes = grid(shape.positions, affordable_cells(shape.outputs, shape.positions, cells))
    return LayerStatistics(boxes, [empty_moments(shape.outputs) for _ in boxes])


def affordable_cells(outputs: int, positions: tuple[int, ...], cells: tuple[int, ...]) -> tuple[int, ...]:
    """Pieces an axis, the most of any axis cut first, so that 16 c m^2 bytes are at most 192 MiB, or c is 1."""
    parts = [min(pair) for pair in zip(positions, [*cells, *[cells[-1]] * len(positions)], strict=False)]
    while math.prod(parts) > max(LARGEST_LAYER_BYTES // (BYTES_A_MOMENT * outputs**2), 1):
        parts[parts.index(max(parts))] -= 1
    return tuple(parts)


def _check_images(batch: Batch, sides: dict[str, tuple[int, ...]]) -> None:
    """Raise CohortError unless all values are finite and of the shape that `sides` remembers from the first batch."""
    for name, values in batch.items():
        if not isinstance(values, torch.Tensor):
            continue
        shape = tuple(values.shape[1:])
        if sides.setdefault(name, shape) != shape:
            raise CohortError(
                f"a calibration image's {name!r} has the shape {shape} where the first has {sides[name]}: every image "
                "must have one shape; mend preprocess"
            )
        if not bool(torch.isfinite(values).all()):
            raise CohortError(f"a calibration image's {name!r} is not finite: mend the cohort or preprocess")


def _check_finite(found: Mapping[str, LayerStatistics]) -> None:
    """Raise ModelError naming the first layer whose sums are not finite."""
    for name, entry in found.items():
        sums = [part for cell in entry.cells for part in (cell.scatter, cell.gradients)]
        rows = [] if entry.samples is None else [*entry.samples.outputs, *entry.samples.gradients]
        if not all(bool(torch.isfinite(part).all()) for part in (*sums, *rows)):
            raise ModelError(
                f"the layer {name} meets values that are not finite on the calibration images: check its weights and "
                "those of the layers before it"
            )


def _pass(problem: Problem, batch: Batch, number: int, found: Mapping[str, LayerStatistics]) -> None:
    """One forward and backward pass."""
    logits = problem.call(problem.network, batch)
    if len(logits) != len(problem.heads):
        raise ModelError(
            f"the network gives {len(logits)} outputs and {len(problem.heads)} heads are declared: mend the heads"
        )
    if not all(bool(torch.isfinite(values).all()) for values in logits):
        _check_finite(found)
    probe(problem, logits, number)


def probe(problem: Problem, logits: Sequence[torch.Tensor], number: int) -> None:
    """Go back from the logits of each head; signs depend on the seed and the batch's number, so that shards agree."""
    generator = torch.Generator().manual_seed(problem.settings.seed * 1_000_003 + number)
    losses = [fisher_probe(*pair, generator) for pair in zip(logits, problem.heads, strict=True)]
    torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]


def fisher_probe(logits: torch.Tensor, head: Head, generator: torch.Generator) -> torch.Tensor:
    """A scalar whose gradient v at each image's logits (B, n) is a random factor of their Fisher: E[v v^T] = F.

    No label is read. Softmax: F = diag(p) - p p^T = sum_k p_k (e_k - p)(e_k - p)^T, so with random signs s
    v = sum_k s_k sqrt(p_k) (e_k - p); sigmoid: v = s sqrt(p (1 - p)). A label drawn from p has the same mean of v v^T,
    but says nothing at most images of a classifier that is sure of itself (docs/decisions/0010).

    Raises:
        ModelError: if a logit is not finite, or their number is not the head's.
    """
    wanted = 1 if head.kind == "single_logit" else len(head.labels)
    if logits.dim() != 2 or logits.shape[1] != wanted:
        raise ModelError(
            f"the network gives logits of the shape {tuple(logits.shape)} where its {head.kind} head needs {wanted} an "
            "image: mend the head"
        )
    if not bool(torch.isfinite(logits).all()):
        raise ModelError("the network gives logits that are not finite on the calibration images: check its weights")
    signs = 2 * torch.randint(0, 2, logits.shape, generator=generator).to(logits.dtype) - 1
    if head.kind == "softmax":
        p = logits.detach().softmax(1)
        scaled = signs * p.sqrt()
        factor = scaled - p * scaled.sum(1, keepdim=True)
    else:
        p = logits.detach().sigmoid()
        factor = signs * (p * (1 - p)).sqrt()
    return (logits * factor).sum()


def _hook(entry: LayerStatistics) -> Callable[..., torch.Tensor]:
    def hook(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        last = isinstance(module, nn.Linear)
        _add(entry, output.detach(), last)
        return _tracked(output, partial(_add_gradients, entry, last=last))

    return hook


def _dual_hook(entry: LayerStatistics) -> Callable[..., tuple[torch.Tensor]]:
    def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        last = isinstance(module, nn.Linear)
        stride = () if last else tuple(slice(None, None, step) for step in module.stride)  # type: ignore[union-attr]
        where = (slice(None), slice(None), *stride)
        x = args[0]
        _add(entry, x.detach() if last else x.detach()[where], last)
        return (_tracked(x, lambda g: _add_gradients(entry, g if last else g[where], last=last)),)

    return hook


def _tracked(values: torch.Tensor, hook: Callable[[torch.Tensor], None]) -> torch.Tensor:
    """A non-leaf copy whose gradient is seen, so that an in-place activation after it changes nothing seen here."""
    tracked = values if values.requires_grad else values.detach().requires_grad_()
    tracked = tracked.clone()
    tracked.register_hook(hook)  # type: ignore[no-untyped-call]
    return tracked


def _add(entry: LayerStatistics, values: torch.Tensor, last: bool) -> None:
    if entry.samples is not None:
        entry.samples.outputs.append(rows_of(values, None, last).clone())
        return
    for cell, box in zip(entry.cells, entry.boxes or (None,), strict=True):
        add_rows(cell, rows_of(values, box, last))


def _add_gradients(entry: LayerStatistics, gradient: torch.Tensor, last: bool) -> None:
    if entry.samples is not None:
        entry.samples.gradients.append(rows_of(gradient, None, last).clone())
        return
    for cell, box in zip(entry.cells, entry.boxes or (None,), strict=True):
        rows = rows_of(gradient, box, last)
        cell.gradients += (rows.T @ rows).to(torch.float64)
