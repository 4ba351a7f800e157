"""Sequential refit: each layer's expand regressed on the original's outputs, from what the compressed model produces.

Layer by layer, in order of execution: with z the reduced features that the compressed network so far gives and y what
the original layer gave, `U = (E[y z^T] + rho U0)(E[z z^T] + rho I)^-1` about the means, per region (after the
asymmetric reconstruction of Zhang et al. 2015, arXiv 1505.06798). Closed form; no labels; errors of earlier layers are
corrected by later ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from hscc_edge.compress.problem import Batches
from hscc_edge.compress.statistics import Moments, merge, moments_of, rows_of
from hscc_edge.errors import extra
from hscc_edge.model.layers import OwnFactorsConv2d, SharedReduceConv2d
from hscc_edge.model.plan import Box

with extra("workstation"):
    import torch
    from torch import nn

RIDGE = 1e-3


class _Reached(Exception):
    """The layer that was asked for has run; the rest of the network need not."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One expand, the positions of the layer's output that it makes, and the module whose output it expands."""

    expand: nn.Module
    reduce: nn.Module
    box: Box | None
    whole: bool


def refit(
    original: nn.Module,
    compressed: nn.Module,
    names: Sequence[str],
    batches: Batches,
    progress: Callable[[int, str], None] | None = None,
) -> None:
    """Refit the factorised layers `names` (in order of execution) of `compressed` in place.

    Time grows with layers x images x (a part of) both forward passes; memory with one batch and (r + m)^2 a region.
    """
    for name in names:
        parts = _parts(compressed.get_submodule(name))
        if parts:
            _refit_layer(original, compressed, name, parts, batches)
        if progress is not None:
            progress(1, name)


def _parts(module: nn.Module) -> list[_Part]:
    if isinstance(module, SharedReduceConv2d):
        pairs = zip(module.expands, module.boxes, strict=True)
        return [_Part(expand, module.reduce, box, True) for expand, box in pairs]
    if isinstance(module, OwnFactorsConv2d):
        triples = zip(module.expands, module.reduces, module.boxes, strict=True)
        return [_Part(expand, reduce, box, False) for expand, reduce, box in triples]
    if isinstance(module, nn.Sequential):
        return [_Part(module[-1], module[-2], None, True)]
    return []


def _refit_layer(original: nn.Module, compressed: nn.Module, name: str, parts: list[_Part], batches: Batches) -> None:
    moments: list[Moments | None] = [None] * len(parts)
    with torch.no_grad():
        for batch in batches():
            y = _outputs_at(original, [original.get_submodule(name)], batch["image"])[0]
            reduces = list({id(part.reduce): part.reduce for part in parts}.values())
            found = dict(zip(map(id, reduces), _outputs_at(compressed, reduces, batch["image"]), strict=True))
            for index, part in enumerate(parts):
                joint = moments_of(torch.cat([*_rows(part, found[id(part.reduce)], y)], dim=1))
                seen = moments[index]
                moments[index] = joint if seen is None else merge(seen, joint)
        for part, entry in zip(parts, moments, strict=True):
            if entry is not None:
                _solve(part.expand, entry)


def _rows(part: _Part, z: torch.Tensor, y: torch.Tensor) -> Iterator[torch.Tensor]:
    for maps, cut in ((z, part.whole), (y, True)):
        positions = maps.shape[2:] if maps.dim() == 4 else (1, maps[0].numel() // maps.shape[-1])
        everything = Box(0, positions[0], 0, positions[1])
        yield rows_of(maps, part.box if cut and part.box is not None else everything).to(torch.float64)


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


def _outputs_at(network: nn.Module, modules: Sequence[nn.Module], images: torch.Tensor) -> list[torch.Tensor]:
    """The outputs of `modules`, running the network no further than the last of them."""
    found: dict[int, torch.Tensor] = {}
    with _stop_after(modules, found), suppress(_Reached):
        network(images)
    return [found[id(module)] for module in modules]


@contextmanager
def _stop_after(modules: Sequence[nn.Module], found: dict[int, torch.Tensor]) -> Iterator[None]:
    def hook(module: nn.Module, args: object, output: torch.Tensor) -> None:
        found[id(module)] = output.detach().clone()
        if len(found) == len(modules):
            raise _Reached

    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
