"""What each layer of a network costs, dense and factorised: FLOPs (two per multiply-add) and parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from hscc_edge.errors import ModelError, extra

with extra("workstation"):
    import torch
    from torch import nn


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One Conv or Linear of a network, in the order in which it first runs.

    Attributes:
        outputs: m, output channels or features.
        inputs: C_in, input channels or features.
        taps: prod(kernel) (1 for a Linear), so that n = inputs * taps.
        positions: (H', W') of the output map; (1, T) for a Linear on T tokens.
        input_positions: positions of the input map.
        calls: how often one forward pass calls it.
        reason: why it cannot be factorised, else "".
    """

    name: str
    outputs: int
    inputs: int
    taps: int
    positions: tuple[int, int]
    input_positions: int
    groups: int
    bias: bool
    calls: int
    reason: str
    text: str

    @property
    def patch(self) -> int:
        """n, the length of one im2col patch."""
        return self.inputs * self.taps // self.groups

    @property
    def area(self) -> int:
        """Output positions of one image."""
        return self.positions[0] * self.positions[1]

    @property
    def flops(self) -> int:
        """Of the dense layer, one image."""
        return 2 * self.area * self.outputs * self.patch * self.calls

    @property
    def params(self) -> int:
        """Weights and bias of the dense layer."""
        return self.outputs * self.patch + self.outputs * self.bias

    def pair_flops(self, rank: int, area: int | None = None) -> int:
        """Of a reduce to `rank` and an expand, over `area` positions (default: all)."""
        return 2 * (self.area if area is None else area) * rank * (self.patch + self.outputs)

    def pair_params(self, rank: int, expands: int = 1) -> int:
        """Of one reduce and `expands` biased expands."""
        return rank * self.patch + expands * (rank + 1) * self.outputs


Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def layer_shapes(network: nn.Module, input_shape: tuple[int, int, int]) -> tuple[LayerShape, ...]:
    """Run one blank image and record every Conv and Linear, in order of execution.

    Raises:
        ModelError: if the network cannot take that shape, or has no such layer.
    """
    seen: dict[str, LayerShape] = {}
    handles = []
    for name, module in network.named_modules():
        if isinstance(module, KINDS):
            handles.append(module.register_forward_hook(_recorder(name, seen)))
    try:
        with torch.no_grad():
            network(torch.zeros(1, *input_shape))
    except RuntimeError as error:
        raise ModelError(f"the network refuses images of shape {input_shape} ({error}): mend preprocess") from error
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise ModelError("the network has no convolution and no linear layer: nothing can be compressed")
    return tuple(seen.values())


def _recorder(name: str, seen: dict[str, LayerShape]) -> Callable[..., None]:
    def record(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        calls = seen[name].calls + 1 if name in seen else 1
        if isinstance(module, nn.Linear):
            seen[name] = _linear_shape(name, module, output, calls)
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            seen[name] = _conv_shape(name, module, args[0], output, calls)

    return record


def _linear_shape(name: str, module: nn.Linear, y: torch.Tensor, calls: int) -> LayerShape:
    tokens = y[0].numel() // module.out_features
    reason = "" if calls == 1 else f"called {calls} times"
    text = f"{module.out_features}x{module.in_features}"
    return LayerShape(
        name, module.out_features, module.in_features, 1, (1, tokens), tokens, 1, module.bias is not None, calls,
        reason, text,
    )  # fmt: skip


def _conv_shape(
    name: str, module: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: torch.Tensor, y: torch.Tensor, calls: int
) -> LayerShape:
    kernel = tuple(module.kernel_size)
    height, width = (y.shape[2], y.shape[3]) if y.dim() == 4 else (1, math.prod(y.shape[2:]))
    text = "x".join(str(n) for n in (module.out_channels, module.in_channels // module.groups, *kernel))
    return LayerShape(
        name, module.out_channels, module.in_channels, math.prod(kernel), (height, width), math.prod(x.shape[2:]),
        module.groups, module.bias is not None, calls, _conv_reason(module, calls), text,
    )  # fmt: skip


def _conv_reason(module: nn.Module, calls: int) -> str:
    if not isinstance(module, nn.Conv2d):
        return f"{type(module).__name__} is not factorised yet"
    if module.groups != 1:
        return f"grouped ({module.groups})"
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return f"padding {module.padding_mode} {module.padding}"
    return "" if calls == 1 else f"called {calls} times"
