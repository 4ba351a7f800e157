"""What the doctor must know and no file of /proc, /sys or /etc says: asked of the running system, changing nothing."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
TIMEX_BYTES = 512  # more than struct timex has on any Linux
PATIENCE_S = 60.0
LIBRARY = re.compile(r"lib[\w+-]+\.so[\w.]*")
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Package:
    """TensorRT for this Python.

    Attributes:
        version: as the package says; "" if it cannot be imported.
        system: whether it lies where the system's package manager installs, and not where pip does.
        error: why it cannot be imported, such as a missing library; "" if it can.
    """

    version: str
    system: bool
    error: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """Facts of a running system; None for what was not asked, as of a copied tree of files.

    Attributes:
        asked: whether the packages were looked for at all; else a missing one means nothing.
        providers: ONNX Runtime's execution providers; None without ONNX Runtime.
        python: such as (3, 10).
        free_mib: free for unprivileged users where the state directory (else /) lies; `total_mib` its size.
        synchronised: whether the kernel's clock is kept by a time server (adjtimex(2)).
    """

    asked: bool = False
    tensorrt: Package | None = None
    providers: tuple[str, ...] | None = None
    python: tuple[int, int] | None = None
    torch: bool = False
    free_mib: int | None = None
    total_mib: int | None = None
    synchronised: bool | None = None


def probe_system(place: Path = Path("/")) -> Probe:
    """Ask the running system; `place` is where the disk is measured.

    Packages are imported in processes of their own: a broken one must not take the doctor with it.
    """
    free_mib, total_mib = _disk(place)
    return Probe(
        asked=True,
        tensorrt=_tensorrt(),
        providers=_providers(),
        python=sys.version_info[:2],
        torch=_installed("torch") is not None,
        free_mib=free_mib,
        total_mib=total_mib,
        synchronised=_synchronised(),
    )


def is_system(origin: str) -> bool:
    """Whether a module's file was put there by the system's package manager (Debian: /usr/lib/.../dist-packages)."""
    return origin.startswith("/usr/lib/") and "/dist-packages/" in origin


def _installed(name: str) -> str | None:
    """The file of an importable module, without importing it."""
    found = importlib.util.find_spec(name)
    return None if found is None else found.origin or ""


def _tensorrt() -> Package | None:
    origin = _installed("tensorrt")
    if origin is None:
        return None
    answer, error = _ask("import json, tensorrt; print(json.dumps(tensorrt.__version__))")
    return Package(answer if isinstance(answer, str) else "", is_system(origin), error)


def _providers() -> tuple[str, ...] | None:
    if _installed("onnxruntime") is None:
        return None
    answer, _ = _ask("import json, onnxruntime as o; print(json.dumps(o.get_available_providers()))")
    return tuple(str(name) for name in answer) if isinstance(answer, list) else None


def _ask(code: str) -> tuple[object, str]:
    """(what the last line of a Python program's output holds as JSON, "") or (None, why it failed)."""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, type(error).__name__
    if done.returncode == 0 and done.stdout.strip():
        return json.loads(done.stdout.strip().splitlines()[-1]), ""
    return None, failure_of(done.stderr)


def failure_of(stderr: str) -> str:
    """Why an import failed, in words that hold no path: the missing library, else the exception's class."""
    last = (stderr.strip().splitlines() or [""])[-1]
    library = LIBRARY.search(last)
    return f"{library[0]} is missing" if library else last.partition(":")[0] or "it ended without a word"


def _disk(place: Path) -> tuple[int | None, int | None]:
    """MiB free and in all, of the nearest directory that is there and may be looked at."""
    for directory in (place, *place.parents):
        try:
            usage = shutil.disk_usage(directory)
        except OSError:
            continue
        return usage.free // MIB, usage.total // MIB
    return None, None


def _synchronised() -> bool | None:
    """Read-only adjtimex(2): a zeroed struct asks and sets nothing."""
    try:
        state = int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(TIMEX_BYTES)))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != TIME_ERROR
