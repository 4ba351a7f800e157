"""The power mode of a Jetson, from nvpmodel's files; kernels are chosen at its clocks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

POWER_MODEL = re.compile(r"^<\s*POWER_MODEL\b([^>]*)>", re.MULTILINE)
GPU_LIMIT = re.compile(r"^GPU\s+MAX_FREQ\s+(-?\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class PowerMode:
    """A mode of nvpmodel; `gpu_hz` its limit on the GPU's clock, None if it states none, inf if it lifts the limit."""

    number: int
    name: str
    gpu_hz: float | None = None

    @property
    def strength(self) -> tuple[bool, bool, float, float]:
        """What orders modes: MAXN above watts, Super above MAXN, then the GPU's clock, then the watts of the name."""
        watts = re.search(r"(\d+)W", self.name)
        return "MAXN" in self.name, "SUPER" in self.name, self.gpu_hz or 0.0, float(watts[1]) if watts else 0.0


def read_modes(conf: str) -> list[PowerMode]:
    """The modes that an nvpmodel.conf defines, in its order; the attributes of a mode may come in any."""
    heads = list(POWER_MODEL.finditer(conf))
    starts = [*(head.start() for head in heads), len(conf)]
    modes = []
    for head, end in zip(heads, starts[1:], strict=True):
        named = dict(part.split("=", 1) for part in head[1].split() if "=" in part)
        if named.get("ID", "").isdigit() and "NAME" in named:
            limit = GPU_LIMIT.search(conf, head.end(), end)
            hertz = None if limit is None else float(limit[1])
            modes.append(PowerMode(int(named["ID"]), named["NAME"], float("inf") if hertz == -1 else hertz))
    return modes


def current_number(status: str) -> int | None:
    """The number of the mode that nvpmodel's status names, None if it names none."""
    found = re.search(r"pmode:(\d+)", status)
    return None if found is None else int(found[1])


def current_name(root: Path = Path("/")) -> str:
    """Name of the mode that the Jetson at `root` is in; "" on another machine or without nvpmodel's files."""
    try:
        modes = read_modes((root / "etc/nvpmodel.conf").read_text(encoding="utf-8", errors="replace"))
        number = current_number((root / "var/lib/nvpmodel/status").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""
    return next((mode.name for mode in modes if mode.number == number), "")
