"""Latency of two runtimes, interleaved A B B A, so that a drifting machine slows both alike."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hscc_edge.runtime import Runtime

WARM_UP = 5
MINIMUM = 20


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds a call, batch 1, model alone: decoding and preprocessing are not in it."""

    samples: int
    p50_ms: float
    p90_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Race:
    """Reference against candidate; `speedup` is the ratio of medians with the 95 % interval of a paired bootstrap."""

    reference: Latency
    candidate: Latency
    speedup: float
    low: float
    high: float
    reference_ms: tuple[float, ...]
    candidate_ms: tuple[float, ...]


def race(reference: Runtime, candidate: Runtime, images: Sequence[NDArray[np.float32]], seconds: float) -> Race:
    """Time both on the same images for about `seconds`, at least MINIMUM calls each.

    Args:
        images: a few preprocessed images (C, H, W), used in turn.
    """
    for runtime in (reference, candidate):
        for index in range(WARM_UP):
            runtime.infer(images[index % len(images)][None])
    times: tuple[list[float], list[float]] = ([], [])
    runtimes = (reference, candidate)
    deadline = time.perf_counter() + seconds
    while len(times[0]) < MINIMUM or time.perf_counter() < deadline:
        image = images[len(times[0]) // 2 % len(images)][None]
        for side in (0, 1, 1, 0):
            times[side].append(_call_ms(runtimes[side], image))
    return _race(*(np.array(side) for side in times))


def _call_ms(runtime: Runtime, image: NDArray[np.float32]) -> float:
    start = time.perf_counter_ns()
    runtime.infer(image)
    return (time.perf_counter_ns() - start) / 1e6


def _race(first: NDArray[np.float64], second: NDArray[np.float64]) -> Race:
    generator = np.random.default_rng(0)
    picks = generator.integers(0, len(first), size=(1000, len(first)))
    ratios = np.median(first[picks], axis=1) / np.median(second[picks], axis=1)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return Race(
        reference=_latency(first),
        candidate=_latency(second),
        speedup=float(np.median(first) / np.median(second)),
        low=float(low),
        high=float(high),
        reference_ms=tuple(round(float(value), 4) for value in first),
        candidate_ms=tuple(round(float(value), 4) for value in second),
    )


def _latency(samples: NDArray[np.float64]) -> Latency:
    p50, p90, p99 = (float(value) for value in np.percentile(samples, (50, 90, 99)))
    return Latency(len(samples), p50, p90, p99)
