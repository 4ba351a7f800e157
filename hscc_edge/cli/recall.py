"""`hscc-edge recall`: take back every report of a bad model."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated

import typer

from hscc_edge.cli.output import JsonFlag, Output


def recall(
    model: Annotated[str, typer.Argument(help="The model's name, or the beginning of its bundle's digest.")],
    config: Annotated[Path, typer.Argument(help="The daemon's configuration; the daemon may run.")],
    again: Annotated[
        bool, typer.Option("--again", help="Let the model that is active now look at the studies again.")
    ] = False,
    look: Annotated[bool, typer.Option("--look", help="List the reports and change nothing.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """List every current report of a model, and supersede each by one that says that the model was recalled.

    Example: hscc-edge recall 3fa8c1d2 /etc/hscc-edge/serve.toml --again
    """
    from hscc_edge.serve.config_file import read_config
    from hscc_edge.serve.results import recall as recalling
    from hscc_edge.serve.station import visit

    output, station = Output(as_json), visit(read_config(config))
    journal = station.journal()
    try:
        found = recalling.affected(journal, model)
        active = recalling.active_now(journal, found)
        if not look:
            found = recalling.recall(station, journal, model, again=again)
    finally:
        journal.close()
    rows = [
        (item.key, item.model, item.digest[:12], f"{datetime.datetime.fromtimestamp(item.created):%Y-%m-%d %H:%M}")
        for item in found
    ]
    if rows:
        output.table("reports" if look else "recalled", ("study", "model", "bundle", "reported"), rows, text=4)
    output.say(f"{len(found)} reports {'would be recalled' if look else 'recalled'}")
    away = [item for item in found if not item.here]
    if again and away:
        output.say(f"{len(away)} studies cannot be worked on again: retention has removed files of theirs", style="red")
    if active:
        output.say(
            "this model is still the active one: install another, or go back, with hscc-edge models", style="red"
        )
    output.result(
        {
            "recalled": 0 if look else len(found),
            "reports": [{"study": item.key, "model": item.model, "digest": item.digest} for item in found],
            "active": active,
            "without_files": len(away),
        }
    )
