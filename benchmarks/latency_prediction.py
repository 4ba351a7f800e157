"""What the latency table predicts against what whole networks take, and whether `--budget latency=...` is met.

    python benchmarks/latency_prediction.py --data DIR --out docs

Every structure of every layer of AlexNet is timed alone once. Then

- plans of several FLOPs budgets and structures, chosen without regard to time, are predicted by the table's sum, and
  their networks timed as a whole in turn with the dense one;
- networks are planned for several latencies as `compress` does it, and afterwards raced against the dense one anew, by
  wall time on real pictures.

All times are stated on the scale of the table's dense network, since machines drift. One thread of ONNX Runtime.
Ends in OUT/latency-prediction.json and .md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import brain_mri
import numpy as np
from compress import ALL
from compress_rows import only
from numpy.typing import NDArray

from hscc_edge import durable
from hscc_edge.bundle import read_bundle
from hscc_edge.compress import compression, job, latency
from hscc_edge.compress.allocate import Budget
from hscc_edge.compress.problem import LayerwiseProposal, Settings
from hscc_edge.data.cohort import read_cohort
from hscc_edge.export.onnx import export_onnx
from hscc_edge.export.regions import by_position
from hscc_edge.runtime.ort import OrtRuntime
from hscc_edge.validate.latency import race
from hscc_edge.validate.machine import machine_facts

STRUCTURES = {
    "one region": ["one-region"],
    "and shared reduce": ["one-region", "shared-reduce"],
    "and own factors": ["one-region", "own-factors"],
    "all": ALL,
}
RATIOS = (2.0, 3.0, 4.5, 6.0, 10.0)
SPEEDUPS = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
REPEATS = 9
TOLERANCE = 0.1


@dataclass(frozen=True, slots=True)
class Given:
    """AlexNet's options, its dense graph, its table, and some pictures (C, H, W)."""

    proposal: LayerwiseProposal
    dense: bytes
    table: latency.Table
    images: list[NDArray[np.float32]]


def main() -> None:
    """Prepare and time the candidates once, then both comparisons."""
    parser = brain_mri.parser(__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each race afterwards")
    arguments = parser.parse_args()
    cohort, dense = brain_mri.prepare(arguments.data, arguments.cache)
    bundle = read_bundle(dense)
    calibration = compression.calibration_of(read_cohort(cohort), 512, 0)
    prepared = compression.prepare_bundle(bundle, calibration, "hscc", Settings(structures=tuple(ALL)))
    report(given_of(prepared, bundle.path("models/model.onnx").read_bytes()), arguments.out, arguments.seconds)


def given_of(prepared: compression.Prepared, dense: bytes) -> Given:
    """The proposal with its candidates timed."""
    batch = next(iter(prepared.problem.batches()))["image"]
    images, proposal = [picture.numpy() for picture in batch[:8]], job.layerwise(prepared)
    return Given(proposal, dense, latency.time_candidates(prepared.problem, proposal, dense, images[0]), images)


def report(given: Given, out: Path, seconds: float) -> None:
    """Measure, and write OUT/latency-prediction.json and .md."""
    table = {
        **machine_facts(),
        "runtime": given.table.runtime,
        "dense_ms": given.table.dense_ms,
        "plans": list(predicted(given)),
        "budgets": list(met(given, seconds)),
    }
    durable.write_json(out / "latency-prediction.json", table)
    durable.write_text(out / "latency-prediction.md", markdown(table))


def predicted(given: Given) -> Iterator[dict[str, Any]]:
    """One row for each FLOPs budget and set of structures."""
    for label, structures in STRUCTURES.items():
        timed = given.table.apply(only(given.proposal, structures))
        for ratio in RATIOS:
            plan = timed.plan(Budget("flops", ratio, "x"))
            network = timed.build(plan)
            pairs = [latency.time_networks(given.dense, network, given.images[0]) for _ in range(REPEATS)]
            share = float(np.median([own_ms / dense_ms for dense_ms, own_ms in pairs]))
            guess, measured = latency.predicted_ms(timed, plan), given.table.dense_ms * share
            yield {
                "structures": label, "flops_ratio": ratio, "predicted_ms": guess, "measured_ms": measured,
                "dense_and_own_ms": pairs, "error": guess / measured - 1,
                "plan": {layer.name: [layer.structure, *layer.ranks] for layer in plan.layers},
            }  # fmt: skip


def met(given: Given, seconds: float) -> Iterator[dict[str, Any]]:
    """One row for each latency that is asked for."""
    for speedup in SPEEDUPS:
        asked = Budget("latency", given.table.dense_ms / speedup, "ms")
        timed = latency.fit(given.proposal, given.table, asked, given.dense, given.images[0])
        network = given.proposal.build(timed.plan)
        with tempfile.TemporaryDirectory() as name:
            paths = [Path(name) / file for file in ("dense.onnx", "network.onnx")]
            paths[0].write_bytes(given.dense)
            paths[1].write_bytes(by_position(export_onnx(network, tuple(given.images[0].shape))))
            found = race(*(OrtRuntime(path) for path in paths), given.images, seconds)
        measured = given.table.dense_ms / found.speedup
        yield {
            "asked_ms": asked.amount, "first_predicted_ms": timed.predicted_ms, "first_measured_ms": timed.measured_ms,
            "chosen_ms": timed.latency_ms, "raced_ms": measured, "speedup": found.speedup,
            "speedup_low": found.low, "speedup_high": found.high, "samples": found.candidate.samples,
            "error": measured / asked.amount - 1, "flops_ratio": timed.plan.dense_flops / timed.plan.flops,
        }  # fmt: skip


def markdown(table: Mapping[str, Any]) -> str:
    """Both tables."""
    errors = np.abs([row["error"] for row in table["plans"]])
    misses = np.abs([row["error"] for row in table["budgets"]])
    versions = ", ".join(f"{name} {value}" for name, value in table["versions"].items())
    return "\n".join([
        "# Latency: what the table predicts, and whether a budget is met", "",
        f"AlexNet, brain MRI pictures, {table['runtime']}, batch 1; {table['machine']}; {table['date']}; {versions}.",
        f"Made by `benchmarks/latency_prediction.py`. Dense network: {table['dense_ms']:.2f} ms.", "",
        f"Table's sum against the whole network, {len(errors)} plans: median error {np.median(errors):.1%}, largest "
        f"{errors.max():.1%}; within {TOLERANCE:.0%}: {int((errors <= TOLERANCE).sum())} of {len(errors)}.", "",
        "| structures | FLOPs | predicted ms | measured ms | error |", "|---|---|---|---|---|",
        *(f"| {row['structures']} | {row['flops_ratio']:g}x fewer | {row['predicted_ms']:.2f} | "
          f"{row['measured_ms']:.2f} | {row['error']:+.1%} |" for row in table["plans"]), "",
        f"`--budget latency=X`, measured anew afterwards: largest distance {misses.max():.1%}; within {TOLERANCE:.0%}: "
        f"{int((misses <= TOLERANCE).sum())} of {len(misses)}.", "",
        "| asked ms | first plan: predicted ms, measured ms | chosen plan, ms | raced afterwards, ms | off by | "
        "speed-up (95 % interval) | FLOPs |", "|---|---|---|---|---|---|---|",
        *(f"| {row['asked_ms']:.2f} | {row['first_predicted_ms']:.2f}, {row['first_measured_ms']:.2f} | "
          f"{row['chosen_ms']:.2f} | {row['raced_ms']:.2f} | {row['error']:+.1%} | {row['speedup']:.2f}x "
          f"({row['speedup_low']:.2f} to {row['speedup_high']:.2f}) | {row['flops_ratio']:.1f}x fewer |"
          for row in table["budgets"]),
    ]) + "\n"  # fmt: skip


if __name__ == "__main__":
    main()
