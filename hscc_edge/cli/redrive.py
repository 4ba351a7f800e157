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
        if unknown := sorted(set(numbers or []) - outbox.dead(journal)):
            raise InputError(f"{unknown[0]} is no dead letter: list them with hscc-edge redrive {config}")
        dead = outbox.dead_letters(journal)
        sent = outbox.redrive(journal, None if everything else numbers) if everything or numbers else 0
        if sent:
            audit(station, "redrive", letters=sent, ids=" ".join(map(str, numbers or [])) or "all")
    finally:
        journal.close()
    if sent:
        output.say(f"{sent} dead letters are to be sent again")
    else:
        rows = [(item.id, item.key, item.destination, item.form, item.reason or "", item.attempts) for item in dead]
        output.table("dead letters", ("id", "study", "destination", "form", "reason", "attempts"), rows, text=5)
    output.result(
        {
            "redriven": sent,
            "dead": [
                {
                    "id": item.id, "study": item.key, "destination": item.destination, "form": item.form,
                    "reason": item.reason, "attempts": item.attempts,
                }
                for item in dead
            ],
        }
    )  # fmt: skip
