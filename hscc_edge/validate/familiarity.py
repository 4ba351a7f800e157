"""Is a case like those the classifier was calibrated on? A limit of free energy, its false alarms, what it catches.

The score is the free energy of the logits that every runtime gives (`model.head.energy`), so that the daemon needs no
further output of the network. The limit is a quantile of the calibration cases; no score catches everything foreign,
so what it catches of five kinds of foreign pictures is measured and told beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hscc_edge.bundle import Bundle
from hscc_edge.data.case import inputs_of, read
from hscc_edge.data.cohort import Cohort
from hscc_edge.data.dicom import Image
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.data.volume import Volume
from hscc_edge.errors import CohortError
from hscc_edge.model.head import Head, energy
from hscc_edge.runtime import Runtime
from hscc_edge.validate.intervals import Proportion, share
from hscc_edge.validate.predict import Case
from hscc_edge.validate.resampling import clusters

LEAST_CASES = 20
Pixels = NDArray[np.float32]
Progress = Callable[[int, str], None]


@dataclass(frozen=True, slots=True)
class Caught:
    """What a limit catches of one kind of foreign picture, image by image."""

    kind: str
    share: Proportion


def case_energy(case: Case, head: Head) -> float:
    """Mean free energy over a case's images, as `decide` compares it with the limit."""
    return float(energy(head, case.logits).mean())


def limit(cases: Sequence[Case], head: Head, false_alarms: float) -> float:
    """The energy that a share `false_alarms` of calibration cases exceeds, in (0, 1): an upper empirical quantile.

    Raises:
        CohortError: if there are too few cases for that share: one case at least must be beyond the limit.
    """
    needed = max(int(np.ceil(1 / false_alarms)), LEAST_CASES)
    if len(cases) < needed:
        raise CohortError(
            f"the split has {len(cases)} cases: a false-alarm rate of {100 * false_alarms:g} % needs {needed}; give a "
            "larger split or allow more false alarms"
        )
    values = [case_energy(case, head) for case in cases]
    return float(np.quantile(values, 1 - false_alarms, method="higher"))


def alarms(cases: Sequence[Case], head: Head, energy_limit: float) -> Proportion:
    """The share of cases beyond the limit, with its interval over patients: on cases like these, false alarms."""
    beyond = np.array([case_energy(case, head) > energy_limit for case in cases])
    return share(beyond, clusters([case.patient for case in cases]))


def caught(
    bundle: Bundle, runtime: Runtime, cohort: Cohort, energy_limit: float, head: Head, progress: Progress | None = None
) -> tuple[Caught, ...]:
    """How many of a split's pictures are caught once they are made foreign; one picture in memory at a time."""
    preprocess = parse_preprocess(bundle.spec.preprocess)
    beyond: dict[str, list[bool]] = {kind: [] for kind in FOREIGN}
    patients = []
    for number, items in enumerate(inputs_of(cohort, preprocess)):
        image = read(cohort, items, preprocess)
        for kind, change in FOREIGN.items():
            pixels = preprocess(_changed(image, change, number))
            beyond[kind].append(bool(energy(head, runtime.infer(pixels[None]))[0] > energy_limit))
        patients.append(cohort.pseudonym(items[0].patient))
        if progress is not None:
            progress(1, "")
    groups = clusters(patients)
    return tuple(Caught(kind, share(np.array(found), groups)) for kind, found in beyond.items())


def _changed(image: Image | Volume, change: Callable[[Pixels, int], Pixels], number: int) -> Image | Volume:
    pixels = np.ascontiguousarray(change(image.pixels, number), dtype=np.float32)
    return dataclasses.replace(image, pixels=pixels, padding=None)


def _noise(pixels: Pixels, number: int) -> Pixels:
    return np.random.default_rng(number).random(pixels.shape, dtype=np.float32)


def _shuffled(pixels: Pixels, number: int) -> Pixels:
    """The same values in other places: no anatomy, the same histogram."""
    return np.random.default_rng(number).permutation(pixels.reshape(-1)).reshape(pixels.shape)


def _inverted(pixels: Pixels, _: int) -> Pixels:
    return np.asarray(pixels.max() + pixels.min() - pixels)


def _stripes(pixels: Pixels, number: int) -> Pixels:
    """A test pattern."""
    period = 4 + number % 13
    return np.broadcast_to((np.arange(pixels.shape[-1]) // period % 2).astype(np.float32), pixels.shape)


def _gradient(pixels: Pixels, _: int) -> Pixels:
    """A ramp, as of a picture without anything."""
    return np.broadcast_to(np.linspace(0, 1, pixels.shape[-1], dtype=np.float32), pixels.shape)


FOREIGN: dict[str, Callable[[Pixels, int], Pixels]] = {
    "noise": _noise,
    "shuffled pixels": _shuffled,
    "dark and bright exchanged": _inverted,
    "stripes": _stripes,
    "ramp": _gradient,
}
