"""Optimiser steps measured against each weight's own size, so that one rate serves layers of any width and scale.

The momentum of a matrix is orthogonalised (Muon: Jordan et al. 2024) and its step has `rate` times the spectral norm
that the weight had at the start: no direction of a layer's output changes by more than that share (Bernstein and
Newhouse 2024, arXiv 2409.20325). A vector steps along its momentum, `rate` times its norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hscc_edge.errors import extra

with extra("workstation"):
    import torch
    from torch import nn

MOMENTUM = 0.9
WIDEST = 256
LEAST_RMS = 1e-2
TINY = 1e-12
QUINTIC = (3.4445, -4.7750, 2.0315)


@dataclass(frozen=True, slots=True)
class Mover:
    """Weights, their momenta, and the norms they had at the start: spectral for matrices, Euclidean for vectors."""

    weights: tuple[nn.Parameter, ...]
    momenta: tuple[torch.Tensor, ...]
    sizes: tuple[float, ...]


def mover(weights: Sequence[nn.Parameter]) -> Mover:
    """Momenta of zero; a weight that starts near zero counts as one of LEAST_RMS (a matrix: a hundredth of it)."""
    return Mover(tuple(weights), tuple(torch.zeros_like(weight) for weight in weights), tuple(map(_size, weights)))


def move(state: Mover, rate: float) -> None:
    """One step in place from the weights' gradients; weights without one stay. Costs rows^2 x columns a matrix."""
    with torch.no_grad():
        for weight, momentum, size in zip(state.weights, state.momenta, state.sizes, strict=True):
            if weight.grad is not None:
                momentum.lerp_(weight.grad, 1 - MOMENTUM)
                ahead = weight.grad.lerp(momentum, MOMENTUM)
                weight.sub_(direction(ahead), alpha=rate * size)


def direction(momentum: torch.Tensor) -> torch.Tensor:
    """Of the same shape, with a spectral norm of about 1; of a vector, or of a matrix wider than WIDEST, at most 1."""
    if momentum.dim() < 2 or min(len(momentum), momentum[0].numel()) > WIDEST:
        return torch.as_tensor(momentum / (momentum.norm() + TINY))
    return orthogonal(momentum.flatten(1)).reshape(momentum.shape)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix with its singular values brought to about 1 (0.7 to 1.2), by five Newton-Schulz iterations.

    Singular values below about a hundredth of the Frobenius norm come less far.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    found = wide / (wide.norm() + TINY)
    first, third, fifth = QUINTIC
    for _ in range(5):
        gram = found @ found.T
        found = first * found + (third * gram + fifth * gram @ gram) @ found
    made: torch.Tensor = found if matrix.shape[0] <= matrix.shape[1] else found.T
    return made


def _size(weight: nn.Parameter) -> float:
    values = weight.detach()
    root = math.sqrt(values.numel())
    if values.dim() < 2:
        return max(float(values.norm()), LEAST_RMS * root)
    return max(float(torch.linalg.matrix_norm(values.flatten(1), 2)), 0.01 * LEAST_RMS * root)
