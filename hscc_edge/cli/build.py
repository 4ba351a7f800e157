"""`hscc-edge build`: a TensorRT engine of a bundle's ONNX graph, on the machine that runs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hscc_edge.cli.output import JsonFlag, Output
from hscc_edge.errors import InputError

if TYPE_CHECKING:
    from hscc_edge.bundle import Bundle

TIMED = ("trt", "ort")


def build(
    bundle: Annotated[Path, typer.Argument(help="Exported bundle.")],
    precision: Annotated[str, typer.Option(help="fp32 or fp16.")] = "fp16",
    cache: Annotated[Path | None, typer.Option(help="Engine directory; ~/.cache/hscc_edge/engines by default.")] = None,
    max_batch: Annotated[int, typer.Option(help="Largest batch the engine takes.")] = 8,
    on: Annotated[
        str | None, typer.Option(help="Build on another machine: ssh://user@host[:port][/path/of/its/hscc-edge].")
    ] = None,
    seconds: Annotated[
        float, typer.Option(help="With --on: of each scenario of the benchmark there; 0 for none.")
    ] = 5.0,
    keep: Annotated[bool, typer.Option("--keep", help="With --on: leave the files that were sent there.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Build a TensorRT engine from the bundle's ONNX file, on the machine that will run it.

    With --on the bundle is sent there, its own hscc-edge builds and times it, and the engine stays in its cache.

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
        output.result(_there(output, found, on, Wanted(precision, cache, max_batch, seconds, keep)))
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


@dataclass(frozen=True, slots=True)
class Wanted:
    """What another machine is asked to build, and how long to time it."""

    precision: str
    cache: Path | None
    max_batch: int
    seconds: float
    keep: bool

    def verbs(self) -> list[list[str]]:
        """The build, then the benchmark of the engine and, beside it, of the machine's CPU."""
        words = ["build", "bundle", "--precision", self.precision, "--max-batch", str(self.max_batch)]
        words += ["--cache", str(self.cache)] if self.cache is not None else []
        timed = ["bench", "bundle", "--precision", self.precision, "--seconds", str(self.seconds), "--runtime"]
        return [words, *([*timed, runtime] for runtime in TIMED if self.seconds > 0)]


def _there(output: Output, bundle: Bundle, url: str, wanted: Wanted) -> dict[str, Any]:
    """The facts of an engine that the machine at `url` built of the very same ONNX file, and its benchmarks."""
    from hscc_edge.errors import RemoteError
    from hscc_edge.export.remote import parcel, parse_host, run_there
    from hscc_edge.runtime import PRECISIONS

    if wanted.cache is not None and not wanted.cache.is_absolute():
        raise InputError(f"--cache is {wanted.cache}: expected an absolute path, on the machine that --on names")
    host, graph = parse_host(url), PRECISIONS[wanted.precision]
    output.say(f"building on {host.address}: minutes on a small device")
    visit = run_there(host, parcel(bundle, [graph]), wanted.verbs(), needed=1, keep=wanted.keep)
    facts = visit.content(0)
    if facts.get("onnx_sha256") != bundle.files[graph]:
        raise RemoteError(f"{host.address} built an engine of another ONNX file than {graph}: build again")
    timed = dict(zip(TIMED, visit.answers[1:], strict=False))
    output.say(f"engine {facts['path']} there: {facts['builder']} {facts['version']} for {facts['device']}")
    output.say(f"{facts['bytes']:,} bytes, {facts['seconds']:.1f} s, {facts['note']}")
    for name, answer in timed.items():
        output.say(f"bench --runtime {name}: {'in the JSON object' if answer.reason is None else answer.reason}")
    if visit.place is not None:
        output.say(f"what was sent stands in {visit.place} there")
    return {
        "host": host.address, "place": visit.place, "engine": facts,
        "bench": {name: answer.content for name, answer in timed.items() if answer.reason is None},
        "not_run": {f"bench --runtime {name}": answer.reason for name, answer in timed.items() if answer.reason},
    }  # fmt: skip
