"""Milliseconds as a currency: candidates timed on the runtime that will serve them, and networks checked against it.

Every structure of a layer is timed at a few ranks, alone, by ONNX Runtime; between them its time is linear in FLOPs.
A sum of layers is not a network: a few whole networks set fixed part and scale of the sums. Then a plan's network is
timed as a whole beside the dense one, and the planner's ceiling is moved until the measured time fits.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hscc_edge import durable
from hscc_edge.compress.allocate import Budget, Option
from hscc_edge.compress.candidates import family, write_anchors, write_layers
from hscc_edge.compress.problem import Candidates, LayerwiseProposal, Problem
from hscc_edge.errors import BudgetError, ConfigError, extra
from hscc_edge.export.onnx import export_onnx
from hscc_edge.export.regions import by_position
from hscc_edge.model.plan import Plan
from hscc_edge.runtime.ort import OrtRuntime
from hscc_edge.validate import layer_times
from hscc_edge.validate.latency import medians
from hscc_edge.validate.machine import machine_facts

with extra("workstation"):
    from torch import nn

TRIES = 8
CLOSE = 0.95
VERSION = layer_times.VERSION


@dataclass(frozen=True, slots=True)
class Table:
    """Times of one network's candidates on one device.

    Attributes:
        runtime: name, version, provider and threads.
        dense_ms: of the whole dense network.
        fixed_ms: what a network takes beside its layers.
        times: layer -> family (as text) -> rising FLOPs and their milliseconds, on the scale of whole networks.
        machine: where it was timed; "" in tables that do not say it.
        network: sha256 of the dense network's ONNX graph; "" in tables that do not say it.
    """

    runtime: str
    dense_ms: float
    fixed_ms: float
    times: Mapping[str, Mapping[str, tuple[tuple[float, float], ...]]]
    machine: str = ""
    network: str = ""

    @property
    def foreign(self) -> bool:
        """Whether it was timed on another machine than this one: networks timed here say nothing about it."""
        return self.machine not in ("", machine_facts()["machine"])

    def apply(self, proposal: LayerwiseProposal) -> LayerwiseProposal:
        """The same proposal, every option with its time; options of a family that was not timed are left out."""
        found = {}
        for name, entry in proposal.candidates.items():
            timed = [self._timed(name, option) for option in entry.options]
            options = tuple(option for option in timed if not math.isnan(option.latency_ms))
            if options and options[0].structure == "dense":
                found[name] = Candidates(options, entry.build)
        return dataclasses.replace(proposal, candidates=found, fixed_latency_ms=self.fixed_ms)

    def _timed(self, name: str, option: Option) -> Option:
        points = self.times.get(name, {}).get(family(option))
        if not points:
            return option
        flops, times = zip(*points, strict=True)
        value = float(np.interp(option.flops, flops, times))
        if option.flops > flops[-1]:
            value *= option.flops / flops[-1]
        return dataclasses.replace(option, latency_ms=value)

    def write(self, path: Path) -> None:
        """As JSON."""
        durable.write_json(path, {"version": VERSION, **dataclasses.asdict(self)})


def read_table(raw: Mapping[str, Any]) -> Table:
    """A table from its JSON.

    Raises:
        ConfigError: if it is malformed or of another version.
    """
    try:
        if raw["version"] != VERSION:
            raise ConfigError(f"the latency table has version {raw['version']}: this program reads {VERSION}")
        times = {
            str(layer): {str(family): tuple((float(a), float(b)) for a, b in points) for family, points in item.items()}
            for layer, item in raw["times"].items()
        }
        told = str(raw.get("machine", "")), str(raw.get("network", ""))
        return Table(str(raw["runtime"]), float(raw["dense_ms"]), float(raw["fixed_ms"]), times, *told)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"the latency table is malformed ({error}): time the candidates again") from error


def time_candidates(
    problem: Problem, proposal: LayerwiseProposal, dense: bytes, image: NDArray[np.float32], threads: int = 1
) -> Table:
    """Time a few ranks of every structure of every layer on this machine, each in turn with the whole dense network.

    The graphs and the clock are those of `hscc-edge bench --layers`. Time grows with layers x structures x POINTS x
    about 60 ms, and with the export of two networks a structure; memory and disk with the weights of one layer's
    candidates, or of all those networks.

    Args:
        dense: ONNX graph of the dense network.
        image: (C, H, W).
    """
    device, found = layer_times.device_of("ort", threads), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / layer_times.DENSE).write_bytes(dense)
        whole, layers = (device.open_graph(folder / layer_times.DENSE), image[None]), []
        for layer in write_layers(folder, problem, proposal):
            layers.append(layer)
            found[layer.name] = layer_times.time_layer(folder, layer, whole, device)
            for candidate in layer.candidates:
                (folder / candidate.file).unlink()
            if problem.progress is not None:
                problem.progress(1, f"timing {layer.name}")
        anchors = tuple(write_anchors(folder, problem, proposal, image.shape))
        index = layer_times.Index(layer_times.digest(dense), tuple(image.shape), tuple(layers), anchors)
        return read_table(layer_times.table(folder, index, whole, found, device))


def time_networks(
    dense: bytes, network: nn.Module, image: NDArray[np.float32], threads: int = 1
) -> tuple[float, float]:
    """Milliseconds (dense, network) at batch 1, interleaved.

    Args:
        dense: ONNX graph of the dense network.
        image: (C, H, W).
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("dense.onnx", "network.onnx")]
        paths[0].write_bytes(dense)
        paths[1].write_bytes(by_position(export_onnx(network, tuple(image.shape))))
        calls = [(OrtRuntime(path, threads), image[None]) for path in paths]
        first, second = medians(calls, own_clock=threads == 1)
    return first, second


@dataclass(frozen=True, slots=True)
class Timed:
    """A plan whose network was timed as a whole.

    Attributes:
        predicted_ms: by the table, for the first plan that was tried.
        measured_ms: of that plan's network; `latency_ms` of the one that was chosen. Both on the scale of the table's
            dense time, since machines drift. None where the table is of another machine: nothing was timed then, and
            the speed-up is the predicted one.
    """

    plan: Plan
    predicted_ms: float
    measured_ms: float | None
    latency_ms: float | None
    speedup: float


def fit(
    proposal: LayerwiseProposal,
    table: Table,
    budget: Budget,
    dense: bytes,
    image: NDArray[np.float32],
    threads: int = 1,
) -> Timed:
    """The plan of least predicted loss whose network, timed as a whole, is within a latency budget.

    What the table's sum misses (layouts, lost fusions, the layers between) is added to the fixed part for the next try,
    but never so much or so little as was too much or too little before: then half way between. At most TRIES networks
    are exported and timed, each once; none where the table was timed on another machine.

    Raises:
        BudgetError: if no network within the budget was found.
    """
    timed, ceiling = table.apply(proposal), budget.ceiling(table.dense_ms)
    inner = Budget("latency", ceiling, "ms")
    plan = timed.plan(inner)
    tried: list[tuple[Plan, float, float]] = []
    if table.foreign:
        predicted = predicted_ms(timed, plan)
        return Timed(dataclasses.replace(plan, budget=str(budget)), predicted, None, None, table.dense_ms / predicted)
    offset, slow, fast = 0.0, None, None
    for _ in range(TRIES):
        predicted = predicted_ms(timed, plan)
        measured = next((item[2] for item in tried if item[0].layers == plan.layers), None)
        if measured is None:
            dense_ms, network_ms = time_networks(dense, timed.build(plan), image, threads)
            measured = table.dense_ms * network_ms / dense_ms
        tried.append((plan, predicted, measured))
        if CLOSE * ceiling <= measured <= ceiling:
            break
        slow, fast = (offset, fast) if measured > ceiling else (slow, offset)
        offset = measured - predicted
        if slow is not None and fast is not None and not slow < offset < fast:
            offset = (slow + fast) / 2
        shifted = dataclasses.replace(timed, fixed_latency_ms=timed.fixed_latency_ms + offset)
        try:
            plan = shifted.plan(inner)
        except BudgetError:
            break
    within = [item for item in tried if item[2] <= ceiling]
    if not within:
        nearest = min(item[2] for item in tried)
        raise BudgetError(
            f"no network within the budget {budget} ({ceiling:.2f} ms) was found on {table.runtime}: the nearest took "
            f"{nearest:.2f} ms; ask for less"
        )
    plan, _, latency_ms = min(within, key=lambda item: item[0].loss)
    _, first_predicted, first_measured = tried[0]
    plan = dataclasses.replace(plan, budget=str(budget))
    return Timed(plan, first_predicted, first_measured, latency_ms, table.dense_ms / latency_ms)


def predicted_ms(timed: LayerwiseProposal, plan: Plan) -> float:
    """The table's sum over a plan's layers, with the fixed part."""
    return timed.fixed_latency_ms + sum(layer.latency_ms or 0.0 for layer in plan.layers)
