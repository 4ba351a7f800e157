"""Convolutions of any dimension made after the pattern of another."""

from __future__ import annotations

from collections.abc import Sequence

from hscc_edge.errors import ModelError, extra

with extra("workstation"):
    from torch import nn

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def dimensions(conv: Conv) -> int:
    """1, 2 or 3."""
    return len(conv.kernel_size)


def numbers(value: object) -> tuple[int, ...]:
    """A convolution's stride, kernel or dilation as a tuple of int."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(int(item) for item in value)
    raise ModelError(f"a convolution with {value!r} cannot be factorised: give it as numbers")


def padding_of(conv: Conv) -> tuple[int, ...]:
    """Zeros on each side, an axis; "same" and "valid" as numbers.

    Raises:
        ModelError: if "same" would pad one side more than the other.
    """
    if not isinstance(conv.padding, str):
        return numbers(conv.padding)
    if conv.padding == "valid":
        return (0,) * dimensions(conv)
    spans = [d * (k - 1) for d, k in zip(numbers(conv.dilation), numbers(conv.kernel_size), strict=True)]
    if any(span % 2 for span in spans):
        raise ModelError(f"padding 'same' of a kernel {conv.kernel_size} is not symmetric: give an odd kernel")
    return tuple(span // 2 for span in spans)


def conv_like(
    dense: Conv,
    inputs: int,
    outputs: int,
    *,
    kernel: int | tuple[int, ...] | None = None,
    stride: int | tuple[int, ...] | None = None,
    padding: int | tuple[int, ...] | None = None,
    dilation: int | tuple[int, ...] | None = None,
    groups: int = 1,
    bias: bool = False,
) -> Conv:
    """A convolution of the same dimension as `dense`; what is not given is taken from it, but for groups and bias."""
    kind = next(kind for kind in CONVOLUTIONS if isinstance(dense, kind))
    rank = dimensions(dense)

    def wide(value: int | tuple[int, ...] | None, default: tuple[int, ...]) -> tuple[int, ...]:
        return default if value is None else (value,) * rank if isinstance(value, int) else value

    made: Conv = kind(
        inputs,
        outputs,
        wide(kernel, numbers(dense.kernel_size)),  # type: ignore[arg-type]
        stride=wide(stride, numbers(dense.stride)),  # type: ignore[arg-type]
        padding=wide(padding, padding_of(dense)),  # type: ignore[arg-type]
        dilation=wide(dilation, numbers(dense.dilation)),  # type: ignore[arg-type]
        groups=groups,
        bias=bias,
        padding_mode=dense.padding_mode if padding is None else "zeros",
    )
    return made
