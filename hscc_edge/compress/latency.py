"""Milliseconds as a currency: candidates timed on the runtime that will serve them, and networks checked against it.

Every structure of a layer is timed at a few ranks, alone, by ONNX Runtime; between them its time is linear in FLOPs.
A sum of layers is not a network: a plan's network is timed as a whole beside the dense one, and the ceiling that the
planner works with is moved until the measured time fits.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hscc_edge import durable
from hscc_edge.compress.allocate import Budget, Option
from hscc_edge.compress.cost import LayerShape
from hscc_edge.compress.layer_graph import layer_graph
from hscc_edge.compress.problem import Candidates, LayerwiseProposal, Problem, dense_option, layer_plan
from hscc_edge.errors import BudgetError, ConfigError, extra
from hscc_edge.export.onnx import export_onnx
from hscc_edge.model.layers import factorised
from hscc_edge.model.plan import Plan
from hscc_edge.runtime.ort import OrtRuntime

with extra("workstation"):
    from torch import nn

POINTS = 5
ROUNDS = 7
ROUND_MS = 4.0
TRIES = 5
CLOSE = 0.93
VERSION = 1
Call = tuple[OrtRuntime, "NDArray[np.float32]"]


@dataclass(frozen=True, slots=True)
class Table:
    """Times of one network's candidates on one device.

    Attributes:
        runtime: name, version, provider and threads.
        dense_ms: of the whole dense network.
        times: layer -> family (as text) -> rising FLOPs and their milliseconds.
    """

    runtime: str
    dense_ms: float
    times: Mapping[str, Mapping[str, tuple[tuple[float, float], ...]]]

    def apply(self, proposal: LayerwiseProposal) -> LayerwiseProposal:
        """The same proposal, every option with its time; options of a family that was not timed are left out."""
        found = {}
        for name, entry in proposal.candidates.items():
            timed = [self._timed(name, option) for option in entry.options]
            options = tuple(option for option in timed if not math.isnan(option.latency_ms))
            if options and options[0].structure == "dense":
                found[name] = Candidates(options, entry.build)
        fixed = max(self.dense_ms - sum(entry.options[0].latency_ms for entry in found.values()), 0.0)
        return dataclasses.replace(proposal, candidates=found, fixed_latency_ms=fixed)

    def _timed(self, name: str, option: Option) -> Option:
        points = self.times.get(name, {}).get(_text(option))
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
        return Table(str(raw["runtime"]), float(raw["dense_ms"]), times)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"the latency table is malformed ({error}): time the candidates again") from error


def _text(option: Option) -> str:
    """What options that differ in rank alone have in common."""
    inner = option.ranks[1:] if option.structure == "tucker-2" else ()
    if option.structure == "channel-groups":
        inner = (len(option.ranks),)
    boxes = ["x".join(f"{a}-{b}" for a, b in zip(box.start, box.stop, strict=True)) for box in option.regions]
    clusters = [len(region) for region in option.clusters]
    return " ".join(str(item) for item in (option.structure, *inner, *clusters, *boxes))


def time_candidates(
    problem: Problem, proposal: LayerwiseProposal, dense: bytes, image: NDArray[np.float32], threads: int = 1
) -> Table:
    """Time a few ranks of every structure of every layer, each in turn with the whole dense network.

    Times are scaled to the dense network's median, which cancels the drift of the machine between layers. Time grows
    with layers x structures x POINTS x about 30 ms; memory with the weights of one layer's candidates.

    Args:
        dense: ONNX graph of the dense network.
        image: (C, H, W).
    """
    shapes = {shape.name: shape for shape in problem.shapes}
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "dense.onnx").write_bytes(dense)
        whole = OrtRuntime(Path(folder) / "dense.onnx", threads)
        for layer, entry in proposal.candidates.items():
            found[layer] = _time_layer(problem, shapes[layer], entry.options, (whole, image[None]), threads)
            if problem.progress is not None:
                problem.progress(1, f"timing {layer}")
        dense_ms = _interleaved([(whole, image[None])], threads)[0]
    times = {
        layer: {name: _rising([(cost, share * dense_ms) for cost, share in points]) for name, points in item.items()}
        for layer, item in found.items()
    }
    return Table(f"{whole.name}, {threads} thread{'s' if threads > 1 else ''}", dense_ms, times)


def _time_layer(
    problem: Problem, shape: LayerShape, options: Sequence[Option], whole: Call, threads: int
) -> dict[str, list[tuple[float, float]]]:
    """By family, FLOPs and time as a share of the whole dense network's."""
    chosen = list(_spread(options))
    size = (shape.inputs, *shape.input_positions) if shape.kernel else (shape.inputs,)
    batch = (1 if shape.kernel else shape.area, *size)
    images = np.random.default_rng(0).standard_normal(batch).astype(np.float32)
    dense = problem.network.get_submodule(shape.name)
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        calls = [whole]
        for number, option in enumerate(chosen):
            path = Path(folder) / f"{number}.onnx"
            module = nn.Sequential(factorised(dense, layer_plan(shape, option, dense_option(shape))), nn.ReLU())
            path.write_bytes(layer_graph(module, batch))
            calls.append((OrtRuntime(path, threads), images))
        whole_ms, *times = _interleaved(calls, threads)
    for option, value in zip(chosen, times, strict=True):
        found.setdefault(_text(option), []).append((float(option.flops), value * shape.calls / whole_ms))
    return found


def _spread(options: Sequence[Option]) -> Iterable[Option]:
    """POINTS options of each family, evenly in the logarithm of their FLOPs."""
    families: dict[str, list[Option]] = {}
    for option in options:
        families.setdefault(_text(option), []).append(option)
    for members in families.values():
        ordered = sorted(members, key=lambda option: option.flops)
        logs = np.log([max(option.flops, 1) for option in ordered])
        wanted = np.linspace(logs[0], logs[-1], POINTS)
        picks = sorted({int(np.abs(logs - value).argmin()) for value in wanted})
        yield from (ordered[index] for index in picks)


def _rising(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """More FLOPs of one family never take less time: noise is smoothed upwards."""
    ordered = sorted(points)
    times = np.maximum.accumulate([value for _, value in ordered])
    return tuple((flops, float(value)) for (flops, _), value in zip(ordered, times, strict=True))


def _interleaved(calls: Sequence[Call], threads: int) -> list[float]:
    """Median milliseconds of each call, all in turn, so that a drifting machine slows all alike.

    One thread is timed by its own processor clock: what else runs on the machine does not count.
    """
    clock = time.thread_time_ns if threads == 1 else time.perf_counter_ns

    def call_ms(call: Call, count: int) -> float:
        runtime, images = call
        start = clock()
        for _ in range(count):
            runtime.infer(images)
        return (clock() - start) / 1e6 / count

    repeats = []
    for call in calls:
        call_ms(call, 1)
        repeats.append(int(min(max(ROUND_MS / max(call_ms(call, 1), 1e-3), 1), 20)))
    rounds = [[call_ms(call, count) for call, count in zip(calls, repeats, strict=True)] for _ in range(ROUNDS)]
    return [float(value) for value in np.median(np.array(rounds), axis=0)]


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
        paths[1].write_bytes(export_onnx(network, tuple(image.shape)))
        first, second = _interleaved([(OrtRuntime(path, threads), image[None]) for path in paths], threads)
    return first, second


@dataclass(frozen=True, slots=True)
class Timed:
    """A plan whose network was timed as a whole.

    Attributes:
        predicted_ms: by the table, for the first plan that was tried.
        measured_ms: of that plan's network; `latency_ms` of the one that was chosen. Both on the scale of the table's
            dense time, since machines drift.
    """

    plan: Plan
    predicted_ms: float
    measured_ms: float
    latency_ms: float
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

    What the table's sum misses (layouts, lost fusions, the layers between) is added to the fixed part after each try;
    at most TRIES networks are exported and timed.

    Raises:
        BudgetError: if no network within the budget was found.
    """
    timed, ceiling = table.apply(proposal), budget.ceiling(table.dense_ms)
    inner = Budget("latency", ceiling, "ms")
    plan, tried = timed.plan(inner), []
    for _ in range(TRIES):
        predicted = timed.fixed_latency_ms + sum(layer.latency_ms or 0.0 for layer in plan.layers)
        dense_ms, network_ms = time_networks(dense, timed.build(plan), image, threads)
        measured = table.dense_ms * network_ms / dense_ms
        tried.append((plan, predicted, measured))
        if CLOSE * ceiling <= measured <= ceiling:
            break
        timed = dataclasses.replace(timed, fixed_latency_ms=timed.fixed_latency_ms + measured - predicted)
        try:
            plan = timed.plan(inner)
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
