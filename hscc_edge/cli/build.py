"""`hscc-edge build`: a TensorRT engine of a bundle's ONNX graph, on the machine that runs it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hscc_edge.cli.output import JsonFlag, Output
from hscc_edge.errors import InputError

if TYPE_CHECKING:
    from hscc_edge.bundle import Bundle
    from hscc_edge.export.builder import BuildOptions
    from hscc_edge.runtime.engines import EngineFacts

TIMED = ("trt", "ort")


def build(
    bundle: Annotated[Path, typer.Argument(help="Exported bundle.")],
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp16",
    cohort: Annotated[
        Path | None, typer.Option(help="Cohort whose test images verify the engine; without, it is not activated.")
    ] = None,
    images: Annotated[int, typer.Option(help="Images to verify on.")] = 64,
    cache: Annotated[Path | None, typer.Option(help="Engine directory; ~/.cache/hscc_edge/engines by default.")] = None,
    max_batch: Annotated[int, typer.Option(help="Largest batch the engine takes.")] = 8,
    best_batch: Annotated[int, typer.Option(help="Batch that kernels are chosen for.")] = 1,
    workspace_mib: Annotated[int, typer.Option(help="Memory that a kernel may use beside weights and data.")] = 1024,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Also runs on later TensorRT; may be slower.")
    ] = False,
    refittable: Annotated[
        bool, typer.Option("--refittable", help="Weights of the same plan can be swapped in without a build.")
    ] = False,
    dla: Annotated[int | None, typer.Option(help="Core of the deep learning accelerator, in place of the GPU.")] = None,
    power_mode: Annotated[
        str | None, typer.Option(help="What the power mode is called; a Jetson's own by default.")
    ] = None,
    on: Annotated[
        str | None, typer.Option(help="Build on another machine: ssh://user@host[:port][/path/of/its/hscc-edge].")
    ] = None,
    seconds: Annotated[
        float, typer.Option(help="With --on: of each scenario of the benchmark there; 0 for none.")
    ] = 5.0,
    keep: Annotated[bool, typer.Option("--keep", help="With --on: leave the files that were sent there.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Build a TensorRT engine on the machine that will run it, verify it on real images, and activate it.

    With --on the bundle is sent there, its own hscc-edge builds and times it, and the engine stays in its cache.

    Example: hscc-edge build small --precision fp16 --cohort cohort
    Example: hscc-edge build small --on ssh://hscc@jetson
    """
    from hscc_edge.bundle import read_bundle
    from hscc_edge.export.builder import BuildOptions, check_options
    from hscc_edge.runtime import check_precision

    check_precision(precision)
    options = BuildOptions(best_batch, workspace_mib, version_compatible, refittable, dla, power_mode or "")
    check_options(options, max_batch)
    if images < 1:
        raise InputError(f"--images is {images}: expected 1 or more")
    if keep and on is None:
        raise InputError("--keep was given without --on: expected both, for a build on another machine")
    wanted = Wanted(precision, cohort, images, cache, max_batch, options)
    output, found = Output(as_json), read_bundle(bundle)
    output.result(_here(output, found, wanted) if on is None else _there(output, found, on, wanted, seconds, keep))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be built, here or on another machine."""

    precision: str
    cohort: Path | None
    images: int
    cache: Path | None
    max_batch: int
    options: BuildOptions

    def words(self) -> list[str]:
        """The verb and its arguments, for a machine on which the bundle is called "bundle"."""
        given = self.options
        values = {
            "precision": self.precision, "max-batch": self.max_batch, "best-batch": given.best_batch,
            "workspace-mib": given.workspace_mib, "images": self.images, "dla": given.dla, "cache": self.cache,
            "cohort": self.cohort, "power-mode": given.power_mode or None,
        }  # fmt: skip
        flags = {"version-compatible": given.version_compatible, "refittable": given.refittable}
        pairs = ((f"--{name}", str(value)) for name, value in values.items() if value is not None)
        switches = (f"--{name}" for name, is_set in flags.items() if is_set)
        return ["build", "bundle", *(word for pair in pairs for word in pair), *switches]


def _here(output: Output, bundle: Bundle, wanted: Wanted) -> dict[str, Any]:
    from hscc_edge.cli.verification import verify
    from hscc_edge.export.devices import detect, require_supported
    from hscc_edge.export.engine import build_engine
    from hscc_edge.power_mode import current_name
    from hscc_edge.runtime import PRECISIONS
    from hscc_edge.runtime.engines import cache_directory

    require_supported(detect())
    options, cache = wanted.options, wanted.cache or cache_directory()
    facts = build_engine(
        bundle.path(PRECISIONS[wanted.precision]).read_bytes(),
        precision=wanted.precision, shape=bundle.spec.input_shape, max_batch=wanted.max_batch, cache=cache,
        options=replace(options, power_mode=options.power_mode or current_name()),
    )  # fmt: skip
    output.say(
        f"engine {facts.path}: {facts.builder} {facts.version}, {facts.bytes:,} bytes, "
        + ("taken from the cache" if facts.reused else f"{facts.seconds:.1f} s")
    )
    output.say(f"{facts.half_layers} of {facts.layers} layers FP16; {facts.note}")
    if facts.dla is not None:
        _tell_fallbacks(output, facts)
    verified, reason = verify(output, bundle, facts, wanted.cohort, wanted.images, cache)
    output.say(reason, style="green" if verified.parity else "yellow")
    return {**verified.to_json(), "reused": facts.reused, "active": verified.parity is not None, "activation": reason}


def _tell_fallbacks(output: Output, facts: EngineFacts) -> None:
    count = len(facts.dla_fallbacks)
    output.say(f"{count} layers fell back from DLA {facts.dla} to the GPU; why: {Path(facts.path).with_suffix('.log')}")
    for name in facts.dla_fallbacks:
        output.say(f"  {name}")


def _there(output: Output, bundle: Bundle, url: str, wanted: Wanted, seconds: float, keep: bool) -> dict[str, Any]:
    """The facts of an engine that the machine at `url` built of the very same ONNX file, and its benchmarks."""
    from hscc_edge.errors import RemoteError
    from hscc_edge.export.remote import parcel, parse_host, run_there
    from hscc_edge.runtime import PRECISIONS

    for name, place in (("cache", wanted.cache), ("cohort", wanted.cohort)):
        if place is not None and not place.is_absolute():
            raise InputError(f"--{name} is {place}: expected an absolute path, on the machine that --on names")
    host, graph = parse_host(url), PRECISIONS[wanted.precision]
    output.say(f"building on {host.address}: minutes on a small device")
    bench = ["bench", "bundle", "--precision", wanted.precision, "--seconds", str(seconds), "--runtime"]
    verbs = [wanted.words(), *([*bench, runtime] for runtime in TIMED if seconds > 0)]
    visit = run_there(host, parcel(bundle, [graph]), verbs, needed=1, keep=keep)
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
        "host": host.address, "place": visit.place, "bundle": bundle.digest, "engine": facts,
        "bench": {name: answer.content for name, answer in timed.items() if answer.reason is None},
        "not_run": {f"bench --runtime {name}": answer.reason for name, answer in timed.items() if answer.reason},
    }  # fmt: skip
