"""Sequential refit: each layer's factors solved anew on what the compressed model so far feeds to it.

Layer by layer, in order of execution, after the asymmetric reconstruction of Zhang et al. 2015 (arXiv 1505.06798): the
targets y are what the original layer gave, the inputs are those of the compressed network, so that errors of earlier
layers are corrected by later ones. First the reduce: with y' = W x' the best rank-r map from y' to y in the metric G.
Then the expand: `U = (E[y z^T] + rho U0)(E[z z^T] + rho I)^-1` about the means, per region. Closed form; no labels.

The original runs once, on the first BATCHES batches: a random few positions of each layer's output are kept for every
image. More images or positions gained nothing that could be measured. Of a costly network fewer batches are read, and
more positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice

from hscc_edge.compress import factors
from hscc_edge.compress.cost import LayerShape
from hscc_edge.compress.gram import regress
from hscc_edge.compress.moments import CrossMoments, cross_moments, merge_cross
from hscc_edge.compress.problem import Metric, Problem, affordable_batches
from hscc_edge.compress.spectrum import root_of
from hscc_edge.errors import extra
from hscc_edge.model.convolution import CONVOLUTIONS, numbers, padding_of
from hscc_edge.model.plan import Box
from hscc_edge.model.regional import Clustered, OwnFactors, SharedReduce

with extra("workstation"):
    import torch
    from torch import nn
    from torch.nn import functional

RIDGE = 1e-3
FEW_ROWS = 0.3
ROWS_AN_OUTPUT = 4
BATCHES = 8
POSITIONS = 64
POSITIONS_A_PART = 16
LARGEST_SOLVED = 1024


class _Reached(Exception):
    """What was asked for has run; the rest of the network need not."""


@dataclass(frozen=True, slots=True)
class Part:
    """One expand, the reduce before it (None: not to be solved anew), and the output positions that it makes."""

    expand: nn.Module
    reduce: nn.Module | None
    box: Box | None


@dataclass(slots=True)
class _Layer:
    """A layer to refit; `targets` holds for each call the rows (N, m) of each part, over so many batches."""

    shape: LayerShape
    parts: Sequence[Part]
    batches: int
    targets: list[list[torch.Tensor]] = field(default_factory=list)

    @property
    def last(self) -> bool:
        """Whether the channels come last, as in a Linear."""
        return isinstance(self.parts[0].expand, nn.Linear)

    def chosen(self, index: int, batch: int) -> torch.Tensor:
        """A few of a part's positions, the same for the same batch."""
        box = self.parts[index].box
        area = self.shape.area if box is None else box.area
        wanted = max(POSITIONS // len(self.parts), POSITIONS_A_PART) * BATCHES // self.batches
        generator = torch.Generator().manual_seed(1_000_003 * batch + index)
        return torch.randperm(area, generator=generator)[:wanted]


def parts_of(module: nn.Module) -> list[Part]:
    """The expands of a factorised layer; [] of any other module."""
    if isinstance(module, SharedReduce):
        return [Part(expand, module.reduce, box) for expand, box in zip(module.expands, module.boxes, strict=True)]
    if isinstance(module, OwnFactors):
        triples = zip(module.expands, module.reduces, module.boxes, strict=True)
        return [Part(expand, reduce, box) for expand, reduce, box in triples]
    if isinstance(module, Clustered):
        return [Part(expand, None, box) for expand, box in zip(module.expands, module.boxes or (None,), strict=True)]
    if isinstance(module, nn.Sequential) and getattr(module[-1], "bias", None) is not None:
        pair = len(module) == 2 and _is_pointwise(module[1])
        return [Part(module[-1], module[0] if pair else None, None)]
    return []


def _is_pointwise(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear):
        return True
    return isinstance(module, CONVOLUTIONS) and all(size == 1 for size in numbers(module.kernel_size))


def refit(problem: Problem, compressed: nn.Module, names: Sequence[str], metric: Metric | None = None) -> None:
    """Refit the factorised layers `names` of `compressed` in place, in order of execution.

    Time grows with images x (two forward passes of the original + a pass of the compressed network a layer); memory
    with images x 64 positions x the sum of the layers' m, 4 bytes each, and 16 m^2 x regions for one layer.

    Args:
        metric: if given, reduces of layers with at most 1,024 outputs, and four rows for each, are solved too.
    """
    shapes = {shape.name: shape for shape in problem.shapes}
    batches = affordable_batches(problem, BATCHES)
    layers = [
        _Layer(shapes[name], parts, batches)
        for name in shapes
        if name in names and (parts := parts_of(compressed.get_submodule(name)))
    ]
    if not layers:
        return
    with torch.no_grad():
        _collect_targets(problem, layers)
        for layer in layers:
            if metric is not None and _has_metric(layer, metric):
                _refit_pairs(problem, compressed, layer, metric)
            else:
                _refit_expands(problem, compressed, layer)
            layer.targets.clear()


def _has_metric(layer: _Layer, metric: Metric) -> bool:
    rows = min(sum(len(call[index]) for call in layer.targets) for index in range(len(layer.parts)))
    enough = ROWS_AN_OUTPUT * layer.shape.outputs <= rows
    if layer.shape.outputs > LARGEST_SOLVED or layer.parts[0].reduce is None or not enough:
        return False
    return metric(layer.shape.name, layer.parts[0].box) is not None


def _collect_targets(problem: Problem, layers: Sequence[_Layer]) -> None:
    """One pass of the original: what each layer gave at the chosen positions."""
    count = 0

    def watch(layer: _Layer) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: torch.Tensor) -> None:
            layer.targets.append(_part_rows(layer, output, count))

        return hook

    handles = [problem.network.get_submodule(layer.shape.name).register_forward_hook(watch(layer)) for layer in layers]
    with _removed(handles):
        for batch in islice(problem.batches(), layers[0].batches):
            problem.call(problem.network, batch)
            count += 1
            _tell(problem, batch, "refit: targets")


def _part_rows(layer: _Layer, output: torch.Tensor, batch: int) -> list[torch.Tensor]:
    return [_rows(output, part.box, layer.last, layer.chosen(index, batch)) for index, part in enumerate(layer.parts)]


def _refit_pairs(problem: Problem, compressed: nn.Module, layer: _Layer, metric: Metric) -> None:
    """Reduces and expands from the joint moments of y' = W x' + b and y; z is a projection of y'."""
    name = layer.shape.name
    dense, module = problem.network.get_submodule(name), compressed.get_submodule(name)
    joint: list[CrossMoments | None] = [None] * len(layer.parts)
    targets = iter(layer.targets)
    for number, batch in enumerate(islice(problem.batches(), layer.batches)):
        for x in _inputs(problem, batch, compressed, [module], layer.shape.runs)[0]:
            pairs = zip(_part_rows(layer, dense(x), number), next(targets), strict=True)
            joint = [_added(total, *pair) for total, pair in zip(joint, pairs, strict=True)]
        _tell(problem, batch, f"refit {name}")
    found = [entry for entry in joint if entry is not None]
    ranks = [len(torch.as_tensor(part.reduce.weight)) for part in layer.parts if part.reduce is not None]
    if isinstance(module, SharedReduce):
        count = sum(entry.count for entry in found)
        gram, cross = (_sum([getattr(entry, key) for entry in found]) / count for key in ("gram", "cross"))
        projections = [_projection(gram, cross, metric(name, None), ranks[0])] * len(found)
    else:
        triples = zip(layer.parts, found, ranks, strict=True)
        projections = [
            _projection(entry.gram / entry.count, entry.cross / entry.count, metric(name, part.box), own)
            for part, entry, own in triples
        ]
    _write_pairs(dense, module, layer.parts, found, projections)


def _sum(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Their sum."""
    return torch.stack(list(tensors)).sum(0)


def _projection(
    gram: torch.Tensor, cross: torch.Tensor, gradients: torch.Tensor | None, rank: int
) -> torch.Tensor | None:
    """(r, m): what the best rank-r map from y' to y, in the metric G, keeps of y'; None where y' does not vary.

    Reduced-rank regression (Izenman 1975) with a ridge towards the identity, from Cov(y') and Cov(y, y').
    """
    if gradients is None:
        return None
    root = root_of(gradients).root
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    if not bool(ridge[0, 0] > 0):
        return None
    gram = gram + ridge
    whole = torch.linalg.solve(gram, (cross + ridge).T).T  # (m, m)
    vectors = torch.linalg.eigh(root @ whole @ gram @ whole.T @ root).eigenvectors.flip(1)
    projection: torch.Tensor = vectors[:, :rank].T @ root @ whole
    return projection


def _write_pairs(
    dense: nn.Module,
    module: nn.Module,
    parts: Sequence[Part],
    found: Sequence[CrossMoments],
    projections: Sequence[torch.Tensor | None],
) -> None:
    matrix, bias = factors.matrix_of(dense)
    expands, biases, reduces = [], [], []
    for entry, projection in zip(found, projections, strict=True):
        if projection is None:
            return
        expand = regress(projection @ entry.gram @ projection.T, entry.cross @ projection.T)
        expands.append(expand)
        biases.append(entry.outputs - expand @ (projection @ (entry.inputs - bias)))
        reduces.append(projection @ matrix)
    if isinstance(module, SharedReduce):
        factors.fill_shared(module, reduces[0], expands, biases)
        return
    for part, reduce, expand, own in zip(parts, reduces, expands, biases, strict=True):
        if part.reduce is not None:
            factors.fill_pair(nn.Sequential(part.reduce, part.expand), reduce, expand, own)


def _refit_expands(problem: Problem, compressed: nn.Module, layer: _Layer) -> None:
    moments: list[CrossMoments | None] = [None] * len(layer.parts)
    targets = iter(layer.targets)
    expands = [part.expand for part in layer.parts]
    for number, batch in enumerate(islice(problem.batches(), layer.batches)):
        given = _inputs(problem, batch, compressed, expands, layer.shape.runs)
        for call in range(layer.shape.runs):
            rows = next(targets)
            for index, part in enumerate(layer.parts):
                z = expand_rows(part.expand, given[index][call], layer.chosen(index, number))
                moments[index] = _added(moments[index], z, rows[index])
        _tell(problem, batch, f"refit {layer.shape.name}")
    for part, entry in zip(layer.parts, moments, strict=True):
        if entry is not None:
            _solve(part.expand, entry)


def _tell(problem: Problem, batch: Mapping[str, torch.Tensor], note: str) -> None:
    if problem.progress is not None:
        problem.progress(len(next(iter(batch.values()))), note)


def _added(total: CrossMoments | None, z: torch.Tensor, y: torch.Tensor) -> CrossMoments:
    found = cross_moments(z, y)
    return found if total is None else merge_cross(total, found)


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
    if not isinstance(expand, CONVOLUTIONS) or _is_pointwise(expand):
        return _rows(z, None, False, chosen)
    patches = functional.unfold(
        z, numbers(expand.kernel_size), dilation=numbers(expand.dilation), padding=padding_of(expand),
        stride=numbers(expand.stride),
    )  # fmt: skip
    return patches[:, :, chosen].transpose(1, 2).flatten(0, 1)


def _solve(expand: nn.Module, joint: CrossMoments) -> None:
    weight, bias = torch.as_tensor(expand.weight), torch.as_tensor(expand.bias)
    current = weight.flatten(1).to(torch.float64)  # (m, r)
    gram, cross = joint.gram / joint.count, joint.cross / joint.count
    ridge = (RIDGE + FEW_ROWS * len(gram) / joint.count) * gram.diagonal().mean()
    if not bool(ridge > 0):
        return
    eye = torch.eye(len(gram), dtype=gram.dtype)
    solved = torch.linalg.solve(gram + ridge * eye, (cross + ridge * current).T).T
    weight.copy_(solved.reshape(weight.shape))
    bias.copy_(joint.outputs - solved @ joint.inputs)


def _inputs(
    problem: Problem, batch: Mapping[str, torch.Tensor], network: nn.Module, modules: Sequence[nn.Module], calls: int
) -> list[list[torch.Tensor]]:
    """What each module is given, a tensor a call, running the network no further."""
    found: list[list[torch.Tensor]] = [[] for _ in modules]

    def watch(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            found[index].append(args[0].detach().clone())
            if all(len(given) == calls for given in found):
                raise _Reached

        return hook

    handles = [module.register_forward_pre_hook(watch(index)) for index, module in enumerate(modules)]
    with _removed(handles), suppress(_Reached):
        problem.call(network, batch)
    return found


@contextmanager
def _removed(handles: Sequence[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield
