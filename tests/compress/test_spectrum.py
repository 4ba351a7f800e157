"""Spectra: their losses are measured losses, and every way to them agrees."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hscc_edge.compress.moments import add_rows, empty_moments
from hscc_edge.compress.spectrum import dual_spectrum, moments_spectrum, root_of, sample_spectrum, spectrum
from hscc_edge.compress.statistics import Samples


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(outputs=st.integers(2, 12), inputs=st.integers(2, 20), seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_predicted_loss_is_the_measured_quadratic_form(outputs, inputs, seed):
    """For one Linear, dropping ranks costs 1/2 E[(y - y')^T G (y - y')], exactly what the spectrum says."""
    w, x = draw(seed, outputs, inputs), draw(seed + 1, 300, inputs) @ draw(seed + 2, inputs, inputs)
    g = draw(seed + 3, 300, outputs) * torch.arange(1, outputs + 1)
    y = (x - x.mean(0)) @ w.T
    gradients = g.T @ g / 300
    found = spectrum(y.T @ y / 300, root_of(gradients, damping=1e-12), torch.zeros(outputs), 1.0)
    total = 0.5 * float(((y @ gradients) * y).sum()) / 300
    for rank in range(outputs + 1):
        gap = y - y @ (found.expand[:, :rank] @ found.reduce[:rank]).T
        measured = 0.5 * float(((gap @ gradients) * gap).sum()) / 300
        assert measured == pytest.approx(found.loss(rank), rel=1e-5, abs=1e-7 * total)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_losses_fall_with_rank_and_full_rank_is_the_layer(seed):
    covariance, gradients = (part.T @ part for part in (draw(seed, 30, 9), draw(seed + 1, 30, 9)))
    found = spectrum(covariance, root_of(gradients), torch.zeros(9), 3.0)
    losses = [found.loss(rank) for rank in range(10)]
    assert losses == sorted(losses, reverse=True) and losses[-1] == 0
    assert torch.allclose(found.expand @ found.reduce, torch.eye(9, dtype=torch.float64), atol=1e-8)


def test_sampled_and_dense_spectra_agree():
    y = (draw(2, 30, 50) @ draw(3, 50, 50) + 3).float()
    g = draw(4, 30, 50).float()
    thin = sample_spectrum(Samples([y[:11], y[11:]], [g]))
    wide, steep = y.double(), g.double()
    covariance = torch.cov(wide.T, correction=0)
    full = spectrum(covariance, root_of(steep.T @ steep / 30), wide.mean(0), 1.0)
    assert torch.allclose(thin.losses[:25], full.losses[:25], rtol=1e-5)
    for rank in (3, 20):
        first = thin.expand[:, :rank] @ thin.reduce[:rank]
        second = full.expand[:, :rank] @ full.reduce[:rank]
        assert torch.allclose(first, second, atol=1e-5)


def test_dual_and_primal_agree():
    """A layer with fewer inputs than outputs: the same factors from the covariance of x and W^T G W."""
    w, x, g = draw(5, 40, 6), draw(6, 500, 6) @ draw(7, 6, 6) + 2, draw(8, 500, 40)
    inside, outside = empty_moments(6), empty_moments(40)
    add_rows(inside, x)
    add_rows(outside, x @ w.T)
    inside.gradients, outside.gradients = w.T @ g.T @ g @ w, g.T @ g
    dual, primal = dual_spectrum(inside, 500, w, 1e-9), moments_spectrum(outside, 500, 1e-9)
    assert torch.allclose(dual.losses[:6], primal.losses[:6], rtol=1e-3)
    bias = torch.zeros(40, dtype=torch.float64)
    for rank in (2, 5):
        (r1, u1, b1), (r2, u2, b2) = dual.factors(rank, w, bias), primal.factors(rank, w, bias)
        first, second = x @ (u1 @ r1).T + b1, x @ (u2 @ r2).T + b2
        assert torch.allclose(first, second, atol=1e-2 * float(first.abs().max()))


def test_dead_gradients_count_as_the_identity():
    root = root_of(torch.zeros(3, 3, dtype=torch.float64))
    assert torch.equal(root.root, torch.eye(3, dtype=torch.float64))
