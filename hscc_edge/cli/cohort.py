"""`hscc-edge cohort ...`: make, import, check, split, lock and show cohorts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hscc_edge.cli.cohort_import import Overwrite, import_, show
from hscc_edge.cli.cohort_versions import diff, lock, report, split
from hscc_edge.cli.deidentify import deidentify
from hscc_edge.cli.output import JsonFlag, Output
from hscc_edge.cli.subset import subset
from hscc_edge.errors import CohortError, GateError

if TYPE_CHECKING:
    from hscc_edge.data.leakage import Findings

app = typer.Typer(help="Make, import, check, split, lock and show cohorts.", no_args_is_help=True)
app.command("import")(import_)
for verb in (split, subset, lock, diff, deidentify, report):
    app.command()(verb)


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="New cohort directory.")],
    patients: Annotated[int, typer.Option(help="Made-up patients, one study each.")] = 400,
    slices: Annotated[int, typer.Option(help="Slices a patient.")] = 6,
    size: Annotated[int, typer.Option(help="Rows and columns.")] = 128,
    seed: Annotated[int, typer.Option(help="The same seed gives the same files.")] = 0,
    overwrite: Overwrite = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a synthetic cohort of MR images: heads with no lesion or one of three kinds.

    Example: hscc-edge cohort phantom cohort --patients 400
    """
    from hscc_edge.data.phantom import write_phantom

    output = Output(as_json)
    with output.progress("phantom", patients * slices) as advance:
        cohort = write_phantom(
            out, patients=patients, slices=slices, size=size, seed=seed, replace=overwrite, progress=advance
        )
    show(output, out, cohort)


@app.command()
def check(
    cohort: Annotated[Path, typer.Argument(help="Cohort directory.")],
    as_json: JsonFlag = False,
) -> None:
    """Look for unreadable or altered files, missing classes, and pictures or patients on two sides of a split.

    Exit code 1 if something is found that would spoil a figure.

    Example: hscc-edge cohort check cohort
    """
    from hscc_edge.data.cohort import read_cohort
    from hscc_edge.data.leakage import check_cohort

    output, found = Output(as_json), read_cohort(cohort)
    if len(found.classes) < 2:
        raise CohortError(f"the cohort {cohort} has {len(found.classes)} class: a classifier needs at least two")
    with output.progress("check", len(found.instances)) as advance:
        findings = check_cohort(found, advance)
    _show_findings(output, findings)
    output.result(findings.to_json())
    if not findings.ok:
        raise GateError(f"the cohort {cohort} has faults that spoil figures taken on it: mend them, then check again")


def _show_findings(output: Output, findings: Findings) -> None:
    classes = list(next(iter(findings.balance.values())))
    rows = [(split, *counts.values()) for split, counts in findings.balance.items()]
    output.table("images by split and class", ("split", *classes), rows)
    exact = findings.to_json()["duplicates"]["exact"]
    output.say(
        f"unreadable {len(findings.unreadable)}, altered {len(findings.altered)}, missing {len(findings.missing)}"
    )
    output.say(f"exact duplicates: {exact['groups']} groups, {exact['across_splits']} of them across splits")
    output.say(f"patients in two splits: {findings.shared_patients}")
    for fault in (*findings.unreadable[:20], *findings.altered[:20], *findings.missing):
        output.say(f"  {fault}")
