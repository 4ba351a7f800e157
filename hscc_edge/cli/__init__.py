"""The command line: one short function per verb; exit code 2 for what the user can mend, 1 for a gate that fails."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hscc_edge import __version__
from hscc_edge.cli import (
    accounts,
    audit,
    bench,
    build,
    calibrate,
    cohort,
    compress,
    demo,
    doctor,
    engines,
    evidence,
    export,
    flips,
    imported,
    models,
    packages,
    quarantine,
    queue,
    recall,
    redrive,
    robustness,
    serve,
    sign,
    state,
    status,
    studies,
    sweep,
    train,
    triton,
    validate,
    verify,
)
from hscc_edge.errors import HsccError, leave

app = typer.Typer(
    name="hscc-edge",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"{__version__}\n")
        raise typer.Exit


@app.callback()
def start(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version, then end.")
    ] = False,
) -> None:
    """Compress a trained image classifier, prove it on DICOM, and serve it on the edge."""


app.add_typer(cohort.app, name="cohort")
app.command()(train.train)
app.command("import")(imported.import_model)
app.command()(compress.compress)
app.command()(sweep.sweep)
app.command()(export.export)
app.command()(build.build)
app.add_typer(engines.app, name="engines")
app.command()(triton.triton)
app.command()(calibrate.calibrate)
app.command()(validate.validate)
app.command()(robustness.robustness)
app.command()(flips.flips)
app.command()(evidence.evidence)
app.command()(sign.sign)
app.command()(verify.verify)
app.command()(packages.packages)
app.command()(bench.bench)
app.command()(serve.serve)
app.command()(status.status)
app.command()(studies.studies)
app.command()(queue.queue)
app.command()(quarantine.quarantine)
app.add_typer(state.app, name="state")
app.add_typer(audit.app, name="audit")
app.add_typer(models.app, name="models")
app.command()(recall.recall)
app.command()(redrive.redrive)
app.add_typer(accounts.app, name="accounts")
app.command()(doctor.doctor)
app.command()(demo.demo)


def main() -> None:
    """Run the app; a user's mistake becomes one sentence on stderr."""
    try:
        app()
    except HsccError as error:
        leave(error)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
