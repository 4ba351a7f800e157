"""Does the compressed classifier fall sooner than its original as pictures get worse? Both on the same spoilt inputs.

Every picture is spoilt after decoding and before the preprocessing, as a scanner or a sender would, by MONAI's
transforms; each of the seven faults at five strengths. The damage is the same for both classifiers and for every run
(seeded by fault, strength and the picture's number).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from hscc_edge.bundle import Bundle
from hscc_edge.data.case import inputs_of, read
from hscc_edge.data.cohort import Cohort, Instance
from hscc_edge.data.dicom import Image
from hscc_edge.data.preprocess import Preprocess, parse_preprocess
from hscc_edge.data.volume import Volume
from hscc_edge.errors import extra
from hscc_edge.model.decision import decide, parse_rule
from hscc_edge.model.head import parse_head
from hscc_edge.runtime import Runtime, open_runtime
from hscc_edge.validate.collect import Conditions, check_alike
from hscc_edge.validate.machine import machine_facts
from hscc_edge.validate.predict import check_fit
from hscc_edge.validate.predictions import bundle_facts
from hscc_edge.validate.resampling import bootstrap, clusters

with extra("workstation"):
    import torch
    from monai.transforms.intensity.array import AdjustContrast, GaussianSmooth, RandBiasField, RandRicianNoise
    from monai.transforms.spatial.array import Rotate
    from statsmodels.stats.multitest import multipletests

KIND, SCHEMA = "robustness", 1
STRENGTHS = 5
Planes = NDArray[np.float32]
Progress = Callable[[int, str], None]


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to spoil a picture.

    Attributes:
        unit: what `strengths` counts.
        spoil: planes (C, *space) between 0 and 1, strength, seed -> planes of the same shape.
    """

    unit: str
    strengths: tuple[float, ...]
    spoil: Callable[[Planes, float, int], Planes]


@dataclass(frozen=True, slots=True)
class Curve:
    """Both classifiers under one fault.

    Attributes:
        reference, candidate: accuracy at strength 0 and at each of `strengths`.
        agreement: share of cases that both decide alike, at the same places.
        fall: how much more accuracy the candidate loses than the reference, mean over the strengths, negative if it
            loses more; `low` and `high` bound it (95 %, BCa bootstrap over patients), None where no case changed.
        p_value: of no difference, from the bootstrap's normal approximation, Holm-adjusted over the faults.
    """

    fault: str
    unit: str
    strengths: tuple[float, ...]
    reference: tuple[float, ...]
    candidate: tuple[float, ...]
    agreement: tuple[float, ...]
    fall: float
    low: float | None
    high: float | None
    p_value: float


@dataclass(frozen=True, slots=True)
class Robustness:
    """Curves of all faults, with what they were measured on."""

    reference: dict[str, Any]
    candidate: dict[str, Any]
    cohort: dict[str, Any]
    conditions: dict[str, Any]
    curves: tuple[Curve, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON objects under a versioned schema."""
        return {"kind": KIND, "schema": SCHEMA, **asdict(self)}


def robustness(
    candidate: Bundle, reference: Bundle, cohort: Cohort, conditions: Conditions, progress: Progress | None = None
) -> Robustness:
    """Decide every case under every fault with both; time grows with cases x 36 inferences of both, memory with a case.

    Raises:
        BundleError, CohortError: as `collect`.
    """
    check_alike(candidate, reference)
    check_fit(reference, cohort)
    pair = [
        open_runtime(bundle, conditions.runtime, precision=conditions.precision, threads=conditions.threads)
        for bundle in (reference, candidate)
    ]
    hits, same, patients = _decide_all(reference, pair, cohort, progress)
    for runtime in pair:
        runtime.close()
    groups = clusters(patients)
    curves = [_curve(name, groups.sums(_falls(part)), part, same[index]) for index, (name, part) in enumerate(hits)]
    adjusted = multipletests([curve.p_value for curve in curves], method="holm")[1]
    held = {"name": cohort.name, "digest": cohort.digest, "cases": len(patients), "patients": groups.count}
    return Robustness(
        bundle_facts(reference), bundle_facts(candidate), held,
        {**asdict(conditions), "runtime_name": pair[0].name, **machine_facts()},
        tuple(dataclasses.replace(curve, p_value=float(p)) for curve, p in zip(curves, adjusted, strict=True)),
    )  # fmt: skip


Answers = NDArray[np.int64]


def _decide_all(
    bundle: Bundle, pair: Sequence[Runtime], cohort: Cohort, progress: Progress | None
) -> tuple[list[tuple[str, NDArray[np.float64]]], list[tuple[float, ...]], list[str]]:
    """Per fault: hits (cases, 2, 1 + strengths) with its name, and the agreement; the cases' patients."""
    preprocess, rule, head = (
        parse_preprocess(bundle.spec.preprocess), parse_rule(bundle.spec.decision), parse_head(bundle.spec.head),
    )  # fmt: skip
    labels = {label: index for index, label in enumerate(head.labels)}
    answers, truth, patients, number = [], [], [], 0
    for items in cohort.cases(rule.unit).values():
        part = dataclasses.replace(cohort, instances=items)
        logits: list[list[list[NDArray[np.float32]]]] = [[[] for _ in PLACES] for _ in pair]
        for inputs in inputs_of(part, preprocess):
            for place, pixels in enumerate(spoilt(part, inputs, preprocess, number)):
                for side, runtime in enumerate(pair):
                    logits[side][place].append(runtime.infer(pixels[None]))
            number += 1
        decided = [[decide(rule, head, np.concatenate(found)).label for found in side] for side in logits]
        answers.append([[labels.get(label or "", -1) for label in side] for side in decided])
        truth.append(labels[items[0].label])
        patients.append(cohort.pseudonym(items[0].patient))
        if progress is not None:
            progress(len(items), "")
    return (*_by_fault(np.array(answers), np.array(truth)), patients)


def _by_fault(
    answers: Answers, truth: Answers
) -> tuple[list[tuple[str, NDArray[np.float64]]], list[tuple[float, ...]]]:
    """Split answers (cases, 2, places) by fault, each with the untouched picture first."""
    hits, same = [], []
    for name in FAULTS:
        chosen = [0, *(index for index, (fault, _) in enumerate(PLACES) if fault == name)]
        part = answers[:, :, chosen]
        hits.append((name, (part == truth[:, None, None]).astype(np.float64)))
        same.append(tuple((part[:, 0] == part[:, 1]).mean(axis=0).tolist()))
    return hits, same


def spoilt(
    cohort: Cohort, items: Sequence[Instance], preprocess: Preprocess, number: int, strengths: int = STRENGTHS
) -> Iterator[Planes]:
    """One input preprocessed, untouched and then under every fault, in the order of PLACES.

    Args:
        strengths: so many of each fault's, the least first.
    """
    image = read(cohort, items, preprocess)
    for place, (name, strength) in enumerate(PLACES):
        if name is None:
            yield preprocess(image)
        elif strength in FAULTS[name].strengths[:strengths]:
            yield preprocess(_spoil(image, FAULTS[name], strength, 1000 * number + place))


def _spoil(image: Image | Volume, fault: Fault, strength: float, seed: int) -> Image | Volume:
    flat = isinstance(image, Volume) or image.pixels.ndim == 2
    planes = image.pixels[None] if flat else np.moveaxis(image.pixels, -1, 0)
    low, high = float(planes.min()), float(planes.max())
    if high <= low:
        return image
    worse = fault.spoil((planes - low) / (high - low), strength, seed) * np.float32(high - low) + np.float32(low)
    pixels = worse[0] if flat else np.moveaxis(worse, 0, -1)
    return dataclasses.replace(image, pixels=np.ascontiguousarray(pixels, dtype=np.float32))


def _falls(hits: NDArray[np.float64]) -> NDArray[np.float64]:
    """(cases, 2): a case's term of `fall`, and 1."""
    lost = hits[:, :, 1:].mean(axis=2) - hits[:, :, 0]
    return np.stack([lost[:, 1] - lost[:, 0], np.ones(len(hits))], axis=1)


def _curve(name: str, sums: NDArray[np.float64], hits: NDArray[np.float64], same: tuple[float, ...]) -> Curve:
    found = bootstrap(sums, lambda totals: totals[:, :1] / totals[:, 1:])
    fall, low, high, error = (
        float(part[0]) for part in (found.value, found.low, found.high, found.standard_error)
    )  # fmt: skip
    both = hits.mean(axis=0)
    return Curve(
        name, FAULTS[name].unit, FAULTS[name].strengths, tuple(both[0].tolist()), tuple(both[1].tolist()), same,
        fall, None if np.isnan(low) else low, None if np.isnan(high) else high, _two_sided(fall, error),
    )  # fmt: skip


def _two_sided(value: float, error: float) -> float:
    return 1.0 if error == 0 else float(2 * norm.sf(abs(value) / error))


def _array(found: Any) -> Planes:
    return np.asarray(found, dtype=np.float32)


def _coin(seed: int, sides: int) -> int:
    return int(np.random.default_rng(seed).integers(sides))


def _noise(planes: Planes, strength: float, seed: int) -> Planes:
    transform = RandRicianNoise(prob=1.0, std=strength, relative=False, sample_std=False)
    transform.set_random_state(seed)
    return _array(transform(torch.from_numpy(planes)))


def _bias_field(planes: Planes, strength: float, seed: int) -> Planes:
    transform = RandBiasField(degree=3, coeff_range=(-strength, strength), prob=1.0)
    transform.set_random_state(seed)
    return _array(transform(torch.from_numpy(planes)))


def _blur(planes: Planes, strength: float, _: int) -> Planes:
    return _array(GaussianSmooth(sigma=strength)(torch.from_numpy(planes)))


def _gamma(planes: Planes, strength: float, _: int) -> Planes:
    return _array(AdjustContrast(gamma=strength)(torch.from_numpy(planes)))


def _rotation(planes: Planes, strength: float, seed: int) -> Planes:
    angle: Any = (1, -1)[_coin(seed, 2)] * np.deg2rad(strength)
    if planes.ndim == 4:
        angle = (angle, 0.0, 0.0)  # about the slices' normal
    return _array(Rotate(angle=angle, keep_size=True, padding_mode="border")(torch.from_numpy(planes)))


def _missing_border(planes: Planes, strength: float, seed: int) -> Planes:
    side, worse = _coin(seed, 4), planes.copy()
    axis = planes.ndim - 2 + side % 2
    width = max(round(strength * planes.shape[axis]), 1)
    where = [slice(None)] * planes.ndim
    where[axis] = slice(0, width) if side < 2 else slice(planes.shape[axis] - width, None)
    worse[tuple(where)] = 0.0
    return worse


def _other_window(planes: Planes, strength: float, seed: int) -> Planes:
    low = strength * (0.25, 0.75)[_coin(seed, 2)]
    return np.asarray(np.clip((planes - low) / (1 - strength), 0, 1), dtype=np.float32)


FAULTS: dict[str, Fault] = {
    "noise": Fault("SD of Rician noise, share of the range", (0.02, 0.04, 0.08, 0.12, 0.16), _noise),
    "bias field": Fault("largest coefficient, third degree", (0.1, 0.2, 0.3, 0.45, 0.6), _bias_field),
    "blur": Fault("sigma, pixels", (0.5, 1.0, 1.5, 2.0, 3.0), _blur),
    "gamma": Fault("exponent", (0.5, 0.7, 1.4, 1.8, 2.5), _gamma),
    "rotation": Fault("degrees", (2.0, 5.0, 8.0, 12.0, 16.0), _rotation),
    "missing border": Fault("share of a side, set to the least value", (0.05, 0.1, 0.15, 0.2, 0.3), _missing_border),
    "other window": Fault("share of the range that is cut off", (0.1, 0.2, 0.3, 0.45, 0.6), _other_window),
}
PLACES: tuple[tuple[str | None, float], ...] = (
    (None, 0.0),
    *((name, strength) for name, fault in FAULTS.items() for strength in fault.strengths),
)
