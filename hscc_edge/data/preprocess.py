"""THE preprocessing: named steps in numpy, scipy and Pillow, equal to the bit from training to serving.

The steps themselves are in `steps.py` (values) and `steps_space.py` (space). For volumes the first entries may say how
files become one: `{"name": "series", ...}` (`SeriesRules`: which series of a study) and `{"name": "volume", ...}`
(`VolumeRules`: what becomes of gaps, tilt and other planes).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hscc_edge.data import steps, steps_space
from hscc_edge.data.dicom import Image
from hscc_edge.data.series import RULES, SeriesRules, VolumeRules, parse_series_rules, parse_volume_rules
from hscc_edge.data.steps import Pixels, Sample
from hscc_edge.data.volume import Volume
from hscc_edge.errors import ConfigError

# Raised when a step's result changes, so that no cache of the old one is hit.
REVISION = 1
MAX_SIDE = 4096


@dataclass(frozen=True, slots=True)
class Step:
    """One named step with its options."""

    name: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Steps in order; called on an `Image` it returns float32 (C, H, W), on a `Volume` (C, D, H, W).

    Attributes:
        series: which series of a study becomes the volume; None where every series is one.
        rules: how files become a volume.
    """

    steps: tuple[Step, ...]
    series: SeriesRules | None = None
    rules: VolumeRules = RULES

    def __call__(self, image: Image | Volume) -> Pixels:
        """(H, W) or (H, W, 3) -> (C, H, W), (D, H, W) -> (C, D, H, W); cost grows with the pixels in and out.

        Raises:
            ConfigError: if the steps are for volumes and this is an image, or the other way round.
        """
        return self.finish(self.begin(image))

    def begin(self, image: Image | Volume) -> Pixels:
        """All steps before the channels are repeated: (1 or 3, H, W) or (1, D, H, W); what a cache keeps."""
        if isinstance(image, Volume) != self.volume:
            kinds = ("an image", "a volume")
            raise ConfigError(
                f"the preprocessing is for {kinds[self.volume]}, and was given {kinds[not self.volume]}: read the other"
            )
        if isinstance(image, Volume):
            sample = Sample(image.pixels[None], image.affine, image.headers, image.padding)
        else:
            planes = image.pixels[None] if image.pixels.ndim == 2 else np.moveaxis(image.pixels, -1, 0)
            sample = Sample(planes, None, image.headers, image.padding)
        return _run(self.steps[: self._split], sample)

    def finish(self, pixels: Pixels) -> Pixels:
        """The remaining steps, which do not look at the headers: (C, H, W) or (C, D, H, W)."""
        return _run(self.steps[self._split :], Sample(pixels))

    @property
    def _split(self) -> int:
        return next((i for i, step in enumerate(self.steps) if step.name == "channels"), len(self.steps))

    @property
    def volume(self) -> bool:
        """Whether the steps are for volumes: one names a depth, an orientation or a spacing."""
        return any(step.name in VOLUME or "depth" in step.options for step in self.steps)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) or (C, D, H, W) of every result, as the steps declare it; 0 for a side that they do not."""
        channels, sides = 1, ["depth", "height", "width"][0 if self.volume else 1 :]
        size = dict.fromkeys(sides, 0)
        for step in self.steps:
            if step.name == "channels":
                channels = int(step.options["count"])
            if step.name in RESHAPING:
                size = dict.fromkeys(sides, 0)
            size.update({side: int(step.options[side]) for side in sides if side in step.options})
        return channels, *size.values()

    @property
    def digest(self) -> str:
        """sha256 of the steps and of the revision of their code."""
        return hashlib.sha256(json.dumps([REVISION, self.to_json()], sort_keys=True).encode()).hexdigest()

    def to_json(self) -> list[dict[str, Any]]:
        """Rules and steps as plain JSON objects; `parse_preprocess` reads them back."""
        rules = [("series", SeriesRules(), self.series), ("volume", RULES, self.rules)]
        read = [
            {"name": name, **{key: value for key, value in given.items() if value != getattr(default, key)}}
            for name, default, found in rules
            if found is not None and (name == "series" or found != default)
            for given in [dataclasses.asdict(found)]
        ]
        return [*read, *({"name": step.name, **step.options} for step in self.steps)]


def _run(chosen: Sequence[Step], sample: Sample) -> Pixels:
    for step in chosen:
        sample = STEPS[step.name](sample, **step.options)
    return np.ascontiguousarray(sample.pixels, dtype=np.float32)


STEPS: dict[str, Callable[..., Sample]] = {
    "window": steps.window,
    "percentile": steps.percentile,
    "scale_range": steps.scale_range,
    "orient": steps_space.orient,
    "spacing": steps_space.spacing,
    "crop_foreground": steps_space.crop_foreground,
    "resize": steps_space.resize,
    "pad_or_crop": steps_space.pad_or_crop,
    "channels": steps.channels,
    "normalise": steps.normalise,
}
# Step -> the options that it needs, and those that it may have.
OPTIONS: dict[str, tuple[set[str], set[str]]] = {
    "window": (set(), {"center", "width", "source", "function"}),
    "percentile": ({"lower", "upper"}, {"padding"}),
    "scale_range": ({"a_min", "a_max"}, {"b_min", "b_max", "clip"}),
    "orient": ({"axes"}, set()),
    "spacing": ({"mm"}, {"antialias"}),
    "crop_foreground": (set(), {"above", "margin"}),
    "resize": ({"height", "width"}, {"depth"}),
    "pad_or_crop": ({"height", "width"}, {"depth", "value"}),
    "channels": ({"count"}, set()),
    "normalise": ({"mean", "std"}, set()),
}
VOLUME = ("orient", "spacing")
RESHAPING = ("orient", "spacing", "crop_foreground")
SPACE = (*RESHAPING, "resize", "pad_or_crop")


def parse_preprocess(raw: Sequence[Mapping[str, Any]]) -> Preprocess:
    """Steps from JSON or TOML, each `{"name": ..., option: value}`.

    Raises:
        ConfigError: if a step or an option is unknown or missing, a value is out of range, nothing sets the size last,
            or a step that needs the headers comes after `channels`.
    """
    preprocess = _parse(raw)
    if 0 in preprocess.shape:
        sides = "depth, height and width" if preprocess.volume else "height and width"
        raise ConfigError(
            f"the preprocessing has no step 'resize' or 'pad_or_crop' that sets {sides} after all others that change "
            "them: add one, so that every input has the same size"
        )
    for step in preprocess.steps:
        _check_values(step, preprocess.shape[0])
    _check_order(preprocess)
    return preprocess


def _parse(raw: Sequence[Mapping[str, Any]]) -> Preprocess:
    read: dict[str, Any] = {}
    rest = list(raw)
    while rest and rest[0].get("name") in READ and rest[0]["name"] not in read:
        name = rest[0]["name"]
        read[name] = READ[name]({key: value for key, value in rest.pop(0).items() if key != "name"})
    preprocess = Preprocess(tuple(_parse_step(step) for step in rest), read.get("series"), read.get("volume", RULES))
    if read and not preprocess.volume:
        raise ConfigError(
            f"the preprocessing has {' and '.join(read)}, and no step for volumes: add one that names a depth, or "
            "orient or spacing"
        )
    return preprocess


READ: dict[str, Callable[[Mapping[str, Any]], object]] = {
    "series": parse_series_rules,
    "volume": parse_volume_rules,
}


def _check_order(preprocess: Preprocess) -> None:
    """What a step needs of the file must still be there when its turn comes."""
    names = [step.name for step in preprocess.steps]
    for place, step in enumerate(preprocess.steps):
        if "channels" in names[:place] and (step.name in VOLUME or step.options.get("source") == "header"):
            raise ConfigError(f"the step {step.name} needs the headers and comes after channels: move it before")
        if step.options.get("padding") == "exclude" and set(names[:place]) & {*SPACE, "channels"}:
            raise ConfigError(
                f"the step {step.name} leaves out padding and comes after {' or '.join(SPACE)}: move it before them"
            )


def _parse_step(raw: Mapping[str, Any]) -> Step:
    name = raw.get("name")
    if name in READ:
        raise ConfigError(f"the preprocessing has {name!r} twice or after a step: name it once, before all steps")
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
    try:
        wrong = WRONG[step.name](step.options, channels)
    except (TypeError, ValueError, KeyError):
        wrong = True
    if wrong:
        raise ConfigError(f"the step {step.name} has values out of range ({dict(step.options)}): mend them")


def _sides(options: Mapping[str, Any]) -> bool:
    sides = [options[side] for side in ("depth", "height", "width") if side in options]
    return all(isinstance(side, int) and 0 < side <= MAX_SIDE for side in sides)


def _windowed(options: Mapping[str, Any]) -> bool:
    header = options.get("source") == "header"
    named = options.get("function", "linear") in steps.WINDOWS[: None if header else -1]
    return named and (header or (options.get("width") or 0) > 0)


def _fits(mean: Sequence[float], std: Sequence[float], channels: int) -> bool:
    return len(mean) == len(std) and len(mean) in (1, channels) and min(std) > 0


def _axes(axes: str) -> bool:
    return len(axes) == 3 and {steps_space.LETTERS[letter][0] for letter in axes} == {0, 1, 2}


WRONG: dict[str, Callable[[Mapping[str, Any], int], bool]] = {
    "window": lambda given, _: not _windowed(given),
    "percentile": lambda given, _: (
        not (0 <= given["lower"] < given["upper"] <= 100 and given.get("padding", "count") in ("count", "exclude"))
    ),
    "scale_range": lambda given, _: (
        not (given["a_min"] < given["a_max"] and given.get("b_min", 0.0) < given.get("b_max", 1.0))
    ),
    "orient": lambda given, _: not _axes(given["axes"]),
    "spacing": lambda given, _: not (len(given["mm"]) == 3 and all(0.01 <= side <= 100 for side in given["mm"])),
    "crop_foreground": lambda given, _: not (float(given.get("above", 0)) < np.inf and given.get("margin", 0) >= 0),
    "resize": lambda given, _: not _sides(given),
    "pad_or_crop": lambda given, _: not (_sides(given) and np.isfinite(given.get("value", 0.0))),
    "channels": lambda given, _: not 1 <= given["count"] <= 64,
    "normalise": lambda given, channels: not _fits(given["mean"], given["std"], channels),
}
