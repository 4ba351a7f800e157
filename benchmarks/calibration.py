"""How the calibration images are chosen, and how many: KL of HSCC at 6x fewer FLOPs, every method against random.

    python benchmarks/calibration.py --data DIR --out results --images 32 128
    python benchmarks/calibration.py --data DIR --out results --report docs/calibration-brain-mri

The cohort and the trained bundle are those of compress.py, kept in --cache. One task is one choice (method, images,
seed): choose from the train split, compress, run the test split. Its row is OUT/rows/NAME.json; a row that is there is
not made again, so that a run that was cut off goes on. Statistics are kept nowhere: no choice can meet another's.
With --report, the rows so far become REPORT.json, REPORT.md and REPORT.svg.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import brain_mri
import calibration_report
import compress as table
import numpy as np
import torch
from torch import nn

from hscc_edge import durable
from hscc_edge.bundle import Bundle, read_bundle
from hscc_edge.compress import compression
from hscc_edge.compress.allocate import parse_budget
from hscc_edge.compress.calibration import features_of
from hscc_edge.compress.problem import Settings
from hscc_edge.data.cohort import Cohort, read_cohort
from hscc_edge.data.coverage import coverage
from hscc_edge.data.subset import METHODS
from hscc_edge.model.head import kl, parse_head
from hscc_edge.model.load import load_network

BUDGET = "flops=6x"


def main() -> None:
    """Make the rows that are not there, or report on those that are."""
    parser = brain_mri.parser(__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=list(calibration_report.SIZES))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=calibration_report.SEEDS)
    parser.add_argument("--report", type=Path, help="where to write the report of the rows so far, without a suffix")
    arguments = parser.parse_args()
    (arguments.out / "rows").mkdir(parents=True, exist_ok=True)
    if arguments.report is not None:
        calibration_report.write(arguments.out, arguments.report, BUDGET)
        return
    cohort, dense = brain_mri.prepare(arguments.data, arguments.cache)
    bench = Bench(read_bundle(dense), read_cohort(cohort), arguments.out)
    for images in arguments.images:
        for seed in range(arguments.seeds):
            for method in arguments.methods:
                bench.row(method, images, seed)


class Bench:
    """What all tasks share: the network, the cohort, and the dense network's answers on the test split."""

    def __init__(self, bundle: Bundle, cohort: Cohort, out: Path) -> None:
        self.bundle, self.cohort, self.out = bundle, cohort, out
        self.head, self.train = parse_head(bundle.spec.head), cohort.select("train")
        self.images = table.test_images(cohort.root, bundle.root, out)
        self.reference = logits(load_network(bundle), self.images)

    def row(self, method: str, images: int, seed: int) -> None:
        """One task, unless its row is there."""
        path = self.out / "rows" / f"{method}-{images}-{seed}.json"
        if path.is_file():
            return
        started = time.perf_counter()
        chosen = compression.calibration_of(
            self.cohort, images, seed, method=method, bundle=self.bundle, cache=self.out / "features"
        )
        chosen_s = time.perf_counter() - started
        network, plan = self.compress(chosen)
        found = kl(self.head, self.reference, logits(network, self.images))
        features = features_of(self.bundle, self.train, cache=self.out / "features").responses
        row = {
            "method": method, "images": images, "seed": seed, "kl": float(found.mean()),
            "kl_se": float(found.std(ddof=1) / len(found) ** 0.5), "flops_ratio": plan.dense_flops / plan.flops,
            "predicted_loss": plan.loss, "choose_s": chosen_s, "seconds": time.perf_counter() - started,
            "calibration": chosen.digest, "bundle": self.bundle.digest, "cohort": self.cohort.digest,
            "coverage": coverage(self.cohort, self.train, chosen, features),
        }  # fmt: skip
        durable.write_json(path, row)
        sys.stderr.write(json.dumps({key: row[key] for key in ("method", "images", "seed", "kl", "seconds")}) + "\n")

    def compress(self, chosen: Cohort) -> tuple[nn.Module, Any]:
        """HSCC's network and plan; the random signs stay the same, so that only the images differ."""
        prepared = compression.prepare_bundle(self.bundle, chosen, "hscc", Settings())
        made = prepared.compress(parse_budget(BUDGET))
        return made.network, made.plan


def logits(network: nn.Module, images: Any) -> Any:
    """(N, n) of memory-mapped images."""
    with torch.no_grad():
        parts = [network(torch.from_numpy(np.array(images[at : at + 32]))) for at in range(0, len(images), 32)]
    return torch.cat(parts).numpy()


if __name__ == "__main__":
    main()
