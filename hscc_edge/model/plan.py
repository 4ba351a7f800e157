"""The compression plan: which structure and which ranks each layer got, and why; readable, versioned JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hscc_edge.errors import BundleError

VERSION = 1
STRUCTURES = ("dense", "one-region", "shared-reduce", "own-factors", "tucker-2")


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of output positions, half open: rows top..bottom, columns left..right."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def area(self) -> int:
        """Positions in the box."""
        return (self.bottom - self.top) * (self.right - self.left)


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One layer's structure.

    Attributes:
        name: the layer's dotted name in the network.
        structure: one of STRUCTURES.
        ranks: () if dense; (r,) for one region and for a shared reduce; one rank a region for own factors;
            (output rank, input rank) for Tucker-2.
        regions: the boxes that tile the output map; () where the structure has none.
        shape: the dense layer as text, e.g. "64x3x11x11".
        flops, dense_flops: of this structure and of the dense layer, for one image (two per multiply-add).
        params, dense_params: weights and biases.
        loss: predicted rise of the loss per image, in the method's own unit.
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


@dataclass(frozen=True, slots=True)
class Plan:
    """The structures of all layers of one network, in the order in which they run.

    `flops` and `dense_flops` are sums over the layers, for one image.
    """

    method: str
    budget: str
    layers: tuple[LayerPlan, ...]

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

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON objects."""
        return {"version": VERSION, **dataclasses.asdict(self)}


def parse_plan(raw: Mapping[str, Any]) -> Plan:
    """A plan from JSON.

    Raises:
        BundleError: if the version, a key or a structure is unknown.
    """
    if raw.get("version") != VERSION:
        raise BundleError(f"the plan has version {raw.get('version')!r}: this program reads {VERSION}; compress again")
    try:
        layers = tuple(_parse_layer(layer) for layer in raw["layers"])
        return Plan(str(raw["method"]), str(raw["budget"]), layers)
    except (KeyError, TypeError) as error:
        raise BundleError(f"the plan is malformed ({error}): compress again") from error


def _parse_layer(raw: Mapping[str, Any]) -> LayerPlan:
    boxes = tuple(Box(**box) for box in raw["regions"])
    layer = LayerPlan(**{**raw, "regions": boxes, "ranks": tuple(raw["ranks"])})
    if layer.structure not in STRUCTURES:
        raise BundleError(f"the plan has the structure {layer.structure!r}: expected one of {', '.join(STRUCTURES)}")
    return layer
