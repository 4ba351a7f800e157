"""The compression plan: which structure and which ranks each layer got, and why; readable, versioned JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hscc_edge.errors import BundleError

VERSION = 2
STRUCTURES = (
    "dense",
    "one-region",
    "shared-reduce",
    "own-factors",
    "clustered",
    "separable",
    "tucker-2",
    "channel-groups",
    "cp",
    "pruned",
)


@dataclass(frozen=True, slots=True)
class Box:
    """A block of output positions, half open: along axis i from start[i] to stop[i] - 1; 1-D, 2-D or 3-D."""

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @property
    def area(self) -> int:
        """Positions in the box."""
        return math.prod(stop - start for start, stop in zip(self.start, self.stop, strict=True))

    @property
    def slices(self) -> tuple[slice, ...]:
        """One slice an axis, for the trailing axes of a map."""
        return tuple(slice(start, stop) for start, stop in zip(self.start, self.stop, strict=True))


Clusters = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One layer's structure.

    Attributes:
        name: the layer's dotted name in the network.
        structure: one of STRUCTURES.
        ranks: () if dense; (r,) for one region, a shared reduce, separable and CP; one rank a region for own factors;
            one rank a cluster, region after region, for clustered; one a channel group for channel-groups;
            (output rank, input rank) for Tucker-2; the sizes that are left for pruned.
        regions: the boxes that tile the output map; () where the structure has none.
        clusters: for each region (or for the whole map) its clusters of input channels; () where there are none.
        shape: the dense layer as text, e.g. "64x3x11x11".
        flops, dense_flops: of this structure and of the dense layer, for one image (two per multiply-add).
        params, dense_params: weights and biases.
        loss: predicted rise of the loss per image, in the method's own unit.
        latency_ms: predicted saving is `dense_latency_ms - latency_ms`; None where nothing was timed.
        reason: why it stays dense, else "".
    """

    name: str
    structure: str
    ranks: tuple[int, ...]
    regions: tuple[Box, ...]
    shape: str
    flops: int
    dense_flops: int
    params: int
    dense_params: int
    loss: float
    reason: str = ""
    clusters: tuple[Clusters, ...] = ()
    latency_ms: float | None = None
    dense_latency_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The structures of all layers of one network, in the order in which they run.

    `flops` and `dense_flops` are sums over the layers, for one image. `folded` names the batch norms that were folded
    into the convolution before them, as pairs (convolution, batch norm), before anything was replaced.
    """

    method: str
    budget: str
    layers: tuple[LayerPlan, ...]
    folded: tuple[tuple[str, str], ...] = ()

    @property
    def flops(self) -> int:
        """Two per multiply-add, one image, layers with weights only."""
        return sum(layer.flops for layer in self.layers)

    @property
    def dense_flops(self) -> int:
        """The same before compression."""
        return sum(layer.dense_flops for layer in self.layers)

    @property
    def params(self) -> int:
        """Weights and biases of the planned layers."""
        return sum(layer.params for layer in self.layers)

    @property
    def dense_params(self) -> int:
        """The same before compression."""
        return sum(layer.dense_params for layer in self.layers)

    @property
    def loss(self) -> float:
        """Predicted rise of the loss per image, in the method's own unit."""
        return sum(layer.loss for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON objects."""
        return {"version": VERSION, **dataclasses.asdict(self)}


def read_plan(path: Path) -> Plan:
    """A plan from a JSON file: a plan itself, or what `compress --json` printed.

    Raises:
        BundleError: if it is missing, no JSON, or no plan.
    """
    if not path.is_file():
        raise BundleError(f"the plan {path} does not exist: give a JSON file with a plan")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"the plan {path} is not JSON ({error}): mend that line") from error
    if not isinstance(raw, dict):
        raise BundleError(f"the plan {path} is no JSON object: give a file with a plan")
    return parse_plan(raw.get("plan", raw))


def parse_plan(raw: Mapping[str, Any]) -> Plan:
    """A plan from JSON.

    Raises:
        BundleError: if the version, a key or a structure is unknown.
    """
    if raw.get("version") != VERSION:
        raise BundleError(f"the plan has version {raw.get('version')!r}: this program reads {VERSION}; compress again")
    try:
        layers = tuple(_parse_layer(layer) for layer in raw["layers"])
        folded = tuple((str(first), str(second)) for first, second in raw["folded"])
        return Plan(str(raw["method"]), str(raw["budget"]), layers, folded)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"the plan is malformed ({error}): compress again") from error


def _parse_layer(raw: Mapping[str, Any]) -> LayerPlan:
    boxes = tuple(Box(tuple(box["start"]), tuple(box["stop"])) for box in raw["regions"])
    clusters = tuple(tuple(tuple(cluster) for cluster in region) for region in raw["clusters"])
    layer = LayerPlan(**{**raw, "regions": boxes, "ranks": tuple(raw["ranks"]), "clusters": clusters})
    if layer.structure not in STRUCTURES:
        raise BundleError(f"the plan has the structure {layer.structure!r}: expected one of {', '.join(STRUCTURES)}")
    return layer


def changes(first: Plan, second: Plan) -> list[str]:
    """One line for each layer on which two plans of one network differ.

    Raises:
        BundleError: if the plans have different layers.
    """
    names = [layer.name for layer in first.layers]
    if names != [layer.name for layer in second.layers]:
        raise BundleError("the two plans are of different networks: compare plans of one network")
    pairs = zip(first.layers, second.layers, strict=True)
    return [f"{a.name}: {_brief(a)} -> {_brief(b)}" for a, b in pairs if _brief(a) != _brief(b)]


def _brief(layer: LayerPlan) -> str:
    ranks = "/".join(str(rank) for rank in layer.ranks)
    regions = f" on {len(layer.regions)} regions" if layer.regions else ""
    return f"{layer.structure} {ranks}{regions}".strip()
