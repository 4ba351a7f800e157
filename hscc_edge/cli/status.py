"""`hscc-edge status`: what a daemon is doing, and what somebody should look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hscc_edge.cli.output import JsonFlag, Output

STYLES = {"bad": "red", "warn": "yellow"}


def status(
    config: Annotated[Path, typer.Argument(help="The daemon's configuration.")],
    as_json: JsonFlag = False,
) -> None:
    """Show whether the daemon lives and is ready, its processes, counts by state, and alarms.

    Example: hscc-edge status /etc/hscc-edge/serve.toml
    """
    from hscc_edge.serve import tallies
    from hscc_edge.serve.config_file import read_config
    from hscc_edge.serve.operations.alarms import alarms, read_status
    from hscc_edge.serve.operations.health import liveness
    from hscc_edge.serve.station import visit

    output, station = Output(as_json), visit(read_config(config))
    told, alive = read_status(station.config.state), liveness(station.config)
    journal = station.journal()
    try:
        counts = {what: tallies.by_state(journal, what) for what in ("instances", "deliveries", "reports")}
        found = alarms(station.config, journal, told)
    finally:
        journal.close()
    output.say("the daemon is alive" if alive.well else alive.faults[0], style=None if alive.well else "red")
    processes = told.get("processes", {}) if alive.well else {}
    rows = [(name, item["pid"], item["restarts"], item["silent_s"]) for name, item in processes.items()]
    if rows:
        output.table("processes", ("process", "pid", "restarts", "silent s"), rows)
    numbers = [(what, state, number) for what, states in counts.items() for state, number in sorted(states.items())]
    output.table("counts", ("of", "state", "number"), numbers, text=2)
    for alarm in found:
        output.say(f"{alarm.title}. {alarm.advice}", style=STYLES.get(alarm.level))
    output.result(
        {
            "alive": alive.well,
            "faults": list(alive.faults),
            "processes": processes,
            **counts,
            "alarms": [{"level": item.level, "title": item.title, "advice": item.advice} for item in found],
        }
    )
