"""The daemon under test, started many times cheaply: one process imports everything, then forks a daemon a start.

What it forks is `hscc-edge serve CONFIG` in a session of its own; only the imports are shared between the starts.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG = """
state = "state"
reserve_mib = 1
[[model]]
bundle = "{bundle}"
[study]
quiet_s = 0.3
[[route]]
when = {{ Modality = ["MR"] }}
[dicom]
port = 0
processes = 2
idle_s = 10.0
commitment = true
[[destination]]
ae_title = "ARCHIVE"
host = "127.0.0.1"
port = {port}
first_retry_s = 0.1
last_retry_s = 0.4
timeout_s = 2.0
pause_s = 0.5
attempts = 100000
{more}
"""
START_S = 60.0
ENDED = "the verb has ended"
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


class Refused(Exception):
    """The daemon ended before it opened a port; the message is the end of its log."""


@dataclass(frozen=True, slots=True)
class Running:
    """One life of the daemon.

    Attributes:
        pid: of its supervisor, and of its process group.
        processes: name -> pid, as they were at the start.
    """

    pid: int
    port: int
    processes: Mapping[str, int]

    def is_alive(self) -> bool:
        """Whether any process of the group is left."""
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def wait_for_death(self, seconds: float) -> bool:
        """Whether the whole group is gone within that time."""
        deadline = time.monotonic() + seconds
        while self.is_alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def kill(self) -> None:
        """kill -9 of everything."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        if not self.wait_for_death(30):
            raise RuntimeError(f"process group {self.pid} outlives its SIGKILL")

    def kill_one(self, name: str, choice: random.Random) -> bool:
        """kill -9 of one process or one of its descendants; the supervisor takes the others with it."""
        pid = self.pid if name == "supervisor" else self.processes[name]
        family = [pid] if name == "supervisor" else [pid, *_descendants(pid)]
        try:
            os.kill(choice.choice(family), signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True


def _descendants(pid: int) -> list[int]:
    try:
        children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [item for child in children for item in (child, *_descendants(child))]


class Station:
    """A state directory with its configuration; starts daemons on it."""

    def __init__(self, root: Path, bundle: Path, archive_port: int, more: str, environment: Mapping[str, str]) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.state, self.config, self.log = root / "state", root / "serve.toml", root / "daemon.log"
        self.config.write_text(CONFIG.format(bundle=bundle.resolve(), port=archive_port, more=more))
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **environment},
        )

    def start(self, crash: str = "") -> Running:
        """A daemon that has opened its port. `crash` is NAME:COUNT of hscc_edge/serve/crash.py.

        Raises:
            Refused: if it ended before.
        """
        pid = self._fork(["serve", str(self.config)], self.log, crash)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            try:
                found = json.loads((self.state / "daemon.json").read_text())
            except (OSError, ValueError):
                found = {"pid": None}
            if found["pid"] == pid:
                return Running(pid, found["port"], {name: row["pid"] for name, row in found["processes"].items()})
            if not _lives(pid):
                break
            time.sleep(0.02)
        Running(pid, 0, {}).kill()
        raise Refused(self.log.read_text()[-2000:])

    def run(self, words: Sequence[str], crash: str = "") -> bool:
        """Run another verb in a session of its own; whether it came to its end and was not killed on its way.

        Raises:
            Refused: if it ended with an error.
        """
        log = self.log.with_name("verb.log")
        log.write_text("")
        Running(self._fork(words, log, crash), 0, {}).wait_for_death(START_S)
        told = log.read_text()
        if "refused:" in told:
            raise Refused(told[-2000:])
        return told.endswith(ENDED)

    def _fork(self, words: Sequence[str], log: Path, crash: str) -> int:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"words": words, "log": str(log), "crash": crash}) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """End the process that forks."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _live(order: Mapping[str, Any], told: int) -> None:
    """The forked process: a session of its own, its log, then the verb of hscc-edge."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    os.close(told)
    log = os.open(order["log"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for old, new in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(old, new)
    os.environ["HSCC_EDGE_CRASH"] = order["crash"]
    importlib.reload(sys.modules["hscc_edge.serve.crash"])
    from typer.main import get_command

    from hscc_edge.cli import app
    from hscc_edge.serve.__main__ import serve

    verb, *words = order["words"]
    try:
        if verb == "serve":
            serve(Path(words[0]), None)
        else:
            get_command(app).main([verb, *words], standalone_mode=False)
    except BaseException as error:  # this process must never return into the loop of the one that forked it
        print(f"refused: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(2)
    print(ENDED, end="", file=sys.stderr, flush=True)
    os._exit(0)


def main() -> None:
    """Fork a process a line of standard input, print its pid, until standard input ends."""
    for name in ("highdicom", "onnxruntime", "hscc_edge.cli.serve", "hscc_edge.serve.daemon", "hscc_edge.serve.crash"):
        importlib.import_module(name)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans of a killed supervisor end here
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while line := sys.stdin.readline():
        ready, told = os.pipe()
        pid = os.fork()
        if pid == 0:
            _live(json.loads(line), told)
        os.close(told)
        os.read(ready, 1)  # its session is there, so that it can be looked for
        os.close(ready)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
