"""Whether the service's state directory is closed to others and lies on an encrypted volume."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from hscc_edge.export.devices import read_text
from hscc_edge.export.doctor_finding import Finding

MODE = 0o700
# Of these, /proc/mounts does not say where the bytes end up, or they encrypt by themselves.
OPAQUE = {"overlay", "tmpfs", "zfs", "btrfs", "nfs", "nfs4", "cifs", "9p", "virtiofs", "fuse"}


def examine_state(root: Path, state: Path) -> list[Finding]:
    """Permissions of the directory `state`, which lies below `root`, and encryption of the volume that it is on."""
    return [_permissions(state), _encryption(root, state)]


def _permissions(state: Path) -> Finding:
    try:
        mode = state.stat().st_mode & 0o777
    except FileNotFoundError:
        return Finding("state directory", "ok", "not there yet: serve makes it with mode 0700")
    except OSError:
        return Finding("state directory", "unknown", "may not be looked at", "run this as the service's user")
    if mode & ~MODE:
        advice = "chmod 0700 it, and chown it to the service's user: it holds patients' images and the pseudonyms' key"
        return Finding("state directory", "fault", f"mode {mode:04o}: others may look into it", advice)
    return Finding("state directory", "ok", f"mode {mode:04o}")


def _encryption(root: Path, state: Path) -> Finding:
    device, kind = mount_of(root, state)
    if not device or kind.partition(".")[0] in OPAQUE:
        text = f"the volume ({kind or 'not in /proc/mounts'}) does not say whether it is encrypted"
        return Finding("encryption", "unknown", text, "see to it that what lies beneath is encrypted")
    if is_encrypted(root, device):
        return Finding("encryption", "ok", "the state's volume is encrypted (dm-crypt)")
    advice = "move the state to a LUKS volume (cryptsetup luksFormat; on a Jetson: disk encryption of Jetson Linux)"
    return Finding("encryption", "warning", "the state's volume is not encrypted by dm-crypt", advice)


def mount_of(root: Path, path: Path) -> tuple[str, str]:
    """(device, file system) of the mount that holds `path`: the longest mount point, of equals the last."""
    inner = Path("/") / path.resolve().relative_to(root.resolve())
    lines = [line.split() for line in read_text(root / "proc/mounts").splitlines()]
    mounts = [(Path(_decode(words[1])), words[0], words[2]) for words in lines if len(words) >= 3]
    holding = [mount for mount in mounts if inner.is_relative_to(mount[0])]
    if not holding:
        return "", ""
    deepest = max(len(mount[0].parts) for mount in holding)
    return next((device, kind) for at, device, kind in reversed(holding) if len(at.parts) == deepest)


def is_encrypted(root: Path, device: str) -> bool:
    """Whether a mounted device is a dm-crypt mapping, or lies on one (LVM on LUKS): `dm/uuid` begins with CRYPT-."""
    return any(read_text(node / "dm/uuid").startswith("CRYPT-") for node in _layers(root, Path(device).name))


def _layers(root: Path, name: str) -> Iterator[Path]:
    """The block devices that one named by the kernel or by device mapper is made of, itself first."""
    for node in sorted((root / "sys/block").glob("dm-*")):
        if name in (node.name, read_text(node / "dm/name").strip()):
            yield node
            for slave in sorted((node / "slaves").glob("dm-*")):
                yield from _layers(root, slave.name)


def _decode(text: str) -> str:
    """Undo the octal escapes of /proc/mounts (getmntent(3))."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
