"""`hscc-edge robustness`: does a bundle fall sooner than its original as pictures get worse?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hscc_edge.cli.output import JsonFlag, Output
from hscc_edge.errors import InputError

if TYPE_CHECKING:
    from hscc_edge.validate.robustness import Robustness


def robustness(
    bundle: Annotated[Path, typer.Argument(help="Bundle to prove.")],
    reference: Annotated[Path, typer.Option(help="Bundle it was made from.")],
    cohort: Annotated[Path, typer.Option(help="Cohort with the split to test on.")],
    out: Annotated[Path, typer.Option(help="JSON to write, for hscc-edge evidence; its plot is written beside it.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    runtime: Annotated[str, typer.Option(help="ort, eager or trt; both bundles run on it.")] = "ort",
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp32",
    threads: Annotated[int, typer.Option(help="Of a CPU runtime.")] = 1,
    as_json: JsonFlag = False,
) -> None:
    """Spoil every picture in seven ways at five strengths, and see which classifier gives in first.

    Example: hscc-edge robustness small --reference dense --cohort cohort --out robustness.json
    """
    from hscc_edge import durable
    from hscc_edge.bundle import read_bundle
    from hscc_edge.data.cohort import read_cohort
    from hscc_edge.validate.collect import Conditions
    from hscc_edge.validate.robustness import robustness as measure
    from hscc_edge.validate.robustness_plot import draw

    if threads < 1:
        raise InputError(f"--threads is {threads}: expected 1 or more")
    output, part = Output(as_json), read_cohort(cohort).select(split)
    conditions = Conditions(runtime, precision, threads, 0.0)
    with output.progress("robustness", len(part.instances)) as advance:
        found = measure(read_bundle(bundle), read_bundle(reference), part, conditions, advance)
    durable.write_json(out, found.to_json())
    durable.write_text(out.with_suffix(".svg"), draw(found.to_json()))
    _show(output, found)
    output.result(found.to_json())


def _show(output: Output, found: Robustness) -> None:
    rows = [
        (curve.fault, f"{100 * curve.reference[0]:.1f} -> {100 * curve.reference[-1]:.1f}",
         f"{100 * curve.candidate[0]:.1f} -> {100 * curve.candidate[-1]:.1f}", f"{100 * curve.fall:+.1f}",
         "no case changed" if curve.low is None or curve.high is None
         else f"{100 * curve.low:+.1f} to {100 * curve.high:+.1f}", f"{curve.p_value:.3f}")
        for curve in found.curves
    ]  # fmt: skip
    columns = ("fault", "original, none to worst", "compressed", "falls more (points)", "95 % interval", "p, Holm")
    output.table(f"accuracy in per cent on {found.cohort['cases']} cases", columns, rows)
