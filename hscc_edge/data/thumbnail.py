"""A picture's thumbnail, and signatures of it that stay near each other when the picture is copied with changes."""

from __future__ import annotations

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.stats import rankdata

SIDE = 64
FLOOR = 0.08  # of the grey range; what is darker is background, whose noise must not be ranked
FREQUENCIES = 10
CROPS = (0.0, 0.025, 0.05)
SPREAD = 2.1  # standard deviations of the foreground's mass that a normalised view reaches
VIEWS = len(CROPS) + 1
LENGTH = FREQUENCIES * FREQUENCIES - 1
_U, _V = np.triu_indices(FREQUENCIES)
_WEIGHTS = np.sqrt(np.add.outer(np.arange(FREQUENCIES), np.arange(FREQUENCIES)))


def thumbnail(pixels: NDArray[np.float32]) -> NDArray[np.uint8] | None:
    """(H, W) or (H, W, 3) of any values -> (SIDE, SIDE); None if the picture is of one grey.

    A grey is the mean of its place in the range between the 1st and 99th percentile and its rank among all greys, so
    that little is left of a window's or a gamma's effect. Cost grows with H x W.
    """
    grey = pixels if pixels.ndim == 2 else pixels.mean(axis=2, dtype=np.float32)
    image = PIL.Image.fromarray(np.nan_to_num(grey)).resize((SIDE, SIDE), PIL.Image.Resampling.BILINEAR)
    small = np.asarray(image, dtype=np.float64)
    low, high = np.percentile(small, (1, 99))
    if not high > low:
        return None
    place = np.clip((small - low) / (high - low), 0, 1)
    rank = rankdata(np.maximum(place, FLOOR)).reshape(small.shape) / small.size
    return np.asarray(np.rint((place + rank) * 127.5), dtype=np.uint8)


def signatures(thumb: NDArray[np.uint8]) -> NDArray[np.float16]:
    """Unit vectors (VIEWS, LENGTH): of the thumbnail, of its inner parts, and of its normalised foreground.

    The whole of a copy whose borders were cropped has the signature of an inner part of the original. A signature is
    made of magnitudes of the DCT's low frequencies, weighted by the root of the frequency. A mirrored picture differs
    in the signs alone, a transposed one has c[u, v] and c[v, u] exchanged: the larger and the smaller of both
    magnitudes are equal for all eight symmetries of a square.
    """
    image = thumb.astype(np.float64)
    spans = [(crop, 1 - crop) for crop in CROPS]
    views = [_view(image, span, span) for span in spans] + [_view(image, *_foreground(image))]
    return np.stack([_signature(view) for view in views]).astype(np.float16)


def resampling(start: NDArray[np.float64], stop: NDArray[np.float64], side: int) -> NDArray[np.float32]:
    """Linear interpolation (..., side, side) of a line of `side` pixels, read from `start` to `stop`, parts of it.

    A row sums to less than 1 where it reads outside of the line.
    """
    part = (np.arange(side) + 0.5) / side
    places = (start[..., None] + (stop - start)[..., None] * part) * side - 0.5
    return np.asarray(np.maximum(1 - np.abs(places[..., None] - np.arange(side)), 0), dtype=np.float32)


def _view(image: NDArray[np.float64], rows: tuple[float, float], columns: tuple[float, float]) -> NDArray[np.float64]:
    down, across = (resampling(np.asarray(a), np.asarray(b), SIDE) for a, b in (rows, columns))
    return np.asarray(down @ image @ across.T)


def _foreground(image: NDArray[np.float64]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Rows and columns about the centre of mass, as wide as the mass is spread along each."""
    mass = image - image.min()
    spans = []
    for axis in (1, 0):
        profile = mass.sum(axis=axis)
        places = (np.arange(SIDE) + 0.5) / SIDE
        centre = (profile * places).sum() / profile.sum()
        reach = SPREAD * np.sqrt((profile * (places - centre) ** 2).sum() / profile.sum())
        spans.append((float(centre - reach), float(centre + reach)))
    return spans[0], spans[1]


def _signature(view: NDArray[np.float64]) -> NDArray[np.float64]:
    size = np.abs(dctn(view, norm="ortho")[:FREQUENCIES, :FREQUENCIES]) * _WEIGHTS
    larger, smaller = np.maximum(size, size.T)[_U, _V], np.minimum(size, size.T)[_U, _V]
    found = np.concatenate([larger, smaller[_U != _V]])[1:]
    return np.asarray(found / max(np.linalg.norm(found), 1e-9))
