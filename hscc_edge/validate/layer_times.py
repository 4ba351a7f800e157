"""A directory of layers' candidates as ONNX graphs, made on a workstation, timed on the device that will serve.

    index.json  dense.onnx  anchor-0.onnx ...  0-empty.onnx 0-0.onnx 0-1.onnx ... (layer, candidate)

Every candidate of a layer is timed in turn with the others and the whole dense network, and its time is that network's
times its share, which cancels the drift of a machine between layers. In turn, since a candidate called again and again
finds its weights in the processor's caches, from where in a network other layers drive them; by itself where it is so
large that it would drive the others to memory. What an empty graph of the same input takes is no part of a candidate.

Factorised layers still take longer in a network than alone, each structure by another share; dense ones do not. So some
whole networks of candidates, the anchors, are timed too: the fixed part and the structures' scales are those by which
the sums are nearest to the anchors. The outcome is the table that `compress` reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import lsq_linear

from hscc_edge.errors import ConfigError, InputError
from hscc_edge.runtime import Runtime
from hscc_edge.validate.latency import medians, medians_between
from hscc_edge.validate.machine import machine_facts

VERSION = 3
INDEX = "index.json"
DENSE = "dense.onnx"
LEAST = 1e-6
SCALES = 0.5, 2.0  # beyond them a table's layers and its networks are not the same
LARGE_BYTES = 16 << 20
PLAIN = "dense"  # the structure of what is not factorised
ANCHOR_ROUNDS = 25  # of few networks, on which all sums rest
Opener = Callable[[Path], Runtime]
Progress = Callable[[int, str], None]
Points = dict[str, list[tuple[float, float]]]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to compute a layer: a graph, its family (what differs in rank alone shares one) and its FLOPs."""

    family: str
    flops: float
    file: str


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's candidates.

    Attributes:
        batch: the shape that the graphs take; `calls`: how often one image runs the layer.
        empty: the graph without the layer.
    """

    name: str
    batch: tuple[int, ...]
    calls: int
    empty: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Anchor:
    """A whole network as a graph; `chosen` is the number of the candidate that each layer has in it, by name."""

    file: str
    chosen: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Index:
    """What lies in the directory; `image` is the shape (C, H, W) that the dense network takes."""

    network: str
    image: tuple[int, ...]
    layers: tuple[Layer, ...]
    anchors: tuple[Anchor, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object."""
        return {"version": VERSION, **asdict(self)}


@dataclass(frozen=True, slots=True)
class Device:
    """What times.

    Attributes:
        open_graph: opens one graph on the runtime that will serve.
        note: what the runtime's name does not say, such as its threads.
        own_clock: whether the calling thread does all of the runtime's work, so that its processor clock counts.
    """

    open_graph: Opener
    note: str
    own_clock: bool


def device_of(runtime: str, threads: int = 1) -> Device:
    """This machine by one of the runtimes that open a graph: ort, ort-cuda, ort-tensorrt.

    Raises:
        InputError: if it is another.
    """
    if runtime.partition("-")[0] != "ort":
        raise InputError(f"the runtime is {runtime!r}: candidates are timed by ort, ort-cuda or ort-tensorrt")
    from hscc_edge.runtime.ort import OrtRuntime

    provider = runtime.partition("-")[2] or "cpu"
    note = f"{threads} thread{'s' if threads > 1 else ''}" if provider == "cpu" else provider
    return Device(lambda path: OrtRuntime(path, threads, provider), note, provider == "cpu" and threads == 1)


def digest(content: bytes) -> str:
    """Which dense network a table is of: the sha256 of its graph."""
    return hashlib.sha256(content).hexdigest()


def read_index(folder: Path) -> Index:
    """The index of a directory of candidates, its dense network checked.

    Raises:
        InputError: if there is none.
        ConfigError: if it is malformed, of another version, or of another dense network than lies there.
    """
    path = folder / INDEX
    if not path.is_file():
        raise InputError(f"{folder} holds no {INDEX}: give a directory made by hscc-edge compress --candidates")
    try:
        index = _parse(json.loads(path.read_text(encoding="utf-8")))
        known = digest((folder / DENSE).read_bytes()) == index.network
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ConfigError(f"{path} is malformed ({error}): make the candidates again") from error
    if not known:
        raise ConfigError(f"{folder / DENSE} is not the network of {path}: copy the whole directory again")
    return index


def _parse(raw: Mapping[str, Any]) -> Index:
    if raw["version"] != VERSION:
        raise ValueError(f"version {raw['version']}, expected {VERSION}")
    layers = tuple(_parse_layer(item) for item in raw["layers"])
    anchors = tuple(_parse_anchor(item, layers) for item in raw["anchors"])
    return Index(str(raw["network"]), tuple(raw["image"]), layers, anchors)


def _parse_anchor(raw: Mapping[str, Any], layers: Sequence[Layer]) -> Anchor:
    chosen = {layer.name: int(raw["chosen"][layer.name]) for layer in layers}
    for layer in layers:
        if not 0 <= chosen[layer.name] < len(layer.candidates):
            raise ValueError(f"the layer {layer.name} has no candidate {chosen[layer.name]}")
    return Anchor(_inside(raw["file"]), chosen)


def _parse_layer(raw: Mapping[str, Any]) -> Layer:
    return Layer(
        name=str(raw["name"]),
        batch=tuple(raw["batch"]),
        calls=int(raw["calls"]),
        empty=_inside(raw["empty"]),
        candidates=tuple(
            Candidate(str(item["family"]), float(item["flops"]), _inside(item["file"])) for item in raw["candidates"]
        ),
    )


def _inside(name: str) -> str:
    if Path(name).name != name:
        raise ValueError(f"the file {name!r} lies outside the directory")
    return name


def time_directory(folder: Path, device: Device, progress: Progress | None = None) -> dict[str, Any]:
    """Time every candidate of a directory; returns the table's JSON object.

    Time grows with candidates x about 60 ms and the opening of their graphs; memory with one layer's weights,
    or those of all anchors.

    Raises:
        InputError, ConfigError: as `read_index` does.
        ExportError: if the runtime cannot open a graph.
    """
    index, found = read_index(folder), {}
    image = np.random.default_rng(0).standard_normal((1, *index.image)).astype(np.float32)
    whole = device.open_graph(folder / DENSE)
    try:
        for layer in index.layers:
            found[layer.name] = time_layer(folder, layer, (whole, image), device)
            if progress is not None:
                progress(1, layer.name)
        return table(folder, index, (whole, image), found, device)
    finally:
        whole.close()


def time_layer(folder: Path, layer: Layer, whole: tuple[Runtime, NDArray[np.float32]], device: Device) -> Points:
    """By family, FLOPs and time of a layer's candidates, the time as a share of the whole dense network's."""
    images = np.random.default_rng(0).standard_normal(layer.batch).astype(np.float32)
    files = (layer.empty, *(candidate.file for candidate in layer.candidates))
    opened = [device.open_graph(folder / file) for file in files]
    large = [(folder / file).stat().st_size > LARGE_BYTES for file in files]
    together, apart = (
        [(runtime, images) for runtime, is_large in zip(opened, large, strict=True) if is_large == kind]
        for kind in (False, True)
    )
    whole_ms, small_ms = medians_between(whole, together, own_clock=device.own_clock)
    again_ms, *large_ms = medians([whole, *apart], own_clock=device.own_clock)
    sides = iter(small_ms), iter(value * whole_ms / again_ms for value in large_ms)
    empty_ms, *times = [next(sides[is_large]) for is_large in large]
    for runtime in opened:
        runtime.close()
    found: Points = {}
    for candidate, value in zip(layer.candidates, times, strict=True):
        share = max((value - empty_ms) * layer.calls / whole_ms, LEAST)
        found.setdefault(candidate.family, []).append((candidate.flops, share))
    return found


def table(
    folder: Path,
    index: Index,
    whole: tuple[Runtime, NDArray[np.float32]],
    found: Mapping[str, Points],
    device: Device,
) -> dict[str, Any]:
    """The table's JSON object from shares: they are scaled by the dense network's median, taken now.

    `anchors` in it are (sum by the table, measured) in ms, of the networks that set fixed part and scales.
    """
    opened = [device.open_graph(folder / anchor.file) for anchor in index.anchors]
    calls = [whole, *((runtime, whole[1]) for runtime in opened)]
    dense_ms, *measured = medians(calls, own_clock=device.own_clock, rounds=ANCHOR_ROUNDS)
    for runtime in opened:
        runtime.close()
    alone = [
        {name: share * dense_ms for name, share in _shares(found, index.layers, anchor).items()}
        for anchor in index.anchors
    ]
    fixed_ms, scales = anchored(alone, measured)
    sums = [fixed_ms + sum(scales[name] * ms for name, ms in item.items()) for item in alone]
    times = {
        layer: {
            name: _rising([(cost, share * dense_ms * scales.get(structure(name), 1.0)) for cost, share in points])
            for name, points in item.items()
        }
        for layer, item in found.items()
    }
    return {
        "version": VERSION, "runtime": f"{whole[0].name}, {device.note}", "dense_ms": dense_ms, "fixed_ms": fixed_ms,
        "scales": scales, "anchors": [list(pair) for pair in zip(sums, measured, strict=True)],
        "network": index.network, "machine": machine_facts()["machine"], "times": times,
    }  # fmt: skip


def structure(family: str) -> str:
    """Of a family."""
    return family.split(" ", 1)[0]


def anchored(alone: Sequence[Mapping[str, float]], measured: Sequence[float]) -> tuple[float, dict[str, float]]:
    """(fixed part, scale of each structure), by which the sums are nearest to `measured`, relative errors squared.

    Args:
        alone: of each anchor, structure -> ms of its layers of that structure; the scale of dense ones is 1.
    """
    names = sorted({name for item in alone for name in item} - {PLAIN})
    whole = np.asarray(measured)
    system = np.array([[1.0, *(item.get(name, 0.0) for name in names)] for item in alone]) / whole[:, None]
    plain = np.array([item.get(PLAIN, 0.0) for item in alone]) / whole
    bounds = ([0.0, *[SCALES[0]] * len(names)], [np.inf, *[SCALES[1]] * len(names)])
    fixed, *scales = lsq_linear(system, 1.0 - plain, bounds=bounds).x
    return float(fixed), {PLAIN: 1.0, **{name: float(value) for name, value in zip(names, scales, strict=True)}}


def _shares(found: Mapping[str, Points], layers: Sequence[Layer], anchor: Anchor) -> dict[str, float]:
    """What an anchor's layers take alone, by structure."""
    shares: dict[str, float] = {}
    for layer in layers:
        chosen = layer.candidates[anchor.chosen[layer.name]]
        name, share = structure(chosen.family), dict(found[layer.name][chosen.family])[chosen.flops]
        shares[name] = shares.get(name, 0.0) + share
    return shares


def _rising(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """More FLOPs of one family never take less time: noise is smoothed upwards."""
    ordered = sorted(points)
    times = np.maximum.accumulate([value for _, value in ordered])
    return [(flops, float(value)) for (flops, _), value in zip(ordered, times, strict=True)]
