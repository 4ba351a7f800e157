"""Second moments that add up: over batches, over cells of a map, over shards of a cohort."""

from __future__ import annotations

from dataclasses import dataclass

from hscc_edge.errors import extra
from hscc_edge.model.plan import Box

with extra("workstation"):
    import torch


@dataclass(slots=True)
class Moments:
    """Sums over the images and the positions of one cell; float64; `2 m^2 + m` numbers.

    Attributes:
        count: positions x images.
        mean: (m,) of the rows.
        scatter: (m, m), sum of (y - mean)(y - mean)^T.
        gradients: (m, m), sum of g g^T.
    """

    count: int
    mean: torch.Tensor
    scatter: torch.Tensor
    gradients: torch.Tensor

    @property
    def covariance(self) -> torch.Tensor:
        """C, per position."""
        return self.scatter / self.count


def empty_moments(size: int) -> Moments:
    """No row seen yet."""
    wide = torch.float64
    zeros = torch.zeros(size, size, dtype=wide)
    return Moments(0, torch.zeros(size, dtype=wide), zeros, zeros.clone())


def merge(*parts: Moments) -> Moments:
    """The moments of all together, about their one mean (Chan, Golub and LeVeque 1979: no cancellation)."""
    counts = torch.tensor([part.count for part in parts], dtype=torch.float64)
    count = int(counts.sum())
    if count == 0:
        return parts[0]
    means = torch.stack([part.mean for part in parts])  # (parts, m)
    mean = (counts @ means) / count
    apart = (means - mean) * counts.sqrt()[:, None]
    scatter = apart.T @ apart
    gradients = torch.zeros_like(parts[0].gradients)
    for part in parts:
        scatter += part.scatter
        gradients += part.gradients
    return Moments(count, mean, scatter, gradients)


def add_rows(total: Moments, rows: torch.Tensor) -> None:
    """Add rows (N, m) to `total` in place; its gradients are left as they are."""
    part = moments_of(rows)
    count = total.count + part.count
    step = part.mean - total.mean
    total.scatter += part.scatter
    total.scatter += torch.outer(step, step) * (total.count * part.count / count)
    total.mean += step * (part.count / count)
    total.count = count


def moments_of(rows: torch.Tensor) -> Moments:
    """The moments of rows (N, m), without gradients."""
    mean = rows.mean(dim=0)
    centred = rows - mean
    wide = torch.float64
    return Moments(len(rows), mean.to(wide), (centred.T @ centred).to(wide), torch.zeros(1, dtype=wide))


def rows_of(maps: torch.Tensor, box: Box | None, channels_last: bool) -> torch.Tensor:
    """Rows (N, m) of the positions in `box` (None: all) of maps (B, m, *positions), or (B, ..., m) if channels_last."""
    if channels_last:
        return maps.reshape(-1, maps.shape[-1])
    if box is not None:
        maps = maps[(slice(None), slice(None), *box.slices)]
    return maps.movedim(1, -1).reshape(-1, maps.shape[1])


@dataclass(slots=True)
class CrossMoments:
    """What a regression of y (m) on z (d) needs, about the means; `d^2 + d m` numbers in float64.

    Attributes:
        gram: (d, d), sum of (z - mean)(z - mean)^T.
        cross: (m, d), sum of (y - mean)(z - mean)^T.
    """

    count: int
    inputs: torch.Tensor
    outputs: torch.Tensor
    gram: torch.Tensor
    cross: torch.Tensor


def cross_moments(z: torch.Tensor, y: torch.Tensor) -> CrossMoments:
    """The moments of rows z (N, d) and y (N, m)."""
    wide = torch.float64
    inputs, outputs = z.mean(dim=0), y.mean(dim=0)
    centred = z - inputs
    gram, cross = (centred.T @ centred).to(wide), ((y - outputs).T @ centred).to(wide)
    return CrossMoments(len(z), inputs.to(wide), outputs.to(wide), gram, cross)


def merge_cross(first: CrossMoments, second: CrossMoments) -> CrossMoments:
    """The moments of both together, as `merge`."""
    count = first.count + second.count
    step, rise = second.inputs - first.inputs, second.outputs - first.outputs
    share, weight = second.count / count, first.count * second.count / count
    return CrossMoments(
        count,
        first.inputs + step * share,
        first.outputs + rise * share,
        first.gram + second.gram + torch.outer(step, step) * weight,
        first.cross + second.cross + torch.outer(rise, step) * weight,
    )
