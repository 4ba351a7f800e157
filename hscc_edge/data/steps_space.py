"""Steps on space: orientation, spacing, size. Each maps a `Sample` to a `Sample`; Pillow and scipy resample."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import permutations

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from hscc_edge.data.steps import Pixels, Sample
from hscc_edge.errors import ConfigError

# Letter -> axis of the patient (LPS) and which way along it.
LETTERS = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}


def orient(sample: Sample, *, axes: str) -> Sample:
    """Transpose and flip, so that the array's axes grow towards the sides named, in their order.

    "RAS" is NIfTI's and MONAI's (first axis to the right); "SPL" has slices to the head, rows to the back, columns to
    the left. An oblique axis counts for the side that it lies nearest to; no voxel is resampled.
    """
    affine = _affine(sample, "orient")
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    nearest = max(permutations(range(3)), key=lambda order: sum(abs(cosines[i, order[i]]) for i in range(3)))
    order = [nearest[LETTERS[letter][0]] for letter in axes]
    flipped = [cosines[LETTERS[a][0], o] * LETTERS[a][1] < 0 for a, o in zip(axes, order, strict=True)]
    pixels = sample.pixels.transpose(0, *(axis + 1 for axis in order))
    pixels = np.flip(pixels, tuple(axis + 1 for axis, flip in enumerate(flipped) if flip))
    turn = np.eye(4)[:, [*order, 3]] * [-1.0 if flip else 1.0 for flip in (*flipped, False)]
    turn[:3, 3] = sum(
        np.eye(3)[o] * (sample.pixels.shape[o + 1] - 1) for o, flip in zip(order, flipped, strict=True) if flip
    )
    return dataclasses.replace(sample, padding=None, pixels=np.ascontiguousarray(pixels), affine=affine @ turn)


def spacing(sample: Sample, *, mm: Sequence[float], antialias: bool = True) -> Sample:
    """Resample to voxels of `mm` along the array's axes, by linear interpolation; the first voxel keeps its place.

    As MONAI's Spacing, with one difference: where voxels grow, a Gaussian (sigma half of what the factor is above 1)
    takes away what the new grid cannot hold, unless `antialias` is off.
    """
    from scipy import ndimage  # a third of a second, which a daemon of images need not pay

    affine = _affine(sample, "spacing")
    factors = np.asarray(mm, dtype=np.float64) / np.linalg.norm(affine[:3, :3], axis=0)
    if np.allclose(factors, 1, rtol=0, atol=1e-4):
        return sample
    whole = [(n - 1) / factor for n, factor in zip(sample.pixels.shape[1:], factors, strict=True)]
    size = tuple(
        int(np.floor(steps + 0.501)) + 1 for steps in whole
    )  # a half is rounded up, whatever the affine's noise
    sigma = np.maximum((factors - 1) / 2, 0)
    result = np.empty((len(sample.pixels), *size), dtype=np.float32)
    for target, channel in zip(result, sample.pixels, strict=True):
        smooth = ndimage.gaussian_filter(channel, sigma, mode="nearest") if antialias else channel
        ndimage.affine_transform(smooth, factors, output_shape=size, output=target, order=1, mode="nearest")
    return Sample(result, _moved(affine, factors, np.zeros(3)), sample.headers)


def resize(sample: Sample, *, height: int, width: int, depth: int | None = None) -> Sample:
    """Linear with antialiasing, axis by axis (Pillow's bilinear, its support scaled by the reduction)."""
    old = sample.pixels.shape
    new = (height, width) if depth is None else (depth, height, width)
    if old[-len(new) :] == new:
        return sample
    planes = sample.pixels.reshape(-1, *old[-2:])
    pixels = np.stack([_resized(plane, width, height) for plane in planes]).reshape(*old[:-2], height, width)
    if depth is not None:
        flat = [_resized(channel.reshape(old[1], -1), height * width, depth) for channel in pixels]
        pixels = np.stack(flat).reshape(-1, depth, height, width)
    scale = np.divide(old[1:], pixels.shape[1:])
    return dataclasses.replace(
        sample, padding=None, pixels=pixels, affine=_moved(sample.affine, scale, (scale - 1) / 2)
    )


def _resized(plane: Pixels, width: int, height: int) -> Pixels:
    resized = PIL.Image.fromarray(plane).resize((width, height), PIL.Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32)


def crop_foreground(sample: Sample, *, above: float = 0.0, margin: int = 0) -> Sample:
    """The smallest box that holds all values above `above`, and `margin` pixels around; all of it where none is."""
    mask: NDArray[np.bool_] = np.any(sample.pixels > above, axis=0)
    if not mask.any():
        return sample
    box = []
    for axis in range(mask.ndim):
        held = np.flatnonzero(np.any(np.moveaxis(mask, axis, 0).reshape(mask.shape[axis], -1), axis=1))
        box.append(slice(max(int(held[0]) - margin, 0), int(held[-1]) + 1 + margin))
    return _cut(sample, box)


def pad_or_crop(sample: Sample, *, height: int, width: int, depth: int | None = None, value: float = 0.0) -> Sample:
    """Cut the middle out, or put `value` around, axis by axis, as MONAI's ResizeWithPadOrCrop."""
    old = sample.pixels.shape[1:]
    new = (height, width) if depth is None else (depth, height, width)
    size = (*old[: len(old) - len(new)], *new)
    starts = [max(n // 2 - wanted // 2, 0) if n > wanted else 0 for n, wanted in zip(old, size, strict=True)]
    sample = _cut(sample, [slice(start, start + wanted) for start, wanted in zip(starts, size, strict=True)])
    short = [wanted - n for wanted, n in zip(size, sample.pixels.shape[1:], strict=True)]
    before = np.asarray([n // 2 for n in short])
    around = [(0, 0), *((n // 2, n - n // 2) for n in short)]
    pixels = np.pad(sample.pixels, around, constant_values=np.float32(value))
    return dataclasses.replace(sample, padding=None, pixels=pixels, affine=_moved(sample.affine, np.ones(3), -before))


def _cut(sample: Sample, box: Sequence[slice]) -> Sample:
    start = np.asarray([part.start for part in box])
    pixels = np.ascontiguousarray(sample.pixels[(slice(None), *box)])
    return dataclasses.replace(sample, padding=None, pixels=pixels, affine=_moved(sample.affine, np.ones(3), start))


def _affine(sample: Sample, step: str) -> NDArray[np.float64]:
    if sample.affine is None:
        raise ConfigError(f"the step {step} needs a volume, and was given an image: read the series, or leave it out")
    return sample.affine


def _moved(
    affine: NDArray[np.float64] | None, scale: NDArray[np.float64], start: NDArray[np.floating | np.integer]
) -> NDArray[np.float64] | None:
    """The affine of a grid whose voxels are `scale` old ones wide, and whose first lies at the old index `start`."""
    if affine is None:
        return None
    step = np.diag([*scale, 1.0])
    step[:3, 3] = start
    return np.asarray(affine @ step)
