"""The paper's own recipe (arXiv 2604.23375), and nothing else, so that its claim can be reproduced.

Each convolution's output map is cut into REGIONS; inside each region the input channels are grouped by co-activation;
each region-and-channel cluster's weights get their own SVD, whose rank keeps a share of the cluster's energy. One share
for the whole network, the largest that the budget allows. Weights alone are factorised; images only tell which channels
go together. The paper's text says neither how many regions nor which rank rule: the choices here are ours.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hscc_edge.compress import factors
from hscc_edge.compress.allocate import Budget, Option
from hscc_edge.compress.clusters import coactivation_clusters
from hscc_edge.compress.cost import LayerShape
from hscc_edge.compress.features import collect_inputs
from hscc_edge.compress.global_svd import Svd, leading_svd
from hscc_edge.compress.problem import Problem, dense_option, layer_plan
from hscc_edge.compress.regions import grid
from hscc_edge.compress.structures.clustered import flops as clustered_flops
from hscc_edge.compress.structures.clustered import params as clustered_params
from hscc_edge.errors import BudgetError, ModelError, extra
from hscc_edge.model.convolution import CONVOLUTIONS
from hscc_edge.model.layers import factorised, replace
from hscc_edge.model.plan import Box, Clusters, LayerPlan, Plan
from hscc_edge.model.regional import Clustered

with extra("workstation"):
    import torch
    from torch import nn

REGIONS = (2, 2)
BISECTIONS = 40


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's regions, the clusters of each, and the SVD of every cluster's weights, by the cluster's channels.

    The key of a layer without clusters is (). Clusters that two regions share are decomposed once.
    """

    shape: LayerShape
    boxes: tuple[Box, ...]
    clusters: tuple[Clusters, ...]
    pieces: Mapping[tuple[int, ...], Svd]

    def option(self, share: float, alignment: int) -> Option:
        """Every cluster keeps the fewest aligned ranks with `share` of its energy."""
        keys = [cluster for region in self.clusters for cluster in region] or [()]
        ranks = tuple(_rank(self.pieces[key][1], share, alignment) for key in keys)
        if not self.boxes:
            (rank,) = ranks
            return Option("one-region", ranks, (), self.shape.pair_flops(rank), self.shape.pair_params(rank), 1 - share)
        costs, params, left = 0.0, 0, list(ranks)
        for box, clusters in zip(self.boxes, self.clusters, strict=True):
            own, left = left[: len(clusters)], left[len(clusters) :]
            costs += clustered_flops(self.shape, clusters, own) * box.area / self.shape.area
            params += clustered_params(self.shape, clusters, own)
        return Option("clustered", ranks, self.boxes, round(costs), params, 1 - share, clusters=self.clusters)


def _rank(values: torch.Tensor, share: float, alignment: int) -> int:
    energy = torch.cumsum(values.square(), 0)
    needed = int((energy < share * energy[-1]).sum()) + 1
    return min(-(-needed // alignment) * alignment, len(values))


@dataclass(frozen=True, slots=True)
class PaperProposal:
    """One share of energy for all clusters."""

    network: nn.Module
    shapes: tuple[LayerShape, ...]
    layers: Mapping[str, Layer]
    alignment: int

    def plan(self, budget: Budget) -> Plan:
        """See `Proposal`; a layer that would cost more than dense stays dense.

        Raises:
            BudgetError: if the budget cannot be met.
            ModelError: if it is a latency.
        """
        if budget.cost == "latency":
            raise ModelError("the paper's recipe knows no latency: give a budget in flops, params or bytes")
        dense = sum(dense_option(shape).cost(budget.cost) for shape in self.shapes)
        low, high = 0.0, 1.0
        least = self._cost(low, budget)
        if least > budget.ceiling(dense):
            raise BudgetError(
                f"the budget {budget} is out of reach: the most that this network and method can give is "
                f"{budget.written(least, dense)}; ask for that or less"
            )
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if self._cost(middle, budget) <= budget.ceiling(dense) else (low, middle)
        options = self._options(low)
        layers = (layer_plan(shape, options[shape.name], dense_option(shape)) for shape in self.shapes)
        return Plan("paper", str(budget), tuple(layers))

    def _options(self, share: float) -> dict[str, Option]:
        found = {shape.name: dense_option(shape) for shape in self.shapes}
        for name, layer in self.layers.items():
            option = layer.option(share, self.alignment)
            if option.flops < layer.shape.flops:
                found[name] = option
        return found

    def _cost(self, share: float, budget: Budget) -> float:
        return sum(option.cost(budget.cost) for option in self._options(share).values())

    def build(self, plan: Plan) -> nn.Module:
        """See `Proposal`."""
        made = copy.deepcopy(self.network)
        for layer in plan.layers:
            if layer.structure != "dense":
                pieces = self.layers[layer.name].pieces if layer.name in self.layers else {}
                replace(made, layer.name, build_layer(self.network.get_submodule(layer.name), layer, pieces))
        return made.eval()


def build_layer(dense: nn.Module, plan: LayerPlan, pieces: Mapping[tuple[int, ...], Svd]) -> nn.Module:
    """Each cluster's truncated SVD; the first region of a Linear is the layer. What `pieces` lacks is decomposed."""
    module = factorised(dense, plan)
    matrix, bias = factors.matrix_of(dense)
    if not isinstance(module, Clustered):
        reduce, expand = _pair(pieces.get(()) or leading_svd(matrix), plan.ranks[0])
        factors.fill_pair(module, reduce, expand, bias)
        return module
    channels: Any = dense.in_channels
    weight = matrix.reshape(len(matrix), channels, -1)
    left = list(plan.ranks)
    for number, clusters in enumerate(plan.clusters):
        own, left = left[: len(clusters)], left[len(clusters) :]
        found = [pieces.get(cluster) or _decompose(weight, cluster) for cluster in clusters]
        _fill_region(module, number, found, own, bias)
    return module


def _decompose(weight: torch.Tensor, cluster: Sequence[int]) -> Svd:
    """Of the weights (m, C, taps) that see a cluster's channels."""
    return leading_svd(weight[:, list(cluster)].flatten(1))


def _fill_region(
    module: Clustered, number: int, found: Sequence[Svd], ranks: Sequence[int], bias: torch.Tensor
) -> None:
    expands = []
    for target, piece, rank in zip(module.reduces_of(number), found, ranks, strict=True):
        reduce, expand = _pair(piece, rank)
        balanced, (second,) = factors.balance(reduce, [expand])
        with torch.no_grad():
            target.weight.copy_(balanced.reshape(target.weight.shape))
        expands.append(second)
    factors.write(module.expands[number], torch.cat(expands, dim=1), bias)


def _pair(piece: Svd, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    left, values, right = piece
    return right[:rank], left[:, :rank] * values[:rank]


def candidates(problem: Problem) -> PaperProposal:
    """One forward pass over a few batches, for the co-activation of channels; then the SVD of each cluster, once.

    Time grows as that of `svd` for each region; memory with 8 (m + n) min(m, n) bytes a layer and region.
    """
    shapes = [shape for shape in problem.shapes if not shape.reason]
    boxes = {shape.name: grid(shape.positions, REGIONS) for shape in shapes if _is_spatial(problem, shape)}
    inputs = collect_inputs(problem, list(boxes), boxes)
    found = {}
    for shape in shapes:
        matrix, _ = factors.matrix_of(problem.network.get_submodule(shape.name))
        if shape.name not in boxes:
            found[shape.name] = Layer(shape, (), (), {(): leading_svd(matrix)})
            continue
        weight, step = matrix.reshape(shape.outputs, shape.inputs, -1), problem.settings.alignment
        clusters = tuple(
            coactivation_clusters(entry.covariance, problem.settings.clusters, step)
            for entry in inputs[shape.name].channels[1:]
        )
        pieces = {cluster: _decompose(weight, cluster) for region in clusters for cluster in region}
        found[shape.name] = Layer(shape, boxes[shape.name], clusters, pieces)
    return PaperProposal(problem.network, problem.shapes, found, problem.settings.alignment)


def _is_spatial(problem: Problem, shape: LayerShape) -> bool:
    conv = problem.network.get_submodule(shape.name)
    return isinstance(conv, CONVOLUTIONS) and shape.area > 1 and conv.padding_mode == "zeros"
