"""Factorised layers: ordinary convolutions and linear layers, so that every runtime knows them."""

from __future__ import annotations

from collections.abc import Callable

from hscc_edge.errors import ModelError, extra
from hscc_edge.model.convolution import CONVOLUTIONS, Conv, conv_like, numbers, padding_of
from hscc_edge.model.plan import LayerPlan
from hscc_edge.model.regional import Clustered, OwnFactors, SharedReduce, pointwise

with extra("workstation"):
    from torch import nn

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def factorised(dense: nn.Module, plan: LayerPlan) -> nn.Module:
    """The module, with fresh weights, that takes the place of `dense` under `plan`.

    Raises:
        ModelError: if the structure does not exist for this kind of layer.
    """
    if plan.structure == "dense":
        return dense
    try:
        if isinstance(dense, nn.Linear) and plan.structure in LINEAR:
            return LINEAR[plan.structure](dense, plan)
        if isinstance(dense, CONVOLUTIONS) and plan.structure in CONVOLUTIONAL:
            return CONVOLUTIONAL[plan.structure](dense, plan)
        if isinstance(dense, NORMS) and plan.structure == "pruned":
            return type(dense)(plan.ranks[0], eps=dense.eps)
    except (ValueError, IndexError) as error:
        raise ModelError(
            f"the layer {plan.name} cannot take {plan.structure} with ranks {plan.ranks} ({error}): mend the plan"
        ) from error
    raise ModelError(f"the layer {plan.name} ({type(dense).__name__}) has no structure {plan.structure}: mend the plan")


def _one_region(dense: Conv, plan: LayerPlan) -> nn.Module:
    (rank,) = plan.ranks
    return nn.Sequential(conv_like(dense, dense.in_channels, rank), pointwise(dense, rank))


def _channel_groups(dense: Conv, plan: LayerPlan) -> nn.Module:
    total, groups = sum(plan.ranks), len(plan.ranks)
    return nn.Sequential(conv_like(dense, dense.in_channels, total, groups=groups), pointwise(dense, total))


def _separable(dense: Conv, plan: LayerPlan) -> nn.Module:
    """A kernel column, then a kernel row; each takes its own axis of stride, padding and dilation."""
    (rank,) = plan.ranks
    (height, width), (down, right) = numbers(dense.kernel_size), numbers(dense.stride)
    (top, left), (tall, wide) = padding_of(dense), numbers(dense.dilation)
    column = conv_like(
        dense, dense.in_channels, rank, kernel=(height, 1), stride=(down, 1), padding=(top, 0), dilation=(tall, 1)
    )
    row = conv_like(
        dense, rank, dense.out_channels, kernel=(1, width), stride=(1, right), padding=(0, left), dilation=(1, wide),
        bias=True,
    )  # fmt: skip
    return nn.Sequential(column, row)


def _tucker(dense: Conv, plan: LayerPlan) -> nn.Module:
    outer, inner = plan.ranks
    first = conv_like(dense, dense.in_channels, inner, kernel=1, stride=1, padding=0, dilation=1)
    return nn.Sequential(first, conv_like(dense, inner, outer), pointwise(dense, outer))


def _cp(dense: Conv, plan: LayerPlan) -> nn.Module:
    (rank,) = plan.ranks
    first = conv_like(dense, dense.in_channels, rank, kernel=1, stride=1, padding=0, dilation=1)
    return nn.Sequential(first, conv_like(dense, rank, rank, groups=rank), pointwise(dense, rank))


def _pruned(dense: Conv, plan: LayerPlan) -> nn.Module:
    outputs, inputs = plan.ranks
    groups = dense.groups if dense.groups == 1 else outputs
    return conv_like(dense, inputs, outputs, groups=groups, bias=dense.bias is not None)


def _linear_pair(dense: nn.Linear, plan: LayerPlan) -> nn.Module:
    (rank,) = plan.ranks
    return nn.Sequential(nn.Linear(dense.in_features, rank, bias=False), nn.Linear(rank, dense.out_features))


def _linear_pruned(dense: nn.Linear, plan: LayerPlan) -> nn.Module:
    outputs, inputs = plan.ranks
    return nn.Linear(inputs, outputs, bias=dense.bias is not None)


CONVOLUTIONAL: dict[str, Callable[[Conv, LayerPlan], nn.Module]] = {
    "one-region": _one_region,
    "shared-reduce": lambda dense, plan: SharedReduce(dense, plan.ranks[0], plan.regions),
    "own-factors": lambda dense, plan: OwnFactors(dense, plan.ranks, plan.regions),
    "clustered": lambda dense, plan: Clustered(dense, plan.ranks, plan.regions, plan.clusters),
    "channel-groups": _channel_groups,
    "separable": _separable,
    "tucker-2": _tucker,
    "cp": _cp,
    "pruned": _pruned,
}
LINEAR: dict[str, Callable[[nn.Linear, LayerPlan], nn.Module]] = {
    "one-region": _linear_pair,
    "pruned": _linear_pruned,
}


def replace(network: nn.Module, name: str, layer: nn.Module) -> None:
    """Put `layer` at the dotted `name` of `network`, and wherever else the module that stood there is held."""
    old, stack, seen = network.get_submodule(name), [network], {id(network)}
    while stack:
        parent = stack.pop()
        for leaf, child in parent._modules.items():
            if child is old:
                setattr(parent, leaf, layer)
                if isinstance(parent, nn.TransformerEncoderLayer):
                    parent.activation_relu_or_gelu = 0  # torch's fused path reads linear1.weight itself
            elif child is not None and id(child) not in seen:
                seen.add(id(child))
                stack.append(child)
