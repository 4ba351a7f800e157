"""`hscc-edge engines ...`: the cache of TensorRT engines: what is in it, which is active, and the way back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hscc_edge.cli.output import JsonFlag, Output

if TYPE_CHECKING:
    from hscc_edge.runtime.engines import EngineFacts, Listed

app = typer.Typer(help="List, activate, roll back and remove TensorRT engines.", no_args_is_help=True)
Cache = Annotated[Path | None, typer.Option(help="Engine directory; ~/.cache/hscc_edge/engines by default.")]
Key = Annotated[str, typer.Argument(help="The engine's key, or how it begins; see hscc-edge engines list.")]
BundleArgument = Annotated[Path, typer.Argument(help="Bundle that the engine is for.")]


@app.command("list")
def list_(cache: Cache = None, as_json: JsonFlag = False) -> None:
    """Show every engine of the cache, the oldest first, and for which bundles it is active.

    Example: hscc-edge engines list
    """
    from hscc_edge.runtime.engines import cache_directory, list_engines

    output, place = Output(as_json), cache or cache_directory()
    found = list_engines(place)
    columns = ("key", "precision", "device", "TensorRT", "batch", "bytes", "verified", "active for")
    output.table(f"{len(found)} engines in {place}", columns, [_row(item) for item in found])
    for item in found:
        if item.fault:
            output.say(item.fault, style="red")
    engines = [{"key": item.key, "active": item.active, "fault": item.fault, **_facts(item.facts)} for item in found]
    output.result({"cache": str(place), "engines": engines})


@app.command()
def activate(
    key: Key,
    bundle: BundleArgument,
    cache: Cache = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a verified engine the one that the bundle is served by.

    Example: hscc-edge engines activate 3f2a small
    """
    from hscc_edge.bundle import read_bundle
    from hscc_edge.runtime import engines

    place = cache or engines.cache_directory()
    facts = engines.read_engine(engines.find_listed(place, key))
    engines.activate(place, read_bundle(bundle), facts)
    _tell(Output(as_json), facts, "active")


@app.command()
def rollback(
    bundle: BundleArgument,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp16",
    cache: Cache = None,
    as_json: JsonFlag = False,
) -> None:
    """Go back to the engine that was active before; the one that is left can be activated again.

    Example: hscc-edge engines rollback small --precision fp16
    """
    from hscc_edge.bundle import read_bundle
    from hscc_edge.runtime import check_precision
    from hscc_edge.runtime.engines import cache_directory
    from hscc_edge.runtime.engines import rollback as go_back

    check_precision(precision)
    facts = go_back(cache or cache_directory(), read_bundle(bundle), precision)
    _tell(Output(as_json), facts, "active again")


@app.command()
def refit(
    key: Key,
    bundle: BundleArgument,
    cohort: Annotated[
        Path | None, typer.Option(help="Cohort whose test images verify the engine; without, it is not activated.")
    ] = None,
    images: Annotated[int, typer.Option(help="Images to verify on.")] = 64,
    cache: Cache = None,
    as_json: JsonFlag = False,
) -> None:
    """Swap a bundle's weights into an engine that was built with --refittable, then verify and activate it.

    The bundle must be of the same plan, such as a fine-tuned one; the engine that it is made from stays.

    Example: hscc-edge engines refit 3f2a finetuned --cohort cohort
    """
    from hscc_edge.bundle import read_bundle
    from hscc_edge.cli.verification import verify
    from hscc_edge.export.refit import refit_engine
    from hscc_edge.runtime import PRECISIONS
    from hscc_edge.runtime.engines import cache_directory, find_listed, read_engine

    output, place, found = Output(as_json), cache or cache_directory(), read_bundle(bundle)
    path = find_listed(place, key)
    graph = found.path(PRECISIONS[read_engine(path).precision])
    facts = refit_engine(path, graph.read_bytes(), place)
    verified, reason = verify(output, found, facts, cohort, images, place)
    output.say(f"{facts.path}, {facts.seconds:.1f} s: {reason}")
    output.result({**verified.to_json(), "active": verified.parity is not None, "activation": reason})


@app.command()
def remove(key: Key, cache: Cache = None, as_json: JsonFlag = False) -> None:
    """Delete an engine that is not active, with its facts and log.

    Example: hscc-edge engines remove 3f2a
    """
    from hscc_edge.runtime.engines import cache_directory, remove_engine

    output, path = Output(as_json), remove_engine(cache or cache_directory(), key)
    output.say(f"removed {path}")
    output.result({"removed": str(path)})


def _tell(output: Output, facts: EngineFacts, what: str) -> None:
    output.say(f"{what}: {facts.path}, {facts.precision} for {facts.device}, {facts.builder} {facts.version}")
    output.result({"key": facts.key, **facts.to_json()})


def _facts(facts: EngineFacts | None) -> dict[str, Any]:
    return {} if facts is None else facts.to_json()


def _row(item: Listed) -> tuple[str, ...]:
    facts = item.facts
    if facts is None:
        return (item.key[:12], "-", "-", "-", "-", "-", "not intact", "-")
    active = ", ".join(name[:12] for name in item.active) or "-"
    where = facts.device if facts.dla is None else f"{facts.device} DLA {facts.dla}"
    verified = "yes" if facts.parity is not None else "no"
    return (
        item.key[:12], facts.precision, where, facts.version, str(facts.max_batch), f"{facts.bytes:,}", verified, active
    )  # fmt: skip
