"""What the device must import costs: memory and time, each module in a fresh interpreter, and together.

    python benchmarks/imports.py [--out docs/imports.json] [--rounds 5]

As `hscc-edge serve` imports them, without what pydicom takes if it can and a device never uses. Medians over the
rounds, which go through the modules in turn. Peak memory is VmHWM of /proc/self/status.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from hscc_edge import durable
from hscc_edge.validate.machine import machine_facts

TOGETHER = ("hscc_edge.serve.daemon", "hscc_edge.runtime.ort", "hscc_edge.export.engine")
ASKED = {
    "nothing": (),
    "hscc_edge.runtime.ort": ("hscc_edge.runtime.ort",),
    "hscc_edge.export.engine": ("hscc_edge.export.engine",),
    "hscc_edge.serve.daemon": ("hscc_edge.serve.daemon",),
    "all three": TOGETHER,
    "hscc_edge.runtime.eager (workstation)": ("hscc_edge.runtime.eager",),
}
CHILD = """
import importlib, json, sys, time
from hscc_edge.lean import UNUSED, without
begun = time.perf_counter()
with without(*UNUSED):
    for name in sys.argv[1:]:
        importlib.import_module(name)
seconds = time.perf_counter() - begun
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
heavy = sorted({"torch", "monai"} & set(sys.modules))
print(json.dumps({"seconds": seconds, "peak_mb": int(status["VmHWM"].split()[0]) * 1024 / 1e6, "heavy": heavy}))
"""


def once(modules: tuple[str, ...]) -> dict[str, Any]:
    """One fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", CHILD, *modules], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/imports.json"))
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ASKED}
    for _ in range(given.rounds):
        for name, modules in ASKED.items():
            runs[name].append(once(modules))
    found = {
        name: {
            "seconds": round(statistics.median(run["seconds"] for run in of_one), 3),
            "peak_mb": round(statistics.median(run["peak_mb"] for run in of_one), 1),
            "torch_or_monai": of_one[0]["heavy"],
        }
        for name, of_one in runs.items()
    }
    for name, figures in found.items():
        print(f"{name:40} {figures['seconds']:7.2f} s {figures['peak_mb']:7.0f} MB {figures['torch_or_monai']}")
    durable.write_json(given.out, {"conditions": machine_facts(), "rounds": given.rounds, "imports": found})


if __name__ == "__main__":
    main()
