"""Gram matrices that rounding may have left slightly indefinite: their Cholesky factor, and regression on them."""

from __future__ import annotations

from itertools import product

from hscc_edge.errors import ModelError, extra

with extra("workstation"):
    import torch

JITTERS = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)


def cholesky(gram: torch.Tensor) -> torch.Tensor:
    """Lower L with L L^T = gram + a little of its own diagonal, else of its mean, as little as makes it definite.

    The sums behind a Gram matrix (k, k) are of float32 products, so its smallest eigenvalues may be below zero.

    Raises:
        ModelError: if it is not finite.
    """
    diagonal = gram.diagonal().clamp_min(0)
    scale = torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal)).sqrt()
    scaled = gram / torch.outer(scale, scale)
    own = torch.eye(len(gram), dtype=gram.dtype)
    common = torch.diag(diagonal.mean() / scale.square())  # where a diagonal itself is rounding, as of a rank below k
    for ridge, jitter in product((own, common), JITTERS):
        lower, failed = torch.linalg.cholesky_ex(scaled + jitter * ridge)
        if not int(failed):
            found: torch.Tensor = scale[:, None] * lower
            return found
    raise ModelError("a layer's outputs on the calibration images are not finite: check the network's weights")


def regress(gram: torch.Tensor, cross: torch.Tensor) -> torch.Tensor:
    """U (m, k) = cross gram^-1, of features with Gram matrix (k, k) and cross-covariance (m, k)."""
    found: torch.Tensor = torch.cholesky_solve(cross.T, cholesky(gram)).T
    return found


def contributions(gram: torch.Tensor, cross: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(k,): what each feature adds to those before it, tr(weight U gram U^T) of the best U on the first 1, 2, ... k.

    With gram = L L^T the columns of cross L^-T are orthogonal contributions.
    """
    directions = torch.linalg.solve_triangular(cholesky(gram), cross.T, upper=False).T  # (m, k)
    found: torch.Tensor = ((weight @ directions) * directions).sum(0)
    return found
