"""`hscc-edge cohort ...`: make, import, check, split, lock and show cohorts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hscc_edge.cli.cohort_import import Overwrite, import_, show
from hscc_edge.cli.cohort_versions import clean, diff, lock, report, split
from hscc_edge.cli.deidentify import deidentify
from hscc_edge.cli.output import JsonFlag, Output
from hscc_edge.cli.subset import subset
from hscc_edge.errors import CohortError, GateError

app = typer.Typer(help="Make, import, check, split, lock and show cohorts.", no_args_is_help=True)
app.command("import")(import_)
for verb in (split, clean, subset, lock, diff, deidentify, report):
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
    near: Annotated[bool, typer.Option(help="Look for pictures that are nearly equal.")] = True,
    shortcuts: Annotated[bool, typer.Option(help="Look for what gives the label away.")] = True,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that read and compare.")] = 1,
    as_json: JsonFlag = False,
) -> None:
    """Look for unreadable or altered files, missing classes, and pictures or patients on two sides of a split.

    Nearly equal pictures count as equal ones do: other size, window, coding, orientation or border. What gives the
    label away without disease (borders, corners, size, headers, greys) is a warning.

    Exit code 1 if something is found that would spoil a figure.

    Example: hscc-edge cohort check cohort
    """
    from hscc_edge.cli.check import show_findings
    from hscc_edge.data.cohort import read_cohort
    from hscc_edge.data.leakage import check_cohort

    output, found = Output(as_json), read_cohort(cohort)
    if len(found.classes) < 2:
        raise CohortError(f"the cohort {cohort} has {len(found.classes)} class: a classifier needs at least two")
    with output.progress("check", len(found.instances)) as advance:
        findings = check_cohort(found, advance, near=near, shortcuts=shortcuts, jobs=jobs)
    show_findings(output, findings)
    output.result(findings.to_json())
    if not findings.ok:
        raise GateError(f"the cohort {cohort} has faults that spoil figures taken on it: mend them, then check again")
