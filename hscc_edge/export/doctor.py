"""Which device this is, what is wrong with it, and how to mend it; read from files, changing nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hscc_edge.export.devices import FLOOR, Device, Machine, detect, known_module, read_devices, read_text
from hscc_edge.export.doctor_finding import Finding
from hscc_edge.export.doctor_power import examine_governor, examine_power
from hscc_edge.export.doctor_probe import Probe
from hscc_edge.export.doctor_software import examine_jetpack, examine_software
from hscc_edge.export.doctor_state import examine_state
from hscc_edge.export.doctor_system import examine_system, read_memory

KIB_A_GIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Report:
    """The device, and what was found.

    Attributes:
        device: its table; the generic one if none knows it.
        machine: L4T's release; None if this is no Jetson, or does not say.
    """

    device: Device
    machine: Machine | None
    findings: tuple[Finding, ...]

    @property
    def faulty(self) -> bool:
        """Whether anything keeps the product from its work."""
        return any(finding.state == "fault" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """As one JSON object."""
        machine = self.machine
        return {
            "device": self.device.name,
            "kind": self.device.kind,
            "compute_capability": self.device.compute_capability,
            "l4t": None if machine is None else f"{machine.l4t[0]}.{machine.l4t[1]}.{machine.patch}",
            "jetpack": None if machine is None else machine.jetpack,
            "rank_alignment": dict(self.device.rank_alignment),
            "faulty": self.faulty,
            "findings": [finding.to_json() for finding in self.findings],
        }


def examine(root: Path, probe: Probe, state: Path | None = None) -> Report:
    """Look at the machine whose files stand at `root`.

    Args:
        root: "/", or a copied tree of /proc, /sys and /etc.
        probe: what no file says; `Probe()` for a copied tree.
        state: the service's state directory, below `root`; not looked at if None.
    """
    machine = detect(root)
    jetson = machine is not None or "nvidia,tegra" in read_text(root / "proc/device-tree/compatible")
    device, finding = _jetson(root, machine) if jetson else _computer(root)
    findings = (
        finding,
        *examine_jetpack(root, machine, jetson),
        *(examine_power(root) if jetson else examine_governor(root)),
        *examine_system(root, probe),
        *examine_software(probe, device, machine, jetson),
        *(examine_state(root, state) if state is not None else ()),
    )
    return Report(device, machine, findings)


def _jetson(root: Path, machine: Machine | None) -> tuple[Device, Finding]:
    device = known_module(root)
    if device is None:
        name = _printable(read_text(root / "proc/device-tree/model")) or "a Jetson of unnamed model"
        if machine is not None and machine.retired is not None:
            return read_devices()["generic"], Finding("device", "warning", f"{name}: too old for this product")
        return _unknown(name, worth_a_table=machine is None or machine.l4t >= FLOOR)
    index = device.variant(read_memory(root).get("MemTotal", 0) / KIB_A_GIB)
    facts = [f"{device.memory_gib[index]} GiB"] if index is not None else []
    if device.compute_capability:
        facts.append(f"SM {device.compute_capability}")
    if device.dla_cores:
        cores = device.dla_cores[index if index is not None and len(device.dla_cores) > 1 else 0]
        facts.append(f"{cores or 'no'} DLA")
    return device, Finding("device", "ok", f"{device.name} ({', '.join(facts)})")


def _computer(root: Path) -> tuple[Device, Finding]:
    devices = read_devices()
    cards = [read_text(path) for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))]
    names = [found[1] for text in cards if (found := re.search(r"^Model:\s*(.+?)\s*$", text, re.MULTILINE))]
    if not names:
        return devices["cpu"], Finding("device", "ok", "no Jetson and no NVIDIA GPU: ONNX Runtime on the CPU")
    card = _printable(names[0])
    if devices["rtx-pc"].model in card:
        return devices["rtx-pc"], Finding("device", "ok", f"no Jetson: a computer with {card}")
    return _unknown(f"no Jetson: a computer with {card}")


def _unknown(name: str, worth_a_table: bool = True) -> tuple[Device, Finding]:
    generic = read_devices()["generic"]
    ranks = ", ".join(f"{count} for {precision.upper()}" for precision, count in generic.rank_alignment.items())
    text = f"{name}: no table knows it, so generic values hold (ranks in multiples of {ranks})"
    advice = "add a table to deploy/devices, with its sources" if worth_a_table else ""
    return generic, Finding("device", "warning", text, advice)


def _printable(text: str) -> str:
    """The first 80 printable ASCII characters: a device tree's strings end in a zero byte."""
    return "".join(character for character in text if " " <= character <= "~")[:80].strip()
