"""One streamed pass over the calibration cohort: second moments of every layer's outputs and of their gradients.

`C` is the covariance of the outputs y, `G` the second moment of g = dL/dy with labels sampled from the model's own
output (the true Fisher; Martens and Grosse 2015, arXiv 1503.05671). Both live in output space, m x m, so that no
im2col patch is ever formed. Sums over cells of positions add up to those of any union of cells, and shards merge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

from hscc_edge.compress.cost import LayerShape
from hscc_edge.errors import CohortError, ModelError, extra
from hscc_edge.model.head import Head
from hscc_edge.model.plan import Box

with extra("workstation"):
    import torch
    from torch import nn
    from torch.nn import functional

SAMPLED_ABOVE = 1024
Progress = Callable[[int, str], None]


@dataclass(slots=True)
class Moments:
    """Sums over the images and the positions of one cell; float64; `2 m^2 + m` numbers.

    Attributes:
        count: positions x images.
        mean: (m,) of y.
        scatter: (m, m), sum of (y - mean)(y - mean)^T.
        gradients: (m, m), sum of g g^T.
    """

    count: int
    mean: torch.Tensor
    scatter: torch.Tensor
    gradients: torch.Tensor

    @property
    def covariance(self) -> torch.Tensor:
        """C, per position."""
        return self.scatter / self.count


def empty_moments(outputs: int) -> Moments:
    """No image seen yet."""
    wide = torch.float64
    zeros = torch.zeros(outputs, outputs, dtype=wide)
    return Moments(0, torch.zeros(outputs, dtype=wide), zeros, zeros.clone())


def merge(first: Moments, second: Moments) -> Moments:
    """The moments of both together (Chan, Golub and LeVeque 1979: no cancellation)."""
    count = first.count + second.count
    if count == 0:
        return first
    step = second.mean - first.mean
    shift = torch.outer(step, step) * (first.count * second.count / count)
    return Moments(
        count,
        first.mean + step * (second.count / count),
        first.scatter + second.scatter + shift,
        first.gradients + second.gradients,
    )


def moments_of(rows: torch.Tensor) -> Moments:
    """The moments of outputs (N, m), without gradients."""
    mean = rows.mean(dim=0)
    centred = rows - mean
    wide = torch.float64
    return Moments(len(rows), mean.to(wide), (centred.T @ centred).to(wide), torch.zeros(1, dtype=wide))


@dataclass(slots=True)
class Samples:
    """The rows themselves, for a layer with one position and m > SAMPLED_ABOVE: `2 N m` float32 numbers."""

    outputs: list[torch.Tensor] = field(default_factory=list)
    gradients: list[torch.Tensor] = field(default_factory=list)


@dataclass(slots=True)
class LayerStatistics:
    """What one layer's outputs and gradients were, cell by cell, over `images` images."""

    boxes: tuple[Box, ...]
    cells: list[Moments]
    samples: Samples | None
    images: int = 0


def grid(positions: tuple[int, int], parts: tuple[int, int]) -> tuple[Box, ...]:
    """Cut a map into parts[0] x parts[1] boxes, row by row; never more parts than positions."""
    rows, columns = (_edges(size, part) for size, part in zip(positions, parts, strict=True))
    return tuple(Box(*height, *width) for height in pairwise(rows) for width in pairwise(columns))


def _edges(size: int, parts: int) -> list[int]:
    count = min(size, parts)
    return [round(size * index / count) for index in range(count + 1)]


def collect(
    network: nn.Module,
    shapes: Sequence[LayerShape],
    batches: Iterable[Mapping[str, torch.Tensor]],
    head: Head,
    parts: tuple[int, int],
    seed: int,
    progress: Progress | None = None,
) -> dict[str, LayerStatistics]:
    """Run every calibration image forward and backward once.

    Time grows with images x (three forward passes + sum of positions x m^2); memory with cells x m^2 and one batch.

    Args:
        batches: mappings with "image" (B, C, H, W).
        parts: cells per map, (rows, columns).
        seed: of the labels that are sampled from the model's output.

    Raises:
        CohortError: if there is no image.
        ModelError: if a logit is not finite.
    """
    found = {shape.name: _empty(shape, parts) for shape in shapes if not shape.reason}
    generator = torch.Generator().manual_seed(seed)
    handles = [network.get_submodule(name).register_forward_hook(_hook(entry)) for name, entry in found.items()]
    needs = [parameter.requires_grad for parameter in network.parameters()]
    images = 0
    try:
        network.requires_grad_(False)
        for batch in batches:
            images += len(batch["image"])
            _sample_loss(network(batch["image"]), head, generator).backward()  # type: ignore[no-untyped-call]
            if progress is not None:
                progress(len(batch["image"]), "")
    finally:
        for handle in handles:
            handle.remove()
        for parameter, needed in zip(network.parameters(), needs, strict=True):
            parameter.requires_grad_(needed)
    if images == 0:
        raise CohortError("the calibration cohort has no image: give a cohort with a train split")
    for entry in found.values():
        entry.images = images
    return found


def _empty(shape: LayerShape, parts: tuple[int, int]) -> LayerStatistics:
    if shape.area == 1 and shape.outputs > SAMPLED_ABOVE:
        return LayerStatistics(grid(shape.positions, (1, 1)), [], Samples())
    boxes = grid(shape.positions, parts)
    return LayerStatistics(boxes, [empty_moments(shape.outputs) for _ in boxes], None)


def _sample_loss(logits: torch.Tensor, head: Head, generator: torch.Generator) -> torch.Tensor:
    """Sum over images of the negative log-likelihood of labels drawn from the model's own output."""
    if not bool(torch.isfinite(logits).all()):
        raise ModelError("the network gives logits that are not finite on the calibration images: check its weights")
    if head.kind == "softmax":
        labels = torch.multinomial(logits.detach().softmax(1), 1, generator=generator)
        return functional.cross_entropy(logits, labels[:, 0], reduction="sum")
    targets = torch.bernoulli(logits.detach().sigmoid(), generator=generator)
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")


def _hook(entry: LayerStatistics) -> Callable[..., torch.Tensor]:
    def hook(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        _add_outputs(entry, output.detach())
        # a non-leaf copy, so that an in-place activation after the layer neither fails nor changes what was seen
        tracked = output if output.requires_grad else output.detach().requires_grad_()
        tracked = tracked.clone()
        tracked.register_hook(partial(_add_gradients, entry))  # type: ignore[no-untyped-call]
        return tracked

    return hook


def rows_of(maps: torch.Tensor, box: Box) -> torch.Tensor:
    """(B, m, H, W) or (B, ..., m) -> (rows, m) of the positions in `box`."""
    if maps.dim() == 4:
        return maps[:, :, box.top : box.bottom, box.left : box.right].permute(0, 2, 3, 1).reshape(-1, maps.shape[1])
    return maps.reshape(len(maps), -1, maps.shape[-1])[:, box.left : box.right].reshape(-1, maps.shape[-1])


def _add_outputs(entry: LayerStatistics, output: torch.Tensor) -> None:
    if entry.samples is not None:
        entry.samples.outputs.append(rows_of(output, entry.boxes[0]).clone())
        return
    for index, box in enumerate(entry.boxes):
        batch = moments_of(rows_of(output, box))
        batch.gradients = torch.zeros_like(batch.scatter)
        entry.cells[index] = merge(entry.cells[index], batch)


def _add_gradients(entry: LayerStatistics, gradient: torch.Tensor) -> None:
    if entry.samples is not None:
        entry.samples.gradients.append(rows_of(gradient, entry.boxes[0]).clone())
        return
    for cell, box in zip(entry.cells, entry.boxes, strict=True):
        rows = rows_of(gradient, box)
        cell.gradients += (rows.T @ rows).to(torch.float64)
