"""`hscc-edge audit ...`: who did what, and whether somebody has changed that record."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Annotated

import typer

from hscc_edge.cli.output import JsonFlag, Output
from hscc_edge.errors import GateError

app = typer.Typer(no_args_is_help=True, help="The hash-chained record of who did what.")
ConfigFile = Annotated[Path, typer.Argument(help="The daemon's configuration.")]


@app.command()
def verify(config: ConfigFile, as_json: JsonFlag = False) -> None:
    """Find any line that was changed, taken out, put in or moved, and whether the end was cut off.

    Example: hscc-edge audit verify /etc/hscc-edge/serve.toml
    """
    from hscc_edge.serve import audit
    from hscc_edge.serve.config_file import read_config
    from hscc_edge.serve.station import visit

    output, station = Output(as_json), visit(read_config(config))
    journal = station.journal()
    try:
        number, faults = audit.verify(station.config.state, station.key, journal)
    finally:
        journal.close()
    for fault in faults:
        output.say(fault, style="red")
    output.say(f"{number} lines, {'none of them changed' if not faults else f'{len(faults)} faults'}")
    output.result({"lines": number, "faults": faults})
    if faults:
        raise GateError("the audit record was changed: keep it as it is and find out who did")


@app.command()
def show(
    config: ConfigFile,
    last: Annotated[int, typer.Option(min=1, help="How many of the newest lines.")] = 50,
    action: Annotated[str, typer.Option(help="Only this action, such as login.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Show the newest lines; a line with a fault says so.

    Example: hscc-edge audit show /etc/hscc-edge/serve.toml --action login
    """
    from hscc_edge.serve import audit
    from hscc_edge.serve.config_file import read_config
    from hscc_edge.serve.station import visit

    output, station = Output(as_json), visit(read_config(config))
    every = audit.read(station.config.state, station.key)
    lines = deque((line for line in every if action in ("", line.action)), maxlen=last)
    rows = [
        (line.seq, line.time, line.action, " ".join(f"{name}={value}" for name, value in line.facts.items()),
         "; ".join(line.faults))
        for line in lines
    ]  # fmt: skip
    output.table("audit", ("line", "time", "action", "facts", "fault"), rows, text=5)
    output.result(
        {
            "lines": [
                {
                    "seq": line.seq, "time": line.time, "action": line.action, "facts": line.facts,
                    "faults": list(line.faults),
                }
                for line in lines
            ]
        }
    )  # fmt: skip
