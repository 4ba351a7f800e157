"""Temperature, clocks, power and throttling from Linux's sysfs, while something else is measured.

Thermal zones, cpufreq, devfreq (the GPU of a Jetson), hwmon (INA3221 rails, over-current counters) and RAPL's energy
counters, which only root may read on most systems. What is not there is named, never guessed.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import trapezoid

from hscc_edge.export.devices import read_text
from hscc_edge.export.doctor_power import gpu_nodes, rail_channels, read_number
from hscc_edge.power_mode import current_name

INTERVAL_S = 0.2
Values = NDArray[np.float64]
WHOLE = ("VDD_IN", "POM_5V_IN")
THROTTLE = "-throttle-alert"  # cooling devices by which Jetson Linux tells that it slows a unit down
KINDS = {"celsius": "temperature", "megahertz": "clocks", "watts": "power", "joules": "energy counters (RAPL)",
         "events": "throttling"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sensor:
    """One number of sysfs: the product of what its files hold, times `scale`; `kind` (one of KINDS) is its unit.

    Attributes:
        wrap: where a counter begins anew, in the kind's unit; inf for what is no counter.
        state: an event that is going on while the number is above 0, in place of a counter of events.
    """

    kind: str
    name: str
    paths: tuple[Path, ...]
    scale: float
    wrap: float = math.inf
    state: bool = False

    def read(self) -> float | None:
        """Its value now; None if it cannot be read, or is a zone that is switched off."""
        numbers = [read_number(path) for path in self.paths]
        if any(number is None for number in numbers) or (self.kind == "celsius" and (numbers[0] or 0) <= 0):
            return None
        return self.scale * math.prod(float(number or 0) for number in numbers)


@dataclass(frozen=True, slots=True)
class Reading:
    """All sensors at one time; `at_s` is monotonic, `values` are in the order of the sensors."""

    at_s: float
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Telemetry:
    """A time of measurement, as its sensors saw it.

    Attributes:
        celsius: zone -> first, last and highest; megahertz: clock -> lowest, mean and highest.
        watts: rail -> mean; joules: rail or RAPL domain -> energy, the integral of power by trapezoids.
        events: counters of throttling that rose -> by how much; alerts that were on -> their highest state.
        energy_j: of the whole device, None where nothing measures it; `energy_of` says what it is of.
        not_measured: kinds of which no sensor could be read.
    """

    seconds: float
    readings: int
    celsius: Mapping[str, tuple[float, float, float]]
    megahertz: Mapping[str, tuple[float, float, float]]
    watts: Mapping[str, float]
    joules: Mapping[str, float]
    events: Mapping[str, float]
    energy_j: float | None
    energy_of: str
    not_measured: tuple[str, ...]


def find_sensors(root: Path = Path("/")) -> tuple[Sensor, ...]:
    """Every sensor below `root` that can be read now."""
    found = (*_zones(root), *_clocks(root), *_rails(root), *_rapl(root), *_throttling(root))
    return tuple(sensor for sensor in found if sensor.read() is not None)


def settings(root: Path = Path("/")) -> dict[str, Any]:
    """Power mode, CPU governors, free memory, temperatures and clocks; "not measured" for what the machine hides."""
    folders = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq"))
    governors = sorted({read_text(folder / "scaling_governor").strip() for folder in folders} - {""})
    memory = [line.split() for line in read_text(root / "proc/meminfo").splitlines()]
    free = next((int(words[1]) // 1024 for words in memory if words and words[0] == "MemAvailable:"), None)
    return {
        "power_mode": current_name(root) or "not measured",
        "governors": governors or "not measured",
        "available_mib": "not measured" if free is None else free,
        **{kind: _now(root, kind) or "not measured" for kind in ("celsius", "megahertz")},
    }


def _now(root: Path, kind: str) -> dict[str, float]:
    """Sensors of a kind -> what they say now."""
    found = ((sensor.name, sensor.read()) for sensor in find_sensors(root) if sensor.kind == kind)
    return {name: value for name, value in found if value is not None}


@contextmanager
def recorded(sensors: Sequence[Sensor], interval_s: float = INTERVAL_S) -> Iterator[list[Reading]]:
    """Read all sensors at the start, every `interval_s` by a thread, and at the end; the list grows meanwhile."""
    readings, stop = [read(sensors)], threading.Event()

    def follow() -> None:
        while not stop.wait(interval_s):
            readings.append(read(sensors))

    thread = threading.Thread(target=follow, daemon=True)
    if sensors:
        thread.start()
    try:
        yield readings
    finally:
        stop.set()
        if sensors:
            thread.join()
        readings.append(read(sensors))


def read(sensors: Sequence[Sensor]) -> Reading:
    """All sensors now."""
    return Reading(time.perf_counter(), tuple(sensor.read() for sensor in sensors))


def summarise(sensors: Sequence[Sensor], readings: Sequence[Reading]) -> Telemetry:
    """What the readings say, two or more of them."""
    at_s = np.array([reading.at_s for reading in readings])
    series: dict[str, dict[str, tuple[Values, Values, Sensor]]] = {kind: {} for kind in KINDS}
    for index, sensor in enumerate(sensors):
        values = np.array([math.nan if (v := item.values[index]) is None else v for item in readings])
        held = ~np.isnan(values)
        if held.any():
            series[sensor.kind][sensor.name] = at_s[held], values[held], sensor
    watts = {name: _mean(times, values) for name, (times, values, _) in series["watts"].items()}
    joules = {name: float(trapezoid(values, times)) for name, (times, values, _) in series["watts"].items()}
    counted = {name: _risen(values, sensor.wrap) for name, (_, values, sensor) in series["joules"].items()}
    events = {
        name: float(values.max()) if sensor.state else _risen(values, sensor.wrap)
        for name, (_, values, sensor) in series["events"].items()
    }
    energy_j, energy_of = _whole(joules, counted)
    return Telemetry(
        seconds=float(at_s[-1] - at_s[0]),
        readings=len(readings),
        celsius={name: (float(v[0]), float(v[-1]), float(v.max())) for name, (_, v, _) in series["celsius"].items()},
        megahertz={
            name: (float(v.min()), float(v.mean()), float(v.max())) for name, (_, v, _) in series["megahertz"].items()
        },
        watts=watts,
        joules={**joules, **counted},
        events={name: rise for name, rise in events.items() if rise > 0},
        energy_j=energy_j,
        energy_of=energy_of,
        not_measured=tuple(words for kind, words in KINDS.items() if not series[kind]),
    )


def throttled(found: Sequence[Telemetry]) -> tuple[str, ...]:
    """What throttled the device while any of these was recorded, each with its count or state; empty if nothing did."""
    highest: dict[str, float] = {}
    for item in found:
        for name, count in item.events.items():
            highest[name] = max(count, highest.get(name, 0.0))
    return tuple(f"{name}: {count:g}" for name, count in sorted(highest.items()))


def _mean(times: Values, values: Values) -> float:
    """Over time, as readings need not be evenly spaced."""
    span = times[-1] - times[0]
    return float(trapezoid(values, times) / span) if span > 0 else float(values.mean())


def _risen(values: Values, wrap: float) -> float:
    """How far a counter rose, whose value begins anew at `wrap`."""
    steps = np.diff(values)
    return float(np.where(steps < 0, steps + wrap, steps).sum()) if math.isfinite(wrap) else float(steps.clip(0).sum())


def _whole(joules: Mapping[str, float], counted: Mapping[str, float]) -> tuple[float | None, str]:
    """Energy of the whole device: its input rail, else the sum of its rails, else of RAPL's packages."""
    for name in WHOLE:
        if name in joules:
            return joules[name], f"the module, by its input rail {name}"
    if joules:
        return sum(joules.values()), f"the sum of the rails {', '.join(joules)}; other parts of the board are not in it"
    if counted:
        return sum(counted.values()), f"the processor alone (RAPL: {', '.join(counted)})"
    return None, "not measured"


def _zones(root: Path) -> Iterator[Sensor]:
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        name = read_text(zone / "type").strip() or zone.name
        yield Sensor("celsius", name, (zone / "temp",), 1e-3)


def _clocks(root: Path) -> Iterator[Sensor]:
    for folder in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq")):
        yield Sensor("megahertz", folder.parent.name, (folder / "scaling_cur_freq",), 1e-3)
    for node in gpu_nodes(root):
        yield Sensor("megahertz", node.name, (node / "cur_freq",), 1e-6)


def _rails(root: Path) -> Iterator[Sensor]:
    for rail in rail_channels(root):
        yield Sensor("watts", rail.name, (rail.millivolts, rail.milliamperes), 1e-6)


def _rapl(root: Path) -> Iterator[Sensor]:
    """Packages alone: what lies in them is in them (Linux, Documentation/power/powercap)."""
    for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:[0-9]*")):
        limit = read_number(zone / "max_energy_range_uj")
        if zone.name.count(":") == 1 and limit:
            yield Sensor("joules", read_text(zone / "name").strip(), (zone / "energy_uj",), 1e-6, limit * 1e-6)


def _throttling(root: Path) -> Iterator[Sensor]:
    """Counters: x86 thermal events of each core, over-current events of a Jetson's hwmon; states: a Jetson's alerts."""
    for path in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count")):
        yield Sensor("events", f"thermal, {path.parent.parent.name}", (path,), 1.0)
    for path in sorted((root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt")):
        yield Sensor("events", f"over-current, {path.name.partition('_')[0]}", (path,), 1.0)
    for device in sorted((root / "sys/class/thermal").glob("cooling_device*")):
        name = read_text(device / "type").strip()
        if name.endswith(THROTTLE):
            yield Sensor("events", f"alert, {name.removesuffix(THROTTLE)}", (device / "cur_state",), 1.0, state=True)
