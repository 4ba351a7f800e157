"""One trial of a sweep: compress, compare with the original on held-out cases, count and time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hscc_edge.bundle import Bundle
from hscc_edge.compress import latency
from hscc_edge.compress.allocate import parse_budget
from hscc_edge.compress.compression import (
    Compressed,
    Prepared,
    cache_key,
    calibration_of,
    first_image,
    prepare_bundle,
)
from hscc_edge.compress.contract import Judge, judge_of
from hscc_edge.compress.job import layerwise
from hscc_edge.compress.problem import Progress
from hscc_edge.compress.sweep_recipe import Point
from hscc_edge.data.cohort import Cohort
from hscc_edge.data.split import assign
from hscc_edge.errors import CohortError, extra
from hscc_edge.export.onnx import export_onnx
from hscc_edge.model.load import load_network

with extra("workstation"):
    from torch import nn

STATISTICS_KEPT = 4
Quiet = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one trial measured.

    Attributes:
        kl, kl_se: mean divergence from the original, nats an image, and its bootstrap standard error over patients.
        accuracy: points lost, original minus compressed.
        flops, params, bytes, latency: shares of the dense network's; latency is None if it was not measured. FLOPs are
            the plan's, parameters and bytes those of the whole network as it is stored.
        seconds: of this trial, statistics included where no earlier trial had them.
    """

    kl: float
    kl_se: float
    accuracy: float
    flops: float
    params: float
    bytes: float
    latency: float | None
    latency_ms: float | None
    seconds: float


def splits_of(cohort: Cohort) -> tuple[Cohort, Cohort, str]:
    """Where calibration images come from, what judges every trial, and that part's name; never the test split.

    Without a val split a third of the train patients is set aside, the same for all trials.

    Raises:
        CohortError: if there are too few patients.
    """
    train = cohort.select("train")
    if any(item.split == "val" for item in cohort.instances):
        return train, cohort.select("val"), "val"
    labels = {item.patient: item.label for item in train.instances}
    parts = assign(labels, {"val": 1 / 3}, 0)
    source, aside = (
        tuple(item for item in train.instances if parts[item.patient] == name) for name in ("train", "val")
    )
    if not source or not aside:
        raise CohortError(
            f"the cohort {cohort.root} has no val split and {len(labels)} train patients: give more of either"
        )
    judged = dataclasses.replace(train, instances=aside)
    return dataclasses.replace(train, instances=source), judged, "train, set aside"


@dataclass
class Bench:
    """Runs trials on one bundle; holds the findings of one group of points, no more.

    Attributes:
        source, judged: as `splits_of` says.
        timed: whether the runtime is timed.
        statistics: directory of statistics that trials share; the newest STATISTICS_KEPT files stay.
    """

    bundle: Bundle
    source: Cohort
    judged: Cohort
    timed: bool
    threads: int
    statistics: Path
    progress: Progress | None = None
    held: tuple[str, Prepared] | None = field(default=None, init=False)
    table: latency.Table | None = field(default=None, init=False)

    @cached_property
    def network(self) -> nn.Module:
        """The original."""
        return load_network(self.bundle)

    @cached_property
    def judge(self) -> Judge:
        """Compares with the original, which runs once."""
        return judge_of(self.bundle, self.network, self.judged)

    @cached_property
    def dense(self) -> bytes:
        """The original's ONNX graph."""
        return export_onnx(self.network, self.bundle.spec.input_shape)


def run_trial(bench: Bench, point: Point, quiet: Quiet) -> Outcome:
    """Measure one point.

    Time: a pass of statistics where the point is the first of its group, a refit, and a pass over the judged cases.

    Args:
        quiet: entered while the runtime is timed.

    Raises:
        BudgetError: if the method cannot meet the budget.
        ModelError: if the method cannot take the network.
    """
    started = time.perf_counter()
    prepared = _prepared(bench, point)
    made = _compress(bench, prepared, point, quiet)
    found = bench.judge(made.network)
    share, latency_ms = _time(bench, prepared, made.network, quiet) if bench.timed else (None, None)
    return Outcome(
        kl=found.kl,
        kl_se=found.kl_se,
        accuracy=0.0 - 100.0 * found.difference,
        flops=made.plan.flops / made.plan.dense_flops,
        params=_numbers(made.network) / _numbers(bench.network),
        bytes=_bytes(made.network) / _bytes(bench.network),
        latency=share,
        latency_ms=latency_ms,
        seconds=time.perf_counter() - started,
    )


def _prepared(bench: Bench, point: Point) -> Prepared:
    """What the method finds out for this point's group: that of the last trial, or made anew."""
    if bench.held is not None and bench.held[0] == point.group:
        return bench.held[1]
    bench.held = bench.table = None
    calibration = calibration_of(bench.source, point.images, point.settings.seed, bundle=bench.bundle)
    file = bench.statistics / f"{cache_key(bench.bundle, calibration, point.settings)}.safetensors"
    found = prepare_bundle(bench.bundle, calibration, point.method, point.settings, bench.progress, file)
    bench.held = (point.group, found)
    _drop_old(bench.statistics)
    return found


def _drop_old(folder: Path) -> None:
    """Remove all but the newest files of statistics; another worker may do so at the same time."""
    ages: list[tuple[float, Path]] = []
    for path in folder.glob("*.safetensors"):
        with suppress(FileNotFoundError):
            ages.append((path.stat().st_mtime, path))
    for _, path in sorted(ages, reverse=True)[STATISTICS_KEPT:]:
        path.unlink(missing_ok=True)


def _compress(bench: Bench, prepared: Prepared, point: Point, quiet: Quiet) -> Compressed:
    budget = parse_budget(point.budget)
    if budget.cost != "latency":
        return prepared.compress(budget, refit=point.refit)
    proposal, image = layerwise(prepared), _image(prepared)
    with quiet():
        if bench.table is None:
            bench.table = latency.time_candidates(prepared.problem, proposal, bench.dense, image, bench.threads)
        timed = latency.fit(proposal, bench.table, budget, bench.dense, image, bench.threads)
    plan = dataclasses.replace(timed.plan, folded=prepared.folded)
    return Compressed(prepared.build(plan, refit=point.refit), plan)


def _time(bench: Bench, prepared: Prepared, network: nn.Module, quiet: Quiet) -> tuple[float, float]:
    """The network's share of the original's time, and its milliseconds."""
    with quiet():
        dense_ms, own_ms = latency.time_networks(bench.dense, network, _image(prepared), bench.threads)
    return own_ms / dense_ms, own_ms


def _image(prepared: Prepared) -> NDArray[np.float32]:
    image: NDArray[np.float32] = first_image(prepared.problem.batches)["image"][0].numpy()
    return image


def _numbers(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _bytes(network: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
