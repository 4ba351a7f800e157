"""One method with one calibration seed: compress to each budget, and say what came out. Run by compress.py.

Reads a task from a JSON file and writes OUT/METHOD-SEED.json, with one ONNX file a row.
A process of its own, so that its peak memory is that of the compression.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from hscc_edge.bundle import read_bundle
from hscc_edge.compress import AS_PUBLISHED, compression, job, latency
from hscc_edge.compress.allocate import parse_budget
from hscc_edge.compress.problem import Candidates, LayerwiseProposal, Settings
from hscc_edge.data.cohort import read_cohort
from hscc_edge.errors import HsccError
from hscc_edge.export.onnx import export_onnx
from hscc_edge.export.regions import by_position


def main() -> None:
    """Do the task named on the command line."""
    task = json.loads(Path(sys.argv[1]).read_text())
    rows = list(Rows(task).all())
    Path(task["out"], f"{task['name']}.json").write_text(json.dumps(rows, indent=1))


class Rows:
    """The rows of one task: {"name", "method", "seed", "budgets", "settings", "bundle", "cohort", "out", "table"}."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.task, self.out = task, Path(task["out"])
        self.bundle, self.cohort = read_bundle(Path(task["bundle"])), read_cohort(Path(task["cohort"]))
        calibration = compression.calibration_of(self.cohort, task.get("images", 512), task["seed"])
        self.settings = Settings(**{**task.get("settings", {}), "seed": task["seed"]})
        started = time.perf_counter()
        self.prepared = compression.prepare_bundle(self.bundle, calibration, task["method"], self.settings)
        self.prepare_s = time.perf_counter() - started
        self.table: latency.Table | None = None

    def all(self) -> Any:
        """Every budget; one that cannot be met is a row that says so."""
        for entry in self.task["budgets"]:
            try:
                yield self.row(**entry)
            except HsccError as error:
                yield {**self.named(**entry), "refused": str(error)}

    def named(self, budget: str, recovery_s: float = 0.0, label: str = "", **_: Any) -> dict[str, Any]:
        """What a row is called."""
        return {
            "method": self.task["method"], "label": label or self.task.get("label", self.task["method"]),
            "budget": budget, "seed": self.task["seed"], "recovery_s": recovery_s,
        }  # fmt: skip

    def row(
        self,
        budget: str,
        recovery_s: float = 0.0,
        refit: bool | None = None,
        label: str = "",
        structures: list[str] | None = None,
    ) -> dict[str, Any]:
        """Compress to one budget; `structures` leaves the others out of what was prepared."""
        started = time.perf_counter()
        prepared = self.prepared
        if structures is not None:
            prepared = dataclasses.replace(prepared, proposal=only(job.layerwise(prepared), structures))
        limit = parse_budget(budget)
        table_s = 0.0
        if limit.cost == "latency":
            dense, image = self.dense()
            if self.table is None:
                self.table = latency.time_candidates(self.prepared.problem, job.layerwise(self.prepared), dense, image)
                table_s = time.perf_counter() - started
            timed = latency.fit(job.layerwise(prepared), self.table, limit, dense, image)
            plan, predicted = timed.plan, {"predicted_ms": timed.predicted_ms, "measured_ms": timed.measured_ms}
        else:
            plan, predicted = prepared.plan(limit), {}
        again = self.task["method"] not in AS_PUBLISHED if refit is None else refit
        network = self.prepared.build(plan, refit=again)
        seconds = time.perf_counter() - started + self.prepare_s
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if recovery_s:
            recovery_s = job.recover(self.prepared, network, plan, self.bundle, self.cohort, recovery_s).seconds
        name = f"{self.task['name']}-{len(list(self.out.glob(self.task['name'] + '-*.onnx')))}"
        (self.out / f"{name}.onnx").write_bytes(by_position(export_onnx(network, self.bundle.spec.input_shape)))
        chosen = [layer.structure for layer in plan.layers]
        return {
            **self.named(budget, recovery_s, label), **predicted, "file": name,
            "flops_ratio": plan.dense_flops / plan.flops, "params_ratio": plan.dense_params / plan.params,
            "structures": {item: chosen.count(item) for item in sorted(set(chosen))},
            "compress_s": seconds, "prepare_s": self.prepare_s, "table_s": table_s,
            "predicted_loss": plan.loss,
            "peak_rss_mib": peak,
        }  # fmt: skip

    def dense(self) -> tuple[bytes, Any]:
        """The dense graph, and an image."""
        image = compression.first_image(self.prepared.problem.batches)["image"][0].numpy()
        return self.bundle.path("models/model.onnx").read_bytes(), image


def only(proposal: LayerwiseProposal, structures: list[str]) -> LayerwiseProposal:
    """The same with dense layers and these structures alone."""
    left = {
        name: Candidates(tuple(item for item in entry.options if item.structure in ("dense", *structures)), entry.build)
        for name, entry in proposal.candidates.items()
    }
    return dataclasses.replace(proposal, candidates=left)


if __name__ == "__main__":
    main()
