"""`hscc-edge serve`: the daemon at the point of care."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hscc_edge.cli.output import JsonFlag, Output
from hscc_edge.errors import StorageError, require


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
    from hscc_edge.serve.__main__ import become
    from hscc_edge.serve.config_file import read_config

    require("pynetdicom", "device")
    output = Output(as_json)
    if health:
        from hscc_edge.serve.operations.health import liveness, readiness
        from hscc_edge.serve.station import visit

        parsed = read_config(config)
        alive = liveness(parsed)
        if not alive.well:
            raise StorageError(alive.faults[0])
        ready = readiness(visit(parsed))
        output.say("alive and ready" if ready.well else f"alive, but not ready: {'; '.join(ready.faults)}")
        output.result({"alive": True, "ready": ready.well, "faults": list(ready.faults)})
        return
    if not check:
        read_config(config)  # what is wrong with it is told by this process
        become(config, until_idle, as_json=as_json)
    from hscc_edge.serve.daemon import Daemon

    daemon = Daemon(config)
    for bundle in daemon.models:
        output.say(f"ready: {bundle.spec.name} {bundle.digest[:12]}")
    output.say(f"state: {daemon.config.state}")
    output.result({"models": [bundle.digest for bundle in daemon.models], "state": str(daemon.config.state)})
