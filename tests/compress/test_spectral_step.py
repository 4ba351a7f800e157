"""Steps are a share of each weight's own size, whatever the gradients' and the weights' scale."""

import pytest
import torch
from torch import nn

from hscc_edge.compress.spectral_step import direction, move, mover, orthogonal


def weight_of(*shape: int, scale: float = 1.0, seed: int = 0) -> nn.Parameter:
    return nn.Parameter(scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 16)])
def test_singular_values_come_near_one_and_directions_stay(shape):
    matrix = weight_of(*shape).detach()
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = u.T @ orthogonal(matrix) @ v.T
    assert float(found.diagonal().min()) > 0.3 and float(found.diagonal().max()) < 1.3
    assert float((found - found.diagonal().diag()).abs().max()) < 1e-3


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("shape", [(12, 30), (6, 4, 3, 3)])
def test_a_matrix_moves_by_a_share_of_its_spectral_norm(shape, scale):
    weight = weight_of(*shape, scale=scale)
    weight.grad = 1e-5 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    start = weight.detach().clone()
    move(mover([weight]), 0.01)
    norms = [float(torch.linalg.matrix_norm(v.flatten(1), 2)) for v in (weight.detach() - start, start)]
    assert 0.005 < norms[0] / norms[1] < 0.013


def test_vectors_wide_matrices_and_weights_without_a_gradient():
    bias, zero, idle = weight_of(50), nn.Parameter(torch.zeros(50)), weight_of(4, 4)
    for weight in (bias, zero):
        weight.grad = torch.ones(50)
    start = [weight.detach().clone() for weight in (bias, idle)]
    move(mover([bias, zero, idle]), 0.1)
    assert float((bias.detach() - start[0]).norm()) == pytest.approx(0.1 * float(start[0].norm()), rel=1e-4)
    assert float(zero.detach().norm()) > 0 and torch.equal(idle, start[1])
    wide = weight_of(300, 400).detach()
    assert torch.allclose(direction(wide), wide / wide.norm())


def test_it_descends():
    target, weight = weight_of(10, 20, seed=3).detach(), weight_of(10, 20)
    state = mover([weight])
    first = float((weight.detach() - target).norm())
    for step in range(60):
        weight.grad = weight.detach() - target
        move(state, 0.05 * (1 - step / 60))
    assert float((weight.detach() - target).norm()) < 0.1 * first
