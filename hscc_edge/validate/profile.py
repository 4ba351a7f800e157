"""Where the time goes: every node that ONNX Runtime runs, and the layers of the original that the nodes belong to.

ONNX Runtime's profiler times the nodes of the graph as optimised: fused ones, and the reorders of its blocked layout,
which stand in no file. A node belongs to the layer whose weights it reads; one without weights to the layer before it
in the graph, but slices and pads to the layer that they feed; a reorder to the node that ran before it. The profiler
costs time itself, so that sums are larger than the latency without it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hscc_edge.bundle import Bundle
from hscc_edge.errors import ExportError, extra
from hscc_edge.runtime import PRECISIONS
from hscc_edge.runtime.ort import session_options

with extra("device"):
    import onnxruntime

RUNS = 20
WARM_UP = 5
CUTTING = {"Slice", "Pad", "Split", "Gather"}
OTHER = "(no layer)"
BLOCKED = "_nchwc"


@dataclass(frozen=True, slots=True)
class Node:
    """A node as it ran; `ms` is the median over the runs, `layer` empty where the graph could not be read."""

    name: str
    operation: str
    layer: str
    ms: float


@dataclass(frozen=True, slots=True)
class LayerTime:
    """A layer of the original in both networks; `slower` if the candidate's is."""

    name: str
    reference_ms: float
    candidate_ms: float

    @property
    def slower(self) -> bool:
        """Whether the layer takes longer than the original's."""
        return self.candidate_ms > self.reference_ms


@dataclass(frozen=True, slots=True)
class Profiles:
    """Both networks' nodes in the order in which they run, and the layers of the original."""

    reference: tuple[Node, ...]
    candidate: tuple[Node, ...]
    layers: tuple[LayerTime, ...]


def profile(
    reference: Bundle, candidate: Bundle, images: Sequence[NDArray[np.float32]], precision: str, threads: int
) -> Profiles:
    """Profile both bundles on ONNX Runtime's CPU, in turn, and set their layers side by side.

    Args:
        images: a few preprocessed images (C, H, W), used in turn.

    Raises:
        BundleError: if a bundle lacks the ONNX file of that precision.
        MissingExtraError: if `onnx`, which reads the graphs, is not installed.
    """
    layers = layer_names(reference.path(PRECISIONS[precision]))
    paths = [bundle.path(PRECISIONS[precision]) for bundle in (reference, candidate)]
    first, second = (
        nodes_of(path, runs, layers) for path, runs in zip(paths, run_profiled(paths, images, threads), strict=True)
    )
    return Profiles(first, second, compare_layers(first, second))


def run_profiled(
    paths: Sequence[Path], images: Sequence[NDArray[np.float32]], threads: int
) -> list[list[list[dict[str, Any]]]]:
    """For each graph, for each of RUNS runs, the profiler's node events in order; the graphs take turns."""
    with tempfile.TemporaryDirectory() as folder:
        sessions = [_session(path, threads, Path(folder) / str(index)) for index, path in enumerate(paths)]
        for number in range(WARM_UP + RUNS):
            for session in sessions if number % 2 else reversed(sessions):
                session.run(["logits"], {"image": images[number % len(images)][None]})
        return [read_runs(Path(session.end_profiling()))[-RUNS:] for session in sessions]


def _session(path: Path, threads: int, prefix: Path) -> Any:
    options = session_options(threads)
    options.enable_profiling = True
    options.profile_file_prefix = str(prefix)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def read_runs(path: Path) -> list[list[dict[str, Any]]]:
    """Node events of each run from a file of ONNX Runtime's profiler, in the order in which they began.

    Raises:
        ExportError: if it holds no run.
    """
    events = sorted(json.loads(path.read_text(encoding="utf-8")), key=lambda event: event["ts"])
    bounds = [(event["ts"], event["ts"] + event["dur"]) for event in events if event["name"] == "model_run"]
    if not bounds:
        raise ExportError(f"ONNX Runtime {onnxruntime.__version__} wrote a profile without a run: profile without it")
    nodes = [event for event in events if event["cat"] == "Node" and event["name"].endswith("_kernel_time")]
    return [[node for node in nodes if start <= node["ts"] <= end] for start, end in bounds]


def nodes_of(path: Path, runs: Sequence[Sequence[Mapping[str, Any]]], layers: Iterable[str]) -> tuple[Node, ...]:
    """Median milliseconds of every node, and its layer."""
    times: dict[str, list[float]] = {}
    operations: dict[str, str] = {}
    for run in runs:
        for event in run:
            name = str(event["name"]).removesuffix("_kernel_time")
            operations[name] = str(event["args"]["op_name"])
            times.setdefault(name, []).append(event["dur"] / 1000)
    owners, last, found = graph_layers(path, layers), OTHER, []
    for name, values in times.items():
        last = owners.get(name) or owners.get(name.removesuffix(BLOCKED)) or last
        found.append(Node(name, operations[name], last, float(np.median(values))))
    return tuple(found)


def compare_layers(reference: Sequence[Node], candidate: Sequence[Node]) -> tuple[LayerTime, ...]:
    """The layers in the reference's order, each with the sum of its nodes."""
    names = list(dict.fromkeys(node.layer for node in (*reference, *candidate)))
    sums = [{name: sum(n.ms for n in nodes if n.layer == name) for name in names} for nodes in (reference, candidate)]
    return tuple(LayerTime(name, sums[0][name], sums[1][name]) for name in names)


def layer_names(path: Path) -> tuple[str, ...]:
    """The layers of a dense graph: the stems of its weights' names."""
    return tuple(
        dict.fromkeys(item.name.rpartition(".")[0] for item in _graph(path).initializer if _is_weight(item.name))
    )


def graph_layers(path: Path, layers: Iterable[str]) -> dict[str, str]:
    """Layer of each node of a graph, under the node's name and the names of its outputs.

    An optimised node bears one of them; a fused one that of the last node that was fused into it.
    """
    graph, known = _graph(path), sorted(layers, key=len, reverse=True)
    made: dict[str, str] = {}
    for node in graph.node:
        owner = next((layer for name in node.input if (layer := _owner(name, known))), "")
        owner = owner or next((made[name] for name in node.input if name in made), "")
        for output in node.output:
            made[output] = owner
    for node in reversed(graph.node):
        if node.op_type in CUTTING:
            fed = [other for other in graph.node if set(node.output) & set(other.input)]
            made.update({output: made[fed[0].output[0]] for output in node.output if fed})
    named = {node.name: made[node.output[0]] for node in graph.node}
    return {name: layer for name, layer in {**named, **made}.items() if layer}


def _owner(weight: str, known: Sequence[str]) -> str:
    """The longest of the known layers that a weight's dotted name begins with."""
    return next((layer for layer in known if weight.startswith(f"{layer}.")), "")


def _is_weight(name: str) -> bool:
    return name.rpartition(".")[2] in ("weight", "bias") and "." in name


def _graph(path: Path) -> Any:
    with extra("workstation"):
        import onnx
    return onnx.load_model(path, load_external_data=False).graph
