"""The evidence on the public brain MRI pictures: AlexNet against HSCC at 3x, 6x and 10x FLOPs, gated and packed.

    python benchmarks/evidence.py --data DIR --out results

Trains and compresses what is not in --cache, then runs validate with calibration/gates/brain-mri.toml, robustness and
flips on each, and packs the records. Ends in OUT/evidence-brain-mri.json and .md: the gate's lines and what the pack's
verification says, as printed. Some ten minutes on two cores after training. Uses of the test split are recorded beside
the cohort.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import brain_mri

from hscc_edge import durable
from hscc_edge.bundle import read_bundle
from hscc_edge.validate.machine import machine_facts

GATE = brain_mri.ROOT / "calibration" / "gates" / "brain-mri.toml"
BUDGETS = ("3x", "6x", "10x")


def main() -> None:
    """Every budget, then the table."""
    parser = brain_mri.parser(__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each timing")
    arguments = parser.parse_args()
    cohort, dense = brain_mri.prepare(arguments.data, arguments.cache)
    rows = [gathered(cohort, dense, budget, arguments) for budget in BUDGETS]
    trained = read_bundle(dense).spec.training["schedule"]
    found = {**machine_facts(), "trained": trained, "gate": GATE.read_text(), "rows": rows}
    durable.write_json(arguments.out / "evidence-brain-mri.json", found)
    durable.write_text(arguments.out / "evidence-brain-mri.md", page(found))


def gathered(cohort: Path, dense: Path, budget: str, arguments: Any) -> dict[str, Any]:
    """One budget: its bundle, records, pack and verdicts."""
    small = arguments.cache / f"{dense.name}-hscc-{budget}"
    out = arguments.out / budget
    out.mkdir(parents=True, exist_ok=True)
    if not (small / "models" / "model.onnx").is_file():
        run("compress", dense, "--cohort", cohort, "--budget", f"flops={budget}", "--out", small, "--overwrite")
        run("export", small, "--cohort", cohort, "--precision", "fp32")
    report, robust, flips = out / "report.html", out / "robustness.json", out / "flips.html"
    told = run("validate", small, "--reference", dense, "--cohort", cohort, "--gate", GATE, "--report", report,
               "--seconds", arguments.seconds, codes=(0, 1, 3))  # fmt: skip
    run("robustness", small, "--reference", dense, "--cohort", cohort, "--out", robust)
    flipped = run("flips", small, "--reference", dense, "--cohort", cohort, "--out", flips)
    records = [report.with_suffix(".json"), robust, flips.with_suffix(".json")]
    packed = [option for record in records for option in ("--record", record)]
    run("evidence", small, *packed, "--out", out / "pack", "--overwrite")
    verified = run("verify", out / "pack", "--bundle", small)
    kept = {name: told[name] for name in ("gate", "comparison", "verdict", "conditions", "not_run")}
    speed = {name: told["race"][name] for name in ("speedup", "low", "high")}
    return {"budget": budget, **kept, "speed": speed, "flips": len(flipped["flips"]), "pack": told_of(verified)}


def told_of(verified: dict[str, Any]) -> dict[str, Any]:
    """What `verify` says, without the place of the pack."""
    return {name: verified[name] for name in ("manifest", "files", "faults", "verified")}


def run(*words: object, codes: tuple[int, ...] = (0,)) -> dict[str, Any]:
    """A verb in a process of its own; its JSON."""
    command = [sys.executable, "-m", "hscc_edge", *map(str, words), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in codes:
        sys.exit(f"{words[0]} ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def page(found: dict[str, Any]) -> str:
    """The lines as Markdown."""
    lines = [
        "# Evidence on the public brain MRI pictures", "",
        f"`benchmarks/evidence.py`; {found['date']}, {found['machine']}; "
        + ", ".join(f"{name} {value}" for name, value in found["versions"].items()) + ".",
        "AlexNet against HSCC, no training; ONNX Runtime on the CPU, FP32: no GPU, no Jetson. The pictures have no",
        "patient identifiers, so that cases count as independent although they may not be. The original was trained",
        f"for {found['trained']['epochs']} epochs in {found['trained']['precision']}.", "",
        "```toml", found["gate"].strip(), "```", "",
    ]  # fmt: skip
    for row in found["rows"]:
        gate = row["gate"]
        lines += [
            f"## flops={row['budget']}: {gate['state']}",
            "",
            "| requirement | state | figures |",
            "|---|---|---|",
        ]
        lines += [f"| {line['name']} | {line['state']} | {line['figures']} |" for line in gate["lines"]]
        lines += ["", f"Decided differently: {row['flips']} cases.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
