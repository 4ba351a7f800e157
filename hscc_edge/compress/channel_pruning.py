"""Channel pruning by torch-pruning: whole channels go, with all that depends on them, and layers just get thinner.

Which channels go together is its dependency graph (Fang et al. 2023, arXiv 2301.12900), and what each is worth is its
group Hessian: w^2 h summed over the weights that go with a channel, with h the diagonal of the true Fisher (no label is
read). One threshold for the whole network meets the budget; what is left of a layer's channels is a multiple of the
alignment, and never nothing. For convolutional networks: attention is refused.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hscc_edge.compress.allocate import Budget, Option
from hscc_edge.compress.cost import LayerShape, layer_shapes
from hscc_edge.compress.problem import Batch, Problem, dense_option, layer_plan
from hscc_edge.compress.statistics import probe
from hscc_edge.errors import BudgetError, CohortError, ModelError, extra
from hscc_edge.model.convolution import CONVOLUTIONS
from hscc_edge.model.layers import NORMS
from hscc_edge.model.plan import LayerPlan, Plan

with extra("workstation"):
    import torch
    from torch import nn
    from torch_pruning import DependencyGraph
    from torch_pruning.dependency.shape_infer import infer_in_channels_recursively, infer_out_channels_recursively
    from torch_pruning.ops import OPTYPE
    from torch_pruning.pruner.importance import GroupHessianImportance

WEIGHTLESS = (OPTYPE.ELEMENTWISE, OPTYPE.RESHAPE, OPTYPE.CONCAT, OPTYPE.EXPAND)


@dataclass(frozen=True, slots=True)
class Coupling:
    """Channels that can only go together with others of the network.

    Attributes:
        root: the layer whose output channels they are.
        scores: (channels,), what each is worth.
        outputs, inputs: for each layer or norm, how many of its outputs or inputs go with one channel.
    """

    root: str
    scores: torch.Tensor
    outputs: Mapping[str, int]
    inputs: Mapping[str, int]

    @property
    def size(self) -> int:
        """Channels before pruning."""
        return len(self.scores)


@dataclass(frozen=True, slots=True)
class PruningProposal:
    """Couplings with their scores; one threshold for all of them meets a budget."""

    problem: Problem
    example: Batch
    couplings: tuple[Coupling, ...]

    def plan(self, budget: Budget) -> Plan:
        """See `Proposal`. Never above the budget, and no further step of channels would fit.

        Raises:
            BudgetError: if the budget cannot be met.
            ModelError: if it is a latency.
        """
        if budget.cost == "latency":
            raise ModelError(
                f"the budget {budget} cannot be met by pruning, whose layers are not timed one by one: give flops, "
                "params or bytes, or use hscc"
            )
        dense = sum(dense_option(shape).cost(budget.cost) for shape in self.problem.shapes)
        room = budget.ceiling(dense)
        kept = self._fill(self._threshold(budget, room, dense), budget, room)
        sizes = self._sizes(kept)
        layers = [self._layer(shape, sizes, kept) for shape in self.problem.shapes]
        return Plan("pruning", str(budget), (*layers, *self._norms(sizes)))

    def _threshold(self, budget: Budget, room: float, dense: float) -> list[int]:
        """Channels that each coupling keeps at the least threshold that fits."""
        steps = sorted({0.0, *(float(score) for coupling in self.couplings for score in coupling.scores)})
        if self._cost(self._kept(steps[-1]), budget) > room:
            cheapest = self._cost(self._kept(steps[-1]), budget)
            raise BudgetError(
                f"the budget {budget} is out of reach: the most that this network and method can give is "
                f"{budget.written(cheapest, dense)}; ask for that or less, or train a smaller network"
            )
        low, high = 0, len(steps) - 1
        if self._cost([coupling.size for coupling in self.couplings], budget) <= room:
            return [coupling.size for coupling in self.couplings]
        while low < high:
            middle = (low + high) // 2
            if self._cost(self._kept(steps[middle]), budget) <= room:
                high = middle
            else:
                low = middle + 1
        return self._kept(steps[low])

    def _kept(self, threshold: float) -> list[int]:
        """Channels above the threshold, rounded up to the alignment."""
        step = self.problem.settings.alignment
        above = [int((coupling.scores > threshold).sum()) for coupling in self.couplings]
        return [
            min(max(-(-count // step), 1) * step, coupling.size)
            for count, coupling in zip(above, self.couplings, strict=True)
        ]

    def _fill(self, kept: list[int], budget: Budget, room: float) -> list[int]:
        """Give back steps of channels, the most valuable first, until none fits."""
        step = self.problem.settings.alignment
        while True:
            grown = []
            for index, (count, coupling) in enumerate(zip(kept, self.couplings, strict=True)):
                more = [*kept[:index], min(count + step, coupling.size), *kept[index + 1 :]]
                if count < coupling.size and self._cost(more, budget) <= room:
                    grown.append((float(coupling.scores.sort(descending=True).values[count]), -index, more))
            if not grown:
                return kept
            kept = max(grown)[2]

    def _sizes(self, kept: Sequence[int]) -> Counter[tuple[str, str]]:
        """How many outputs and inputs go, by (layer, "outputs" or "inputs")."""
        gone: Counter[tuple[str, str]] = Counter()
        for coupling, count in zip(self.couplings, kept, strict=True):
            for side, parts in (("outputs", coupling.outputs), ("inputs", coupling.inputs)):
                for name, share in parts.items():
                    gone[name, side] += share * (coupling.size - count)
        return gone

    def _cost(self, kept: Sequence[int], budget: Budget) -> float:
        gone = self._sizes(kept)
        return sum(dense_option(_thinner(shape, gone)).cost(budget.cost) for shape in self.problem.shapes)

    def _layer(self, shape: LayerShape, gone: Counter[tuple[str, str]], kept: Sequence[int]) -> LayerPlan:
        dense, thin = dense_option(shape), _thinner(shape, gone)
        if (thin.outputs, thin.inputs) == (shape.outputs, shape.inputs):
            return layer_plan(shape, dense, dense)
        loss = sum(
            float(coupling.scores.sort().values[: coupling.size - count].sum() / coupling.scores.sum())
            for coupling, count in zip(self.couplings, kept, strict=True)
            if coupling.root == shape.name
        )
        option = Option("pruned", (thin.outputs, thin.inputs), (), thin.flops, thin.params, loss)
        return dataclasses.replace(layer_plan(shape, option, dense), reason="")

    def _norms(self, gone: Counter[tuple[str, str]]) -> list[LayerPlan]:
        """Batch norms that are left (most are folded): thinner too, and free as in every other count."""
        found = []
        for name, module in self.problem.network.named_modules():
            if isinstance(module, NORMS):
                left = module.num_features - gone[name, "outputs"]
                structure, ranks = ("pruned", (left,)) if gone[name, "outputs"] else ("dense", ())
                found.append(LayerPlan(name, structure, ranks, (), str(module.num_features), 0, 0, 0, 0, 0.0))
        return found

    def build(self, plan: Plan) -> nn.Module:
        """See `Proposal`.

        Raises:
            ModelError: if the thinner network does not run, or does not cost what was planned.
        """
        made = copy.deepcopy(self.problem.network)
        graph = _graph(made, self.problem, self.example)
        left = {layer.name: layer.ranks[0] for layer in plan.layers if layer.structure == "pruned"}
        for coupling in self.couplings:
            gone = coupling.size - left.get(coupling.root, coupling.size)
            if gone:
                worst = coupling.scores.argsort(stable=True)[:gone].sort().values.tolist()
                _group(graph, made.get_submodule(coupling.root), worst).prune()
        made.eval()
        counted = sum(shape.flops for shape in layer_shapes(made, lambda net: self.problem.call(net, self.example)))
        if counted != plan.flops:
            raise ModelError(
                f"the pruned network takes {counted} FLOPs where {plan.flops} were planned: its code depends on its "
                "widths; use svd or hscc"
            )
        return made


def candidates(problem: Problem) -> PruningProposal:
    """What each channel is worth: one pass forward and backward over the calibration cohort.

    Raises:
        CohortError: if there is no image.
        ModelError: if the network cannot be traced, or no channel of it can go.
    """
    example = next(iter(problem.batches()), None)
    if example is None:
        raise CohortError("the calibration cohort has no image: give a cohort with a train split")
    example = {name: values[:1] for name, values in example.items()}
    network = copy.deepcopy(problem.network).requires_grad_(True)
    graph = _graph(network, problem, example)
    _fill_fisher(problem, network)
    couplings = tuple(_couplings(problem, network, graph))
    if not couplings:
        raise ModelError("no channel of this network can be pruned: use svd or hscc")
    return PruningProposal(problem, example, couplings)


def _thinner(shape: LayerShape, gone: Counter[tuple[str, str]]) -> LayerShape:
    outputs = shape.outputs - gone[shape.name, "outputs"]
    if shape.groups > 1:  # depthwise: its inputs are its outputs
        gone_with = shape.outputs - outputs
        return dataclasses.replace(
            shape, outputs=outputs, inputs=shape.inputs - gone_with, groups=shape.groups - gone_with
        )
    return dataclasses.replace(shape, outputs=outputs, inputs=shape.inputs - gone[shape.name, "inputs"])


def _fill_fisher(problem: Problem, network: nn.Module) -> None:
    """Put the diagonal of the Fisher into `.grad` of each parameter.

    With random signs the images' gradients are independent with mean zero, so that the square of a batch's summed
    gradient is, on average, the sum of the squares.
    """
    squares = {parameter: torch.zeros_like(parameter) for parameter in network.parameters()}
    images = 0
    for number, batch in enumerate(problem.batches()):
        network.zero_grad()
        probe(problem, problem.call(network, batch), number)
        size = len(next(iter(batch.values())))
        images += size
        for parameter, total in squares.items():
            if parameter.grad is not None:
                total += parameter.grad.square()
        if problem.progress is not None:
            problem.progress(size, "importance")
    for parameter, total in squares.items():
        parameter.grad = total / images


def _graph(network: nn.Module, problem: Problem, example: Batch) -> Any:
    def run(model: nn.Module, batch: Batch) -> list[torch.Tensor]:
        return list(problem.call(model, batch))

    try:
        with warnings.catch_warnings(), torch.enable_grad(), _zero_padding(network):
            warnings.simplefilter("ignore")  # what it cannot prune by rule is left alone here, see _prunable
            graph = DependencyGraph().build_dependency(network.requires_grad_(True), example, forward_fn=run)
    except (RuntimeError, AssertionError, ValueError, AttributeError, KeyError) as error:
        raise ModelError(f"torch-pruning cannot trace this network ({error}): use svd or hscc") from error
    nodes = list(graph.module2node.values())
    writes = any("CopySlices" in str(getattr(node.module, "_grad_fn", "")) for node in nodes)
    if writes and any(node.type == OPTYPE.SLICE for node in nodes):  # its search for a group may never end
        raise ModelError("the network writes into slices of its maps, which pruning cannot follow: use svd or hscc")
    for node in nodes:
        _check_reshape(graph, node)
    return graph


@contextmanager
def _zero_padding(network: nn.Module) -> Iterator[None]:
    """Trace with zeros for padding: circular padding is made of slices, and what depends on what is the same."""
    modes = [(module, module.padding_mode) for module in network.modules() if isinstance(module, CONVOLUTIONS)]
    try:
        for module, _ in modes:
            module.padding_mode = "zeros"
        yield
    finally:
        for module, mode in modes:
            module.padding_mode = mode


def _check_reshape(graph: Any, node: Any) -> None:
    """A reshape may flatten channels; one that takes them apart is mapped wrongly."""
    if node.type != OPTYPE.RESHAPE:
        return
    before = next(filter(None, (infer_out_channels_recursively(graph, other, [0]) for other in node.inputs)), None)
    after = next(filter(None, (infer_in_channels_recursively(graph, other, [0]) for other in node.outputs)), None)
    if before and after and after % before:
        raise ModelError(
            f"the network reshapes {before} channels into {after}, which pruning cannot follow: use svd or hscc"
        )


def _group(graph: Any, module: nn.Module, channels: list[int]) -> Any:
    return graph.get_pruning_group(module, graph.get_pruner_of_module(module).prune_out_channels, channels)


def _couplings(problem: Problem, network: nn.Module, graph: Any) -> list[Coupling]:
    names = {module: name for name, module in network.named_modules()}
    shapes = {shape.name: shape for shape in problem.shapes}
    score = GroupHessianImportance()
    found = []
    for group in graph.get_all_groups():
        if all(_prunable(dep.target, names, shapes) for dep, _ in group):
            coupling = _coupling(graph, group, names, score)
            if coupling is not None:
                found.append(coupling)
    return found


def _prunable(node: Any, names: Mapping[nn.Module, str], shapes: Mapping[str, LayerShape]) -> bool:
    """Whether a plan can say what becomes of it: no output, bare parameter, grouped layer or other norm."""
    module = node.module
    if node.type in WEIGHTLESS:
        return True
    if type(module) in NORMS:
        return bool(module.affine and module.track_running_stats)
    shape = shapes.get(names.get(module, ""))
    if shape is None:
        return False
    depthwise = type(module) in CONVOLUTIONS and shape.groups == shape.inputs == shape.outputs
    return not shape.reason or (depthwise and shape.reason.startswith("depthwise"))


def _coupling(graph: Any, group: Any, names: Mapping[nn.Module, str], score: Any) -> Coupling | None:
    """None where channels of the root differ in how many others go with them."""
    root = names[group[0].dep.target.module]
    size = len(group[0].idxs)
    sides: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    for item in group.items:
        order = sorted(range(len(item.idxs)), key=item.idxs.__getitem__)  # the score sorts one list, not the other
        item.root_idxs[:] = [item.root_idxs[index] for index in order]
        item.idxs[:] = [item.idxs[index] for index in order]
        shares = Counter(item.root_idxs)
        if len(shares) != size or len(set(shares.values())) != 1:
            return None
        module = item.dep.target.module
        if module in names:
            inwards = graph.is_in_channel_pruning_fn(item.dep.handler) and not graph.is_out_channel_pruning_fn(
                item.dep.handler
            )
            sides[inwards][names[module]] += shares[0]
    scores = score(group)
    return None if scores is None else Coupling(root, scores.detach().cpu(), dict(sides[0]), dict(sides[1]))
