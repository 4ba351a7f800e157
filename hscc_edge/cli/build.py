"""`hscc-edge build`: a TensorRT engine of a bundle's ONNX graph, on the machine that runs it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hscc_edge.cli.output import JsonFlag, Output
from hscc_edge.errors import InputError

if TYPE_CHECKING:
    from hscc_edge.bundle import Bundle


def build(
    bundle: Annotated[Path, typer.Argument(help="Exported bundle.")],
    precision: Annotated[str, typer.Option(help="fp32 or fp16.")] = "fp16",
    cache: Annotated[Path | None, typer.Option(help="Engine directory; ~/.cache/hscc_edge/engines by default.")] = None,
    max_batch: Annotated[int, typer.Option(help="Largest batch the engine takes.")] = 8,
    on: Annotated[
        str | None, typer.Option(help="Build on another machine: ssh://user@host[:port][/path/of/its/hscc-edge].")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="With --on: leave the files that were sent there.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Build a TensorRT engine from the bundle's ONNX file, on the machine that will run it.

    With --on the bundle is sent there, its own hscc-edge builds, and the engine stays in its cache.

    Example: hscc-edge build small --precision fp16
    Example: hscc-edge build small --on ssh://hscc@jetson
    """
    from hscc_edge.bundle import read_bundle
    from hscc_edge.export.devices import detect, require_supported
    from hscc_edge.export.engine import build_engine
    from hscc_edge.runtime import PRECISIONS, check_precision
    from hscc_edge.runtime.engines import cache_directory

    output = Output(as_json)
    check_precision(precision)
    if not 1 <= max_batch <= 1024:
        raise InputError(f"--max-batch is {max_batch}: expected 1 to 1024")
    if keep and on is None:
        raise InputError("--keep was given without --on: expected both, for a build on another machine")
    found = read_bundle(bundle)
    if on is not None:
        output.result(_there(output, found, on, precision, cache, max_batch, keep))
        return
    require_supported(detect())
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


def _there(
    output: Output, bundle: Bundle, url: str, precision: str, cache: Path | None, max_batch: int, keep: bool
) -> dict[str, Any]:
    """The facts of an engine that the machine at `url` built of the very same ONNX file."""
    from hscc_edge.errors import RemoteError
    from hscc_edge.export.remote import parcel, parse_host, run_there
    from hscc_edge.runtime import PRECISIONS

    if cache is not None and not cache.is_absolute():
        raise InputError(f"--cache is {cache}: expected an absolute path, on the machine that --on names")
    host, graph = parse_host(url), PRECISIONS[precision]
    words = ["build", "bundle", "--precision", precision, "--max-batch", str(max_batch)]
    words += ["--cache", str(cache)] if cache is not None else []
    visit = run_there(host, parcel(bundle, [graph]), [words], keep=keep)
    facts = {"host": host.address, "place": visit.place, **visit.content(0)}
    if facts.get("onnx_sha256") != bundle.files[graph]:
        raise RemoteError(f"{host.address} built an engine of another ONNX file than {graph}: build again")
    output.say(
        f"engine on {host.address}, {facts['path']}: {facts['builder']} {facts['version']} for {facts['device']}"
    )
    output.say(f"{facts['bytes']:,} bytes, {facts['seconds']:.1f} s, {facts['note']}")
    if visit.place is not None:
        output.say(f"what was sent stands in {visit.place} there")
    return facts
