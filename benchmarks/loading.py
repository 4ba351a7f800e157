"""How fast batches come: workers, MONAI's ThreadDataLoader, the cache in memory and the store on disk.

    python benchmarks/loading.py --out DIR [--patients 60] [--rounds 3]

Reads a phantom of 256 x 256 to 224 x 224 x 3, augmented, in batches of 16, and spends a small training step on each.
The ways run in turn, `--rounds` times; figures are medians of images a second, one thread a process. A store is read
back without augmentation. Ends in OUT/loading.json.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from monai.data import ThreadDataLoader

from hscc_edge import durable
from hscc_edge.data.cohort import Cohort, read_cohort
from hscc_edge.data.phantom import write_phantom
from hscc_edge.data.pipeline import Batches, collate, loader
from hscc_edge.data.preprocess import parse_preprocess

PREPROCESS = parse_preprocess(
    [
        {"name": "percentile", "lower": 1.0, "upper": 99.0},
        {"name": "resize", "height": 224, "width": 224},
        {"name": "channels", "count": 3},
        {"name": "normalise", "mean": [0.5] * 3, "std": [0.25] * 3},
    ]
)
BATCH = 16


def ways(cohort: Cohort) -> dict[str, Batches]:
    """Name -> batches that are read, augmented, and by the way of that name made to come."""
    make: dict[str, Any] = {"batch_size": BATCH, "shuffle": True, "seed": 0, "augment": True}
    found = {}
    for kept in (False, True):
        for workers in (0, 1, 2):
            name = f"{'cache in memory' if kept else 'read each time'}, {workers} workers"
            found[name] = loader(cohort, PREPROCESS, cache=kept, workers=workers, **make)
        data = loader(cohort, PREPROCESS, cache=kept, **make).loader.dataset
        thread = ThreadDataLoader(data, batch_size=BATCH, shuffle=True, collate_fn=collate, buffer_size=2)
        found[f"{'cache in memory' if kept else 'read each time'}, ThreadDataLoader"] = Batches(thread)
    return found


def network() -> torch.nn.Module:
    """What a batch is spent on."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 7, 4), torch.nn.ReLU(), torch.nn.Conv2d(32, 64, 3, 2), torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(64, 4),
    )  # fmt: skip


def rate(batches: Iterable[dict[str, torch.Tensor]], spend: Callable[[torch.Tensor], None]) -> float:
    """Images a second of one epoch."""
    start, images = time.perf_counter(), 0
    for batch in batches:
        spend(batch["image"])
        images += len(batch["image"])
    return images / (time.perf_counter() - start)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--patients", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    step = network()

    def train(images: torch.Tensor) -> None:
        step(images).square().mean().backward()

    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "cohort"
        write_phantom(root, patients=args.patients, slices=4, size=256, seed=1)
        cohort = read_cohort(root)
        found = ways(cohort)
        rates = {name: [] for name in found}
        for _ in range(args.rounds):
            for name, batches in found.items():
                rates[name].append(rate(batches, train))
        plain: dict[str, Any] = {"batch_size": BATCH, "shuffle": False, "seed": 0}
        for name in ("store, first run", "store, second run"):
            batches = loader(cohort, PREPROCESS, store=Path(scratch) / "store", **plain)
            rates[name] = [rate(batches, lambda images: None)]
        rates["no store"] = [rate(loader(cohort, PREPROCESS, **plain), lambda images: None)]
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} while measuring",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "images": len(cohort.instances),
        "images_per_s": {name: round(statistics.median(values), 1) for name, values in rates.items()},
        "rounds": {name: [round(value, 1) for value in values] for name, values in rates.items()},
    }
    durable.write_json(args.out / "loading.json", result)
    for name, value in result["images_per_s"].items():
        print(f"{name:40s} {value:8.1f} images/s")


if __name__ == "__main__":
    main()
