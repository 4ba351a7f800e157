"""THE preprocessing: named steps in numpy and Pillow, equal to the bit from training to serving."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from hscc_edge.data.dicom import Image
from hscc_edge.errors import ConfigError

Pixels = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Step:
    """One named step with its options."""

    name: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Steps in order; called on an `Image` it returns float32 (C, H, W)."""

    steps: tuple[Step, ...]

    def __call__(self, image: Image) -> Pixels:
        """(H, W) or (H, W, 3) -> (C, H, W); cost grows with the pixels in and out."""
        return self.finish(self.begin(image))

    def begin(self, image: Image) -> Pixels:
        """All steps before the channels are repeated: (1 or 3, H, W); what a cache keeps."""
        pixels = image.pixels[None] if image.pixels.ndim == 2 else np.moveaxis(image.pixels, -1, 0)
        for step in self.steps[: self._split]:
            pixels = STEPS[step.name](pixels, image, **step.options)
        return np.ascontiguousarray(pixels, dtype=np.float32)

    def finish(self, pixels: Pixels) -> Pixels:
        """The remaining steps, which do not look at the headers: (C, H, W)."""
        blank = Image(pixels[0], None)  # type: ignore[arg-type]
        for step in self.steps[self._split :]:
            pixels = STEPS[step.name](pixels, blank, **step.options)
        return np.ascontiguousarray(pixels, dtype=np.float32)

    @property
    def _split(self) -> int:
        return next((i for i, step in enumerate(self.steps) if step.name == "channels"), len(self.steps))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every result, as the steps declare it."""
        channels, size = 1, (0, 0)
        for step in self.steps:
            if step.name == "channels":
                channels = int(step.options["count"])
            if step.name == "resize":
                size = (int(step.options["height"]), int(step.options["width"]))
        return channels, *size

    def to_json(self) -> list[dict[str, Any]]:
        """The steps as plain JSON objects; `parse_preprocess` reads them back."""
        return [{"name": step.name, **step.options} for step in self.steps]


def _window(pixels: Pixels, image: Image, *, center: float | None = None, width: float | None = None,
            source: str = "values") -> Pixels:  # fmt: skip
    """Linear VOI window (PS3.3 C.11.2.1.2.1) to 0..1; from the header, or the file's own range where it has none."""
    if source == "header":
        low, high = float(pixels.min()), float(pixels.max())
        center, width = image.headers.window or ((low + high) / 2 + 0.5, high - low + 1)
    if center is None or width is None:
        raise ConfigError('the step window has neither center and width nor source = "header": give one of them')
    scale = max(width - 1, 1e-6)
    return np.asarray(np.clip((pixels - (center - 0.5)) / scale + 0.5, 0, 1), dtype=np.float32)


def _percentile(pixels: Pixels, image: Image, *, lower: float, upper: float) -> Pixels:
    """The given percentiles of the image to 0 and 1, clipped; a flat image to 0."""
    low, high = np.percentile(pixels, (lower, upper))
    if high <= low:
        return np.zeros_like(pixels)
    return np.asarray(np.clip((pixels - low) / (high - low), 0, 1), dtype=np.float32)


def _resize(pixels: Pixels, image: Image, *, height: int, width: int) -> Pixels:
    """Bilinear with antialiasing (Pillow's, support scaled by the reduction)."""
    if pixels.shape[1:] == (height, width):
        return pixels
    planes = [PIL.Image.fromarray(plane).resize((width, height), PIL.Image.Resampling.BILINEAR) for plane in pixels]
    return np.stack([np.asarray(plane, dtype=np.float32) for plane in planes])


def _channels(pixels: Pixels, image: Image, *, count: int) -> Pixels:
    """Repeat one channel, or average three into one."""
    if len(pixels) == count:
        return pixels
    grey = pixels.mean(axis=0, keepdims=True, dtype=np.float32)
    return np.repeat(grey, count, axis=0)


def _normalise(pixels: Pixels, image: Image, *, mean: Sequence[float], std: Sequence[float]) -> Pixels:
    """(x - mean) / std, channel by channel."""
    centre, scale = (np.asarray(value, dtype=np.float32)[:, None, None] for value in (mean, std))
    return np.asarray((pixels - centre) / scale, dtype=np.float32)


STEPS: dict[str, Callable[..., Pixels]] = {
    "window": _window,
    "percentile": _percentile,
    "resize": _resize,
    "channels": _channels,
    "normalise": _normalise,
}
OPTIONS: dict[str, tuple[set[str], set[str]]] = {
    "window": (set(), {"center", "width", "source"}),
    "percentile": ({"lower", "upper"}, set()),
    "resize": ({"height", "width"}, set()),
    "channels": ({"count"}, set()),
    "normalise": ({"mean", "std"}, set()),
}


def parse_preprocess(raw: Sequence[Mapping[str, Any]]) -> Preprocess:
    """Steps from JSON or TOML, each `{"name": ..., option: value}`.

    Raises:
        ConfigError: if a step or an option is unknown or missing, a value is out of range, or nothing sets the size.
    """
    preprocess = Preprocess(tuple(_parse_step(step) for step in raw))
    if 0 in preprocess.shape:
        raise ConfigError("the preprocessing has no step 'resize': add one, so that every image has the same size")
    for step in preprocess.steps:
        _check_values(step, preprocess.shape[0])
    return preprocess


def _parse_step(raw: Mapping[str, Any]) -> Step:
    name = raw.get("name")
    if name not in STEPS:
        raise ConfigError(f"the preprocessing has the unknown step {name!r}: expected one of {', '.join(STEPS)}")
    options = {key: value for key, value in raw.items() if key != "name"}
    needed, optional = OPTIONS[str(name)]
    if unknown := sorted(options.keys() - needed - optional):
        raise ConfigError(
            f"the step {name} has the unknown option '{unknown[0]}': expected {sorted(needed | optional)}"
        )
    if missing := sorted(needed - options.keys()):
        raise ConfigError(f"the step {name} lacks the option '{missing[0]}': add it")
    return Step(str(name), options)


def _check_values(step: Step, channels: int) -> None:
    options = step.options
    wrong: dict[str, Callable[[], bool]] = {
        "percentile": lambda: not 0 <= options["lower"] < options["upper"] <= 100,
        "resize": lambda: not (0 < options["height"] <= 4096 and 0 < options["width"] <= 4096),
        "channels": lambda: not 1 <= options["count"] <= 64,
        "normalise": lambda: not _fits(options["mean"], options["std"], channels),
        "window": lambda: options.get("source") != "header" and (options.get("width") or 0) <= 0,
    }
    if wrong[step.name]():
        raise ConfigError(f"the step {step.name} has values out of range ({dict(options)}): mend them")


def _fits(mean: Sequence[float], std: Sequence[float], channels: int) -> bool:
    return len(mean) == len(std) and len(mean) in (1, channels) and min(std) > 0
