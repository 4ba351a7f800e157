"""Did the arm64 root decide as this machine does? Writes result.json and result.md, prints one line; 1 if it did not.

python tools/arm64_compare.py CACHE
"""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from typing import Any

TOLERANCE = 1e-4
STEPS = ("root", "wheels", "install", "study", "here", "there")
SHOWN = ("numpy", "scipy", "onnxruntime", "pydicom", "python-gdcm", "pylibjpeg-openjpeg", "pyjpegls", "highdicom",
         "pynetdicom", "cuda-bindings")  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    """The JSON object of a classification."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def compare(here: dict[str, Any], there: dict[str, Any]) -> dict[str, Any]:
    """The largest difference of a logit, and what else must be so: a list of faults, empty if all is well."""
    pairs = zip(here["logits"], there["logits"], strict=True)
    difference = max(abs(a - b) for row, other in pairs for a, b in zip(row, other, strict=True))
    faults = []
    if here["bundle"] != there["bundle"]:
        faults.append("the bundles differ")
    if there["decision"] is None or here["decision"] != there["decision"]:
        faults.append(f"the decision is {there['decision']} there and {here['decision']} here")
    if not difference <= TOLERANCE:
        faults.append(f"a logit differs by {difference:.2e}, more than {TOLERANCE:.0e}")
    if there["machine"] != "aarch64":
        faults.append(f"the root's machine is {there['machine']}, not aarch64")
    for name in there["heavy_installed"] or there["heavy_loaded"]:
        faults.append(f"{name} is there, and the device must do without it")
    return {"largest_logit_difference": difference, "faults": faults}


def table(found: dict[str, Any]) -> str:
    """Markdown of the figures, for docs/arm64.md."""
    here, there = found["here"], found["there"]
    rows = [
        *((name, here[name], there[name]) for name in ("machine", "system", "python", "libc", "runtime")),
        *((name, here["packages"].get(name, "-"), there["packages"].get(name, "-")) for name in SHOWN),
        ("packages installed", len(here["packages"]), len(there["packages"])),
        ("modules of the package imported", here["modules"], there["modules"]),
        ("torch or MONAI", *(", ".join(side["heavy_installed"]) or "not installed" for side in (here, there))),
        ("importing them, s", here["import_s"], there["import_s"]),
        ("reading and classifying the study, s", here["classify_s"], there["classify_s"]),
        ("images of the study", here["images"], there["images"]),
        ("decision", here["decision"], there["decision"]),
        *((f"logits, image {index + 1}", *(" ".join(f"{value:.6f}" for value in side["logits"][index])
           for side in (here, there))) for index in range(here["images"])),
    ]  # fmt: skip
    lines = ["| | here | arm64 root |", "|---|---|---|", *("| " + " | ".join(map(str, row)) + " |" for row in rows)]
    seconds = ", ".join(f"{name} {value} s" for name, value in found["seconds"].items())
    return "\n".join([*lines, "", f"Largest difference of a logit: {found['largest_logit_difference']:.2e}.",
                      f"Steps: {seconds}. {found['date']}.", ""])  # fmt: skip


def main() -> None:
    """Compare, write, and end with one line."""
    cache = Path(sys.argv[1])
    here, there = read(cache / "here.json"), read(cache / "there.json")
    seconds = {name: int((cache / f"{name}.s").read_text()) for name in STEPS if (cache / f"{name}.s").exists()}
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    found = {"date": date, **compare(here, there), "seconds": seconds, "here": here, "there": there}
    (cache / "result.json").write_text(json.dumps(found, indent=1) + "\n")
    (cache / "result.md").write_text(table(found))
    if found["faults"]:
        sys.exit("error: arm64: " + "; ".join(found["faults"]))
    sys.stdout.write(
        f"arm64: {there['system']}, Python {there['python']}, {there['runtime']}: {there['decision']} as here, largest "
        f"logit difference {found['largest_logit_difference']:.1e}, {there['modules']} modules without torch\n"
    )


if __name__ == "__main__":
    main()
