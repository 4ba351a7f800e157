"""Region x cluster: inside each region, each group of co-activating input channels has its own reduce.

Charged for the graph as emitted: a slice of channels and a convolution a cluster, one pointwise expand a region. The
reduce of a cluster is the leading spectrum of its own partial outputs; what counts is measured with all clusters
together, so that covariances between clusters are in the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hscc_edge.compress import factors
from hscc_edge.compress.allocate import Option
from hscc_edge.compress.clusters import coactivation_clusters
from hscc_edge.compress.cost import LayerShape
from hscc_edge.compress.features import Features
from hscc_edge.compress.solved import Solved, Structure
from hscc_edge.compress.spectrum import root_of
from hscc_edge.errors import extra
from hscc_edge.model.convolution import CONVOLUTIONS, Conv
from hscc_edge.model.plan import Clusters, LayerPlan
from hscc_edge.model.regional import Clustered, Halo

with extra("workstation"):
    import torch
    from torch import nn
    from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Prepared:
    """A region's clusters; its features in nested order: which cluster each belongs to, and its row of the reduce."""

    clusters: Clusters
    owners: tuple[int, ...]
    reduces: tuple[torch.Tensor, ...]


def features(solved: Solved) -> list[Features]:
    """The clusters' reduced channels on the whole map, in falling order of what each is worth a FLOP."""
    conv, inputs = solved.dense, solved.inputs
    if not isinstance(conv, CONVOLUTIONS) or inputs is None or conv.padding_mode != "zeros":
        return []
    if solved.shape.taps == 1 or solved.settings.clusters < 2 or conv.in_channels < 4 * solved.settings.alignment:
        return []
    prepared = prepare(solved, conv, inputs.channels[0].covariance)
    return [Features(_Rows(conv, prepared), len(prepared.owners), None, prepared)]


def prepare(solved: Solved, conv: Conv, covariance: torch.Tensor) -> Prepared:
    """Cluster the input channels and solve each cluster by itself, in the metric G on the left, A on the right."""
    step = solved.settings.alignment
    clusters = coactivation_clusters(covariance, solved.settings.clusters, step)
    total = solved.total
    left = root_of(total.gradients / total.count, solved.settings.damping).root
    weight = conv.weight.detach().double().flatten(2)  # (m, C, taps)
    steps: list[tuple[float, int, int]] = []
    reduces = []
    for index, cluster in enumerate(clusters):
        channels = list(cluster)
        part = weight[:, channels]  # (m, |kappa|, taps)
        right = root_of(covariance[channels][:, channels], 1e-6)
        arranged = torch.einsum("ab,bct,cd->adt", left, part, right.root).flatten(1)
        u, values, _ = torch.linalg.svd(arranged, full_matrices=False)
        reduce = (u.T @ left @ part.flatten(1)).reshape(len(values), len(channels), -1)
        reduces.append(reduce / reduce.flatten(1).norm(dim=1).clamp_min(1e-300)[:, None, None])
        price = len(channels) * solved.shape.taps + solved.shape.outputs
        for rank in range(0, len(values) - step + 1, step):
            steps.append((float(values[rank : rank + step].square().sum()) / price, index, rank))
    ordered = sorted(steps, key=lambda item: -item[0])
    owners = tuple(index for _, index, _ in ordered for _ in range(step))
    return Prepared(clusters, owners[: solved.shape.outputs], tuple(reduces))


class _Rows:
    """x -> rows (N, d), the features of all clusters in their nested order."""

    def __init__(self, conv: Conv, prepared: Prepared) -> None:
        self.conv, self.prepared, self.halo = conv, prepared, Halo(conv)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        owners = torch.tensor(self.prepared.owners)
        run: Any = (functional.conv1d, functional.conv2d, functional.conv3d)[len(self.conv.kernel_size) - 1]
        padded = self.halo.pad(x)
        rows: torch.Tensor | None = None
        for index, cluster in enumerate(self.prepared.clusters):
            where = (owners == index).nonzero()[:, 0]
            if not len(where):
                continue
            kernel = self.prepared.reduces[index][: len(where)].float()
            kernel = kernel.reshape(len(where), len(cluster), *self.conv.kernel_size)
            z = run(padded[:, list(cluster)], kernel, stride=self.conv.stride, dilation=self.conv.dilation)
            part = z.movedim(1, -1).reshape(-1, len(where))
            rows = torch.zeros(len(part), len(owners)) if rows is None else rows
            rows[:, where] = part
        if rows is None:
            raise RuntimeError("no cluster has a feature")
        return rows


def flops(shape: LayerShape, clusters: Clusters, ranks: Sequence[int]) -> int:
    """Of the reduces and the expand."""
    reduces = sum(rank * len(cluster) * shape.taps for rank, cluster in zip(ranks, clusters, strict=True))
    return 2 * shape.area * (reduces + sum(ranks) * shape.outputs) * shape.calls


def params(shape: LayerShape, clusters: Clusters, ranks: Sequence[int]) -> int:
    """Weights of the reduces and of the expand, and the bias."""
    reduces = sum(rank * len(cluster) * shape.taps for rank, cluster in zip(ranks, clusters, strict=True))
    return reduces + (sum(ranks) + 1) * shape.outputs


def options(solved: Solved) -> Sequence[Option]:
    """Each step along the nested order that gives every cluster a rank and is cheaper than the dense layer."""
    shape, step = solved.shape, solved.settings.alignment
    found = []
    for entry in solved.features.get("clustered", []):
        prepared = entry.payload
        if not isinstance(prepared, Prepared):
            continue
        kept, total = entry.captured(solved.total.gradients * (0.5 / solved.statistics.images))
        for size in range(step, entry.size + 1, step):
            clusters, ranks = _used(prepared, size)
            cost = flops(shape, clusters, ranks)
            if cost < shape.flops:
                loss = max(total - float(kept[size - 1]), 0.0)
                found.append(
                    Option("clustered", ranks, (), cost, params(shape, clusters, ranks), loss, clusters=(clusters,))
                )
    return found


def _used(prepared: Prepared, size: int) -> tuple[Clusters, tuple[int, ...]]:
    """The clusters that have a rank among the first `size` features, and their ranks."""
    counts = [prepared.owners[:size].count(index) for index in range(len(prepared.clusters))]
    used = [index for index, count in enumerate(counts) if count]
    return tuple(prepared.clusters[index] for index in used), tuple(counts[index] for index in used)


def fill(module: nn.Module, solved: Solved, plan: LayerPlan) -> None:
    """Write the clusters' reduces and the regressed expand."""
    (entry,) = solved.features["clustered"]
    prepared = entry.payload
    if not isinstance(module, Clustered) or not isinstance(prepared, Prepared):
        return
    size = sum(plan.ranks)
    expand, bias = entry.expand(size)
    owners = torch.tensor(prepared.owners[:size])
    order = [index for index in range(len(prepared.clusters)) if bool((owners == index).any())]
    columns = torch.cat([(owners == index).nonzero()[:, 0] for index in order])
    with torch.no_grad():
        for target, index in zip(module.reduces_of(0), order, strict=True):
            rank = int((owners == index).sum())
            target.weight.copy_(prepared.reduces[index][:rank].reshape(target.weight.shape))
    factors.write(module.expands[0], expand[:, columns], bias)


STRUCTURE = Structure(options, fill, features)
