"""The three that are compared: our intake, dcmtk's storescp and Orthanc, each as it ships, on the same disk."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Server:
    """One that runs.

    Attributes:
        title: the AE title that it is called by.
        pid: of its first process, whose children are its own.
    """

    port: int
    title: str
    pid: int

    def pss_mb(self) -> float:
        """Proportional set size of all its processes (proc(5), smaps_rollup)."""
        return sum(_pss_mb(pid) for pid in family(self.pid))


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(one for child in children for one in family(int(child)))]


def _pss_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1000


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@contextmanager
def _process(words: list[str], root: Path, port: int | None, title: str) -> Iterator[Server]:
    """Run a command in `root` until the body ends; `port` None: it writes state/daemon.json."""
    root.mkdir(parents=True)
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(words, cwd=root, stdout=log, stderr=log, start_new_session=True)
    try:
        yield Server(_wait(process, root, port), title, process.pid)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def _wait(process: subprocess.Popen[bytes], root: Path, port: int | None) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        status = root / "state" / "daemon.json"
        if port is None and status.exists():
            port = int(json.loads(status.read_text())["port"])
        if port is not None:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                pass
            else:
                return port
        time.sleep(0.05)
    raise RuntimeError((root / "log").read_text()[-2000:])


def _ours(root: Path) -> AbstractContextManager[Server]:
    runner = Path(__file__).with_name("intake_alone.py")
    return _process([sys.executable, str(runner), "state"], root, None, "HSCC_EDGE")


def _storescp(root: Path, *options: str) -> AbstractContextManager[Server]:
    port = free_port()
    return _process(["storescp", *options, "--output-directory", ".", str(port)], root, port, "ANY")


def _orthanc(root: Path) -> AbstractContextManager[Server]:
    port = free_port()
    config = root.with_suffix(".json")
    settings = {
        "StorageDirectory": str(root / "storage"), "IndexDirectory": str(root / "storage"), "DicomPort": port,
        "HttpServerEnabled": False, "DicomAlwaysAllowStore": True, "Plugins": [],
    }  # fmt: skip
    config.write_text(json.dumps(settings))
    return _process(["/usr/sbin/Orthanc", str(config)], root, port, "ORTHANC")


SERVERS: dict[str, Callable[[Path], AbstractContextManager[Server]]] = {
    "hscc-edge": _ours,
    "storescp": _storescp,
    "storescp --fork": lambda root: _storescp(root, "--fork"),
    "orthanc": _orthanc,
}
