"""`hscc-edge state ...`: back up, restore and check a daemon's state directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hscc_edge.cli.output import JsonFlag, Output
from hscc_edge.errors import GateError

if TYPE_CHECKING:
    from hscc_edge.serve.operations.soundness import Found
    from hscc_edge.serve.station import Station

app = typer.Typer(no_args_is_help=True, help="A daemon's state directory: back it up, restore it, check it.")
ConfigFile = Annotated[Path, typer.Argument(help="The daemon's configuration.")]


@app.command()
def export(
    config: ConfigFile,
    out: Annotated[Path, typer.Option(help="Directory to make; keep it where patients' images may be.")],
    as_json: JsonFlag = False,
) -> None:
    """Back up the journal, every kept file, the key, models and audit lines as of one instant; the daemon may run.

    Example: hscc-edge state export /etc/hscc-edge/serve.toml --out /backup/2026-11-26
    """
    from hscc_edge.serve.audit import audit
    from hscc_edge.serve.config_file import read_config
    from hscc_edge.serve.operations import backup
    from hscc_edge.serve.station import visit

    output, station = Output(as_json), visit(read_config(config))
    done = backup.export(station, out)
    audit(station, "state-export", instances=done.instances)
    output.say(f"{out}: {done.instances} instances, {done.bytes >> 20} MiB, and {done.files} other files")
    output.result({"out": str(out), "instances": done.instances, "bytes": done.bytes})


@app.command("import")
def import_(
    config: ConfigFile,
    source: Annotated[Path, typer.Option("--from", help="Backup made by hscc-edge state export.")],
    as_json: JsonFlag = False,
) -> None:
    """Make the state directory of a configuration from a backup, and check it; there must be none yet.

    Example: hscc-edge state import /etc/hscc-edge/serve.toml --from /backup/2026-11-26
    """
    from hscc_edge.serve.audit import audit
    from hscc_edge.serve.config_file import read_config
    from hscc_edge.serve.operations import backup
    from hscc_edge.serve.station import visit

    output, settings = Output(as_json), read_config(config)
    done = backup.restore(source, settings)
    station = visit(settings)
    output.say(f"{done.folder}: {done.instances} instances, {done.bytes >> 20} MiB")
    found = _check(station)
    audit(station, "state-import", instances=done.instances)
    _tell(output, found, {"state": str(done.folder)})


@app.command()
def check(config: ConfigFile, as_json: JsonFlag = False) -> None:
    """Read everything: the journal, each kept file against its digest, what must always hold, the audit chain.

    Example: hscc-edge state check /etc/hscc-edge/serve.toml
    """
    from hscc_edge.serve.config_file import read_config
    from hscc_edge.serve.station import visit

    _tell(Output(as_json), _check(visit(read_config(config))), {})


def _check(station: Station) -> Found:
    from hscc_edge.serve.operations import soundness

    journal = station.journal()
    try:
        return soundness.check(station, journal, running=_in_use(station))
    finally:
        journal.close()


def _in_use(station: Station) -> bool:
    """Whether a daemon holds the state directory."""
    import os

    from hscc_edge.errors import StorageError
    from hscc_edge.serve.station import claim

    try:
        os.close(claim(station.config.state))
    except StorageError:
        return True
    return False


def _tell(output: Output, found: Found, more: dict[str, object]) -> None:
    for fault in found.faults:
        output.say(fault, style="red")
    output.say(f"{found.instances} instances, {found.bytes >> 20} MiB, {found.audit_lines} audit lines were looked at")
    output.result({**more, "instances": found.instances, "bytes": found.bytes, "faults": list(found.faults)})
    if found.faults:
        raise GateError(f"the state directory has {len(found.faults)} faults: see docs/operations.md")
