"""The daemon in a process that holds nothing else: `hscc-edge serve` becomes `python -m hscc_edge.serve`.

What reads the command line (typer, pydantic, rich and the other verbs) would stay in the memory of every process of the
daemon for the years that it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hscc_edge.errors import HsccError, leave
from hscc_edge.lean import UNUSED, same_python, without


def become(config: Path, until_idle_s: float | None, *, as_json: bool) -> NoReturn:
    """Put the daemon in this process's place, of the same code; its pid, output and environment stay."""
    idle = [] if until_idle_s is None else ["--until-idle", str(until_idle_s)]
    words = ["-m", __package__ or "", str(config), *idle, *(["--json"] if as_json else [])]
    command, environment = same_python(*words)
    os.execve(command[0], command, environment)


def main(words: Sequence[str] | None = None) -> None:
    """Serve until a signal; a user's mistake becomes one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m hscc_edge.serve", description="What hscc-edge serve becomes.")
    parser.add_argument("config", type=Path)
    parser.add_argument("--until-idle", type=float)
    parser.add_argument("--json", action="store_true")
    told = parser.parse_args(words)
    try:
        serve(told.config, told.until_idle)
    except HsccError as error:
        leave(error)
    if told.json:
        sys.stdout.write(json.dumps({"stopped": True}) + "\n")


def serve(config: Path, until_idle_s: float | None) -> None:
    """Run the daemon of a configuration; raises what `Daemon` raises."""
    with without(*UNUSED):
        from hscc_edge.serve.daemon import Daemon
        from hscc_edge.serve.logs import logging_to

    daemon = Daemon(config)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, daemon.on_signal)
    with logging_to(sys.stderr, daemon.config.log):
        daemon.run(until_idle_s)


if __name__ == "__main__":
    main()
