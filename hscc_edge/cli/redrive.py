"""`hscc-edge redrive`: send dead letters again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hscc_edge.cli.output import JsonFlag, Output
from hscc_edge.errors import InputError


def redrive(
    config: Annotated[Path, typer.Argument(help="The daemon's configuration; the daemon may run.")],
    numbers: Annotated[list[int] | None, typer.Argument(metavar="[ID...]", help="Dead letters to send.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Send every dead letter.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Send dead letters again; without ids and without --all, list them.

    Example: hscc-edge redrive /etc/hscc-edge/serve.toml 17 21
    """
    from hscc_edge.serve import outbox
    from hscc_edge.serve.audit import audit
    from hscc_edge.serve.config_file import read_config
    from hscc_edge.serve.station import visit

    output, station = Output(as_json), visit(read_config(config))
    journal = station.journal()
    try:
        every = outbox.dead(journal)
        if unknown := sorted(set(numbers or []) - every):
            raise InputError(f"{unknown[0]} is no dead letter: list them with hscc-edge redrive {config}")
        dead = outbox.dead_letters(journal)
        asked = len(every if everything else set(numbers or []))
        sent = outbox.redrive(journal, None if everything else numbers) if asked else 0
        if asked:
            audit(station, "redrive", letters=sent, ids=" ".join(map(str, numbers or [])) or "all")
    finally:
        journal.close()
    if asked:
        output.say(f"{sent} dead letters are to be sent again")
        if asked > sent:
            output.say(f"{asked - sent} are not: their destination has a later report of the study")
    else:
        rows = [(item.id, item.key, item.destination, item.form, item.reason or "", item.attempts) for item in dead]
        output.table("dead letters", ("id", "study", "destination", "form", "reason", "attempts"), rows, text=5)
    output.result(
        {
            "redriven": sent,
            "superseded": asked - sent,
            "dead": [
                {
                    "id": item.id, "study": item.key, "destination": item.destination, "form": item.form,
                    "reason": item.reason, "attempts": item.attempts,
                }
                for item in dead
            ],
        }
    )  # fmt: skip
