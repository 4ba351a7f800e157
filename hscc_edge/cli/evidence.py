"""`hscc-edge evidence`: recorded results about a bundle become a pack that can be read, printed, filed and signed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hscc_edge.cli.output import JsonFlag, Output

if TYPE_CHECKING:
    from hscc_edge.validate.pack.pack import Pack


def evidence(
    bundle: Annotated[Path, typer.Argument(help="Bundle that the pack is about.")],
    out: Annotated[Path, typer.Option(help="New directory.")],
    record: Annotated[
        list[Path] | None,
        typer.Option(
            help="Recorded result (JSON, or uses.jsonl); may be given many times. The bundle's own are found."
        ),
    ] = None,
    approved: Annotated[Path | None, typer.Option(help="Last approved bundle, for the change note.")] = None,
    site: Annotated[
        Path | None,
        typer.Option(help="TOML of what only the site can say: card, answers, requirements, plan of changes."),
    ] = None,
    timestamp: Annotated[
        str | None, typer.Option(help="ISO 8601 with its offset, in place of now: then equal inputs give equal bytes.")
    ] = None,
    pdf: Annotated[bool, typer.Option(help="Print the page to report.pdf as well; needs Pango.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what stands at --out.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Render recorded results, and run nothing again: report (HTML, PDF), verification record, card, SBOM, checklists.

    Example: hscc-edge evidence small --record report.json --record cohort/cohort.lock --out pack
    """
    from hscc_edge.validate.pack.contents import gather
    from hscc_edge.validate.pack.moment import moment
    from hscc_edge.validate.pack.pack import write_pack

    output = Output(as_json)
    contents = gather(bundle, record or [], moment(timestamp), approved=approved, site=site)
    with output.progress("evidence"):
        pack = write_pack(contents, out, replace=overwrite, pdf=pdf)
    _show(output, pack)
    output.result(_facts(pack))


def _show(output: Output, pack: Pack) -> None:
    output.say(pack.conclusion)
    output.say(", ".join(f"{name} {count}" for name, count in pack.verdicts.items()))
    if pack.not_run:
        output.say(f"not run, or not given: {', '.join(pack.not_run)}")
    output.say(f"{pack.root}: {pack.files} files, manifest {pack.manifest[:16]}; sign it with hscc-edge sign")


def _facts(pack: Pack) -> dict[str, Any]:
    return {
        "pack": str(pack.root), "manifest": pack.manifest, "files": pack.files, "verdicts": dict(pack.verdicts),
        "not_run": list(pack.not_run), "conclusion": pack.conclusion,
    }  # fmt: skip
