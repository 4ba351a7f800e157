"""`hscc-edge quarantine`: what ended without a result, and why."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from hscc_edge.cli.output import JsonFlag, Output
from hscc_edge.errors import InputError


def quarantine(
    config: Annotated[Path, typer.Argument(help="The daemon's configuration; the daemon may run.")],
    release: Annotated[str, typer.Option(metavar="KEY", help="Let this study be worked on again.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """List the reasons why instances have no result, by study; --release KEY sends one study to work again.

    Example: hscc-edge quarantine /etc/hscc-edge/serve.toml --release 3fa8c1d2e0b4
    """
    from hscc_edge.serve.audit import audit
    from hscc_edge.serve.config_file import read_config
    from hscc_edge.serve.operations import quarantine as waiting
    from hscc_edge.serve.station import visit
    from hscc_edge.serve.studies import uid_of

    output, station = Output(as_json), visit(read_config(config))
    journal, number = station.journal(), 0
    try:
        if release:
            study = uid_of(journal, release)
            number = waiting.release(journal, study) if study else 0
            if not number:
                raise InputError(
                    f"study {release!r} has no instance without a result whose file is kept: list them without "
                    "--release"
                )
            audit(station, "quarantine-release", study=release, instances=number)
        found = waiting.aside(journal)
    finally:
        journal.close()
    if number:
        output.say(f"{number} instances of {release} are worked on again")
    else:
        rows = [
            (item.key, item.state, item.reason, f"{datetime.fromtimestamp(item.received):%Y-%m-%d %H:%M}", item.count,
             item.removed)
            for item in found
        ]  # fmt: skip
        output.table("set aside", ("study", "state", "reason", "received", "instances", "removed"), rows, text=4)
    output.result({"released": number, "aside": [asdict(item) for item in found]})
