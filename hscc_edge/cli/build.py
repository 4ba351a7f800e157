"""`hscc-edge build`: a TensorRT engine of a bundle's ONNX graph, on the machine that runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hscc_edge.cli.output import JsonFlag, Output
from hscc_edge.errors import InputError


def build(
    bundle: Annotated[Path, typer.Argument(help="Exported bundle.")],
    precision: Annotated[str, typer.Option(help="fp32 or fp16.")] = "fp16",
    cache: Annotated[Path | None, typer.Option(help="Engine directory; ~/.cache/hscc_edge/engines by default.")] = None,
    max_batch: Annotated[int, typer.Option(help="Largest batch the engine takes.")] = 8,
    as_json: JsonFlag = False,
) -> None:
    """Build a TensorRT engine from the bundle's ONNX file, on the machine that will run it.

    Example: hscc-edge build small --precision fp16
    """
    from hscc_edge.bundle import read_bundle
    from hscc_edge.export.devices import detect, require_supported
    from hscc_edge.export.engine import build_engine
    from hscc_edge.runtime import PRECISIONS, check_precision
    from hscc_edge.runtime.trt import cache_directory

    output = Output(as_json)
    check_precision(precision)
    if not 1 <= max_batch <= 1024:
        raise InputError(f"--max-batch is {max_batch}: expected 1 to 1024")
    require_supported(detect())
    found = read_bundle(bundle)
    content = found.path(PRECISIONS[precision]).read_bytes()
    facts = build_engine(
        content,
        precision=precision,
        shape=found.spec.input_shape,
        max_batch=max_batch,
        cache=cache or cache_directory(),
    )
    output.say(f"engine {facts.path}: {facts.builder} {facts.version}, {facts.bytes:,} bytes, {facts.seconds:.1f} s")
    output.say(f"{facts.half_layers} of {facts.layers} layers FP16; {facts.note}")
    output.result(facts.to_json())
