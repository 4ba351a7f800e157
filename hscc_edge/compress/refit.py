"""Sequential refit: each layer's expand regressed on the original's outputs, from what the compressed model produces.

Layer by layer, in order of execution: with z what the compressed network so far feeds to the expand and y what the
original layer gave, `U = (E[y z^T] + rho U0)(E[z z^T] + rho I)^-1` about the means, per region (after the asymmetric
reconstruction of Zhang et al. 2015, arXiv 1505.06798). Closed form; no labels; errors of earlier layers are corrected
by later ones.

The original runs once: a random few positions of each layer's output are kept for every image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

from hscc_edge.compress.cost import LayerShape
from hscc_edge.compress.moments import Moments, add_rows, empty_moments
from hscc_edge.compress.problem import Problem
from hscc_edge.errors import extra
from hscc_edge.model.convolution import CONVOLUTIONS, numbers, padding_of
from hscc_edge.model.plan import Box
from hscc_edge.model.regional import Clustered, OwnFactors, SharedReduce

with extra("workstation"):
    import torch
    from torch import nn
    from torch.nn import functional

RIDGE = 1e-3
POSITIONS = 64
POSITIONS_A_PART = 16


class _Reached(Exception):
    """What was asked for has run; the rest of the network need not."""


@dataclass(frozen=True, slots=True)
class Part:
    """One expand, and the positions of the layer's output that it makes (None: all)."""

    expand: nn.Module
    box: Box | None


@dataclass(slots=True)
class _Layer:
    """A layer to refit; `targets[call]` holds for each batch the rows (N, m) of each part."""

    shape: LayerShape
    parts: Sequence[Part]
    targets: list[list[torch.Tensor]] = field(default_factory=list)

    @property
    def last(self) -> bool:
        """Whether the channels come last, as in a Linear."""
        return isinstance(self.parts[0].expand, nn.Linear)

    def area(self, index: int) -> int:
        """Output positions that a part makes."""
        box = self.parts[index].box
        return self.shape.area if box is None else box.area

    def chosen(self, index: int, batch: int) -> torch.Tensor:
        """A few of a part's positions, the same for the same batch."""
        wanted = max(POSITIONS // len(self.parts), POSITIONS_A_PART)
        generator = torch.Generator().manual_seed(1_000_003 * batch + index)
        return torch.randperm(self.area(index), generator=generator)[:wanted]


def parts_of(module: nn.Module) -> list[Part]:
    """The expands of a factorised layer; [] of any other module."""
    if isinstance(module, (SharedReduce, OwnFactors)):
        return [Part(expand, box) for expand, box in zip(module.expands, module.boxes, strict=True)]
    if isinstance(module, Clustered):
        return [Part(expand, box) for expand, box in zip(module.expands, module.boxes or (None,), strict=True)]
    if isinstance(module, nn.Sequential) and getattr(module[-1], "bias", None) is not None:
        return [Part(module[-1], None)]
    return []


def refit(problem: Problem, compressed: nn.Module, names: Sequence[str]) -> None:
    """Refit the factorised layers `names` of `compressed` in place, in order of execution.

    Time grows with images x (one forward pass of the original + half a pass of the compressed network a layer);
    memory with images x 64 positions x the sum of the layers' m, 4 bytes each.
    """
    shapes = {shape.name: shape for shape in problem.shapes}
    layers = [
        _Layer(shapes[name], parts)
        for name in shapes
        if name in names and (parts := parts_of(compressed.get_submodule(name)))
    ]
    if not layers:
        return
    with torch.no_grad():
        _collect_targets(problem, layers)
        for layer in layers:
            _refit_layer(problem, compressed, layer)
            layer.targets.clear()


def _collect_targets(problem: Problem, layers: Sequence[_Layer]) -> None:
    """One pass of the original: what each layer gave at the chosen positions."""
    count = 0

    def watch(layer: _Layer) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: torch.Tensor) -> None:
            layer.targets.append([
                _rows(output, part.box, layer.last, layer.chosen(index, count))
                for index, part in enumerate(layer.parts)
            ])  # fmt: skip

        return hook

    handles = [problem.network.get_submodule(layer.shape.name).register_forward_hook(watch(layer)) for layer in layers]
    with _removed(handles):
        for batch in problem.batches():
            problem.call(problem.network, batch)
            count += 1
            _tell(problem, batch, "refit: targets")


def _refit_layer(problem: Problem, compressed: nn.Module, layer: _Layer) -> None:
    moments: list[Moments | None] = [None] * len(layer.parts)
    targets = iter(layer.targets)
    for number, batch in enumerate(problem.batches()):
        given = _inputs(problem, batch, compressed, layer)
        for call in range(layer.shape.calls):
            rows = next(targets)
            for index, part in enumerate(layer.parts):
                z = expand_rows(part.expand, given[index][call], layer.chosen(index, number))
                moments[index] = _added(moments[index], torch.cat([z, rows[index]], dim=1))
        _tell(problem, batch, f"refit {layer.shape.name}")
    for part, entry in zip(layer.parts, moments, strict=True):
        if entry is not None:
            _solve(part.expand, entry)


def _tell(problem: Problem, batch: Mapping[str, torch.Tensor], note: str) -> None:
    if problem.progress is not None:
        problem.progress(len(next(iter(batch.values()))), note)


def _added(total: Moments | None, rows: torch.Tensor) -> Moments:
    total = empty_moments(rows.shape[1]) if total is None else total
    add_rows(total, rows)
    return total


def _rows(maps: torch.Tensor, box: Box | None, last: bool, chosen: torch.Tensor) -> torch.Tensor:
    """(N, m) of the chosen positions of maps (B, m, *positions), or (B, ..., m) if `last`."""
    if last:
        return maps.reshape(len(maps), -1, maps.shape[-1])[:, chosen].flatten(0, 1)
    if box is not None:
        maps = maps[(slice(None), slice(None), *box.slices)]
    return maps.flatten(2)[:, :, chosen].transpose(1, 2).flatten(0, 1)


def expand_rows(expand: nn.Module, z: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """What the expand multiplies at the chosen output positions, (N, d): channels, or patches under a kernel."""
    if isinstance(expand, nn.Linear):
        return _rows(z, None, True, chosen)
    if not isinstance(expand, CONVOLUTIONS) or all(size == 1 for size in numbers(expand.kernel_size)):
        return _rows(z, None, False, chosen)
    patches = functional.unfold(
        z, numbers(expand.kernel_size), dilation=numbers(expand.dilation), padding=padding_of(expand),
        stride=numbers(expand.stride),
    )  # fmt: skip
    return patches[:, :, chosen].transpose(1, 2).flatten(0, 1)


def _solve(expand: nn.Module, joint: Moments) -> None:
    weight, bias = torch.as_tensor(expand.weight), torch.as_tensor(expand.bias)
    current = weight.flatten(1).to(torch.float64)  # (m, r)
    rank = current.shape[1]
    covariance = joint.covariance
    gram, cross = covariance[:rank, :rank], covariance[rank:, :rank]
    ridge = RIDGE * gram.diagonal().mean()
    if not bool(ridge > 0):
        return
    eye = torch.eye(rank, dtype=gram.dtype)
    solved = torch.linalg.solve(gram + ridge * eye, (cross + ridge * current).T).T
    weight.copy_(solved.reshape(weight.shape))
    bias.copy_(joint.mean[rank:] - solved @ joint.mean[:rank])


def _inputs(
    problem: Problem, batch: Mapping[str, torch.Tensor], network: nn.Module, layer: _Layer
) -> list[list[torch.Tensor]]:
    """What each expand is given, a tensor a call, running the network no further."""
    found: list[list[torch.Tensor]] = [[] for _ in layer.parts]

    def watch(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            found[index].append(args[0].detach())
            if all(len(given) == layer.shape.calls for given in found):
                raise _Reached

        return hook

    handles = [part.expand.register_forward_pre_hook(watch(index)) for index, part in enumerate(layer.parts)]
    with _removed(handles), suppress(_Reached):
        problem.call(network, batch)
    return found


@contextmanager
def _removed(handles: Sequence[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield
