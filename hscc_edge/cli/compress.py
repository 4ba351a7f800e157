"""`hscc-edge compress`: a dense bundle and a budget become a smaller bundle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hscc_edge.cli.output import JsonFlag, Output
from hscc_edge.errors import InputError

if TYPE_CHECKING:
    from hscc_edge.compress.problem import Settings
    from hscc_edge.model.plan import LayerPlan, Plan


def compress(
    bundle: Annotated[Path, typer.Argument(help="Dense bundle.")],
    cohort: Annotated[Path, typer.Option(help="Cohort whose train split holds the calibration images.")],
    out: Annotated[Path, typer.Option(help="New bundle directory.")],
    method: Annotated[str, typer.Option(help="hscc, svd (weight-only) or tucker.")] = "hscc",
    budget: Annotated[str, typer.Option(help="flops=6x or params=10x.")] = "flops=6x",
    regions: Annotated[str, typer.Option(help="Regions of a feature map, rows x columns; 1x1 for none.")] = "3x3",
    structures: Annotated[
        str, typer.Option(help="What hscc may use: one-region, shared-reduce, own-factors.")
    ] = "one-region,shared-reduce",
    align: Annotated[int, typer.Option(help="Ranks are multiples of this.")] = 8,
    refit: Annotated[bool, typer.Option(help="Refit hscc's factors layer by layer.")] = True,
    images: Annotated[int, typer.Option(help="Calibration images.")] = 512,
    seed: Annotated[int, typer.Option(help="Of the calibration choice and the sampled labels.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what stands at --out.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Compress a bundle's network to a budget: never above it, less than one rank step below.

    Example: hscc-edge compress dense --cohort cohort --method hscc --budget flops=6x --out small
    """
    from hscc_edge.bundle import read_bundle
    from hscc_edge.compress import compression
    from hscc_edge.compress.allocate import parse_budget
    from hscc_edge.data.cohort import read_cohort

    output, started = Output(as_json), time.perf_counter()
    compression.check_method(method)
    limit, settings = parse_budget(budget), _settings(regions, structures, align, refit, seed)
    dense = read_bundle(bundle)
    calibration = compression.calibration_of(read_cohort(cohort), images, seed)
    with output.progress(f"compress by {method}") as advance:
        compressed = compression.compress(dense, calibration, method, limit, settings, advance)
    written = compression.write_compressed(out, dense, compressed, calibration, settings, replace=overwrite)
    seconds = time.perf_counter() - started
    _show(output, compressed.plan, seconds)
    output.result(
        {"bundle": str(out), "digest": written.digest, "seconds": seconds, "flops": compressed.plan.flops,
         "dense_flops": compressed.plan.dense_flops, "plan": compressed.plan.to_json()}
    )  # fmt: skip


def _settings(regions: str, structures: str, align: int, refit: bool, seed: int) -> Settings:
    from hscc_edge.compress.problem import Settings
    from hscc_edge.model.plan import STRUCTURES

    rows, _, columns = regions.partition("x")
    if not (rows.isdigit() and columns.isdigit() and int(rows) > 0 and int(columns) > 0):
        raise InputError(f"--regions is {regions!r}: expected rows x columns, such as 3x3")
    chosen = tuple(structures.split(","))
    known = tuple(name for name in STRUCTURES if name not in ("dense", "tucker-2"))
    if unknown := [name for name in chosen if name not in known]:
        raise InputError(f"--structures has {unknown[0]!r}: expected some of {', '.join(known)}")
    if align < 1:
        raise InputError(f"--align is {align}: expected 1 or more, such as 8")
    return Settings((int(rows), int(columns)), chosen, align, refit, seed)


def _show(output: Output, plan: Plan, seconds: float) -> None:
    total = sum(layer.loss for layer in plan.layers) or 1.0
    rows = [_row(layer, total) for layer in plan.layers]
    title = (
        f"{plan.method}, {plan.budget}: {plan.dense_flops / 1e6:.1f} -> {plan.flops / 1e6:.1f} MFLOP "
        f"({plan.dense_flops / plan.flops:.2f}x) in {seconds:.1f} s"
    )
    output.table(title, ("layer", "shape", "structure", "rank", "regions", "MFLOP", "after", "share of loss"), rows)


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
