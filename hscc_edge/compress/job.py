"""One compression from start to end: what was asked for, and the steps that answer it."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hscc_edge.bundle import Bundle
from hscc_edge.compress import candidates, latency
from hscc_edge.compress.allocate import Budget
from hscc_edge.compress.compression import BATCH_SIZE, Compressed, Prepared, first_image, prepare_bundle
from hscc_edge.compress.contract import Contract, cases_needed, judge_of, strongest, validation_of
from hscc_edge.compress.distill import Distillation, Report, distill
from hscc_edge.compress.moves import move
from hscc_edge.compress.problem import LayerwiseProposal, Progress, Settings
from hscc_edge.compress.stream import streams
from hscc_edge.data.cohort import Cohort
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.errors import ConfigError, InputError, ModelError, extra
from hscc_edge.export.onnx import export_onnx
from hscc_edge.model.head import kl
from hscc_edge.model.load import load_network
from hscc_edge.model.plan import Plan
from hscc_edge.validate.layer_times import Index, digest

with extra("workstation"):
    import torch
    from torch import nn


@dataclass(frozen=True, slots=True)
class Job:
    """What a user asks for; exactly one of budget, contract and plan.

    Attributes:
        contract: find the largest ratio of `currency` that holds it.
        plan: apply this plan, made for the same network, instead of planning.
        refit: regress the factors on the original's outputs, layer by layer.
        moves: evaluations of true KL to spend on weighing layers anew; 0 for none.
        distill_s: seconds of label-free distillation on the whole train split; 0 for none.
        threads: of the runtime for which a latency counts.
        table: file of the latency table: read if it is there, else timed and written.
    """

    method: str = "hscc"
    budget: Budget | None = None
    contract: Contract | None = None
    plan: Plan | None = None
    currency: str = "flops"
    settings: Settings = field(default_factory=Settings)
    refit: bool = True
    moves: int = 0
    distill_s: float = 0.0
    threads: int = 1
    table: Path | None = None


def check_job(job: Job) -> None:
    """Refuse what does not fit together.

    Raises:
        InputError: if not exactly one of budget, contract and plan is given.
    """
    given = [name for name in ("budget", "contract", "plan") if getattr(job, name) is not None]
    if len(given) != 1:
        raise InputError(
            f"{' and '.join(given) or 'nothing'} was asked for: give one of --budget, --max-drop "
            "or --max-kl, and --plan"
        )
    if job.plan is not None and job.moves:
        raise InputError("--moves was given with --plan: moves change the plan; give one of them")


def run(
    job: Job,
    bundle: Bundle,
    cohort: Cohort,
    calibration: Cohort,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> Compressed:
    """Compress a dense bundle.

    Time grows as `prepare` and `Prepared.build` say, times the trials of a contract or the evaluations of moves.

    Args:
        cohort: the whole cohort: distillation takes its train split, a contract its val split.
        calibration: the images that the method sees.

    Raises:
        BudgetError: if the budget cannot be met.
        GateError: if nothing holds the contract.
    """
    check_job(job)
    started = time.perf_counter()
    prepared = prepare_bundle(bundle, calibration, job.method, job.settings, progress, cache)
    seconds = {"prepare": time.perf_counter() - started}
    attempt = _Attempt(job, bundle, cohort, prepared)
    if job.plan is not None:
        check_plan(job.plan, prepared)
        made = attempt.finish(job.plan, {})
    elif job.contract is not None:
        made = _by_contract(job, bundle, cohort, calibration, prepared, attempt)
    else:
        made = attempt(job.budget)  # type: ignore[arg-type]
    seconds["whole"] = time.perf_counter() - started
    return dataclasses.replace(made, facts={**made.facts, "seconds": seconds})


def check_plan(plan: Plan, prepared: Prepared) -> None:
    """Refuse a plan of another network.

    Raises:
        ModelError: if its layers, shapes or folded batch norms are not the network's.
    """
    found = {shape.name: shape.text for shape in prepared.problem.shapes}
    if found != {layer.name: layer.shape for layer in plan.layers} or set(plan.folded) != set(prepared.folded):
        raise ModelError("the plan is of another network: its layers differ from the bundle's; compress without --plan")


@dataclass(frozen=True)
class _Attempt:
    """Makes the network of a budget; the latency table is made once, when it is first needed."""

    job: Job
    bundle: Bundle
    cohort: Cohort
    prepared: Prepared

    def __call__(self, budget: Budget) -> Compressed:
        prepared, facts = self._moved(budget) if self.job.moves else (self.prepared, {})
        if budget.cost != "latency":
            return self.finish(prepared.plan(budget), facts)
        timed = self._timed(prepared, budget)
        plan = dataclasses.replace(timed.plan, folded=prepared.folded)
        told = {"predicted_ms": timed.predicted_ms, "measured_ms": timed.measured_ms, "latency_ms": timed.latency_ms}
        return self.finish(plan, {**facts, "latency": {**told, "speedup": timed.speedup}})

    def finish(self, plan: Plan, facts: Mapping[str, Any]) -> Compressed:
        """The network of a plan, recovered as the job says."""
        network = self.prepared.build(plan, refit=self.job.refit)
        if self.job.distill_s <= 0:
            return Compressed(network, plan, facts)
        report = recover(self.prepared, network, plan, self.bundle, self.cohort, self.job.distill_s)
        return Compressed(network, plan, {**facts, "distillation": dataclasses.asdict(report)})

    def _moved(self, budget: Budget) -> tuple[Prepared, dict[str, Any]]:
        proposal = layerwise(self.prepared)
        if budget.cost == "latency":
            proposal = self._table.apply(proposal)
        measure = calibration_kl(self.prepared)
        moved = move(proposal, budget, lambda plan: self.prepared.build(plan, refit=self.job.refit), measure,
                     self.job.moves)  # fmt: skip
        facts = {"first_kl": moved.first_kl, "last_kl": moved.last_kl, "evaluations": moved.evaluations}
        return dataclasses.replace(self.prepared, proposal=moved.proposal), {"moves": facts}

    def _timed(self, prepared: Prepared, budget: Budget) -> latency.Timed:
        return latency.fit(layerwise(prepared), self._table, budget, *self._dense, self.job.threads)

    @cached_property
    def _dense(self) -> tuple[bytes, NDArray[np.float32]]:
        image = first_image(self.prepared.problem.batches)["image"][0].numpy()
        return export_onnx(load_network(self.bundle), self.bundle.spec.input_shape), image

    @cached_property
    def _table(self) -> latency.Table:
        path = self.job.table
        if path is not None and path.is_file():
            return read_table_file(path, self._dense[0])
        problem = self.prepared.problem
        table = latency.time_candidates(problem, layerwise(self.prepared), *self._dense, self.job.threads)
        if path is not None:
            table.write(path)
        return table


def read_table_file(path: Path, dense: bytes) -> latency.Table:
    """The latency table in a file, if it is of this dense network.

    Raises:
        ConfigError: if it is not, or is malformed.
    """
    try:
        table = latency.read_table(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}): remove it to time the candidates again") from error
    if table.network not in ("", digest(dense)):
        raise ConfigError(
            f"the latency table {path} was timed with another dense network (sha256 {table.network[:12]}...): make its "
            "candidates anew with hscc-edge compress --candidates"
        )
    return table


def write_candidates(
    job: Job,
    out: Path,
    bundle: Bundle,
    calibration: Cohort,
    progress: Progress | None = None,
    cache: Path | None = None,
    replace: bool = False,
) -> Index:
    """The candidates of every layer as graphs, for `hscc-edge bench --layers` on the device.

    Time is that of `prepare`, and some seconds a layer.

    Raises:
        ModelError: if the method has no option for a single layer.
        StorageError: if `out` is taken (unless `replace`).
    """
    prepared = prepare_bundle(bundle, calibration, job.method, job.settings, progress, cache)
    dense, shape = export_onnx(load_network(bundle), bundle.spec.input_shape), bundle.spec.input_shape
    return candidates.write_candidates(out, prepared.problem, layerwise(prepared), dense, shape, overwrite=replace)


def layerwise(prepared: Prepared) -> LayerwiseProposal:
    """The proposal, if its options are layer by layer.

    Raises:
        ModelError: if they are not.
    """
    if not isinstance(prepared.proposal, LayerwiseProposal):
        raise ModelError(
            f"the method {prepared.method} has no option for a single layer: give a budget in flops, params or bytes, "
            "and no --moves"
        )
    return prepared.proposal


def calibration_kl(prepared: Prepared) -> Callable[[nn.Module], float]:
    """Measures mean KL (nats an image, summed over heads) on the calibration images; the original runs once."""
    problem = prepared.problem

    def logits(network: nn.Module) -> list[list[Any]]:
        with torch.no_grad():
            return [[part.numpy() for part in problem.call(network, batch)] for batch in problem.batches()]

    reference = logits(problem.network)

    def measure(network: nn.Module) -> float:
        total, images = 0.0, 0
        for first, second in zip(reference, logits(network), strict=True):
            images += len(first[0])
            total += sum(float(kl(*item).sum()) for item in zip(problem.heads, first, second, strict=True))
        return total / images

    return measure


def recover(
    prepared: Prepared, network: nn.Module, plan: Plan, bundle: Bundle, cohort: Cohort, seconds: float
) -> Report:
    """Distil in place on the cohort's train split, without labels; other patients of it decide what is kept."""
    problem = prepared.problem
    changed = tuple(layer.name for layer in plan.layers if layer.structure not in ("dense", "pruned"))
    learn, decide = streams(cohort.select("train"), parse_preprocess(bundle.spec.preprocess), batch_size=BATCH_SIZE)
    return distill(
        problem.network, network, learn, problem.heads, Distillation(seconds=seconds, seed=problem.settings.seed),
        layers=() if prepared.method == "pruning" else changed, call=problem.call, held_out=decide,
        progress=problem.progress,
    )  # fmt: skip


def _by_contract(
    job: Job, bundle: Bundle, cohort: Cohort, calibration: Cohort, prepared: Prepared, attempt: _Attempt
) -> Compressed:
    contract = job.contract or Contract()
    split, name = validation_of(cohort, calibration, parse_preprocess(bundle.spec.preprocess), job.settings.seed)
    level = 0.95 if contract.confidence is None else contract.confidence / 100
    judge = judge_of(bundle, prepared.problem.network, split, level)
    made = strongest(attempt, contract, judge, job.currency)
    facts: dict[str, Any] = {**made.facts, "validation": name, "point_estimate": contract.confidence is None}
    if contract.max_drop is not None:
        facts["cases_needed"] = cases_needed(judge(made.network), contract.max_drop, contract.confidence or 95.0)
    return dataclasses.replace(made, facts=facts)
