"""`hscc-edge triton` writes a model repository for NVIDIA Triton."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hscc_edge.cli.output import JsonFlag, Output


def triton(
    bundle: Annotated[Path, typer.Argument(help="Exported bundle.")],
    out: Annotated[Path, typer.Option(help="New model repository.")],
    precision: Annotated[str, typer.Option(help="Which of the bundle's ONNX files: fp32, fp16.")] = "fp32",
    engine: Annotated[
        Path | None, typer.Option(help="Engine of this bundle to serve in place of the ONNX file.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Model name; the bundle's by default.")] = None,
    max_batch: Annotated[int, typer.Option(help="Largest batch that Triton makes.")] = 8,
    queue_delay_us: Annotated[int, typer.Option(help="Microseconds that a request may wait for others.")] = 500,
    instances: Annotated[int, typer.Option(help="Copies of the model on each device.")] = 1,
    kind: Annotated[str, typer.Option(help="gpu or cpu.")] = "gpu",
    add: Annotated[bool, typer.Option("--add", help="Add the bundle's version to the model in OUT.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a Triton model repository of the bundle: preprocessing and decision stay in this package.

    Example: hscc-edge triton small --out repository --precision fp16
    """
    from hscc_edge.bundle import read_bundle
    from hscc_edge.export.triton import Serving, write_repository

    output, found = Output(as_json), read_bundle(bundle)
    serving = Serving(name or found.spec.name, max_batch, queue_delay_us, instances, kind)
    facts = write_repository(found, out, serving, precision=precision, engine=engine, add=add)
    output.say(f"{out}: model {facts['model']}, version {facts['version']}, {facts['platform']}, {facts['precision']}")
    output.result(facts)
