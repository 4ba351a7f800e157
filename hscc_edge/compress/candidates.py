"""Candidates of every layer as ONNX graphs: what a device needs to time them, and no more."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from hscc_edge import durable
from hscc_edge.compress.allocate import Option
from hscc_edge.compress.cost import LayerShape
from hscc_edge.compress.layer_graph import layer_graph
from hscc_edge.compress.problem import LayerwiseProposal, Problem, dense_option, layer_plan
from hscc_edge.errors import extra
from hscc_edge.export.onnx import export_onnx
from hscc_edge.export.regions import by_position
from hscc_edge.model.layers import factorised, replace
from hscc_edge.validate.layer_times import DENSE, INDEX, Anchor, Candidate, Index, Layer, digest

with extra("workstation"):
    from torch import nn

POINTS = 5
LEVELS = 1, 3  # of the points, for the anchors of each structure


def write_candidates(
    out: Path, problem: Problem, proposal: LayerwiseProposal, dense: bytes, image: Sequence[int], *,
    overwrite: bool = False,
) -> Index:  # fmt: skip
    """A directory for `hscc-edge bench --layers`; nothing appears at `out` unless all of it does.

    Its size is about POINTS times that of the dense weights, for the structures that are asked for, and that of the
    anchors, two compressed networks a structure.

    Args:
        dense: ONNX graph of the dense network.
        image: (C, H, W) that it takes.

    Raises:
        StorageError: if `out` is taken (unless `overwrite`) or cannot be written.
    """
    with durable.new_directory(out, replace=overwrite) as draft:
        (draft / DENSE).write_bytes(dense)
        layers = tuple(write_layers(draft, problem, proposal))
        anchors = tuple(write_anchors(draft, problem, proposal, image))
        index = Index(digest(dense), tuple(image), layers, anchors)
        durable.write_json(draft / INDEX, index.to_json())
    return index


def write_layers(folder: Path, problem: Problem, proposal: LayerwiseProposal) -> Iterator[Layer]:
    """Write the graphs of one layer after the other."""
    shapes = {shape.name: shape for shape in problem.shapes}
    for number, (name, entry) in enumerate(proposal.candidates.items()):
        yield _write_layer(folder, number, problem, shapes[name], entry.options)


def _write_layer(folder: Path, number: int, problem: Problem, shape: LayerShape, options: Sequence[Option]) -> Layer:
    size = (shape.inputs, *shape.input_positions) if shape.kernel else (shape.inputs,)
    batch = (1 if shape.kernel else shape.area, *size)
    dense, found = problem.network.get_submodule(shape.name), []
    empty = folder / f"{number}-empty.onnx"
    empty.write_bytes(layer_graph(nn.Sequential(nn.ReLU()), batch, between=True))
    for index, option in enumerate(spread(options)):
        module = nn.Sequential(factorised(dense, layer_plan(shape, option, dense_option(shape))), nn.ReLU())
        path = folder / f"{number}-{index}.onnx"
        path.write_bytes(by_position(layer_graph(module, batch, between=True)))
        found.append(Candidate(family(option), float(option.flops), path.name))
    return Layer(shape.name, batch, shape.calls, empty.name, tuple(found))


def write_anchors(
    folder: Path, problem: Problem, proposal: LayerwiseProposal, image: Sequence[int]
) -> Iterator[Anchor]:
    """Whole networks of candidates, by which a device's table of layers is set right.

    Of the first, every layer is the cheapest: little of its time is in its layers. Then there are a small and a large
    one of each structure, in which a layer that does not have it has another.
    """
    candidates = {name: spread(entry.options) for name, entry in proposal.candidates.items()}
    structures = dict.fromkeys(option.structure for options in candidates.values() for option in options)
    plans = [{name: cheapest(options) for name, options in candidates.items()}]
    for structure in structures:
        if structure != "dense":
            plans += [{name: of(options, structure, level) for name, options in candidates.items()} for level in LEVELS]
    for number, chosen in enumerate(plans):
        path = folder / f"anchor-{number}.onnx"
        options = {name: candidates[name][choice] for name, choice in chosen.items()}
        path.write_bytes(by_position(export_onnx(network_of(problem, options), tuple(image))))
        yield Anchor(path.name, chosen)


def network_of(problem: Problem, options: Mapping[str, Option]) -> nn.Module:
    """The network with these options and weights of no meaning."""
    made, shapes = copy.deepcopy(problem.network), {shape.name: shape for shape in problem.shapes}
    for name, option in options.items():
        if option.structure != "dense":
            dense = made.get_submodule(name)
            replace(made, name, factorised(dense, layer_plan(shapes[name], option, dense_option(shapes[name]))))
    return made


def cheapest(options: Sequence[Option]) -> int:
    """Number of the option of fewest FLOPs."""
    return min(range(len(options)), key=lambda index: options[index].flops)


def of(options: Sequence[Option], structure: str, level: int) -> int:
    """Number of an option at that level of its family: of the structure, or of the first that there is."""
    order = sorted(
        families(options).values(),
        key=lambda members: (options[members[0]].structure != structure, options[members[0]].structure == "dense"),
    )
    return order[0][min(level, len(order[0]) - 1)]


def families(options: Sequence[Option]) -> dict[str, list[int]]:
    """The numbers of each family's options."""
    found: dict[str, list[int]] = {}
    for number, option in enumerate(options):
        found.setdefault(family(option), []).append(number)
    return found


def family(option: Option) -> str:
    """What options that differ in rank alone have in common, as text."""
    inner = option.ranks[1:] if option.structure == "tucker-2" else ()
    if option.structure == "channel-groups":
        inner = (len(option.ranks),)
    boxes = ["x".join(f"{a}-{b}" for a, b in zip(box.start, box.stop, strict=True)) for box in option.regions]
    clusters = [len(region) for region in option.clusters]
    return " ".join(str(item) for item in (option.structure, *inner, *clusters, *boxes))


def spread(options: Sequence[Option]) -> list[Option]:
    """POINTS options of each family, evenly in the logarithm of their FLOPs."""
    found: list[Option] = []
    for members in families(options).values():
        ordered = sorted((options[number] for number in members), key=lambda option: option.flops)
        logs = np.log([max(option.flops, 1) for option in ordered])
        wanted = np.linspace(logs[0], logs[-1], POINTS)
        picks = sorted({int(np.abs(logs - value).argmin()) for value in wanted})
        found += [ordered[index] for index in picks]
    return found
