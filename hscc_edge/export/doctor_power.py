"""What a Jetson's clocks, temperature and power rails say: nvpmodel, devfreq, cpufreq, thermal zones, INA3221."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hscc_edge.export.devices import read_text
from hscc_edge.export.doctor_finding import Finding
from hscc_edge.power_mode import current_number, read_modes

GPU_NODES = ("sys/class/devfreq/*", "sys/devices/gpu.0/devfreq/*", "sys/devices/platform/bus@0/*/devfreq/*")
GPU_NAME = re.compile(r"gpu|ga10b|gv11b")
SLOW_GOVERNORS = {"powersave", "userspace", "conservative"}
NEAR_THROTTLING_C = 5.0


def examine_power(root: Path) -> list[Finding]:
    """Power mode, GPU clock, CPU governor, temperature and power rails of the Jetson at `root`."""
    return [_power_mode(root), _gpu_clock(root), *examine_governor(root), _temperature(root), _rails(root)]


def _power_mode(root: Path) -> Finding:
    modes = read_modes(read_text(root / "etc/nvpmodel.conf"))
    number = current_number(read_text(root / "var/lib/nvpmodel/status"))
    ask = "run sudo nvpmodel -q (in a container: on the host)"
    if not modes or number is None:
        return Finding("power mode", "unknown", "nvpmodel's files could not be read", ask)
    current = next((mode for mode in modes if mode.number == number), None)
    choice = ", ".join(mode.name for mode in modes)
    if current is None:
        text = f"mode {number}, which nvpmodel.conf does not define (it has {choice})"
        return Finding("power mode", "warning", text, ask)
    best = max(modes, key=lambda mode: mode.strength)
    if best == current:
        return Finding("power mode", "ok", f"{current.name}, the strongest of {choice}")
    return Finding(
        "power mode",
        "warning",
        f"{current.name}, not the strongest of {choice}",
        f"if supply and cooling allow {best.name}: sudo nvpmodel -m {best.number}; then build the engines and measure "
        "the latency anew, for both belong to one power mode",
    )


def _gpu_clock(root: Path) -> Finding:
    node = next(gpu_nodes(root), None)
    highest = None if node is None else read_number(node / "max_freq")
    if node is None or highest is None:
        return Finding("GPU clock", "unknown", "the GPU's clock could not be read", "run sudo jetson_clocks --show")
    available = [int(word) for word in read_text(node / "available_frequencies").split() if word.isdigit()]
    now = read_number(node / "cur_freq")
    text = f"{_mhz(now)} now, up to {_mhz(highest)}" if now is not None else f"up to {_mhz(highest)}"
    if available and highest < max(available):
        text += f" of the {_mhz(max(available))} that it could"
        limit = _mode_limit(root)
        allowed = [clock for clock in available if limit is not None and clock <= limit]
        if allowed and highest >= max(allowed):
            return Finding("GPU clock", "ok", f"{text}, as the power mode has it")
        advice = "something lowered max_freq below what the power mode allows: restart, and if it stays find what does"
        return Finding("GPU clock", "warning", text, advice)
    lowest = read_number(node / "min_freq")
    varies = lowest is not None and lowest < highest
    return Finding("GPU clock", "ok", text + (", varies with load (sudo jetson_clocks to measure)" if varies else ""))


def _mode_limit(root: Path) -> float | None:
    """What the power mode that is set allows the GPU's clock, Hz; None if that is not to be read."""
    number = current_number(read_text(root / "var/lib/nvpmodel/status"))
    modes = read_modes(read_text(root / "etc/nvpmodel.conf"))
    return next((mode.gpu_hz for mode in modes if mode.number == number), None)


def gpu_nodes(root: Path) -> Iterator[Path]:
    """The devfreq folders of the GPU's clocks."""
    for pattern in GPU_NODES:
        yield from (path for path in sorted(root.glob(pattern)) if GPU_NAME.search(path.name))


def examine_governor(root: Path) -> list[Finding]:
    """How the CPU's clock is chosen; nothing where there is no cpufreq, as in most virtual machines."""
    folders = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq"))
    names = sorted({read_text(folder / "scaling_governor").strip() for folder in folders} - {""})
    if not names:
        return []
    text = f"governor {', '.join(names)}"
    offline = read_text(root / "sys/devices/system/cpu/offline").strip()
    if re.fullmatch(r"[\d,-]+", offline):
        text += f"; cores {offline} are off"
    if slow := sorted(SLOW_GOVERNORS & set(names)):
        advice = (
            f"{slow[0]} keeps the clock low: echo schedutil | sudo tee "
            "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
        )
        return [Finding("CPU governor", "warning", text, advice)]
    return [Finding("CPU governor", "ok", text)]


def _temperature(root: Path) -> Finding:
    zones = sorted((root / "sys/class/thermal").glob("thermal_zone*"))
    read = [(zone, read_number(zone / "temp")) for zone in zones]
    # A zone of a block that is switched off reads 0 or below absolute zero.
    warm = [(millidegrees / 1000, zone) for zone, millidegrees in read if millidegrees is not None and millidegrees > 0]
    if not warm:
        return Finding("temperature", "unknown", "no thermal zone could be read", "run tegrastats")
    degrees, zone = max(warm, key=lambda pair: pair[0])
    text = f"{degrees:.0f} C in {read_text(zone / 'type').strip() or 'one zone'}, the hottest of {len(warm)}"
    limits = [limit for degrees, zone in warm for limit in _passive_trips(zone) if degrees > limit - NEAR_THROTTLING_C]
    if limits:
        advice = "clocks are lowered there: clean or strengthen the cooling, or choose a power mode of fewer watts"
        return Finding("temperature", "warning", f"{text}; throttling begins at {min(limits):.0f} C", advice)
    return Finding("temperature", "ok", text)


def _passive_trips(zone: Path) -> Iterator[float]:
    """Degrees at which the kernel begins to lower clocks (thermal sysfs API: trip points of type passive)."""
    for kind in zone.glob("trip_point_*_type"):
        limit = read_number(zone / kind.name.replace("_type", "_temp"))
        if read_text(kind).strip() == "passive" and limit is not None and limit > 0:
            yield limit / 1000


def _rails(root: Path) -> Finding:
    watts: dict[str, float] = {}
    alarms = []
    for rail in rail_channels(root):
        millivolts, milliamperes = read_number(rail.millivolts), read_number(rail.milliamperes)
        if millivolts is not None and milliamperes is not None:
            watts[rail.name] = millivolts * milliamperes / 1e6
        if read_number(rail.alarm) == 1:
            alarms.append(rail.name)
    if not watts:
        return Finding("power rails", "unknown", "no INA3221 monitor could be read", "run tegrastats")
    text = ", ".join(f"{rail} {power:.1f} W" for rail, power in watts.items())
    if alarms:
        advice = "clocks are lowered when the current is too high: use the supply that the power mode asks for"
        return Finding("power rails", "warning", f"{text}; over-current on {', '.join(alarms)}", advice)
    return Finding("power rails", "ok", text)


@dataclass(frozen=True, slots=True)
class Rail:
    """A channel of an INA3221 monitor and its files in sysfs (Linux, Documentation/hwmon/ina3221)."""

    name: str
    millivolts: Path
    milliamperes: Path
    alarm: Path


def rail_channels(root: Path) -> Iterator[Rail]:
    """The power rails that have a name."""
    for path in sorted((root / "sys/class/hwmon").glob("hwmon*/name")):
        labels = sorted(path.parent.glob("in[1-3]_label")) if read_text(path).strip() == "ina3221" else []
        for label in labels:
            name, number, folder = read_text(label).strip(), label.name[2], path.parent
            if name:
                yield Rail(
                    name, folder / f"in{number}_input", folder / f"curr{number}_input",
                    folder / f"curr{number}_crit_alarm",
                )  # fmt: skip


def read_number(path: Path) -> int | None:
    """The whole number that a file of /sys holds; None if it does not."""
    text = read_text(path).strip()
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _mhz(hertz: float) -> str:
    return f"{hertz / 1e6:.0f} MHz"
