"""The one timer: calls interleaved A B B A, so that drift slows all alike, and percentiles with their intervals."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from hscc_edge.runtime import Runtime

WARM_UP = 5
MINIMUM = 20
LEVEL = 0.95
SHARES = (0.5, 0.9, 0.99, 0.999)
ROUNDS = 7
ROUND_MS, LEAST_CALLS, MOST_CALLS = 4.0, 3, 20  # of one runtime in a round
SWEEPS = 8
Images = NDArray[np.float32]
Call = tuple[Runtime, Images]
Times = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Percentile:
    """A percentile of the calls' times.

    Attributes:
        share: such as 0.99.
        ms: as observed; None below `needed` samples, where no upper bound can be given.
        low_ms, high_ms: distribution-free 95 % interval from two order statistics (binomial; Conover, Practical
            Nonparametric Statistics, 3.2). It takes calls as independent; None where the samples do not reach so far.
        needed: samples from which on the interval has an upper end.
    """

    share: float
    ms: float | None
    low_ms: float | None
    high_ms: float | None
    needed: int


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds a call, model alone: decoding and preprocessing are not in it."""

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


def race(reference: Runtime, candidate: Runtime, images: Sequence[Images], seconds: float) -> Race:
    """Time both on the same images, batch 1, for about `seconds`, at least MINIMUM calls each.

    Args:
        images: a few preprocessed images (C, H, W), used in turn.
    """
    for runtime in (reference, candidate):
        for index in range(WARM_UP):
            runtime.infer(images[index % len(images)][None])
    first, second = sample((reference, candidate), [image[None] for image in images], seconds)
    return compare_times(first, second)


def sample(
    runtimes: Sequence[Runtime], batches: Sequence[Images], seconds: float, least: int = MINIMUM
) -> tuple[Times, ...]:
    """Milliseconds of every call of each runtime, forth and back (A B B A) on one batch, for about `seconds`.

    Where another runtime ran before, one call goes untimed: it brings the weights back into the processor's cache, as
    they are where one network serves alone.

    Args:
        batches: (B, C, H, W) each, used in turn.
        least: calls of each runtime, however long they take.
    """
    times: tuple[list[float], ...] = tuple([] for _ in runtimes)
    order = (*range(len(runtimes)), *reversed(range(len(runtimes))))
    last, deadline = -1, time.perf_counter() + seconds
    while len(times[0]) < least or time.perf_counter() < deadline:
        batch = batches[len(times[0]) // 2 % len(batches)]
        for side in order:
            if side != last:
                call_ms(runtimes[side], batch)
            last = side
            times[side].append(call_ms(runtimes[side], batch))
    return tuple(np.array(side) for side in times)


def call_ms(runtime: Runtime, images: Images) -> float:
    """Wall milliseconds of one call."""
    start = time.perf_counter_ns()
    runtime.infer(images)
    return (time.perf_counter_ns() - start) / 1e6


def medians(calls: Sequence[Call], *, own_clock: bool, rounds: int = ROUNDS) -> list[float]:
    """Median milliseconds of the first of many calls, and by its share of it in each round that of each of the others.

    All are called in turn, each a few times in a round, and the first call of each turn goes untimed, as in `sample`.
    A machine that drifts from round to round changes no share.

    Args:
        own_clock: time by the calling thread's processor clock, which leaves out what else runs on the machine; only
            where this thread does all the work.
    """
    timer = _Timer(own_clock)
    repeats = [timer.repeats(call) for call in calls]
    found = [[timer.mean_ms(call, count) for call, count in zip(calls, repeats, strict=True)] for _ in range(rounds)]
    return _by_share(np.array(found))


def medians_between(whole: Call, calls: Sequence[Call], *, own_clock: bool) -> tuple[float, list[float]]:
    """Median milliseconds of one call as `medians` takes it, and of others, by their shares, that are never repeated.

    Each of the others is called after all the rest, SWEEPS times a round and once untimed, so that it finds in the
    processor's caches what it would find between other layers of a network, and not what it left there itself.
    """
    timer, rounds = _Timer(own_clock), []
    repeats = timer.repeats(whole)
    for _ in range(ROUNDS):
        whole_ms = timer.mean_ms(whole, repeats)
        sweeps = [[timer.once_ms(call) for call in calls] for _ in range(1 + SWEEPS)][1:]
        rounds.append([whole_ms, *np.median(np.array(sweeps), axis=0)])
    first, *others = _by_share(np.array(rounds))
    return first, others


def _by_share(rounds: Times) -> list[float]:
    """(rounds, calls) -> the first's median, and the others' by their median share of it."""
    shares = np.median(rounds / rounds[:, :1], axis=0)
    return [float(value) for value in np.median(rounds[:, 0]) * shares]


class _Timer:
    def __init__(self, own_clock: bool) -> None:
        self._clock = time.thread_time_ns if own_clock else time.perf_counter_ns

    def once_ms(self, call: Call) -> float:
        start = self._clock()
        call[0].infer(call[1])
        return (self._clock() - start) / 1e6

    def mean_ms(self, call: Call, count: int) -> float:
        call[0].infer(call[1])
        start = self._clock()
        for _ in range(count):
            call[0].infer(call[1])
        return (self._clock() - start) / 1e6 / count

    def repeats(self, call: Call) -> int:
        self.mean_ms(call, 1)
        return int(min(max(ROUND_MS / max(self.mean_ms(call, 1), 1e-3), LEAST_CALLS), MOST_CALLS))


def compare_times(first: Times, second: Times) -> Race:
    """The race that these samples (ms, as many of both) tell."""
    low, high = speedup_interval(first, second)
    return Race(
        reference=_latency(first),
        candidate=_latency(second),
        speedup=float(np.median(first) / np.median(second)),
        low=low,
        high=high,
        reference_ms=tuple(round(float(value), 4) for value in first),
        candidate_ms=tuple(round(float(value), 4) for value in second),
    )


def speedup_interval(first: Times, second: Times) -> tuple[float, float]:
    """95 % interval of the ratio of medians, by a bootstrap of paired calls."""
    picks = np.random.default_rng(0).integers(0, len(first), size=(1000, len(first)))
    ratios = np.median(first[picks], axis=1) / np.median(second[picks], axis=1)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return float(low), float(high)


def _latency(samples: Times) -> Latency:
    p50, p90, p99 = (float(value) for value in np.percentile(samples, (50, 90, 99)))
    return Latency(len(samples), p50, p90, p99)


def jitter(samples: Times) -> float:
    """Mean absolute difference between one call's time and the next one's, in milliseconds."""
    return float(np.abs(np.diff(samples)).mean()) if len(samples) > 1 else 0.0


def percentile(samples: Times, share: float) -> Percentile:
    """One percentile of samples in milliseconds, with its interval."""
    ordered, count, tail = np.sort(samples), len(samples), (1 - LEVEL) / 2
    needed = math.ceil(math.log(tail) / math.log(max(share, 1 - share)))
    lower, upper = int(binom.ppf(tail, count, share)), int(binom.ppf(1 - tail, count, share)) + 1
    return Percentile(
        share=share,
        ms=float(np.quantile(ordered, share)) if count >= needed else None,
        low_ms=float(ordered[lower - 1]) if lower >= 1 else None,
        high_ms=float(ordered[upper - 1]) if upper <= count else None,
        needed=needed,
    )
