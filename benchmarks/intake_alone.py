"""The daemon's intake without a model behind it: its supervisor, its journal and its intake processes.

    python benchmarks/intake_alone.py STATE

What is received waits for ever; that is what the other servers do, too.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

from hscc_edge import durable
from hscc_edge.serve.config import Config, ServedModel
from hscc_edge.serve.doors import intake
from hscc_edge.serve.logs import logging_to
from hscc_edge.serve.station import Station, open_state
from hscc_edge.serve.supervisor import Role, Supervisor


def main() -> None:
    """Serve on a free port, which is told in STATE/daemon.json, until SIGTERM."""
    with logging_to(sys.stderr):
        serve(Path(sys.argv[1]).resolve())


def serve(state: Path) -> None:
    """Take instances in until SIGTERM."""
    config = Config(state, (ServedModel(state),))
    key = open_state(state)
    station = Station(config, key, sockets={"dicom": socket.create_server(("127.0.0.1", 0), backlog=128)})
    station.journal().close()
    processes = min(4, len(os.sched_getaffinity(0)))
    supervisor = Supervisor(station, [Role(f"intake-{number + 1}", intake.run) for number in range(processes)])
    supervisor.start()
    durable.write_json(state / "daemon.json", {"port": station.sockets["dicom"].getsockname()[1]})
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    while not stopped:
        supervisor.step()
    supervisor.stop()


if __name__ == "__main__":
    main()
