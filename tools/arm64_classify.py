"""Classify one study of a phantom by ONNX Runtime with the device extra alone; one JSON object on stdout.

python tools/arm64_classify.py BUNDLE COHORT
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import pkgutil
import platform
import sys
import time
from dataclasses import replace
from importlib.metadata import distributions
from pathlib import Path

# What the device serves with, all of it, before anything is classified.
DEVICE = ("hscc_edge.serve", "hscc_edge.runtime")
WORKSTATION = {"hscc_edge.runtime.eager"}
HEAVY = {"torch", "monai"}


def load_device() -> list[str]:
    """Import every module that serves; returns their names."""
    names = []
    for package in DEVICE:
        found = importlib.import_module(package)
        names += [package, *(item.name for item in pkgutil.iter_modules(found.__path__, package + "."))]
    names = [name for name in names if name not in WORKSTATION]
    for name in names:
        importlib.import_module(name)
    return names


def main() -> None:
    """Import, then decide the first study of the test split as the daemon and `validate` would."""
    started = time.perf_counter()
    modules = load_device()
    imported = time.perf_counter()
    from hscc_edge.bundle import read_bundle
    from hscc_edge.data.cohort import read_cohort
    from hscc_edge.runtime import open_runtime
    from hscc_edge.validate.predict import predict

    bundle, cohort = read_bundle(Path(sys.argv[1])), read_cohort(Path(sys.argv[2])).select("test")
    study = next(iter(cohort.cases("study").values()))
    runtime = open_runtime(bundle, "ort")
    (case,) = predict(bundle, runtime, replace(cohort, instances=study))
    found = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "libc": " ".join(platform.libc_ver()),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"),
        "runtime": runtime.name,
        "bundle": bundle.digest,
        "images": len(study),
        "decision": case.decision.label,
        "probabilities": list(case.decision.probabilities),
        "logits": case.logits.tolist(),
        "modules": len(modules),
        "heavy_loaded": sorted(HEAVY & set(sys.modules)),
        "heavy_installed": sorted(name for name in HEAVY if importlib.util.find_spec(name)),
        "packages": {item.metadata["Name"].lower(): item.version for item in distributions()},
        "import_s": round(imported - started, 2),
        "classify_s": round(time.perf_counter() - imported, 2),
    }
    sys.stdout.write(json.dumps(found, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
