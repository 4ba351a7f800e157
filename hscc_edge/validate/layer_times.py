"""A directory of layers' candidates as ONNX graphs, made on a workstation, timed on the device that will serve.

    index.json  dense.onnx  thin.onnx  0-empty.onnx 0-0.onnx 0-1.onnx ... (layer, candidate)

Every candidate of a layer is timed in turn with the whole dense network, and its time is that network's times its
share, which cancels the drift of a machine between layers. What an empty graph of the same input takes is no part of a
candidate. What the thin network takes beyond its layers is no part of any: the fixed part. The outcome is the table
that `compress` reads.
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

from hscc_edge.errors import ConfigError, InputError
from hscc_edge.runtime import Runtime
from hscc_edge.validate.latency import medians
from hscc_edge.validate.machine import machine_facts

VERSION = 2
INDEX = "index.json"
DENSE = "dense.onnx"
THIN = "thin.onnx"
LEAST = 1e-6
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
        thin_family, thin_flops: which candidate the thin network has.
    """

    name: str
    batch: tuple[int, ...]
    calls: int
    empty: str
    candidates: tuple[Candidate, ...]
    thin_family: str
    thin_flops: float


@dataclass(frozen=True, slots=True)
class Index:
    """What lies in the directory; `image` is the shape (C, H, W) that the dense network takes."""

    network: str
    image: tuple[int, ...]
    layers: tuple[Layer, ...]

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
    return Index(str(raw["network"]), tuple(raw["image"]), layers)


def _parse_layer(raw: Mapping[str, Any]) -> Layer:
    return Layer(
        name=str(raw["name"]),
        batch=tuple(raw["batch"]),
        calls=int(raw["calls"]),
        empty=_inside(raw["empty"]),
        candidates=tuple(
            Candidate(str(item["family"]), float(item["flops"]), _inside(item["file"])) for item in raw["candidates"]
        ),
        thin_family=str(raw["thin_family"]),
        thin_flops=float(raw["thin_flops"]),
    )


def _inside(name: str) -> str:
    if Path(name).name != name:
        raise ValueError(f"the file {name!r} lies outside the directory")
    return name


def time_directory(folder: Path, device: Device, progress: Progress | None = None) -> dict[str, Any]:
    """Time every candidate of a directory; returns the table's JSON object.

    Time grows with candidates x about 60 ms and the opening of their graphs; memory with one layer's weights.

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
    timed = medians([whole, *((runtime, images) for runtime in opened)], own_clock=device.own_clock)
    whole_ms, empty_ms, *times = timed
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
    """The table's JSON object from shares: they are scaled by the dense network's median, taken now."""
    thin = device.open_graph(folder / THIN)
    dense_ms, thin_ms = medians([whole, (thin, whole[1])], own_clock=device.own_clock)
    thin.close()
    layers = sum(dict(found[layer.name][layer.thin_family])[layer.thin_flops] for layer in index.layers)
    times = {
        layer: {name: _rising([(cost, share * dense_ms) for cost, share in points]) for name, points in item.items()}
        for layer, item in found.items()
    }
    return {
        "version": VERSION, "runtime": f"{whole[0].name}, {device.note}", "dense_ms": dense_ms,
        "fixed_ms": max(thin_ms - layers * dense_ms, 0.0), "network": index.network,
        "machine": machine_facts()["machine"], "times": times,
    }  # fmt: skip


def _rising(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """More FLOPs of one family never take less time: noise is smoothed upwards."""
    ordered = sorted(points)
    times = np.maximum.accumulate([value for _, value in ordered])
    return [(flops, float(value)) for (flops, _), value in zip(ordered, times, strict=True)]
