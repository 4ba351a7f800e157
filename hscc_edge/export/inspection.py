"""What TensorRT's engine inspector says of the types inside an engine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hscc_edge.errors import EngineError

HALF = re.compile(r"\b(half|fp16|float16)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Inspection:
    """Counts over an engine's layers.

    Attributes:
        typed: layers of which the inspector names a tensor's type; 0 for an engine built without detailed verbosity.
        half: layers with an FP16 input or output.
    """

    layers: int
    typed: int
    half: int


def read_inspection(text: str) -> Inspection:
    """Read `IEngineInspector.get_engine_information` in JSON.

    TensorRT 10 writes one "Format/Datatype" a tensor ("Half", "Row major linear FP16 format"), 11 writes "Format" and
    "DataType" apart.

    Raises:
        EngineError: if it is not the inspector's JSON.
    """
    try:
        layers = json.loads(text)["Layers"]
        types = [list(_types(layer)) for layer in layers]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(
            f"the engine inspector's answer cannot be read ({type(error).__name__}): expected JSON with 'Layers'; "
            "report this TensorRT version"
        ) from error
    half = sum(any(HALF.search(kind) for kind in kinds) for kinds in types)
    return Inspection(len(layers), sum(bool(kinds) for kinds in types), half)


def _types(layer: Any) -> Iterator[str]:
    if isinstance(layer, str):  # an engine without detailed verbosity lists names alone
        return
    for tensor in (*layer.get("Inputs", ()), *layer.get("Outputs", ())):
        yield from (str(value) for key, value in tensor.items() if "format" in key.lower() or "type" in key.lower())
