"""`hscc-edge models ...`: the bundles that a daemon serves: install, activate, go back, let a candidate look on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hscc_edge.cli.output import JsonFlag, Output
from hscc_edge.errors import InputError

if TYPE_CHECKING:
    from hscc_edge.serve.journal import Journal
    from hscc_edge.serve.station import Station
    from hscc_edge.serve.worker.models import Model

app = typer.Typer(no_args_is_help=True, help="Bundles of a daemon: install, activate, roll back, shadow.")
ConfigFile = Annotated[Path, typer.Argument(help="Configuration (TOML) of the daemon.")]
Digest = Annotated[str, typer.Argument(help="The bundle's digest, or how it begins; see models list.")]
Name = Annotated[str, typer.Option(help="Which model, where the configuration has several.")]


@app.command("list")
def list_(config: ConfigFile, as_json: JsonFlag = False) -> None:
    """Show every installed bundle with its state: active, shadow, installed, retired (was active) or withdrawn.

    Example: hscc-edge models list /etc/hscc-edge/serve.toml
    """
    from datetime import datetime

    from hscc_edge.serve.worker import models

    output, (_, journal) = Output(as_json), _open(config)
    found = models.models(journal)
    journal.close()
    rows = [
        (item.name, item.digest[:12], item.state, item.reason or "", item.version,
         f"{datetime.fromtimestamp(item.since):%Y-%m-%d %H:%M}")
        for item in found
    ]  # fmt: skip
    output.table(f"{len(found)} bundles", ("model", "digest", "state", "why", "version", "since"), rows, text=4)
    output.result({"models": [asdict(item) for item in found]})


@app.command()
def install(
    config: ConfigFile,
    bundle: Annotated[Path, typer.Argument(help="Exported bundle, signed where the configuration asks for it.")],
    name: Name = "",
    as_json: JsonFlag = False,
) -> None:
    """Verify a bundle, copy it beside the others, and test it on this device; the daemon goes on with what is active.

    Example: hscc-edge models install /etc/hscc-edge/serve.toml small
    """
    from hscc_edge.serve.worker import models

    station, journal = _open(config)
    try:
        found = models.install(station, journal, bundle, name)
    finally:
        journal.close()
    _tell(Output(as_json), station, "model-install", found, f"{found.state}; activate it with models activate")


@app.command()
def activate(config: ConfigFile, digest: Digest, as_json: JsonFlag = False) -> None:
    """Serve an installed bundle from the next study on; one of a lower version is refused.

    Example: hscc-edge models activate /etc/hscc-edge/serve.toml 3f2a
    """
    from hscc_edge.serve.worker import models

    station, journal = _open(config)
    try:
        found = models.activate(journal, digest)
    finally:
        journal.close()
    _tell(Output(as_json), station, "model-activate", found, "active from the next study on")


@app.command()
def rollback(
    config: ConfigFile,
    reason: Annotated[str, typer.Option(help="Why, without anything that identifies a patient.")] = "by command",
    name: Name = "",
    as_json: JsonFlag = False,
) -> None:
    """Go back to the bundle that was active before; studies that failed with the present one are worked on again.

    Reports that the present one has made stay: hscc-edge recall takes them back.

    Example: hscc-edge models rollback /etc/hscc-edge/serve.toml --reason "wrong on children"
    """
    from hscc_edge.serve.worker import models

    station, journal = _open(config)
    try:
        found = models.roll_back(journal, chosen := _name(journal, name), reason)
    finally:
        journal.close()
    if found is None:
        raise InputError(f"no bundle of {chosen} was active before the present one: install and activate another")
    _tell(Output(as_json), station, "model-rollback", found, "active again", reason=reason)


@app.command()
def shadow(
    config: ConfigFile,
    digest: Annotated[str, typer.Argument(help="Installed bundle that is to see each study; none with --off.")] = "",
    off: Annotated[bool, typer.Option("--off", help="No bundle sees the studies beside the active one.")] = False,
    name: Name = "",
    as_json: JsonFlag = False,
) -> None:
    """Let an installed bundle see each study beside the active one; what it says is compared, and never sent.

    Example: hscc-edge models shadow /etc/hscc-edge/serve.toml 3f2a
    """
    from hscc_edge.serve.worker import models

    if bool(digest) == off:
        raise InputError("models shadow takes one of a bundle's digest and --off: give either")
    station, journal = _open(config)
    try:
        chosen = _name(journal, name) if off else models.named(journal, digest).name
        found = models.set_shadow(journal, chosen, digest or None)
    finally:
        journal.close()
    if found is None:
        Output(as_json).say(f"{chosen}: no shadow")
        Output(as_json).result({"name": chosen, "shadow": None})
        return
    _tell(Output(as_json), station, "model-shadow", found, "a shadow from the next study on")


@app.command()
def compare(config: ConfigFile, name: Name = "", as_json: JsonFlag = False) -> None:
    """What the shadow said beside the active bundle: agreement, flips, divergence, latency.

    Example: hscc-edge models compare /etc/hscc-edge/serve.toml
    """
    from hscc_edge.serve.worker import models
    from hscc_edge.serve.worker.comparison import compare as compared

    output, (_, journal) = Output(as_json), _open(config)
    try:
        chosen = _name(journal, name)
        active, beside = (models.find(journal, chosen, state) for state in (models.ACTIVE, models.SHADOW))
        if active is None or beside is None:
            raise InputError(f"{chosen} has no shadow: name one with models shadow")
        found = compared(journal, active.digest, beside.digest)
    finally:
        journal.close()
    output.say(
        f"{beside.digest[:12]} beside {active.digest[:12]}: {found.cases} cases, {100 * found.agreement:.1f} % alike "
        f"({100 * found.low:.1f} to {100 * found.high:.1f}), mean KL {found.kl:.4f}, failed on {found.failed} studies"
    )
    if found.latency_ms is not None:
        output.say(f"median inference {found.latency_ms[1]:.1f} ms, the active one's {found.latency_ms[0]:.1f} ms")
    rows = [(first, second, count) for (first, second), count in sorted(found.flips.items())]
    output.table("decided unlike", ("active", "shadow", "cases"), rows, text=2)
    output.result(
        {
            "name": chosen, "active": active.digest, "shadow": beside.digest, "cases": found.cases,
            "agreement": found.agreement, "low": found.low, "high": found.high, "kl": found.kl, "failed": found.failed,
            "latency_ms": found.latency_ms, "flips": [list(row) for row in rows],
        }
    )  # fmt: skip


def _open(config: Path) -> tuple[Station, Journal]:
    from hscc_edge.serve.config_file import read_config
    from hscc_edge.serve.station import visit

    station = visit(read_config(config))
    return station, station.journal()


def _name(journal: Journal, name: str) -> str:
    from hscc_edge.serve.worker import models

    names = sorted({item.name for item in models.models(journal)})
    if name in names or (not name and len(names) == 1):
        return name or names[0]
    raise InputError(f"which model is not clear: give --name with one of {', '.join(names) or 'none, as yet'}")


def _tell(output: Output, station: Station, action: str, found: Model, words: str, **facts: Any) -> None:
    from hscc_edge.serve.audit import audit

    audit(station, action, account="command line", model=found.name, digest=found.digest[:12], **facts)
    output.say(f"{found.name} {found.digest[:12]} (version {found.version}): {words}")
    output.result(asdict(found))
