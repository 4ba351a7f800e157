"""`hscc-edge flips`: a contact sheet of the cases that a bundle and its original decide differently."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hscc_edge.cli.output import JsonFlag, Output
from hscc_edge.errors import InputError


def flips(
    bundle: Annotated[Path, typer.Argument(help="Compressed bundle.")],
    reference: Annotated[Path, typer.Option(help="Bundle it was made from.")],
    cohort: Annotated[Path, typer.Option(help="Cohort with the split.")],
    out: Annotated[Path, typer.Option(help="HTML page to write; its JSON, without pictures, beside it.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    collected: Annotated[
        Path | None, typer.Option("--from", help="Decisions that validate --collect wrote, on the device perhaps.")
    ] = None,
    most: Annotated[int, typer.Option(help="Most cases shown; the JSON has all.")] = 24,
    as_json: JsonFlag = False,
) -> None:
    """Show each case on which the two disagree: picture, both probabilities, where each looked.

    The page holds pictures of patients, under pseudonyms: treat it as confidential.

    Example: hscc-edge flips small --reference dense --cohort cohort --out flips.html
    """
    from hscc_edge import durable
    from hscc_edge.bundle import read_bundle
    from hscc_edge.data.cohort import read_cohort
    from hscc_edge.validate import flips as sheets
    from hscc_edge.validate.collect import Conditions, collect, read_collection

    if most < 0:
        raise InputError(f"--most is {most}: expected 0 or more")
    output, part = Output(as_json), read_cohort(cohort).select(split)
    new, old = read_bundle(bundle), read_bundle(reference)
    if collected is not None:
        found = read_collection(collected)
        digests = (found.candidate.bundle["digest"], found.reference.bundle["digest"], found.cohort["digest"])
        if digests != (new.digest, old.digest, part.digest):
            raise InputError(f"{collected} is of other bundles or another split: give those that it was collected with")
    else:
        with output.progress("decide", 2 * len(part.instances)) as advance:
            found = collect(new, old, part, Conditions(seconds=0.0), advance)
    chosen = sheets.flips(found)
    with output.progress("explain", len(chosen[:most])) as advance:
        page = sheets.sheet(found, chosen, most, new, old, part, advance)
    durable.write_text(out, page)
    record = sheets.record(found, chosen, len(chosen[:most]))
    durable.write_json(out.with_suffix(".json"), record)
    rows = [
        (flip.case, flip.label, flip.reference or "none", flip.candidate or "none", flip.right,
         f"{100 * flip.confidence:.1f} %")
        for flip in chosen
    ]  # fmt: skip
    columns = ("case", "label", "original", "compressed", "right", "confidence")
    output.table(f"{len(chosen)} of {found.cohort['cases']} cases are decided differently", columns, rows)
    output.result(record)
