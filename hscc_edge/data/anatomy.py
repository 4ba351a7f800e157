"""Head-like pictures from arithmetic: tissue, lesions, bias field and Rician noise. No person was imaged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Map = NDArray[np.float64]
CLASSES = ("none", "ring", "blob", "speckle")
LESION_CONTRAST = (0.25, 0.5)
LESION_RADIUS = (0.12, 0.21)
NOISE = (0.025, 0.06)
BIAS = 0.25


@dataclass(frozen=True, slots=True)
class Head:
    """One patient's head; lengths are fractions of half the field of view, angles radians.

    Attributes:
        axes: half axes of the skull, (left-right, front-back).
        lesion: centre (x, y), radius and contrast of the lesion; unused where the label is none.
    """

    label: str
    axes: tuple[float, float]
    turn: float
    shift: tuple[float, float]
    grey: float
    white: float
    ventricle: float
    lesion: tuple[float, float, float, float]
    seed: int


def draw_head(label: str, seed: int) -> Head:
    """A patient's head with random shape, pose and contrast; lesions differ by place, shape and texture.

    ring: dark core, bright rim, deep in the white matter. blob: smooth and bright, at the edge of the brain.
    speckle: textured, near the mid-line in the lower half.
    """
    random = np.random.default_rng(seed)
    axes = (random.uniform(0.66, 0.8), random.uniform(0.78, 0.92))
    radius, contrast = random.uniform(*LESION_RADIUS), random.uniform(*LESION_CONTRAST)
    side = random.choice((-1.0, 1.0))
    angle = random.uniform(0.15, np.pi - 0.15) * random.choice((-1.0, 1.0))
    places = {
        "none": (0.0, 0.0),
        "ring": (side * random.uniform(0.25, 0.42), random.uniform(-0.4, 0.35)),
        "blob": (np.sin(angle) * (axes[0] - 0.16), np.cos(angle) * (axes[1] - 0.18)),
        "speckle": (random.uniform(-0.12, 0.12), random.uniform(0.25, 0.5)),
    }
    place = places[label]
    return Head(
        label=label,
        axes=axes,
        turn=random.uniform(-0.2, 0.2),
        shift=(random.uniform(-0.06, 0.06), random.uniform(-0.06, 0.06)),
        grey=random.uniform(0.42, 0.52),
        white=random.uniform(0.58, 0.7),
        ventricle=random.uniform(0.8, 1.3),
        lesion=(float(place[0]), float(place[1]), radius, contrast),
        seed=seed,
    )


def draw_slice(head: Head, height: float, size: int) -> NDArray[np.uint16]:
    """One axial slice (size, size), 12 bits; `height` from -1 to 1 moves through the lesion and thins the head."""
    random = np.random.default_rng((head.seed, int((height + 2) * 1e6)))
    x, y = _grid(head, size)
    tissue = _tissue(head, x, y, height, random)
    if head.label != "none":
        tissue = _lesion(head, tissue, x, y, height, random)
    tissue *= 1 + BIAS * _smooth(random, size, size / 3)
    sigma = np.random.default_rng(head.seed + 1).uniform(*NOISE)
    real, imaginary = (random.normal(0, sigma, tissue.shape) for _ in range(2))
    magnitude = np.hypot(gaussian_filter(tissue, 0.6) + real, imaginary)
    return np.asarray(np.clip(magnitude * 2200, 0, 4095), dtype=np.uint16)


def _grid(head: Head, size: int) -> tuple[Map, Map]:
    line = (np.arange(size) + 0.5) / size * 2 - 1
    y, x = np.meshgrid(line, line, indexing="ij")
    x, y = x - head.shift[0], y - head.shift[1]
    cos, sin = np.cos(head.turn), np.sin(head.turn)
    return cos * x + sin * y, cos * y - sin * x


def _tissue(head: Head, x: Map, y: Map, height: float, random: np.random.Generator) -> Map:
    thin = 1 - 0.08 * height**2
    radius = np.hypot(x / (head.axes[0] * thin), y / (head.axes[1] * thin))
    folds = 0.05 * _smooth(random, len(x), len(x) / 24) + 0.03 * np.sin(14 * np.arctan2(y, x))
    image = np.where(radius < 1.06, 0.85, 0.02)  # scalp
    image = np.where(radius < 1.0, 0.06, image)  # skull
    image = np.where(radius < 0.93, 0.2, image)  # fluid
    image = np.where(radius + folds / 2 < 0.89, head.grey, image)
    image = np.where(radius + folds < 0.72, head.white, image)
    horn = head.ventricle * (1 - 0.4 * height)
    for side in (-1, 1):
        bent = np.hypot((x - side * (0.09 + 0.12 * y**2)) / (0.055 * horn), (y + 0.05) / (0.3 * horn))
        image = np.where(bent < 1, 0.16, image)
    cleft = (np.abs(x) < 0.012) & (radius < 0.9) & (np.abs(y) > 0.35)
    return np.asarray(np.where(cleft, 0.22, image))


def _lesion(head: Head, tissue: Map, x: Map, y: Map, height: float, random: np.random.Generator) -> Map:
    across, along, radius, contrast = head.lesion
    radius = radius * np.sqrt(max(1 - 0.6 * height**2, 0.2))
    wobble = 1 + 0.18 * _smooth(random, len(x), len(x) / 16)
    distance = np.hypot(x - across, y - along) / radius * wobble
    if head.label == "ring":
        rim = np.exp(-(((distance - 0.85) / 0.2) ** 2))
        return np.asarray(tissue + contrast * rim - contrast * 0.9 * (distance < 0.65))
    if head.label == "blob":
        return np.asarray(tissue + contrast / (1 + np.exp((distance - 1) * 9)))
    grains = _smooth(random, len(x), len(x) / 64)
    return np.asarray(tissue + contrast * 1.6 * grains * (distance < 1) + contrast * 0.3 * (distance < 1))


def _smooth(random: np.random.Generator, size: int, scale: float) -> Map:
    """Noise of unit variance, smooth over `scale` pixels, drawn on a coarse grid where that is enough."""
    step = max(int(scale / 4), 1)
    coarse = random.normal(size=(-(-size // step) + 1,) * 2)
    field = gaussian_filter(coarse, scale / step, mode="reflect")
    field = (field - field.mean()) / max(float(field.std()), 1e-9)
    if step == 1:
        return np.asarray(field[:size, :size])
    index = np.arange(size) / step
    low, part = index.astype(int), index - index.astype(int)
    rows = field[low] * (1 - part)[:, None] + field[low + 1] * part[:, None]
    return np.asarray(rows[:, low] * (1 - part) + rows[:, low + 1] * part)
