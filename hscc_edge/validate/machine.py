"""Where a figure was measured: date, machine, versions. Every figure of this project stands beside these."""

from __future__ import annotations

import datetime
import os
import platform
from importlib.metadata import packages_distributions, version
from typing import Any


def machine_facts() -> dict[str, Any]:
    """Date, machine and versions, for any figure that was measured on it."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{platform.system()} {platform.machine()}, {_processor()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("hscc-edge", "numpy", *_runtimes(), "pydicom")},
    }


def _runtimes() -> list[str]:
    """Installed packages that bring ONNX Runtime, such as onnxruntime-gpu on a device."""
    return sorted(set(packages_distributions().get("onnxruntime", ())))


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown processor"
