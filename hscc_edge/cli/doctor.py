"""`doctor`: which device this is, what is wrong with it, and how to mend it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hscc_edge.cli.output import JsonFlag, Output
from hscc_edge.errors import InputError

if TYPE_CHECKING:
    from hscc_edge.export.doctor import Report

STYLES = {"warning": "yellow", "fault": "red"}


def doctor(
    root: Annotated[Path, typer.Option(help="Where /proc, /sys and /etc stand; another for a copied tree.")] = Path(
        "/"
    ),
    state: Annotated[
        Path | None, typer.Option(help="The service's state directory, or its configuration (serve.toml).")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Say which device this is, what is wrong with it, and how to mend it; changes nothing, sends nothing.

    Exits with 1 if there is a fault, with 0 if there are warnings at most.

    Example: hscc-edge doctor --state /etc/hscc-edge/serve.toml
    """
    from hscc_edge.export.doctor import examine
    from hscc_edge.export.doctor_probe import Probe, probe_system

    if not root.is_dir():
        raise InputError(f"--root {root} is no directory: give / or a copied tree with proc, sys and etc in it")
    directory = _state_directory(root, state)
    running = root.resolve() == Path("/")
    report = examine(root, probe_system(directory or root) if running else Probe(), directory)
    output = Output(as_json)
    _show(output, report)
    output.result(report.to_json())
    if report.faulty:
        raise typer.Exit(1)


def _state_directory(root: Path, state: Path | None) -> Path | None:
    if state is None:
        return None
    if _is_file(state):
        from hscc_edge.serve.config_file import read_config

        state = read_config(state).state
    if not state.resolve().is_relative_to(root.resolve()):
        raise InputError(f"--state {state} does not lie below --root {root}: name the directory inside that tree")
    return state


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # in a directory that this user may not enter: the doctor says so
        return False


def _show(output: Output, report: Report) -> None:
    rows = [(finding.name, finding.state, finding.text) for finding in report.findings]
    output.table(report.device.name, ("what", "state", "seen"), rows, text=3)
    for finding in report.findings:
        if finding.advice:
            output.say(f"{finding.name}: {finding.advice}", style=STYLES.get(finding.state))
    counts = {state: sum(finding.state == state for finding in report.findings) for state in ("fault", "warning")}
    output.say(f"faults: {counts['fault']}, warnings: {counts['warning']}")
