"""The devices that engines are built on: one TOML each in `device_tables/`, and which of them this machine is."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from hscc_edge.errors import ConfigError, EngineError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FLOOR = (36, 4)
# Chips for which NVIDIA makes no JetPack 6, and the modules that have them.
RETIRED = {"nvidia,tegra194": "Xavier", "nvidia,tegra186": "TX2", "nvidia,tegra210": "Nano and TX1"}
RELEASE = re.compile(r"R(\d+) \(release\), REVISION: (\d+)(?:\.(\d+))?")
KINDS = ("jetson", "pc", "cpu", "generic")


@dataclass(frozen=True, slots=True)
class Device:
    """A kind of module or computer; what no source states is empty or None.

    Attributes:
        model: what the device tree's model name (of a PC, its card's name) contains.
        rank_alignment: precision -> the multiple that ranks should be of; 1 for a precision that is not named.
        kind: one of `KINDS`; only a "jetson" is told by its device tree.
        modules: part numbers that the device tree's `compatible` may name, such as "p3767-0000".
        dla_cores: of each variant, in the order of `memory_gib`, or one number for all.
        precisions: that the GPU or the CPU computes in; empty where no source lists them.
        jetpack_min: the first JetPack that this product supports there.
        l4t: JetPack -> the first Linux for Tegra release that is it.
        tensorrt: JetPack -> the TensorRT that comes with it; `cuda` and `python` likewise.
        compute_capability: such as "8.7".
        memory_gib: of each variant, the largest first.
        bandwidth_gbs: of each variant's memory, in 1e9 bytes a second.
    """

    name: str
    model: str
    rank_alignment: Mapping[str, int]
    kind: str = "jetson"
    modules: tuple[str, ...] = ()
    dla_cores: tuple[int, ...] = ()
    precisions: tuple[str, ...] = ()
    jetpack_min: str = ""
    l4t: Mapping[str, str] = field(default_factory=dict)
    tensorrt: Mapping[str, str] = field(default_factory=dict)
    cuda: Mapping[str, str] = field(default_factory=dict)
    python: Mapping[str, str] = field(default_factory=dict)
    compute_capability: str | None = None
    memory_gib: tuple[int, ...] = ()
    bandwidth_gbs: tuple[float, ...] = ()

    def variant(self, total_gib: float) -> int | None:
        """Index in `memory_gib` of the smallest module that holds `total_gib` of usable memory; None if none does."""
        fitting = [index for index, size in enumerate(self.memory_gib) if total_gib <= size]
        return max(fitting, default=None)


@dataclass(frozen=True, slots=True)
class Machine:
    """A Jetson: its Linux for Tegra release, such as (36, 4) with patch 3, and its kind, None if no table knows it.

    Attributes:
        retired: a generation that no JetPack of this product's is made for, such as "Xavier"; else None.
    """

    l4t: tuple[int, int]
    device: Device | None
    patch: int = 0
    retired: str | None = None

    @property
    def jetpack(self) -> str | None:
        """The newest JetPack in the device's table that is not newer than this L4T of the same generation."""
        releases = {} if self.device is None else self.device.l4t
        numbers = {jetpack: tuple(int(part) for part in l4t.split(".")) for jetpack, l4t in releases.items()}
        own = (*self.l4t, self.patch)
        older = [(l4t, jetpack) for jetpack, l4t in numbers.items() if l4t <= own and l4t[0] == own[0]]
        return max(older)[1] if older else None


def parse_device(text: str, name: str) -> Device:
    """One device from its TOML.

    Raises:
        ConfigError: if it is not TOML, a key is unknown or missing, or its kind is.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the device table {name} is not TOML ({error}): mend it") from error
    known = {item.name for item in fields(Device)}
    if unknown := sorted(raw.keys() - known):
        raise ConfigError(
            f"the device table {name} has the unknown key '{unknown[0]}': expected some of {sorted(known)}"
        )
    needed = {item.name for item in fields(Device) if item.default is MISSING and item.default_factory is MISSING}
    if missing := sorted(needed - raw.keys()):
        raise ConfigError(f"the device table {name} lacks '{missing[0]}': add it")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
    if values.get("kind", KINDS[0]) not in KINDS:
        raise ConfigError(f"kind in the device table {name} is {values['kind']!r}: expected one of {', '.join(KINDS)}")
    return Device(**values)


def read_devices() -> dict[str, Device]:
    """Every known device, by the name of its file."""
    tables = sorted(files("hscc_edge.export").joinpath("device_tables").iterdir(), key=lambda table: table.name)
    return {
        table.name.removesuffix(".toml"): parse_device(table.read_text(encoding="utf-8"), table.name)
        for table in tables
        if table.name.endswith(".toml")
    }


def detect(root: Path = Path("/")) -> Machine | None:
    """The Jetson whose file system stands at `root`, None on any other machine."""
    release = RELEASE.search(read_text(root / "etc/nv_tegra_release"))
    if release is None:
        return None
    compatible = read_text(root / "proc/device-tree/compatible")
    retired = next((name for chip, name in RETIRED.items() if chip in compatible), None)
    return Machine((int(release[1]), int(release[2])), known_module(root), int(release[3] or 0), retired)


def known_module(root: Path) -> Device | None:
    """The Jetson that the device tree at `root` names: by its module, else by its model; None if no table has it.

    The module comes first: a carrier board of another maker has a model name of its own, and the same module.
    """
    jetsons = [device for device in read_devices().values() if device.kind == "jetson"]
    compatible = read_text(root / "proc/device-tree/compatible")
    model = read_text(root / "proc/device-tree/model")
    by_module = (device for device in jetsons if any(part in compatible for part in device.modules))
    by_model = (device for device in jetsons if device.model in model)
    return next(by_module, None) or next(by_model, None)


def require_supported(machine: Machine | None) -> None:
    """Refuse a Jetson whose JetPack is older than 6.1 (L4T 36.4, TensorRT 10.3, Python 3.10).

    Raises:
        EngineError: if it is older.
    """
    if machine is None or machine.l4t >= FLOOR:
        return
    release = f"L4T {machine.l4t[0]}.{machine.l4t[1]}"
    if machine.retired is not None:
        raise EngineError(
            f"this Jetson runs {release}, and JetPack 6.1 (L4T 36.4) or later is not made for its generation "
            f"({machine.retired}): use a Jetson Orin or newer"
        )
    name = machine.device.name if machine.device else "Jetson"
    raise EngineError(
        f"this {name} runs {release}, older than JetPack 6.1 (L4T 36.4): flash JetPack 6.1 or later, or use a newer "
        "module where it has none"
    )


def read_text(path: Path) -> str:
    """What a file of /proc, /sys or /etc holds; empty if it is not there or may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
