"""Energy an image: each network alone, block after block, while the power sensors are read.

Calls that alternate within milliseconds cannot be told apart by a sensor read a few times a second, hence blocks, in
the order A B B A, with the idle device before them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hscc_edge.runtime import Runtime
from hscc_edge.validate.telemetry import Sensor, Telemetry, recorded, summarise

IDLE_S = 2.0


@dataclass(frozen=True, slots=True)
class Energy:
    """What one network drew, batch 1, one image after the other.

    Attributes:
        watts: mean while it ran; `idle_watts` of the same device before.
        joules_an_image: power integrated over its blocks, by its images.
        above_idle_joules: the same less what the idle device would have drawn meanwhile.
        of: what the energy is of.
    """

    name: str
    images: int
    seconds: float
    watts: float
    idle_watts: float
    joules_an_image: float
    above_idle_joules: float
    of: str


def has_power(sensors: Sequence[Sensor]) -> bool:
    """Whether any sensor measures power or energy."""
    return any(sensor.kind in ("watts", "joules") for sensor in sensors)


def measure_energy(
    runtimes: Sequence[Runtime],
    images: Sequence[NDArray[np.float32]],
    seconds: float,
    sensors: Sequence[Sensor],
    idle_s: float = IDLE_S,
) -> tuple[Energy, ...]:
    """Run each network for about `seconds`, in two blocks.

    Args:
        sensors: some of them of power or energy.
        images: a few preprocessed images (C, H, W), used in turn.
    """
    with recorded(sensors) as readings:
        time.sleep(idle_s)
    idle = summarise(sensors, readings)
    idle_watts = (idle.energy_j or 0.0) / idle.seconds
    blocks: list[list[tuple[int, Telemetry]]] = [[] for _ in runtimes]
    for side in (*range(len(runtimes)), *reversed(range(len(runtimes)))):
        with recorded(sensors) as readings:
            count = _run(runtimes[side], images, seconds / 2)
        blocks[side].append((count, summarise(sensors, readings)))
    return tuple(
        _energy(runtime.name, part, idle_watts, idle.energy_of) for runtime, part in zip(runtimes, blocks, strict=True)
    )


def _run(runtime: Runtime, images: Sequence[NDArray[np.float32]], seconds: float) -> int:
    count, deadline = 0, time.perf_counter() + seconds
    while count == 0 or time.perf_counter() < deadline:
        runtime.infer(images[count % len(images)][None])
        count += 1
    return count


def _energy(name: str, blocks: Sequence[tuple[int, Telemetry]], idle_watts: float, of: str) -> Energy:
    images = sum(count for count, _ in blocks)
    seconds = sum(found.seconds for _, found in blocks)
    joules = sum(found.energy_j or 0.0 for _, found in blocks)
    return Energy(
        name,
        images,
        seconds,
        joules / seconds,
        idle_watts,
        joules / images,
        (joules - idle_watts * seconds) / images,
        of,
    )
