"""Batch norms folded into the convolution before them, where that leaves the network's output as it was."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from hscc_edge.errors import extra
from hscc_edge.model.convolution import CONVOLUTIONS
from hscc_edge.model.layers import NORMS, replace

with extra("workstation"):
    import torch
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

Pair = tuple[str, str]
TOLERANCE = 1e-4


def fold(network: nn.Module, pairs: Sequence[Pair]) -> None:
    """Fold each (convolution, batch norm) of `network` in place; the batch norm becomes nn.Identity."""
    for conv_name, norm_name in pairs:
        conv: Any = network.get_submodule(conv_name)
        norm: Any = network.get_submodule(norm_name)
        training = conv.training
        fused = fuse_conv_bn_eval(conv.eval(), norm.eval())
        replace(network, conv_name, fused.train(training))
        replace(network, norm_name, nn.Identity())


def find_pairs(network: nn.Module, run: Callable[[nn.Module], torch.Tensor]) -> tuple[Pair, ...]:
    """The pairs (convolution, batch norm) that can be folded, found by running the network once and proven by folding.

    A pair is a candidate where the batch norm's input is the convolution's output, and no other layer holds the
    convolution's weight; it counts if the folded network gives the same logits within 1e-4 of the largest (a
    convolution whose output has other readers does not).

    Args:
        run: runs a network on an example and returns its logits.
    """
    pairs = _candidates(network, run)
    if not pairs:
        return ()
    with torch.no_grad():
        wanted = run(network)
        if _same(network, pairs, run, wanted):
            return tuple(pairs)
        return tuple(pair for pair in pairs if _same(network, [pair], run, wanted))


def _same(
    network: nn.Module, pairs: Sequence[Pair], run: Callable[[nn.Module], torch.Tensor], wanted: torch.Tensor
) -> bool:
    trial = copy.deepcopy(network)
    fold(trial, pairs)
    found = run(trial)
    scale = float(wanted.abs().max().clamp_min(1e-6))
    return bool((found - wanted).abs().max() <= TOLERANCE * scale)


def _candidates(network: nn.Module, run: Callable[[nn.Module], torch.Tensor]) -> list[Pair]:
    made: dict[int, tuple[str, torch.Tensor]] = {}
    calls: dict[str, int] = {}
    pairs: list[Pair] = []

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            calls[name] = calls.get(name, 0) + 1
            if isinstance(module, CONVOLUTIONS):
                made[id(output)] = (name, output)  # the tensor is kept, so that its id stays its own
            elif id(args[0]) in made:
                pairs.append((made[id(args[0])][0], name))

        return hook

    kinds = (*CONVOLUTIONS, *NORMS)
    modules = [(name, module) for name, module in network.named_modules() if type(module) in kinds]
    handles = [module.register_forward_hook(record(name)) for name, module in modules]
    try:
        with torch.no_grad():
            run(network)
    finally:
        for handle in handles:
            handle.remove()
    owners = Counter(id(weight) for module in network.modules() for weight in module.parameters(recurse=False))
    return [
        (conv, norm)
        for conv, norm in pairs
        if calls[conv] == calls[norm] == 1 == owners[id(network.get_submodule(conv).weight)]
        and _has_statistics(network, norm)
    ]


def _has_statistics(network: nn.Module, name: str) -> bool:
    norm = network.get_submodule(name)
    return getattr(norm, "running_mean", None) is not None and getattr(norm, "weight", None) is not None
