"""`hscc-edge validate`: a bundle against the one it was made from, on a DICOM test split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hscc_edge.cli.output import JsonFlag, Output
from hscc_edge.errors import InputError

if TYPE_CHECKING:
    from hscc_edge.validate.evidence import Evidence


def validate(
    bundle: Annotated[Path, typer.Argument(help="Bundle to prove.")],
    reference: Annotated[Path, typer.Option(help="Bundle it was made from.")],
    cohort: Annotated[Path, typer.Option(help="Cohort with the split to test on.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    report: Annotated[Path | None, typer.Option(help="HTML report; its JSON is written beside it.")] = None,
    runtime: Annotated[str, typer.Option(help="ort, eager or trt; both bundles run on it.")] = "ort",
    precision: Annotated[str, typer.Option(help="fp32 or fp16.")] = "fp32",
    threads: Annotated[int, typer.Option(help="Of a CPU runtime.")] = 1,
    seconds: Annotated[float, typer.Option(help="Time for the latency samples.")] = 10.0,
    as_json: JsonFlag = False,
) -> None:
    """Compare accuracy, divergence and latency with the reference, and write a report.

    Example: hscc-edge validate small --reference dense --cohort cohort --report report.html
    """
    from hscc_edge import durable
    from hscc_edge.bundle import read_bundle
    from hscc_edge.data.cohort import read_cohort
    from hscc_edge.validate.evidence import Conditions, gather

    if threads < 1 or seconds < 0:
        raise InputError(f"--threads is {threads}, --seconds is {seconds}: expected 1 or more, and 0 or more")
    output, part = Output(as_json), read_cohort(cohort).select(split)
    conditions = Conditions(runtime, precision, threads, seconds)
    with output.progress("validate", 2 * len(part.instances)) as advance:
        evidence = gather(read_bundle(bundle), read_bundle(reference), part, conditions, advance)
    if report is not None:
        from hscc_edge.validate.report import render

        durable.write_text(report, render(evidence))
        durable.write_json(report.with_suffix(".json"), evidence.to_json())
    _show(output, evidence)
    output.result(evidence.to_json())


def _show(output: Output, evidence: Evidence) -> None:
    from hscc_edge.validate.report import share, verdict

    found, race = evidence.comparison, evidence.race
    rows = [
        ("original", share(evidence.reference_figures.accuracy), f"{evidence.reference_figures.macro_f1:.3f}", "-",
         *(f"{getattr(race.reference, name):.2f}" for name in ("p50_ms", "p90_ms", "p99_ms"))),
        ("compressed", share(evidence.candidate_figures.accuracy), f"{evidence.candidate_figures.macro_f1:.3f}",
         f"{found.kl:.4f} (SE {found.kl_se:.4f})",
         *(f"{getattr(race.candidate, name):.2f}" for name in ("p50_ms", "p90_ms", "p99_ms"))),
    ]  # fmt: skip
    columns = ("classifier", "accuracy (95 % interval)", "macro F1", "KL", "p50 ms", "p90 ms", "p99 ms")
    output.table(f"{evidence.cohort['cases']} cases on {evidence.conditions['runtime_name']}", columns, rows)
    output.say(f"{verdict(evidence)} {race.speedup:.2f}x faster ({race.low:.2f} to {race.high:.2f}).")
    output.say("; ".join(evidence.not_run))
