"""The types inside a parsed network, and inside an engine as TensorRT's inspector tells them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hscc_edge.errors import EngineError

HALF = re.compile(r"\b(half|fp16|float16)\b", re.IGNORECASE)
FULL = re.compile(r"\b(float|fp32|float32)\b", re.IGNORECASE)
QUANTISED = re.compile(r"\bint8\b", re.IGNORECASE)
MULTIPLYING = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM")
MOVING = {"reformat", "noop", "constant", "shapehostdevice", "wait", "signal", "reshape", "slice"}
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Inspection:
    """Counts over the layers of a network or engine.

    Attributes:
        typed: layers of which a tensor's type is known; 0 for an engine built without detailed verbosity.
        half: layers with an FP16 tensor.
        computing: layers that multiply (of a network), or that do more than move data (of an engine).
        quantised: those of them that take INT8.
        full: names of those of them that stay in FP32.
        reformats: layers that only change a tensor's format or type: what a mixture of types costs.
    """

    layers: int
    typed: int
    half: int
    computing: int = 0
    quantised: int = 0
    full: tuple[str, ...] = ()
    reformats: int = 0


def read_network(network: Any) -> Inspection:
    """Types of a parsed, strongly typed `INetworkDefinition`: what the builder must keep."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {layer.get_output(i).name: layer.type.name for layer in layers for i in range(layer.num_outputs)}
    half = quantised = computing = 0
    full: list[str] = []
    for layer in layers:
        outputs = {layer.get_output(index).dtype.name for index in range(layer.num_outputs)}
        half += "HALF" in outputs
        if layer.type.name not in MULTIPLYING:
            continue
        computing += 1
        inputs = [layer.get_input(index) for index in range(layer.num_inputs)]
        if any(tensor is not None and makers.get(tensor.name) == "DEQUANTIZE" for tensor in inputs):
            quantised += 1
        elif "FLOAT" in outputs:
            full.append(layer.name)
    casts = sum(layer.type.name == "CAST" for layer in layers)
    return Inspection(len(layers), len(layers), half, computing, quantised, tuple(full), casts)


def read_inspection(text: str) -> Inspection:
    """Read `IEngineInspector.get_engine_information` in JSON.

    TensorRT 10 writes one "Format/Datatype" a tensor ("Half", "Row major linear FP16 format"), 11 writes "Format" and
    "DataType" apart and "I/O Tensors" in place of "Bindings" (NVIDIA's guide from 10.x to 11.x, IEngineInspector).

    Raises:
        EngineError: if it is not the inspector's JSON.
    """
    try:
        layers = json.loads(text)["Layers"]
        found = [(layer, " ; ".join(_types(layer))) for layer in layers]
        work = [(layer, types) for layer, types in found if types and not _moves(layer)]
        full = tuple(str(layer["Name"]) for layer, types in work if FULL.search(types) and not _reduced(types))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(
            f"the engine inspector's answer cannot be read ({type(error).__name__}): expected JSON with 'Layers'; "
            "report this TensorRT version"
        ) from error
    return Inspection(
        layers=len(found),
        typed=sum(bool(types) for _, types in found),
        half=sum(bool(HALF.search(types)) for _, types in found),
        computing=len(work),
        quantised=sum(bool(QUANTISED.search(types)) for _, types in work),
        full=full,
        reformats=sum(not isinstance(layer, str) and _kind(layer) == "reformat" for layer, _ in found),
    )


def require_precision(found: Inspection, precision: str, *, least: float, advice: str) -> None:
    """Refuse a network or engine that is not in the precision that was asked for.

    Args:
        least: share of the computing layers that must be FP16 (of "fp16"), or take INT8 (of "int8"); what a graph
            keeps in FP32 on purpose counts as FP32 here.
        advice: what the user should do.

    Raises:
        EngineError: if it is not; the message names layers.
    """
    asked = f"{precision} was asked for, and "
    if precision == "fp32":
        if found.half or found.quantised:
            raise EngineError(
                f"{asked}{found.half} of the {found.layers} layers are FP16 and {found.quantised} INT8: {advice}"
            )
        return
    held = found.quantised if precision == "int8" else found.computing - len(found.full)
    missing = precision == "fp16" and not found.half
    if missing or held < least * found.computing:
        raise EngineError(
            f"{asked}{len(found.full)} of the {found.computing} layers that compute are FP32 ({names(found.full)}), "
            f"{found.half} layers of all hold FP16 and {found.quantised} take INT8, expected at least "
            f"{least:.0%} in {precision}: {advice}"
        )


def names(layers: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(layers) - SHOWN} more" if len(layers) > SHOWN else ""
    return (", ".join(layers[:SHOWN]) or "none") + more


def _types(layer: Any) -> Iterator[str]:
    if isinstance(layer, str):  # an engine without detailed verbosity lists names alone
        return
    for tensor in (*layer.get("Inputs", ()), *layer.get("Outputs", ())):
        yield from (str(value) for key, value in tensor.items() if "format" in key.lower() or "type" in key.lower())


def _reduced(types: str) -> bool:
    return bool(HALF.search(types) or QUANTISED.search(types) or "bfloat16" in types.lower())


def _kind(layer: Any) -> str:
    return str(layer.get("LayerType", "")).lower()


def _moves(layer: Any) -> bool:
    return _kind(layer) in MOVING
