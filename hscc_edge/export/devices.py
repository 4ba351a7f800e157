"""The devices that engines are built on: one TOML each in `device_tables/`, and which of them this machine is."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from hscc_edge.errors import ConfigError, EngineError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FLOOR = (36, 4)
RELEASE = re.compile(r"R(\d+) \(release\), REVISION: (\d+)")


@dataclass(frozen=True, slots=True)
class Device:
    """A kind of module.

    Attributes:
        model: what the device tree's model name contains.
        dla_cores: of each variant, in the order of `memory_gib`, or one number for all.
        jetpack_min: the first JetPack that this product supports there.
        tensorrt: JetPack -> the TensorRT that comes with it.
        rank_alignment: precision -> the multiple that ranks should be of; 1 for a precision that is not named.
        compute_capability: such as "8.7"; None where no source states it.
        memory_gib: of each variant.
    """

    name: str
    model: str
    dla_cores: tuple[int, ...]
    jetpack_min: str
    tensorrt: Mapping[str, str]
    rank_alignment: Mapping[str, int]
    compute_capability: str | None = None
    memory_gib: tuple[int, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Machine:
    """A Jetson: its Linux for Tegra release, such as (36, 4), and its kind, None if no table knows it."""

    l4t: tuple[int, int]
    device: Device | None


def parse_device(text: str, name: str) -> Device:
    """One device from its TOML.

    Raises:
        ConfigError: if it is not TOML, or a key is unknown or missing.
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
    if missing := sorted(known - {"compute_capability", "memory_gib"} - raw.keys()):
        raise ConfigError(f"the device table {name} lacks '{missing[0]}': add it")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
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
    release = _read(root / "etc/nv_tegra_release")
    found = RELEASE.search(release)
    if found is None:
        return None
    model = _read(root / "proc/device-tree/model")
    device = next((item for item in read_devices().values() if item.model in model), None)
    return Machine((int(found[1]), int(found[2])), device)


def require_supported(machine: Machine | None) -> None:
    """Refuse a Jetson whose JetPack is older than 6.1 (L4T 36.4, TensorRT 10.3, Python 3.10).

    Raises:
        EngineError: if it is older.
    """
    if machine is not None and machine.l4t < FLOOR:
        name = machine.device.name if machine.device else "Jetson"
        raise EngineError(
            f"this {name} runs L4T {machine.l4t[0]}.{machine.l4t[1]}, older than JetPack 6.1 (L4T 36.4): flash JetPack "
            "6.1 or later, or use a newer module where it has none"
        )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
