"""Weights into factorised modules, with balanced factors."""

from __future__ import annotations

from hscc_edge.errors import extra
from hscc_edge.model.regional import OwnFactors, SharedReduce

with extra("workstation"):
    import torch
    from torch import nn


def matrix_of(dense: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """W as (m, n) and the bias (m,), zeros if there is none, in float64."""
    weight, bias = dense.weight, dense.bias
    matrix = torch.as_tensor(weight).detach().to(torch.float64).flatten(1)
    return matrix, torch.zeros(len(matrix), dtype=torch.float64) if bias is None else bias.detach().to(torch.float64)  # type: ignore[operator]


def balance(reduce: torch.Tensor, expands: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Scale each rank so that its row of `reduce` (r, n) and its columns of the expands (m, r) have like norms.

    The product is unchanged; unbalanced factors would underflow in FP16 and upset any later training.
    """
    rows = reduce.norm(dim=1)
    columns = torch.stack([expand.norm(dim=0) for expand in expands]).square().mean(0).sqrt()
    scale = torch.where((rows > 0) & (columns > 0), (columns / rows.clamp_min(1e-300)).sqrt(), torch.ones_like(rows))
    return reduce * scale[:, None], [expand / scale for expand in expands]


def fill_pair(pair: nn.Module, reduce: torch.Tensor, expand: torch.Tensor, bias: torch.Tensor) -> None:
    """Write reduce (r, n), expand (m, r) and bias (m,) into Sequential(reduce, expand)."""
    first, (second,) = balance(reduce, [expand])
    with torch.no_grad():
        _write(pair[0].weight, first)  # type: ignore[index]
        _write(pair[1].weight, second)  # type: ignore[index]
        _write(pair[1].bias, bias)  # type: ignore[index]


def fill_shared(
    module: SharedReduce, reduce: torch.Tensor, expands: list[torch.Tensor], biases: list[torch.Tensor]
) -> None:
    """Write one reduce (r, n) and per region an expand (m, r) and a bias (m,)."""
    first, seconds = balance(reduce, expands)
    with torch.no_grad():
        _write(module.reduce.weight, first)
        for layer, expand, bias in zip(module.expands, seconds, biases, strict=True):
            _write(layer.weight, expand)
            _write(layer.bias, bias)


def fill_own(
    module: OwnFactors, reduces: list[torch.Tensor], expands: list[torch.Tensor], biases: list[torch.Tensor]
) -> None:
    """Write per region a reduce (r, n), an expand (m, r) and a bias (m,)."""
    for index, (reduce, expand, bias) in enumerate(zip(reduces, expands, biases, strict=True)):
        fill_pair(nn.Sequential(module.reduces[index], module.expands[index]), reduce, expand, bias)


def write_pair(pair: nn.Module, reduce: torch.Tensor, expand: torch.Tensor, bias: torch.Tensor) -> None:
    """Write balanced factors into Sequential(reduce, expand) as they are."""
    with torch.no_grad():
        _write(pair[0].weight, reduce)  # type: ignore[index]
    write(pair[1], expand, bias)  # type: ignore[index]


def write(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Write a layer's weight and bias."""
    with torch.no_grad():
        _write(layer.weight, weight)
        _write(layer.bias, bias)


def _write(parameter: object, values: torch.Tensor) -> None:
    target = torch.as_tensor(parameter)
    target.copy_(values.reshape(target.shape))
