"""What each layer of a network costs, dense and factorised: FLOPs (two per multiply-add) and parameters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

from hscc_edge.errors import ModelError, extra
from hscc_edge.model.convolution import CONVOLUTIONS, Conv, padding_of

with extra("workstation"):
    import torch
    from torch import nn


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One Conv, transposed Conv or Linear of a network, in the order in which it first runs.

    Attributes:
        outputs: m, output channels or features.
        inputs: C_in, input channels or features.
        kernel: taps an axis; () for a Linear, so that n = inputs * prod(kernel).
        positions: of the output map, an axis each; (T,) for a Linear on T tokens, () on a flat vector; of a transposed
            Conv those of its input, at each of which it multiplies; one sum where calls make maps of several sizes.
        input_positions: the same of the input map.
        calls: how many such maps it makes of one image: calls by one forward pass, and windows or views that lie along
            the batch; its costs are those of all.
        reason: why it cannot be factorised, else "".
        runs: how often one forward pass calls it.
    """

    name: str
    outputs: int
    inputs: int
    kernel: tuple[int, ...]
    positions: tuple[int, ...]
    input_positions: tuple[int, ...]
    groups: int
    bias: bool
    calls: int
    reason: str
    text: str
    runs: int = 1

    @property
    def taps(self) -> int:
        """prod(kernel)."""
        return math.prod(self.kernel)

    @property
    def patch(self) -> int:
        """n, the length of one im2col patch."""
        return self.inputs * self.taps // self.groups

    @property
    def area(self) -> int:
        """Output positions of one image and call."""
        return math.prod(self.positions)

    @property
    def flops(self) -> int:
        """Of the dense layer, one image, all calls."""
        return 2 * self.area * self.outputs * self.patch * self.calls

    @property
    def params(self) -> int:
        """Weights and bias of the dense layer."""
        return self.outputs * self.patch + self.outputs * self.bias

    def pair_flops(self, rank: int, area: int | None = None) -> int:
        """Of a reduce to `rank` and an expand, over `area` positions (default: all), all calls."""
        return 2 * (self.area if area is None else area) * rank * (self.patch + self.outputs) * self.calls

    def pair_params(self, rank: int, expands: int = 1) -> int:
        """Of one reduce and `expands` biased expands."""
        return rank * self.patch + expands * (rank + 1) * self.outputs


TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
KINDS = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)
Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
Run = Callable[[nn.Module], object]


def layer_shapes(network: nn.Module, run: Run) -> tuple[LayerShape, ...]:
    """Run one example and record every Conv and Linear, in order of execution.

    Args:
        run: calls the network on an example of one image.

    Raises:
        ModelError: if the network cannot take the example, or has no such layer.
    """
    seen: dict[str, LayerShape] = {}
    handles = []
    for name, module in network.named_modules():
        if isinstance(module, KINDS):
            handles.append(module.register_forward_hook(_recorder(name, seen)))
    try:
        with torch.no_grad():
            run(network)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"the network refuses an image of the declared shape ({first}): mend preprocess") from error
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise ModelError("the network has no convolution and no linear layer: nothing can be compressed")
    shared = _shared_weights(network, seen)
    return tuple(dataclasses.replace(shape, reason=shared.get(name, shape.reason)) for name, shape in seen.items())


def _shared_weights(network: nn.Module, seen: dict[str, LayerShape]) -> dict[str, str]:
    """Reasons for layers whose weight another layer holds too."""
    owners: dict[int, str] = {}
    reasons: dict[str, str] = {}
    for name in seen:
        first = owners.setdefault(id(network.get_submodule(name).weight), name)
        if first != name:
            reasons[name] = f"shares its weight with {first}"
            reasons[first] = f"shares its weight with {name}"
    return reasons


def _recorder(name: str, seen: dict[str, LayerShape]) -> Callable[..., None]:
    def record(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if isinstance(module, nn.Linear):
            shape = _linear_shape(name, module, output)
        elif isinstance(module, CONVOLUTIONS):
            shape = _conv_shape(name, module, args[0], output)
        elif isinstance(module, TRANSPOSED):
            shape = _transposed_shape(name, module, args[0])
        else:
            return
        shape = dataclasses.replace(shape, calls=len(output) if output.dim() > 1 else 1)
        seen[name] = _again(seen[name], shape) if name in seen else shape

    return record


def _again(first: LayerShape, shape: LayerShape) -> LayerShape:
    """A layer that is called once more; its calls must be alike to be factorised as one."""
    if (first.positions, first.calls // first.runs) == (shape.positions, shape.calls):
        return dataclasses.replace(first, calls=first.calls + shape.calls, runs=first.runs + 1)
    area = first.area * first.calls + shape.area * shape.calls
    reason = first.reason or "called on maps of several sizes"
    return dataclasses.replace(first, positions=(area,), calls=1, runs=first.runs + 1, reason=reason)


def _linear_shape(name: str, module: nn.Linear, y: torch.Tensor) -> LayerShape:
    tokens = tuple(y.shape[1:-1])
    text = f"{module.out_features}x{module.in_features}"
    reason = "" if type(module) is nn.Linear else f"a {type(module).__name__} of its own"
    return LayerShape(
        name, module.out_features, module.in_features, (), tokens, tokens, 1, module.bias is not None, 1, reason, text
    )


def _conv_shape(name: str, module: Conv, x: torch.Tensor, y: torch.Tensor) -> LayerShape:
    kernel = tuple(module.kernel_size)
    text = "x".join(str(n) for n in (module.out_channels, module.in_channels // module.groups, *kernel))
    return LayerShape(
        name, module.out_channels, module.in_channels, kernel, tuple(y.shape[2:]), tuple(x.shape[2:]),
        module.groups, module.bias is not None, 1, _conv_reason(module), text,
    )  # fmt: skip


def _transposed_shape(name: str, module: Transposed, x: torch.Tensor) -> LayerShape:
    kernel, positions = tuple(module.kernel_size), tuple(x.shape[2:])
    text = "x".join(str(n) for n in (module.in_channels, module.out_channels // module.groups, *kernel))
    return LayerShape(
        name, module.out_channels, module.in_channels, kernel, positions, positions, module.groups,
        module.bias is not None, 1, "a transposed convolution", text,
    )  # fmt: skip


def _conv_reason(module: Conv) -> str:
    if type(module) not in CONVOLUTIONS:
        return f"a {type(module).__name__} of its own"
    if module.groups == module.in_channels > 1:
        return "depthwise: one channel a filter has no low rank"
    if module.groups != 1:
        return f"grouped ({module.groups})"
    try:
        padded = any(padding_of(module))
    except ModelError as error:
        return str(error)
    return "a padded 1 x 1 kernel" if padded and set(module.kernel_size) == {1} else ""
