"""How alike two thumbnails are after the best of eight symmetries, a shift and a scale along rows and columns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from hscc_edge.data.thumbnail import resampling

Array = NDArray[np.float32]
Boxes = NDArray[np.float64]  # (B, 4): top, bottom, left, right, as parts of the side
STARTS = (-0.05, 0.0, 0.05)  # parts of the side by which one picture is cropped against the other
HYPOTHESES = 3  # symmetries that are followed: a head is nearly its own mirror image
COARSE_STEPS, MIDDLE_STEPS, FINE_STEPS = 5, 4, 4  # at a quarter, half and full size
BATCH = 64  # pairs at once, which a processor's cache holds
LIMITS = np.array([[-0.15, 0.85, -0.15, 0.85], [0.15, 1.15, 0.15, 1.15]])
PROMISING = 0.75  # similarity of the coarse pictures, without which two are not compared further
DETAIL = 1.0  # standard deviation in pixels of the blur that details stand out from
CONTRAST = 8.0  # greys of 256 by which details must differ to count fully


def similarity(fixed: Array, moving: Array) -> Array:
    """Correlation (B,) of the details of `fixed` and of `moving` laid over it, both (B, S, S).

    Details are what a blur takes away, by their contrast to those around them: blurred heads are all alike, and so are
    the rims of skulls. 0 where already the coarse pictures differ. The best symmetry and crop of a few is improved by
    Gauss-Newton steps on the normalised difference (Evangelidis and Psarakis 2008, with a shift and a scale along each
    axis for the warp), from a quarter of the size to the whole. About 1 ms a pair.
    """
    found = np.zeros(len(fixed), dtype=np.float32)
    for start in range(0, len(fixed), BATCH):
        part = slice(start, start + BATCH)
        found[part] = _similarity(fixed[part], moving[part])
    return found


def _similarity(fixed: Array, moving: Array) -> Array:
    half, other = _halved(fixed), _halved(moving)
    turn, box = _coarse(_halved(half), _halved(other))
    source = _turned(other, turn)
    box = _improved(half, source, box, MIDDLE_STEPS)
    found = np.zeros(len(fixed), dtype=np.float32)
    rest = np.flatnonzero(_alike(half, source, box) > PROMISING)
    if len(rest):
        target, source = fixed[rest], _turned(moving[rest], turn[rest])
        found[rest] = _alike(target, source, _improved(target, source, box[rest], FINE_STEPS))
    return found


def symmetries(images: Array) -> Array:
    """(B, S, S) -> (8, B, S, S): four turns of each and of its transpose."""
    both = (images, images.swapaxes(1, 2))
    return np.stack([np.rot90(image, turn, axes=(1, 2)) for image in both for turn in range(4)])


def _coarse(fixed: Array, moving: Array) -> tuple[NDArray[np.intp], Boxes]:
    """The symmetry and the box of the hypothesis that correlates best in the end."""
    scores, everyone = _scores(fixed, moving), np.arange(len(fixed))
    order = scores.max(axis=0).argsort(axis=1)[:, ::-1]  # (B, 8)
    turn, box, best = order[:, 0], np.zeros((len(fixed), 4)), np.full(len(fixed), -1, dtype=np.float32)
    for own in order.T[:HYPOTHESES]:
        crop = np.asarray(STARTS)[scores[:, everyone, own].argmax(axis=0)]
        source = _turned(moving, own)
        trial = _improved(fixed, source, np.stack([crop, 1 - crop] * 2, axis=1), COARSE_STEPS)
        warped, mask, _ = _warp(source, trial)
        found = _correlation(fixed, warped, mask)
        better = found > best
        turn, box = np.where(better, own, turn), np.where(better[:, None], trial, box)
        best = np.where(better, found, best)
    return turn, box


def _scores(fixed: Array, moving: Array) -> Array:
    """Correlation for each crop and symmetry (len(STARTS), B, 8)."""
    target, turned = _normalised(fixed), symmetries(moving)
    found = []
    for crop in STARTS:
        lines = resampling(np.asarray(crop), np.asarray(1 - crop), fixed.shape[-1])
        cropped = _normalised(np.asarray(lines @ turned @ lines.T))
        found.append(np.asarray(target * cropped).sum(axis=(2, 3)).T)
    return np.stack(found)


def _improved(target: Array, source: Array, box: Boxes, steps: int) -> Boxes:
    for _ in range(steps):
        box = np.clip(box + _step(target, source, box), *LIMITS)
    return box


def _step(target: Array, source: Array, box: Boxes) -> Boxes:
    """A damped Gauss-Newton step of the box for the source's normalised difference to the target."""
    warped, mask, slopes = _warp(source, box)
    scale = np.linalg.norm(_centred(warped, mask), axis=(1, 2))[:, None, None]
    residual = (_normalised(target, mask) - _normalised(warped, mask)) * scale
    flat = _centred(slopes, mask[:, None]).reshape(len(slopes), 4, -1)
    square = (flat @ flat.swapaxes(1, 2)).astype(np.float64)
    square += np.eye(4) * (1e-3 * np.trace(square, axis1=1, axis2=2) + 1e-6)[:, None, None]
    right = flat @ residual.reshape(len(residual), -1, 1)
    return np.asarray(np.linalg.solve(square, right.astype(np.float64))[..., 0])


def _warp(images: Array, box: Boxes) -> tuple[Array, Array, Array]:
    """Read the box of each image; the mask of what lies inside; slopes with regard to the four sides (B, 4, S, S)."""
    side = images.shape[-1]
    down, across = resampling(box[:, 0], box[:, 1], side), resampling(box[:, 2], box[:, 3], side)
    warped = down @ images @ across.swapaxes(1, 2)
    mask = (down.sum(axis=2) > 0.99)[:, :, None] & (across.sum(axis=2) > 0.99)[:, None, :]
    dy = np.gradient(warped, axis=1) * (side / (box[:, 1] - box[:, 0]))[:, None, None]
    dx = np.gradient(warped, axis=2) * (side / (box[:, 3] - box[:, 2]))[:, None, None]
    part = (np.arange(side) + 0.5) / side
    slopes = np.stack([dy * (1 - part)[:, None], dy * part[:, None], dx * (1 - part), dx * part], axis=1)
    return np.asarray(warped), mask.astype(np.float32), slopes.astype(np.float32)


def _alike(target: Array, source: Array, box: Boxes) -> Array:
    warped, mask, _ = _warp(source, box)
    return _correlation(_detail(target), _detail(warped), mask)


def _correlation(one: Array, other: Array, mask: Array) -> Array:
    return np.asarray((_normalised(one, mask) * _normalised(other, mask)).sum(axis=(1, 2)))


def _normalised(images: Array, mask: Array | None = None) -> Array:
    """Zero mean and unit norm over the last two axes, within the mask, which is 0 or 1."""
    centred = _centred(images, np.ones_like(images) if mask is None else mask)
    return np.asarray(centred / np.maximum(np.linalg.norm(centred, axis=(-2, -1), keepdims=True), 1e-6))


def _centred(images: Array, mask: Array) -> Array:
    count = np.maximum(mask.sum(axis=(-2, -1), keepdims=True), 1)
    return np.asarray((images - (images * mask).sum(axis=(-2, -1), keepdims=True) / count) * mask)


def _turned(images: Array, turn: NDArray[np.intp]) -> Array:
    return np.asarray(symmetries(images)[turn, np.arange(len(images))])


def _halved(images: Array) -> Array:
    count, side, _ = images.shape
    return np.asarray(images.reshape(count, side // 2, 2, side // 2, 2).mean(axis=(2, 4)))


def _detail(images: Array) -> Array:
    details = images - gaussian_filter(images, (0, DETAIL, DETAIL))
    around = gaussian_filter(details**2, (0, 2 * DETAIL, 2 * DETAIL))
    return np.asarray(details / np.sqrt(around + CONTRAST**2))
