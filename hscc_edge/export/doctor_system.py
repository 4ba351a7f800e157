"""Whether a machine has memory, disk and the right time for the service."""

from __future__ import annotations

import re
from pathlib import Path

from hscc_edge.export.devices import read_text
from hscc_edge.export.doctor_finding import Finding, State
from hscc_edge.export.doctor_probe import Probe

# The service needs some hundred MiB, an engine's build its workspace; below `reserve_mib` (serve's default) nothing
# is received.
LOW_MEMORY_MIB, LEAST_MEMORY_MIB = 1536, 512
SMALL_GIB = 16
LOW_DISK_MIB, LEAST_DISK_MIB = 5120, 1024


def examine_system(root: Path, probe: Probe) -> list[Finding]:
    """Memory, swap, disk and time."""
    return [_memory(root), _swap(root), _disk(probe), _time(root, probe)]


def read_memory(root: Path) -> dict[str, int]:
    """The fields of /proc/meminfo, KiB."""
    found = re.findall(r"^(\w+):\s+(\d+) kB$", read_text(root / "proc/meminfo"), re.MULTILINE)
    return {name: int(kibibytes) for name, kibibytes in found}


def _memory(root: Path) -> Finding:
    fields = read_memory(root)
    if not {"MemTotal", "MemAvailable"} <= fields.keys():
        return Finding("memory", "unknown", "/proc/meminfo could not be read")
    free_mib, total_mib = fields["MemAvailable"] // 1024, fields["MemTotal"] // 1024
    text = f"{free_mib} of {total_mib} MiB available"
    state: State = "fault" if free_mib < LEAST_MEMORY_MIB else "warning" if free_mib < LOW_MEMORY_MIB else "ok"
    if state == "ok":
        return Finding("memory", state, text)
    advice = (
        "stop other containers and the desktop (sudo systemctl set-default multi-user.target, then restart): on a "
        "Jetson the GPU has the same memory"
    )
    return Finding("memory", state, text, advice)


def _swap(root: Path) -> Finding:
    lines = [line.split() for line in read_text(root / "proc/swaps").splitlines()[1:]]
    sizes = [(words[0], int(words[2]) // 1024) for words in lines if len(words) >= 3 and words[2].isdigit()]
    if not sizes:
        small = read_memory(root).get("MemTotal", 0) >> 20 < SMALL_GIB
        return Finding("swap", "ok", "none" + (": a large engine's build may run out of memory" if small else ""))
    compressed = sum(size for name, size in sizes if "zram" in name)
    plain = sum(size for name, size in sizes if "zram" not in name)
    parts = [f"{compressed} MiB in memory (zram)"] * bool(compressed) + [f"{plain} MiB on disk"] * bool(plain)
    advice = "what is swapped out can hold patients' pixels: the disk of the swap must be encrypted as the state is"
    return Finding("swap", "ok", ", ".join(parts), advice if plain else "")


def _disk(probe: Probe) -> Finding:
    if probe.free_mib is None or probe.total_mib is None:
        return Finding("disk", "unknown", "not measured: the files are not those of the running system")
    text = f"{probe.free_mib} of {probe.total_mib} MiB free"
    low, least = probe.free_mib < LOW_DISK_MIB, probe.free_mib < LEAST_DISK_MIB
    state: State = "fault" if least else "warning" if low else "ok"
    advice = (
        "sudo apt clean, docker image prune, and remove old engines (~/.cache/hscc_edge/engines): with less than "
        "reserve_mib free no study is received (0xA700)"
    )
    return Finding("disk", state, text, "" if state == "ok" else advice)


def _time(root: Path, probe: Probe) -> Finding:
    """The kernel's word first: systemd's mark stays when synchronisation is lost (systemd-timesyncd(8))."""
    if probe.synchronised is None and not (root / "run/systemd").is_dir():
        return Finding("time", "unknown", "neither the kernel nor systemd was asked", "run timedatectl")
    marked = (root / "run/systemd/timesync/synchronized").exists()
    if probe.synchronised or (probe.synchronised is None and marked):
        return Finding("time", "ok", "synchronised")
    advice = (
        "name the hospital's time server in /etc/systemd/timesyncd.conf and run sudo timedatectl set-ntp true: reports "
        "carry this clock's date and time (in a container or virtual machine: on its host)"
    )
    return Finding("time", "warning", "not synchronised with a time server", advice)
