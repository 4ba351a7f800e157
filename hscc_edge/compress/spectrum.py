"""Rank-adaptive factors of a layer in the two-sided metric, computed in output space.

Replacing W by V costs about 1/2 tr(G (W - V) A (W - V)^T) a position. With G = L L^T and C = W A W^T (the covariance
of the outputs) the best rank-r V is (L^-T Q_r)(Q_r^T L^T W), Q_r the top eigenvectors of L^T C L, and its eigenvalues
are what dropping each rank costs. L is the symmetric root here, so L = L^T.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from hscc_edge.compress.moments import Moments, merge
from hscc_edge.compress.statistics import LayerStatistics, Samples
from hscc_edge.errors import extra

with extra("workstation"):
    import torch

DAMPING = 1e-3
Pair = tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Factors in falling order of what they are worth.

    Attributes:
        losses: (k,) predicted rise of the loss per image if rank i is dropped; the same unit for every layer.
        reduce: (k, m), Q^T L: rows that multiply W on the left; of a dual (k, n), the reduce itself.
        expand: (m, k), L^-1 Q; of a dual (n, k), columns that W multiplies on the left.
        mean: (m,) of the outputs, bias included; of a dual (n,) of the inputs.
        dual: solved in input space.
    """

    losses: torch.Tensor
    reduce: torch.Tensor
    expand: torch.Tensor
    mean: torch.Tensor
    dual: bool = False

    def loss(self, rank: int) -> float:
        """Predicted rise of the loss per image when `rank` factors are kept."""
        return float(self.losses[rank:].sum())

    def factors(self, rank: int, matrix: torch.Tensor, bias: torch.Tensor) -> Pair:
        """(reduce (r, n), expand (m, r), bias (m,)) of W (m, n); the bias absorbs the mean: b' = b + (W - V) mu."""
        left, right = self.reduce[:rank], self.expand[:, :rank]
        if self.dual:
            expand = matrix @ right
            return left, expand, bias + matrix @ self.mean - expand @ (left @ self.mean)
        return left @ matrix, right, self.mean - right @ (left @ (self.mean - bias))


@dataclass(frozen=True, slots=True)
class Root:
    """The symmetric root L of the damped G, and its inverse."""

    root: torch.Tensor
    inverse: torch.Tensor


def root_of(gradients: torch.Tensor, damping: float = DAMPING) -> Root:
    """L and L^-1 of G + damping * mean(diag G) I; G (m, m) in float64. A G of zeros counts as the identity."""
    scale = float(gradients.diagonal().mean())
    if scale <= 0.0:
        eye = torch.eye(len(gradients), dtype=gradients.dtype)
        return Root(eye, eye)
    values, vectors = torch.linalg.eigh(gradients)
    roots = (values.clamp_min(0) + damping * scale).sqrt()
    return Root((vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T)


def spectrum(covariance: torch.Tensor, root: Root, mean: torch.Tensor, positions: float) -> Spectrum:
    """The spectrum of one region.

    Args:
        covariance: C (m, m), per position.
        root: of G summed over the region's positions and averaged over images, divided by `positions`.
        positions: output positions of the region, which scale the loss.
    """
    values, vectors = torch.linalg.eigh(root.root @ covariance @ root.root)
    order = torch.arange(len(values) - 1, -1, -1)
    q = vectors[:, order]
    losses = 0.5 * positions * values[order].clamp_min(0)
    return Spectrum(losses, q.T @ root.root, root.inverse @ q, mean)


def moments_spectrum(moments: Moments, images: int, damping: float = DAMPING, two_sided: bool = True) -> Spectrum:
    """The spectrum of one region's moments over so many images.

    Args:
        two_sided: weigh errors by G; without it the loss is the squared error of the outputs as a share of their
            variance, so that layers compare.
    """
    positions = moments.count / images
    covariance = moments.covariance
    if two_sided:
        return spectrum(covariance, root_of(moments.gradients / moments.count, damping), moments.mean, positions)
    eye = torch.eye(len(covariance), dtype=covariance.dtype)
    return spectrum(covariance, Root(eye, eye), moments.mean, 2.0 / float(covariance.trace().clamp_min(1e-300)))


def dual_spectrum(
    moments: Moments, images: int, matrix: torch.Tensor, damping: float = DAMPING, two_sided: bool = True
) -> Spectrum:
    """The spectrum of W (m, n) with n < m from the moments of its inputs x and of dL/dx = W^T g.

    With A = R R (R symmetric) the eigenvectors Q of R (W^T G W + delta W^T W) R give V = W (R Q)(Q^T R^-1).

    Args:
        two_sided: as in `moments_spectrum`; without it G is the identity.
    """
    root = root_of(moments.covariance, 1e-9)
    inner = matrix.T @ matrix
    if two_sided:
        pulled = moments.gradients / moments.count
        delta = damping * float(pulled.trace()) / max(float(inner.trace()), 1e-300)
        inner = pulled + max(delta, 1e-300) * inner
    values, vectors = torch.linalg.eigh(root.root @ inner @ root.root)
    q = vectors.flip(1)
    losses = 0.5 * (moments.count / images) * values.flip(0).clamp_min(0)
    found = Spectrum(losses, q.T @ root.inverse, root.root @ q, moments.mean, dual=True)
    return found if two_sided else _shares(found)


def _shares(found: Spectrum) -> Spectrum:
    """The same factors, their losses as shares of the sum."""
    return dataclasses.replace(found, losses=found.losses / found.losses.sum().clamp_min(1e-300))


def total_moments(statistics: LayerStatistics) -> Moments:
    """The moments of the whole map, about its one mean."""
    return merge(*statistics.cells)


def sample_spectrum(samples: Samples, damping: float = DAMPING, two_sided: bool = True) -> Spectrum:
    """The spectrum of a layer with one position and large m, from its N rows: O(N^2 m), no m x m matrix.

    The root of d I + S^T S is sqrt(d) I + V (sqrt(d + s^2) - sqrt(d)) V^T with S = U s V^T.

    Args:
        two_sided: as in `moments_spectrum`; without it G is the identity.
    """
    outputs = torch.cat(samples.outputs).to(torch.float64)  # (N, m), one row an image
    mean = outputs.mean(dim=0)
    centred = (outputs - mean) / len(outputs) ** 0.5
    if not two_sided:
        values, q = _row_space(centred)
        return _shares(Spectrum(0.5 * values**2, q.T, q, mean))
    gradients = torch.cat(samples.gradients).to(torch.float64) / len(outputs) ** 0.5
    delta = damping * float((gradients**2).sum()) / gradients.shape[1]
    if delta <= 0.0:
        delta = 1.0
    s, v = _row_space(gradients)  # (k,), (m, k)
    high, low = (delta + s**2).sqrt(), delta**0.5
    weighted = low * centred + ((centred @ v) * (high - low)) @ v.T  # (N, m) = Yc L
    values, q = _row_space(weighted)
    reduce = low * q.T + ((q.T @ v) * (high - low)) @ v.T
    expand = q / low + v @ ((1 / high - 1 / low)[:, None] * (v.T @ q))
    return Spectrum(0.5 * values**2, reduce, expand, mean)


def _row_space(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Singular values (k,), falling, and right vectors (m, k) of (N, m) by way of the N x N Gram matrix."""
    values, u = torch.linalg.eigh(rows @ rows.T)
    keep = values > float(values[-1]) * 1e-12
    roots = values[keep].flip(0).sqrt()
    return roots, rows.T @ (u[:, keep].flip(1) / roots)
