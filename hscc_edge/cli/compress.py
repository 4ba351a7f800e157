"""`hscc-edge compress`: a dense bundle and a budget or a contract become a smaller bundle."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hscc_edge import durable
from hscc_edge.cli.output import Advance, JsonFlag, Output
from hscc_edge.errors import InputError

if TYPE_CHECKING:
    from hscc_edge.bundle import Bundle
    from hscc_edge.compress.compression import Compressed
    from hscc_edge.compress.job import Job
    from hscc_edge.compress.problem import Settings
    from hscc_edge.data.cohort import Cohort
    from hscc_edge.model.plan import LayerPlan

    Pick = Callable[[Bundle, Cohort, Advance], Cohort]
    Given = tuple[Bundle, Cohort, Cohort, Path | None]

Confidence = Annotated[
    float | None, typer.Option(help="Per cent; --max-drop then holds for the interval's lower bound.")
]
CandidatesOut = Annotated[
    Path | None, typer.Option(help="Write each layer's candidates here for bench --layers, and stop.")
]
Choice = Annotated[str, typer.Option(help="How they are chosen: see hscc-edge cohort subset --help.")]
Refit = Annotated[bool | None, typer.Option(help="Refit the factors layer by layer; by default all methods but paper.")]


def compress(
    bundle: Annotated[Path, typer.Argument(help="Dense bundle.")],
    cohort: Annotated[Path, typer.Option(help="Cohort whose train split holds the calibration images.")],
    out: Annotated[Path | None, typer.Option(help="New bundle directory.")] = None,
    method: Annotated[
        str, typer.Option(help="hscc; paper (its own recipe); svd, data-svd, tucker, alds, cp, pruning.")
    ] = "hscc",
    budget: Annotated[str, typer.Option(help="flops=6x, params=10x, bytes=5MB or latency=3.5ms.")] = "",
    max_drop: Annotated[float | None, typer.Option(help="Contract: accuracy may fall by so many points.")] = None,
    max_kl: Annotated[float | None, typer.Option(help="Contract: largest mean KL from the original, nats.")] = None,
    confidence: Confidence = None,
    currency: Annotated[str, typer.Option(help="What a contract saves: flops, params, bytes, latency.")] = "flops",
    plan: Annotated[Path | None, typer.Option(help="Apply this plan (JSON) instead of planning.")] = None,
    structures: Annotated[str, typer.Option(help="What hscc may use, or all.")] = "",
    cells: Annotated[str, typer.Option(help="Finest regions measured, rows x columns; 1x1 for none.")] = "6x6",
    regions: Annotated[int, typer.Option(help="Most regions of a layer.")] = 9,
    clusters: Annotated[int, typer.Option(help="Most clusters of input channels.")] = 4,
    align: Annotated[int, typer.Option(help="Ranks are multiples of this.")] = 8,
    damping: Annotated[float, typer.Option(help="Of the gradients' second moment, as a share of its mean.")] = 1e-3,
    refit: Refit = None,
    moves: Annotated[int, typer.Option(help="Evaluations of true KL to spend on coordinate moves.")] = 0,
    distill: Annotated[float, typer.Option(help="Seconds of label-free distillation on the train split.")] = 0.0,
    threads: Annotated[int, typer.Option(help="Of the runtime, for a latency.")] = 1,
    table: Annotated[Path | None, typer.Option(help="Latency table: read if it is there, else written.")] = None,
    candidates: CandidatesOut = None,
    images: Annotated[int, typer.Option(help="Calibration images.")] = 512,
    calibration: Annotated[Path | None, typer.Option(help="Take the images of this file of cohort subset.")] = None,
    calibration_method: Choice = "random",
    seed: Annotated[int, typer.Option(help="Of the calibration choice and the random signs.")] = 0,
    cache: Annotated[Path | None, typer.Option(help="Directory that keeps statistics between runs.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what stands at --out.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Compress a bundle's network: to a budget, never above it; or as far as an accuracy contract holds.

    Example: hscc-edge compress dense --cohort cohort --budget flops=6x --out small
    Example: hscc-edge compress dense --cohort cohort --max-drop 0.5 --confidence 95 --distill 90 --out small
    Example: hscc-edge compress dense --cohort cohort --candidates layers   (then bench --layers on the device)
    Example: hscc-edge compress dense --cohort cohort --budget latency=4ms --table device.json --out small
    """
    from hscc_edge.compress import AS_PUBLISHED, compression, job

    compression.check_method(method)
    settings = _settings(structures, cells, regions, clusters, align, damping, seed)
    again = method not in AS_PUBLISHED if refit is None else refit
    goal = _goal(budget, max_drop, max_kl, confidence, plan)
    asked = job.Job(
        method=method, **goal, currency=_currency(currency), settings=settings, refit=again, moves=moves,
        distill_s=distill, threads=threads, table=table,
    )  # fmt: skip
    job.check_job(asked)
    pick = _pick(images, calibration, calibration_method, seed, cache)
    started, output = time.perf_counter(), Output(as_json)
    _check_place(out, candidates, overwrite)
    given = _read(output, asked, bundle, cohort, pick, cache)
    if candidates is not None:
        _write_candidates(output, asked, given, candidates, overwrite)
    elif out is not None:
        _run(output, asked, given, out, overwrite, started)


def _check_place(out: Path | None, candidates: Path | None, overwrite: bool) -> None:
    if (out is None) == (candidates is None):
        raise InputError(f"--out is {out}, --candidates {candidates}: give one of them")
    durable.require_free(out or candidates or Path(), replace=overwrite)


def _read(output: Output, asked: Job, bundle: Path, cohort: Path, pick: Pick, cache: Path | None) -> Given:
    """The dense bundle, the whole cohort, its calibration images, and the file that keeps their statistics."""
    from hscc_edge.bundle import read_bundle
    from hscc_edge.compress import compression
    from hscc_edge.data.cohort import read_cohort

    dense, whole = read_bundle(bundle), read_cohort(cohort)
    with output.progress("calibration images") as advance:
        calibration = pick(dense, whole, advance)
    key = compression.cache_key(dense, calibration, asked.settings)
    return dense, whole, calibration, None if cache is None else cache / f"{key}.safetensors"


def _write_candidates(output: Output, asked: Job, given: Given, out: Path, overwrite: bool) -> None:
    from hscc_edge.compress import job

    dense, _, calibration, kept = given
    with output.progress(f"candidates of {asked.method}") as advance:
        index = job.write_candidates(asked, out, dense, calibration, advance, kept, overwrite)
    count = sum(len(layer.candidates) for layer in index.layers)
    output.say(
        f"{out}: {count} candidates of {len(index.layers)} layers; on the device: hscc-edge bench --layers {out}"
    )
    output.result({"candidates": str(out), "layers": len(index.layers), "graphs": count, "network": index.network})


def _run(output: Output, asked: Job, given: Given, out: Path, overwrite: bool, started: float) -> None:
    from hscc_edge.compress import compression, job

    dense, whole, calibration, kept = given
    with output.progress(f"compress by {asked.method}") as advance:
        compressed = job.run(asked, dense, whole, calibration, advance, kept)
    written = compression.write_compressed(out, dense, compressed, calibration, asked.settings, replace=overwrite)
    seconds = time.perf_counter() - started
    _show(output, compressed, asked, seconds)
    found = compressed.plan
    output.result(
        {"bundle": str(out), "digest": written.digest, "seconds": seconds, "flops": found.flops,
         "dense_flops": found.dense_flops, "facts": dict(compressed.facts), "plan": found.to_json()}
    )  # fmt: skip


def _pick(images: int, calibration: Path | None, method: str, seed: int, cache: Path | None) -> Pick:
    """Chooses the calibration images: those of a subset file, or by a method."""
    from hscc_edge.compress import compression
    from hscc_edge.data.subset import check_choice
    from hscc_edge.data.subset_file import read_choice, read_subset

    check_choice(method)
    if calibration is None:
        return lambda bundle, cohort, advance: compression.calibration_of(
            cohort, images, seed, method=method, bundle=bundle, progress=advance, cache=cache
        )
    if method != "random":
        raise InputError("--calibration-method was given with --calibration, whose images are chosen: give one of them")
    split = read_choice(calibration).split
    if split != "train":
        raise InputError(f"{calibration} was chosen from the split {split!r}, which may judge: choose from train")
    return lambda bundle, cohort, advance: read_subset(calibration, cohort)


def _goal(
    budget: str, max_drop: float | None, max_kl: float | None, confidence: float | None, plan: Path | None
) -> dict[str, Any]:
    """The job's budget, contract and plan."""
    from hscc_edge.compress.allocate import parse_budget
    from hscc_edge.compress.contract import Contract, check_contract
    from hscc_edge.model.plan import read_plan

    contract = None
    if any(value is not None for value in (max_drop, max_kl, confidence)):
        contract = Contract(max_drop, max_kl, confidence)
        check_contract(contract)
    if not budget and contract is None and plan is None:
        budget = "flops=6x"
    return {
        "budget": parse_budget(budget) if budget else None,
        "contract": contract,
        "plan": read_plan(plan) if plan is not None else None,
    }


def _currency(name: str) -> str:
    from hscc_edge.compress.allocate import COSTS

    if name not in COSTS:
        raise InputError(f"--currency is {name!r}: expected one of {', '.join(COSTS)}")
    return name


def _settings(
    structures: str, cells: str, regions: int, clusters: int, align: int, damping: float, seed: int
) -> Settings:
    from hscc_edge.compress.problem import Settings
    from hscc_edge.compress.structures import STRUCTURES

    sizes = cells.split("x")
    if not all(size.isdigit() and int(size) > 0 for size in sizes):
        raise InputError(f"--cells is {cells!r}: expected rows x columns, such as 6x6")
    chosen = Settings().structures if not structures else tuple(structures.split(","))
    chosen = tuple(STRUCTURES) if chosen == ("all",) else chosen
    if unknown := [name for name in chosen if name not in STRUCTURES]:
        raise InputError(f"--structures has {unknown[0]!r}: expected some of {', '.join(STRUCTURES)}, or all")
    for name, value in (("--align", align), ("--regions", regions), ("--clusters", clusters)):
        if value < 1:
            raise InputError(f"{name} is {value}: expected 1 or more")
    if not 0 < damping <= 1:
        raise InputError(f"--damping is {damping}: expected more than 0 and at most 1, such as 0.001")
    return Settings(tuple(int(size) for size in sizes), regions, clusters, chosen, align, damping, seed)


def _show(output: Output, compressed: Compressed, asked: Job, seconds: float) -> None:
    plan = compressed.plan
    total = sum(layer.loss for layer in plan.layers) or 1.0
    rows = [_row(layer, total) for layer in plan.layers]
    title = (
        f"{plan.method}, {plan.budget}: {plan.dense_flops / 1e6:.1f} -> {plan.flops / 1e6:.1f} MFLOP "
        f"({plan.dense_flops / plan.flops:.2f}x), {plan.dense_params / plan.params:.1f}x fewer parameters, "
        f"in {seconds:.1f} s"
    )
    columns = ("layer", "shape", "structure", "rank", "regions", "MFLOP", "after", "share of loss")
    output.table(title, columns, rows)
    for line in _remarks(compressed, asked):
        output.say(line)


def _remarks(compressed: Compressed, asked: Job) -> list[str]:
    facts, lines = compressed.facts, []
    if "latency" in facts:
        found = facts["latency"]
        lines.append(
            f"predicted {found['predicted_ms']:.2f} ms, {found['speedup']:.2f}x, by a table of another machine; not "
            "measured: run hscc-edge bench there"
            if found["measured_ms"] is None
            else f"measured on ONNX Runtime's CPU, {asked.threads} thread(s): {found['latency_ms']:.2f} ms, "
            f"{found['speedup']:.2f}x; the first plan was predicted {found['predicted_ms']:.2f} ms and took "
            f"{found['measured_ms']:.2f} ms"
        )
    if "moves" in facts:
        found = facts["moves"]
        lines.append(
            f"moves: KL {found['first_kl']:.4f} -> {found['last_kl']:.4f} on the calibration images, "
            f"{found['evaluations']} evaluations"
        )
    if "distillation" in facts:
        found = facts["distillation"]
        lines.append(
            f"distillation: KL {found['before']:.4f} -> {found['after']:.4f} on images set aside, "
            f"{found['steps']} steps in {found['seconds']:.0f} s"
        )
    if "validation" in facts:
        lines += _contract_remarks(facts)
    return lines


def _contract_remarks(facts: Any) -> list[str]:
    best = max((trial for trial in facts["trials"] if trial["holds"]), key=lambda trial: trial["kl"])
    kind = "point estimate" if facts["point_estimate"] else "lower bound of the paired interval"
    line = (
        f"contract held on {best['cases']} cases ({facts['validation']}; {kind}): KL {best['kl']:.4f}, accuracy "
        f"{best['difference_points']:+.2f} points (from {best['low_points']:+.2f}); {len(facts['trials'])} tries"
    )
    needed = facts.get("cases_needed")
    return [line, *([f"cases at which the lower bound would hold as well: {needed}"] if needed else [])]


def _row(layer: LayerPlan, total: float) -> tuple[object, ...]:
    ranks = "dense" if not layer.ranks else "/".join(str(rank) for rank in layer.ranks)
    return (
        layer.name,
        layer.shape,
        layer.structure if layer.ranks else layer.reason,
        ranks,
        len(layer.regions) or 1,
        f"{layer.dense_flops / 1e6:.2f}",
        f"{layer.flops / 1e6:.2f}",
        f"{100 * layer.loss / total:.1f} %",
    )
