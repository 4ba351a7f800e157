"""Three ways in which work reaches a classifier, timed until a percentile or a throughput can be stated.

The names are this project's own, and so are the rules: nothing here is a result of MLPerf, whose scenarios they
resemble. Both networks run in turn (A B B A) on the same images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hscc_edge.errors import InputError
from hscc_edge.runtime import Runtime
from hscc_edge.validate.latency import (
    MINIMUM,
    SHARES,
    Percentile,
    Times,
    call_ms,
    jitter,
    percentile,
    sample,
    speedup_interval,
)

WINDOW = 10
WARM_UP = 50
MOST_WARM_UP = 300
STABLE = 0.05
RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way in which work comes.

    Attributes:
        images: in one query, handed over as one batch.
        share: the percentile that counts, such as 0.9; None where the throughput does.
    """

    name: str
    images: int
    share: float | None
    text: str


SCENARIOS = {
    item.name: item
    for item in (
        Scenario("single", 1, 0.90, "one image after the other; 90th percentile of the query's time"),
        Scenario("burst", 8, 0.99, "eight images at once; 99th percentile of the query's time"),
        Scenario("backlog", 32, None, "32 images at once, one query after the other; images a second"),
    )
}


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What went before: calls, and whether the medians of the last two windows of WINDOW calls differ under 5 %."""

    calls: int
    stable: bool


@dataclass(frozen=True, slots=True)
class Side:
    """One network in one scenario.

    Attributes:
        mean_ms, jitter_ms: of a query; jitter is the mean absolute difference from one query to the next.
        percentiles: with intervals; their `ms` is None where the samples are too few to say it.
        images_s: images a second while queries follow each other without a pause, with its 95 % bootstrap interval.
        samples_ms: every query, in order.
    """

    name: str
    warm_up: WarmUp
    samples: int
    mean_ms: float
    jitter_ms: float
    percentiles: tuple[Percentile, ...]
    images_s: float
    images_s_low: float
    images_s_high: float
    samples_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A scenario's sides, candidate last; `speedup` is the ratio of medians with its interval, None for one side.

    `remark` says what the samples do not support, or why it was not run.
    """

    scenario: Scenario
    sides: tuple[Side, ...]
    speedup: tuple[float, float, float] | None
    remark: str


def scenario_of(name: str) -> Scenario:
    """The scenario of this name.

    Raises:
        InputError: if there is none.
    """
    if name not in SCENARIOS:
        raise InputError(f"the scenario {name!r} is unknown: expected one of {', '.join(SCENARIOS)}")
    return SCENARIOS[name]


def play(
    scenario: Scenario, runtimes: Sequence[Runtime], images: Sequence[NDArray[np.float32]], seconds: float
) -> Outcome:
    """Warm up until stable, then time queries of all runtimes in turn for about `seconds`.

    Args:
        runtimes: the candidate, or the reference and the candidate.
        images: a few preprocessed images (C, H, W), used in turn.
    """
    batches = list(queries(images, scenario.images))
    try:
        warmed = [warm_up(runtime, batches[0]) for runtime in runtimes]
    except InputError as error:  # such as an engine built for smaller batches
        return Outcome(scenario, (), None, f"not run: {error}")
    times = sample(runtimes, batches, seconds, MINIMUM)
    sides = tuple(
        _side(runtime.name, warm, part, scenario.images)
        for runtime, warm, part in zip(runtimes, warmed, times, strict=True)
    )
    speedup = None
    if len(times) == 2:
        speedup = (float(np.median(times[0]) / np.median(times[1])), *speedup_interval(*times))
    return Outcome(scenario, sides, speedup, _remark(scenario, sides))


def queries(images: Sequence[NDArray[np.float32]], count: int) -> Sequence[NDArray[np.float32]]:
    """Batches (count, C, H, W), each beginning with another of the images."""
    return [np.stack([images[(start + step) % len(images)] for step in range(count)]) for start in range(len(images))]


def warm_up(runtime: Runtime, batch: NDArray[np.float32]) -> WarmUp:
    """At least WARM_UP calls, and on until two windows' medians agree; at most MOST_WARM_UP calls."""
    times = [call_ms(runtime, batch) for _ in range(WARM_UP)]
    while len(times) < MOST_WARM_UP and not _stable(times):
        times += [call_ms(runtime, batch) for _ in range(WINDOW)]
    return WarmUp(len(times), _stable(times))


def _stable(times: Sequence[float]) -> bool:
    before, after = np.median(times[-2 * WINDOW : -WINDOW]), np.median(times[-WINDOW:])
    return bool(abs(after - before) <= STABLE * before)


def _side(name: str, warm: WarmUp, times: Times, images: int) -> Side:
    picks = np.random.default_rng(0).integers(0, len(times), size=(RESAMPLES, len(times)))
    low, high = np.percentile(1000 * images / times[picks].mean(axis=1), (2.5, 97.5))
    return Side(
        name=name,
        warm_up=warm,
        samples=len(times),
        mean_ms=float(times.mean()),
        jitter_ms=jitter(times),
        percentiles=tuple(percentile(times, share) for share in SHARES),
        images_s=float(1000 * images / times.mean()),
        images_s_low=float(low),
        images_s_high=float(high),
        samples_ms=tuple(round(float(value), 4) for value in times),
    )


def _remark(scenario: Scenario, sides: Sequence[Side]) -> str:
    """What the samples do not support."""
    remarks = [f"{side.name}: not stable after {side.warm_up.calls} calls" for side in sides if not side.warm_up.stable]
    counts = [item for side in sides for item in side.percentiles if item.share == scenario.share and item.ms is None]
    if counts:
        needed, had = counts[0].needed, min(side.samples for side in sides)
        seconds = math.ceil(needed * sum(side.mean_ms for side in sides) / 1000)
        remarks.append(
            f"{had} queries are too few for the {100 * counts[0].share:g}th percentile: {needed} are needed, "
            f"about {seconds} s"
        )
    return "; ".join(remarks)
