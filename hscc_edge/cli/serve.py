"""`hscc-edge serve`: the daemon at the point of care."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from hscc_edge.cli.output import JsonFlag, Output


def serve(
    config: Annotated[Path, typer.Argument(help="Configuration (TOML), see deploy/serve.example.toml.")],
    check: Annotated[bool, typer.Option("--check", help="Open everything but the port, then end.")] = False,
    health: Annotated[
        bool, typer.Option("--health", help="Ask whether the daemon of this configuration lives.")
    ] = False,
    until_idle: Annotated[float | None, typer.Option(help="End after so many seconds with nothing to do.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Receive studies by C-STORE, classify them, and send a structured report of each.

    Example: hscc-edge serve /etc/hscc-edge/serve.toml
    """
    from hscc_edge.serve.config import read_config
    from hscc_edge.serve.daemon import Daemon, logging_to
    from hscc_edge.serve.daemon import health as ask

    output, parsed = Output(as_json), read_config(config)
    if health:
        status = ask(parsed)
        output.say(f"alive: {status['counts']}")
        output.result(status)
        return
    daemon = Daemon(parsed)
    if check:
        output.say(f"ready: bundle {daemon.bundle.spec.name} {daemon.bundle.digest[:12]}, state {parsed.state}")
        output.result({"bundle": daemon.bundle.digest, "counts": daemon.journal.counts()})
        return
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: daemon.stop())
    with logging_to(sys.stderr):
        daemon.run(until_idle)
    output.result({"stopped": True})
