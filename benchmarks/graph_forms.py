"""Layers with regions by the form of their graph: AlexNet at a sixth of its FLOPs under ONNX Runtime and TensorRT.

    python benchmarks/graph_forms.py --out docs

Weights are random, since time does not depend on them: own factors per region, and a shared reduce with an expand per
region, on 3 x 3 regions in every convolution, as exported and as export/regions.py writes it; one region of the same
ranks; the dense network. All networks take turns on one thread, batch 1; medians of that thread's processor time, with
the 95 % interval of a bootstrap over rounds. Profiles are ONNX Runtime's own, layers those of TensorRT's parser (its
engine is not built here). Ends in OUT/graph-forms.json and .md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hscc_edge import durable
from hscc_edge.compress.cost import layer_shapes
from hscc_edge.compress.regions import grid
from hscc_edge.export.builder import network_flags, open_builder
from hscc_edge.export.onnx import export_onnx
from hscc_edge.export.regions import by_position
from hscc_edge.model.layers import factorised, replace
from hscc_edge.model.plan import LayerPlan
from hscc_edge.model.zoo import build_network
from hscc_edge.runtime.nvidia import load_tensorrt, logger
from hscc_edge.runtime.ort import OrtRuntime
from hscc_edge.validate.latency import speedup_interval
from hscc_edge.validate.machine import machine_facts
from hscc_edge.validate.profile import nodes_of, run_profiled

SHAPE = (3, 224, 224)
RANKS = {
    "features.0": 24, "features.3": 32, "features.6": 40, "features.8": 24, "features.10": 24,
    "classifier.1": 64, "classifier.4": 64,
}  # fmt: skip
FORMS = {
    "dense": ("dense", False),
    "one region": ("one-region", False),
    "shared reduce, as exported": ("shared-reduce", False),
    "shared reduce, by position": ("shared-reduce", True),
    "own factors, as exported": ("own-factors", False),
}
MOVES = ("Slice", "Split", "Concat", "Pad", "Gather", "Transpose", "Reshape", "ReorderInput", "ReorderOutput")


def main() -> None:
    """Build the graphs, time them in turn, profile them, parse them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for graph-forms.json and .md")
    parser.add_argument("--rounds", type=int, default=60)
    arguments = parser.parse_args()
    image = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{index}.onnx" for index, name in enumerate(FORMS)}
        costs = {name: write(paths[name], *FORMS[name]) for name in FORMS}
        times = in_turn(paths, image, arguments.rounds)
        rows = {name: {**costs[name], **found} for name, found in summaries(times).items()}
        for name, found in profiles(paths, image).items():
            rows[name] |= found
        for name, path in paths.items():
            rows[name]["tensorrt"] = parsed(path.read_bytes())
    table = {**machine_facts(), "rounds": arguments.rounds, "ranks": RANKS, "rows": rows}
    durable.write_json(arguments.out / "graph-forms.json", table)
    durable.write_text(arguments.out / "graph-forms.md", markdown(table))


def write(path: Path, structure: str, rewritten: bool) -> dict[str, Any]:
    """A network of this structure as ONNX; its FLOPs over the dense network's."""
    torch.manual_seed(0)
    network = build_network("alexnet", SHAPE[0], 4, {}).eval()
    shapes = {shape.name: shape for shape in layer_shapes(network, lambda made: made(torch.zeros(1, *SHAPE)))}
    if structure != "dense":
        factorise(network, structure, shapes)
    content = export_onnx(network, SHAPE)
    path.write_bytes(by_position(content) if rewritten else content)
    dense = sum(shape.flops for shape in shapes.values())
    saved = sum(shapes[name].flops - shapes[name].pair_flops(rank) for name, rank in RANKS.items())
    return {"flops_ratio": 1.0 if structure == "dense" else dense / (dense - saved)}


def factorise(network: nn.Module, structure: str, shapes: Mapping[str, Any]) -> None:
    """Put factors of RANKS in place of every layer that has one."""
    for name, rank in RANKS.items():
        kind = structure if shapes[name].kernel else "one-region"
        regions = () if kind == "one-region" else grid(shapes[name].positions, (3, 3))
        ranks = (rank,) * (len(regions) if kind == "own-factors" else 1)
        plan = LayerPlan(name, kind, ranks, regions, shapes[name].text, 0, 0, 0, 0, 0.0)
        replace(network, name, factorised(network.get_submodule(name), plan).eval())


def in_turn(paths: Mapping[str, Path], image: Any, rounds: int) -> dict[str, Any]:
    """Milliseconds of the thread's processor time, one number a round; every second round in reverse."""
    runtimes = {name: OrtRuntime(path) for name, path in paths.items()}
    times: dict[str, list[float]] = {name: [] for name in paths}
    for number in range(rounds + 3):
        for name in list(paths) if number % 2 else reversed(list(paths)):
            runtimes[name].infer(image[None])  # brings its weights into the cache, as in a row of images
            start = time.thread_time_ns()
            runtimes[name].infer(image[None])
            times[name].append((time.thread_time_ns() - start) / 1e6)
    return {name: np.array(found[3:]) for name, found in times.items()}


def summaries(times: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Median and least time, and both over the dense network's."""
    dense, found = times["dense"], {}
    for name, values in times.items():
        low, high = speedup_interval(dense, values)
        found[name] = {
            "ms": float(np.median(values)), "least_ms": float(values.min()),
            "speedup": float(np.median(dense) / np.median(values)), "low": low, "high": high,
            "least_speedup": float(dense.min() / values.min()), "samples_ms": [round(float(v), 4) for v in values],
        }  # fmt: skip
    return found


def profiles(paths: Mapping[str, Path], image: Any) -> dict[str, dict[str, Any]]:
    """By operation (count, milliseconds) and by layer, from ONNX Runtime's profiler."""
    layers, found = [*RANKS, "classifier.6"], {}
    for (name, path), runs in zip(paths.items(), run_profiled(list(paths.values()), [image], 1), strict=True):
        nodes = nodes_of(path, runs, layers)
        kinds = sorted({node.operation for node in nodes})
        found[name] = {
            "nodes": len(nodes),
            "operations": {
                kind: [sum(n.operation == kind for n in nodes), sum(n.ms for n in nodes if n.operation == kind)]
                for kind in kinds
            },
            "layers": {layer: sum(node.ms for node in nodes if node.layer == layer) for layer in layers},
        }
    return found


def parsed(content: bytes) -> dict[str, int]:
    """How many layers of each kind TensorRT's parser makes; the names of its kinds."""
    trt = load_tensorrt()
    log = logger(trt)
    network = open_builder(trt, log).create_network(network_flags(trt, False))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(content):
        raise SystemExit(f"TensorRT cannot parse the graph: {log.last}")
    kinds = [network.get_layer(index).type.name for index in range(network.num_layers)]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def markdown(table: Mapping[str, Any]) -> str:
    """The networks, their operations, their layers."""
    rows, versions = table["rows"], ", ".join(f"{name} {value}" for name, value in table["versions"].items())
    ranks = ", ".join(f"{name} {rank}" for name, rank in table["ranks"].items())
    kinds = sorted({kind for row in rows.values() for kind in row["operations"]})
    return "\n".join([
        "# Graph forms of layers with regions", "",
        "AlexNet, 3 x 224 x 224, random weights, 3 x 3 regions in every convolution, ranks by hand for a sixth of "
        f"the FLOPs ({ranks}). ONNX Runtime on the CPU, one thread, batch 1: medians of {table['rounds']} rounds of "
        "all networks in turn, by the thread's own processor time; the least times tell what other work on the "
        f"machine took. {table['machine']}; {table['date']}; {versions}.", "",
        "| network | FLOPs | ms | speed-up (95 %) | least ms | by least times | nodes run | TensorRT's parser: layers, "
        "of these constants | slices, shuffles, gathers, concatenations |", "|---" * 9 + "|",
        *(network_line(name, row) for name, row in rows.items()), "",
        "Milliseconds in ONNX Runtime's profile by operation (number of nodes):", "",
        f"| operation | {' | '.join(rows)} |", "|---" * (len(rows) + 1) + "|",
        *(f"| {kind} | {' | '.join(operation(row, kind) for row in rows.values())} |" for kind in kinds),
        f"| all that only move data | {' | '.join(moved(row) for row in rows.values())} |", "",
        "The same by layer (the dense network's fused Gemms of the classifier are counted with features.10):", "",
        f"| layer | {' | '.join(rows)} |", "|---" * (len(rows) + 1) + "|",
        *(
            f"| {layer} | {' | '.join(format(row['layers'][layer], '.3f') for row in rows.values())} |"
            for layer in rows["dense"]["layers"]
        ),
        "", "TensorRT: layers of the parsed network. Engines: not run (no GPU).", "",
    ])  # fmt: skip


def network_line(name: str, row: Mapping[str, Any]) -> str:
    """One network."""
    found = row["tensorrt"]
    moving = sum(found.get(kind, 0) for kind in ("SLICE", "SHUFFLE", "GATHER", "CONCATENATION"))
    return (
        f"| {name} | 1/{row['flops_ratio']:.2f} | {row['ms']:.2f} | {row['speedup']:.2f}x ({row['low']:.2f} to "
        f"{row['high']:.2f}) | {row['least_ms']:.2f} | {row['least_speedup']:.2f}x | {row['nodes']} | "
        f"{sum(found.values())}, {found.get('CONSTANT', 0)} | {moving} |"
    )


def operation(row: Mapping[str, Any], kind: str) -> str:
    """Milliseconds and number of one kind."""
    count, ms = row["operations"].get(kind, (0, 0.0))
    return f"{ms:.3f} ({count})" if count else "-"


def moved(row: Mapping[str, Any]) -> str:
    """Milliseconds and number of what only moves data."""
    found = [row["operations"][kind] for kind in MOVES if kind in row["operations"]]
    return f"{sum(ms for _, ms in found):.3f} ({sum(count for count, _ in found)})"


if __name__ == "__main__":
    main()
