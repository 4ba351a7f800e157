"""The table on the public brain MRI pictures: svd, tucker and hscc at 3x and 6x FLOPs, without fine-tuning.

Unpacks DATA/training.tar and DATA/testing.tar, imports them to DICOM without exact duplicates, trains AlexNet by
calibration/recipes/brain-mri-alexnet.toml (once: the bundle is kept in --cache), compresses, exports, validates on
ONNX Runtime with one thread, and writes OUT/table.json and OUT/table.md.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tarfile
from pathlib import Path
from typing import Any

from hscc_edge import durable
from hscc_edge.cli.demo import Steps
from hscc_edge.cli.output import Output
from hscc_edge.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "calibration" / "recipes" / "brain-mri-alexnet.toml"
METHODS, BUDGETS = ("svd", "tucker", "hscc"), ("3x", "6x")
COLUMNS = (
    "method", "budget", "accuracy", "accuracy_low", "accuracy_high", "macro_f1", "difference", "difference_low",
    "difference_high", "kl", "kl_se", "flops_ratio", "params_ratio", "speedup", "compress_s",
)  # fmt: skip


def main() -> None:
    """Make the table."""
    arguments = parse()
    steps, cache = Steps(Output()), arguments.cache
    cohort = prepare_cohort(steps, arguments.data, cache)
    dense = prepare_dense(steps, cohort, cache)
    rows = [row(steps, arguments.out, cohort, dense, method, budget, arguments.seconds)
            for budget in BUDGETS for method in METHODS]  # fmt: skip
    evidence = rows[0].pop("_evidence")
    table = {
        "conditions": evidence["conditions"],
        "cohort": evidence["cohort"],
        "dense": {key: evidence["reference_figures"][key] for key in ("accuracy", "macro_f1")},
        "rows": [{key: value for key, value in item.items() if key != "_evidence"} for item in rows],
    }
    durable.write_json(arguments.out / "table.json", table)
    text = markdown(table)
    durable.write_text(arguments.out / "table.md", text)
    print(text)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hscc_edge"
    parser.add_argument("--data", type=Path, required=True, help="directory with training.tar and testing.tar")
    parser.add_argument("--out", type=Path, required=True, help="directory for bundles, reports and the table")
    parser.add_argument(
        "--cache", type=Path, default=home / "brain-mri", help="keeps the cohort and the trained bundle"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="latency timing a row")
    return parser.parse_args()


def prepare_cohort(steps: Steps, data: Path, cache: Path) -> Path:
    """The imported cohort, from the cache if it is there."""
    cohort = cache / "cohort"
    if (cohort / "cohort.toml").is_file():
        return cohort
    pictures = cache / "pictures"
    for split in ("training", "testing"):
        archive = data / f"{split}.tar"
        if not archive.is_file():
            raise InputError(f"{archive} does not exist: give the directory of training.tar and testing.tar")
        with tarfile.open(archive) as tar:
            tar.extractall(pictures / split, filter="data")
    steps.run("import", "cohort", "import", pictures, cohort, "--drop-duplicates", "--name", "brain-mri", "--overwrite")
    steps.run("check", "cohort", "check", cohort)
    return cohort


def prepare_dense(steps: Steps, cohort: Path, cache: Path) -> Path:
    """The trained and exported bundle, from the cache if recipe and cohort are the same."""
    key = hashlib.sha256(RECIPE.read_bytes() + (cohort / "instances.csv").read_bytes()).hexdigest()[:16]
    dense = cache / f"dense-{key}"
    if not (dense / "manifest.json").is_file():
        steps.run("train", "train", RECIPE, "--cohort", cohort, "--out", dense)
    if not (dense / "models" / "model.onnx").is_file():
        steps.run("export", "export", dense, "--cohort", cohort, "--precision", "fp32")
    return dense


def row(steps: Steps, out: Path, cohort: Path, dense: Path, method: str, budget: str, seconds: float) -> dict[str, Any]:
    """Compress, export and validate; one row of the table."""
    small = out / f"{method}-{budget}"
    made = steps.run(
        "compress", "compress", dense, "--cohort", cohort, "--method", method, "--budget", f"flops={budget}",
        "--out", small, "--overwrite",
    )  # fmt: skip
    steps.run("export", "export", small, "--cohort", cohort, "--precision", "fp32")
    report = out / f"{method}-{budget}.html"
    found = steps.run(
        "validate", "validate", small, "--reference", dense, "--cohort", cohort, "--report", report,
        "--seconds", seconds,
    )  # fmt: skip
    accuracy, comparison, size = found["candidate_figures"]["accuracy"], found["comparison"], found["candidate"]
    values = (
        method, budget, accuracy["value"], accuracy["low"], accuracy["high"], found["candidate_figures"]["macro_f1"],
        comparison["difference"], comparison["low"], comparison["high"], comparison["kl"], comparison["kl_se"],
        size["dense_flops"] / size["flops"], size["dense_params"] / size["params"], found["race"]["speedup"],
        made["seconds"],
    )  # fmt: skip
    return {**dict(zip(COLUMNS, values, strict=True)), "_evidence": found}


def markdown(table: dict[str, Any]) -> str:
    """The table with what it was measured on."""
    where, cohort = table["conditions"], table["cohort"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    head = ("FLOPs budget", "method", "accuracy % (95 %)", "difference, points (95 %, paired)", "KL (SE)", "FLOPs",
            "parameters", "measured speed-up")  # fmt: skip
    lines = [
        f"AlexNet, {cohort['images']} test pictures left after exact duplicates were removed; dense accuracy "
        f"{interval(table['dense']['accuracy'], 'value')} %. No fine-tuning; 512 calibration images from the training "
        f"split. {where['runtime_name']}, {where['threads']} thread, batch 1, interleaved medians. "
        f"{where['machine']}; {where['date']}; {versions}.",
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
    ]
    return "\n".join([*lines, *(line(item) for item in table["rows"])]) + "\n"


def line(item: dict[str, Any]) -> str:
    """One row in Markdown."""
    accuracy = {"value": item["accuracy"], "low": item["accuracy_low"], "high": item["accuracy_high"]}
    low, high = 100 * item["difference_low"], 100 * item["difference_high"]
    cells = (
        item["budget"],
        item["method"],
        interval(accuracy, "value"),
        f"{100 * item['difference']:+.1f} ({low:+.1f} to {high:+.1f})",
        f"{item['kl']:.4f} ({item['kl_se']:.4f})",
        f"1/{item['flops_ratio']:.2f}",
        f"1/{item['params_ratio']:.1f}",
        f"{item['speedup']:.2f}x",
    )
    return f"| {' | '.join(cells)} |"


def interval(share: dict[str, Any], key: str) -> str:
    """A share in per cent with its interval."""
    return f"{100 * share[key]:.1f} ({100 * share['low']:.1f} to {100 * share['high']:.1f})"


if __name__ == "__main__":
    main()
