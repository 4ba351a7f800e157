"""The compressor's table on the public brain MRI pictures: KL against FLOPs and against milliseconds, every method.

    python benchmarks/compress.py --data DIR --out results            # AlexNet: everything
    python benchmarks/compress.py --data DIR --out results --network vgg16 --part depth

Unpacks DIR/training.tar and testing.tar, imports them to DICOM without exact duplicates, trains the network by its
recipe (once: the bundle is kept in --cache), compresses by every method to every budget, each in a process of its own,
runs all networks on the test split and times all of them in turn on one thread of ONNX Runtime. Calibration images
come from the train split. Ends in OUT/table.json, table.md and front.svg. A task that is done is not done again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import brain_mri
import compress_plot
import compress_table
import numpy as np

from hscc_edge import durable
from hscc_edge.bundle import read_bundle
from hscc_edge.data.case import load
from hscc_edge.data.cohort import read_cohort
from hscc_edge.data.preprocess import parse_preprocess

HERE = Path(__file__).resolve().parent
FLOPS = ("flops=3x", "flops=6x", "flops=10x", "flops=18x")
MILLISECONDS = ("latency=2x", "latency=4x", "latency=6x", "latency=8x", "latency=10x", "latency=12x")
SEEDS = 5
RECOVERY_S = 110.0
ALL = ["one-region", "shared-reduce", "own-factors", "separable", "tucker-2", "clustered"]
ABLATION: dict[str, list[str]] = {
    "one region": ["one-region"],
    "one region, shared reduce": ["one-region", "shared-reduce"],
    "one region, own factors": ["one-region", "own-factors"],
    "one region, separable": ["one-region", "separable"],
    "one region, tucker-2": ["one-region", "tucker-2"],
    "one region, clusters": ["one-region", "clustered"],
    "all structures": ALL,
    **{f"all but {name}": [other for other in ALL if other != name] for name in ALL},
}


def main() -> None:
    """Run the tasks that are not done, then make the table."""
    arguments = parse()
    cohort, dense = brain_mri.prepare(arguments.data, arguments.cache, arguments.network)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for task in PARTS[arguments.part]():
        run_task(task, cohort, dense, arguments.out)
    images = test_images(cohort, dense, arguments.out)
    table = compress_table.make(arguments.out, cohort, dense, images, arguments.rounds)
    compress_plot.draw(table, arguments.out / "front.svg")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = brain_mri.parser(__doc__)
    parser.add_argument("--network", default="alexnet", help="a recipe calibration/recipes/brain-mri-NETWORK.toml")
    parser.add_argument("--part", choices=tuple(PARTS), default="all")
    parser.add_argument("--rounds", type=int, default=60, help="timed rounds of all networks")
    return parser.parse_args()


def budgets(names: tuple[str, ...], **more: Any) -> list[dict[str, Any]]:
    """One entry a budget."""
    return [{"budget": name, **more} for name in names]


def paper_part() -> list[dict[str, Any]]:
    """The paper's comparison, and every baseline in the paper's currency; published recipes are not refitted too."""
    found = [
        task("hscc", 0, budgets(FLOPS) + budgets(("flops=6x",), refit=False, label="hscc, no refit")),
        task("paper", 0, budgets(FLOPS[:2]) + budgets(FLOPS[:2], refit=True, label="paper + refit")),
        task("svd", 0, budgets(FLOPS, refit=False) + budgets(FLOPS, refit=True, label="svd + refit")),
    ]
    for method in ("data-svd", "tucker", "alds", "cp", "pruning"):
        found.append(task(method, 0, budgets(FLOPS)))
    return found


def latency_part() -> list[dict[str, Any]]:
    """The user's currency; methods without options a layer are swept in FLOPs and measured."""
    recovered = budgets(("latency=10x",), recovery_s=RECOVERY_S, label="hscc + distillation")
    found = [task("hscc", 0, budgets(MILLISECONDS) + recovered, name="hscc-latency-0")]
    for method in ("data-svd", "tucker", "alds"):
        again = budgets(("latency=10x",), recovery_s=RECOVERY_S, label=f"{method} + distillation")
        found.append(task(method, 0, budgets(MILLISECONDS) + again, name=f"{method}-latency-0"))
    again = budgets(("flops=10x",), recovery_s=RECOVERY_S, label="pruning + distillation")
    found.append(task("pruning", 0, again, name="pruning-distilled-0"))
    return found


def seeds_part() -> list[dict[str, Any]]:
    """The same budgets from other calibration images."""
    chosen = budgets(("flops=6x", "flops=18x", "latency=10x"))
    return [task("hscc", seed, chosen, name=f"hscc-seed-{seed}") for seed in range(1, SEEDS)]


def ablation_part() -> list[dict[str, Any]]:
    """Each structure beside one region, and all but one, in both currencies; the refit taken away."""
    entries = [
        entry
        for label, structures in ABLATION.items()
        for entry in budgets(("flops=6x", "latency=6x"), label=label, structures=structures)
    ]
    entries += budgets(("flops=6x", "latency=6x"), label="all structures, no refit", structures=ALL, refit=False)
    return [task("hscc", 0, entries, settings={"structures": ALL}, name="ablation-0")]


def depth_part() -> list[dict[str, Any]]:
    """A deep network, without training."""
    chosen = ("flops=2x", "flops=3x", "flops=6x")
    return [
        task("hscc", 0, budgets((*chosen, *MILLISECONDS[:2]))),
        task("data-svd", 0, budgets(chosen)),
        task("svd", 0, budgets(chosen, refit=False)),
    ]


def recovery_part() -> list[dict[str, Any]]:
    """What five minutes of distillation give back to a deep network."""
    again = budgets(("flops=6x",), recovery_s=280.0, label="hscc + distillation")
    return [task("hscc", 0, again, name="hscc-recovered-0")]


def task(method: str, seed: int, entries: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """A task for compress_rows.py."""
    return {"name": f"{method}-{seed}", "method": method, "seed": seed, "budgets": entries, **more}


PARTS = {
    "paper": paper_part,
    "latency": latency_part,
    "seeds": seeds_part,
    "ablation": ablation_part,
    "depth": depth_part,
    "recovery": recovery_part,
    "all": lambda: [*paper_part(), *latency_part(), *seeds_part(), *ablation_part()],
}


def run_task(todo: dict[str, Any], cohort: Path, dense: Path, out: Path) -> None:
    """Run it in a process of its own, unless its result is there."""
    if (out / f"{todo['name']}.json").is_file():
        return
    for left in out.glob(f"{todo['name']}-*.onnx"):
        left.unlink()
    path = out / f"{todo['name']}.task"
    durable.write_json(path, {**todo, "bundle": str(dense), "cohort": str(cohort), "out": str(out)})
    print(f"{todo['name']}: {len(todo['budgets'])} budgets", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, str(HERE / "compress_rows.py"), str(path)], check=True)


def test_images(cohort: Path, dense: Path, out: Path) -> Any:
    """(N, C, H, W) float32 of the test split, preprocessed; memory-mapped."""
    path = out / "test-images.npy"
    if not path.is_file():
        found, preprocess = read_cohort(cohort).select("test"), parse_preprocess(read_bundle(dense).spec.preprocess)
        images = np.lib.format.open_memmap(
            path, mode="w+", dtype=np.float32, shape=(len(found.instances), *preprocess.shape)
        )
        for index, item in enumerate(found.instances):
            images[index] = load(found, (item,), preprocess)
        images.flush()
    return np.load(path, mmap_mode="r")


if __name__ == "__main__":
    main()
