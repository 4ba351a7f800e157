"""`hscc-edge queue`: what waits for work and what waits to be sent."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from hscc_edge.cli.output import JsonFlag, Output


def queue(
    config: Annotated[Path, typer.Argument(help="The daemon's configuration.")],
    as_json: JsonFlag = False,
) -> None:
    """Show studies in the order of work, results that are not sent yet, and how many dead letters there are.

    Example: hscc-edge queue /etc/hscc-edge/serve.toml
    """
    from hscc_edge.serve.config_file import read_config
    from hscc_edge.serve.station import visit
    from hscc_edge.serve.web import views

    output, station = Output(as_json), visit(read_config(config))
    journal = station.journal()
    try:
        counts = views.queue(journal)
        work = views.in_hand(journal, station.config.study.quiet_s, limit=views.PAGE)
        sending = views.unsent(journal)
    finally:
        journal.close()
    now = time.time()
    rows = [(item.key, item.state, item.priority, item.instances, f"{now - item.last_received:.0f}") for item in work]
    output.table(
        f"work: {counts['studies']} studies", ("study", "state", "priority", "instances", "waits s"), rows, text=2
    )
    waiting = [
        (item.id, item.key, item.destination, item.form, item.reason or "", item.attempts, f"{item.wait_s:.0f}")
        for item in sending
    ]
    columns = ("id", "study", "destination", "form", "reason", "attempts", "next try s")
    output.table(f"to be sent: {counts['pending']}, to be committed to: {counts['stored']}", columns, waiting, text=5)
    output.say(f"dead letters: {counts['dead']}" + ("; see hscc-edge redrive" if counts["dead"] else ""))
    output.result(
        {"counts": counts, "work": [asdict(item) for item in work], "sending": [asdict(item) for item in sending]}
    )
