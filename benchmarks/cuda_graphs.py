"""Dense networks against factorised ones on a GPU: torch, FP16, one CUDA graph a network and batch size.

    python benchmarks/cuda_graphs.py --out docs [--rounds 60] [--networks DenseNet121]

Weights are random, since time does not depend on them: AlexNet at a sixth of its FLOPs in every structure (the ranks of
graph_forms.py), and deep networks with one region at a sixth of each layer's FLOPs, ranks in eights. Each network is
run in both memory formats and the faster one counts. Graphs take turns: a round replays each one some times between two
CUDA events; every second round goes backwards. The GPU's time alone: no copies, no launch of single kernels. Ends in
OUT/cuda-graphs.json and .md.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cuda.bindings import runtime as cudart
from graph_forms import RANKS, SHAPE, factorise
from torch import nn

from hscc_edge import durable
from hscc_edge.compress.cost import LayerShape, layer_shapes
from hscc_edge.model.layers import factorised, replace
from hscc_edge.model.plan import LayerPlan
from hscc_edge.model.zoo import build_network
from hscc_edge.validate.latency import compare_times
from hscc_edge.validate.machine import machine_facts

BATCHES = (1, 8, 64)
DEEP = {"VGG16": "vgg16", "ResNet50": "resnet50", "DenseNet121": "DenseNet121"}
FORMATS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}
STRUCTURES = ("dense", "one-region", "shared-reduce", "own-factors")
SIXTH, EIGHT = 6, 8
WARM_UPS, ROUND_MS, MOST_REPLAYS = 3, 3.0, 10
Made = tuple[nn.Module, float]


def main() -> None:
    """Every network at every batch size, then the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for cuda-graphs.json and .md")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--networks", nargs="+", choices=families(), default=list(families()))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("torch finds no CUDA device: run this on a machine with an NVIDIA GPU")
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False
    rows = []
    for name in arguments.networks:
        rows += measured(name, families()[name], arguments.rounds)
        durable.write_json(arguments.out / "cuda-graphs.json", rows)
    table = {
        **machine_facts(), "rounds": arguments.rounds, "ranks": RANKS, "rows": rows,
        "device": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }  # fmt: skip
    durable.write_json(arguments.out / "cuda-graphs.json", table)
    durable.write_text(arguments.out / "cuda-graphs.md", markdown(table))


def families() -> dict[str, dict[str, Callable[[], Made]]]:
    """Networks by family and structure; the first of each is the dense one."""
    found = {"AlexNet": {structure: lambda structure=structure: alexnet(structure) for structure in STRUCTURES}}
    for name, key in DEEP.items():
        found[name] = {"dense": lambda key=key: deep(key, False), "one-region": lambda key=key: deep(key, True)}
    return found


def alexnet(structure: str) -> Made:
    """AlexNet in this structure, and its share of the dense network's FLOPs."""
    network, shapes = dense("alexnet")
    if structure != "dense":
        factorise(network, structure, shapes)
    ranks = {} if structure == "dense" else RANKS
    return network, share(shapes, ranks)


def deep(key: str, is_factorised: bool) -> Made:
    """A deep network, dense or with one region in every layer that a rank of eight or more makes smaller."""
    network, shapes = dense(key)
    ranks = {name: sixth(shape) for name, shape in shapes.items() if not shape.reason} if is_factorised else {}
    ranks = {name: rank for name, rank in ranks.items() if shapes[name].pair_flops(rank) < shapes[name].flops}
    for name, rank in ranks.items():
        plan = LayerPlan(name, "one-region", (rank,), (), shapes[name].text, 0, 0, 0, 0, 0.0)
        replace(network, name, factorised(network.get_submodule(name), plan))
    return network.eval(), share(shapes, ranks)


def dense(key: str) -> tuple[nn.Module, dict[str, LayerShape]]:
    """A network with random weights, and its layers."""
    torch.manual_seed(0)
    network = build_network(key, SHAPE[0], 4, {}).eval()
    return network, {shape.name: shape for shape in layer_shapes(network, lambda one: one(torch.zeros(1, *SHAPE)))}


def sixth(shape: LayerShape) -> int:
    """The multiple of eight, eight at least, that is nearest to a sixth of the layer's FLOPs."""
    return max(EIGHT, EIGHT * round(shape.flops / SIXTH / shape.pair_flops(1) / EIGHT))


def share(shapes: Mapping[str, LayerShape], ranks: Mapping[str, int]) -> float:
    """Dense FLOPs over those that are left."""
    total = sum(shape.flops for shape in shapes.values())
    return total / (total - sum(shapes[name].flops - shapes[name].pair_flops(rank) for name, rank in ranks.items()))


def measured(family: str, made: Mapping[str, Callable[[], Made]], rounds: int) -> Iterator[dict[str, Any]]:
    """Rows of one family: structure, memory format, batch size."""
    networks = {structure: make() for structure, make in made.items()}
    for batch in BATCHES:
        images = torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(0))
        graphs: dict[tuple[str, str], Any] = {}
        errors = {}
        for structure, (network, _) in networks.items():
            truth = exact(network, images)
            for name, memory in FORMATS.items():
                graph, logits = captured(network, images, memory)
                errors[structure, name] = float((logits.float().cpu() - truth).abs().max() / truth.abs().max())
                graphs[structure, name] = graph
        times = in_turn({key: graph for key, (graph, *_) in graphs.items()}, rounds)
        reference = min((times[key] for key in times if key[0] == "dense"), key=np.median)
        for key, samples in times.items():
            yield row(family, key, batch, samples, reference) | {
                "flops_ratio": networks[key[0]][1], "kernels": graphs[key][1], "largest_error": errors[key]
            }  # fmt: skip
        print(family, batch, {" ".join(key): round(1000 * float(np.median(found))) for key, found in times.items()})


def exact(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logits of FP32 by the GPU, copied to the CPU."""
    with torch.inference_mode():
        return copy.deepcopy(network).cuda()(images.cuda()).cpu()


def captured(network: nn.Module, images: torch.Tensor, memory: torch.memory_format) -> tuple[Any, torch.Tensor]:
    """((graph, its nodes, the tensors it reads), logits) of a copy of the network in FP16."""
    half = copy.deepcopy(network).cuda().half().to(memory_format=memory)
    given = images.cuda().half().contiguous(memory_format=memory)
    stream = torch.cuda.Stream()
    with torch.inference_mode(), torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            half(given)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.inference_mode(), torch.cuda.graph(graph):
        logits = half(given)
    _, _, nodes = cudart.cudaGraphGetNodes(graph.raw_cuda_graph())
    graph.instantiate()
    graph.replay()
    torch.cuda.synchronize()
    return (graph, nodes, (half, given, logits)), logits


def in_turn(graphs: Mapping[Any, Any], rounds: int) -> dict[Any, Any]:
    """Milliseconds of one replay, a number a round."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def timed(graph: Any, replays: int) -> float:
        graph.replay()
        begin.record()
        for _ in range(replays):
            graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / replays

    first = {key: min(timed(graph, 1) for _ in range(WARM_UPS)) for key, graph in graphs.items()}
    replays = {key: max(1, min(MOST_REPLAYS, int(ROUND_MS / ms))) for key, ms in first.items()}
    times: dict[Any, list[float]] = {key: [] for key in graphs}
    for number in range(rounds):
        for key in list(graphs) if number % 2 else reversed(list(graphs)):
            times[key].append(timed(graphs[key], replays[key]))
    return {key: np.array(found) for key, found in times.items()}


def row(family: str, key: tuple[str, str], batch: int, samples: Any, reference: Any) -> dict[str, Any]:
    """Median, and the speed-up over the faster dense graph with the 95 % interval of a bootstrap over rounds."""
    race = compare_times(reference, samples)
    return {
        "family": family, "structure": key[0], "format": key[1], "batch": batch, "ms": float(np.median(samples)),
        "p90_ms": race.candidate.p90_ms, "speedup": race.speedup, "low": race.low, "high": race.high,
    }  # fmt: skip


def markdown(table: Mapping[str, Any]) -> str:
    """One table: for each network and batch the faster memory format."""
    best: dict[tuple[str, str, int], Mapping[str, Any]] = {}
    for found in table["rows"]:
        key = (found["family"], found["structure"], found["batch"])
        best[key] = min(best.get(key, found), found, key=lambda one: one["ms"])
    networks = list(dict.fromkeys((family, structure) for family, structure, _ in best))
    ranks = ", ".join(f"{name} {rank}" for name, rank in table["ranks"].items())
    return "\n".join([
        "# Dense and factorised networks on a GPU: CUDA graphs in FP16", "",
        f"`benchmarks/cuda_graphs.py`; {table['device']}, torch {table['torch']}, CUDA {table['cuda']}, cuDNN "
        f"{table['cudnn']}; {table['machine']}; {table['date']}.", "",
        "3 x 224 x 224, random weights, FP16 throughout. AlexNet with 3 x 3 regions in every convolution where there",
        f"are regions, and these ranks: {ranks}.", "",
        "Deep networks: one region, ranks in eights nearest to a sixth of a layer's FLOPs, layers that gain nothing",
        f"left dense. Medians of {table['rounds']} rounds of all graphs of a family in turn, ten replays a round at",
        "most, the GPU's time alone; weights that fit its L2 stay there. The faster of both memory formats; speed-up",
        "over the faster dense graph, 95 % interval by a bootstrap over rounds. Error: of FP16 logits from FP32's (no",
        "TF32), over the largest logit. Nodes: of the CUDA graph at batch 1.", "",
        "| network | structure | FLOPs | nodes | largest error | "
        + " | ".join(f"batch {batch}: ms | speed-up (95 %)" for batch in BATCHES) + " |",
        "|---" * (5 + 2 * len(BATCHES)) + "|",
        *(line(best, *network) for network in networks), "",
        "A GPU of a Jetson was not run: it has a twentieth of this one's memory bandwidth, so that launches weigh less",
        "there and weights more.", "",
    ])  # fmt: skip


def line(best: Mapping[tuple[str, str, int], Mapping[str, Any]], family: str, structure: str) -> str:
    """One network."""
    found = [best[family, structure, batch] for batch in BATCHES]
    cells = [
        f"{one['ms']:.3f} | {one['speedup']:.2f}x ({one['low']:.2f} to {one['high']:.2f})" for one in found
    ]  # fmt: skip
    error = max(one["largest_error"] for one in found)
    return (
        f"| {family} | {structure} | 1/{found[0]['flops_ratio']:.2f} | {found[0]['kernels']} | {error:.1e} | "
        + " | ".join(cells) + " |"
    )  # fmt: skip


if __name__ == "__main__":
    main()
