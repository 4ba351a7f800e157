"""`hscc-edge studies`: which studies came, and one study's way from its first byte to the commitment of its report."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hscc_edge.cli.output import JsonFlag, Output
from hscc_edge.errors import InputError

if TYPE_CHECKING:
    from hscc_edge.serve.journal import Journal


def studies(
    config: Annotated[Path, typer.Argument(help="The daemon's configuration.")],
    key: Annotated[
        str, typer.Argument(help="A study's key, or how it begins; without one the newest are listed.")
    ] = "",
    state: Annotated[str, typer.Option(help="Only these: open, reported, no-result, dead.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """List studies by the keyed hash that stands for them; of one study, show its timeline.

    Example: hscc-edge studies /etc/hscc-edge/serve.toml 3fa8c1d2e0b4
    """
    from hscc_edge.serve.config_file import read_config
    from hscc_edge.serve.station import visit
    from hscc_edge.serve.web import views
    from hscc_edge.serve.web.words import moment

    if state not in views.FILTERS:
        raise InputError(f"the state is {state!r}: expected one of {', '.join(views.FILTERS[1:])}")
    output, station = Output(as_json), visit(read_config(config))
    quiet_s = station.config.study.quiet_s
    journal = station.journal()
    try:
        if key:
            found = views.search(journal, key, quiet_s)
            if not found:
                raise InputError(f"no study has a key that begins with {key!r}: list them without a key")
        else:
            found = views.studies(journal, state, None, quiet_s).rows
        told = _timeline(journal, found[0].key) if key and len(found) == 1 else []
    finally:
        journal.close()
    rows = [
        (item.key, item.state, item.sending, moment(item.last_received), item.instances, item.expected or "")
        for item in found
    ]
    columns = ("study", "state", "sending", "last received", "instances", "expected")
    output.table(f"{len(rows)} studies", columns, rows, text=4)
    if told:
        lines = [(moment(item["time"]), item["event"], _words(item["detail"])) for item in told]
        output.table("timeline", ("time", "event", "detail"), lines, text=3)
    output.result({"studies": [asdict(item) for item in found], "timeline": told})


def _timeline(journal: Journal, key: str) -> list[dict[str, Any]]:
    from hscc_edge.serve.studies import uid_of
    from hscc_edge.serve.timeline import timeline

    events = timeline(journal, uid_of(journal, key) or "")
    return [{"time": item.time, "event": item.kind, "detail": item.detail} for item in events]


def _words(detail: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in detail.items())
