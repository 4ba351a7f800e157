"""What every process of the daemon works with: the configuration, the state directory, its key, and whether to stop."""

from __future__ import annotations

import ctypes
import fcntl
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from hscc_edge import durable
from hscc_edge.data.pseudonym import pseudonym
from hscc_edge.errors import StorageError
from hscc_edge.serve.config import Config
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.spool import Spool

PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Station:
    """One state directory and what is done on it; made before the processes are forked.

    Attributes:
        sockets: listening sockets by door, "dicom" and "web": held by the supervisor, so that no connection is lost
            while a process is replaced.
        stop: set in a process that is asked to end after the work in hand.
        patient: set as well where only this process is to end, another has taken its place, and its work may take long.
        beat: tell the supervisor that this process is alive; one that is silent too long is killed and replaced.
    """

    config: Config
    key: bytes = field(repr=False)
    sockets: dict[str, socket.socket] = field(default_factory=dict, repr=False)
    stop: threading.Event = field(default_factory=threading.Event, repr=False)
    patient: threading.Event = field(default_factory=threading.Event, repr=False)
    beat: Callable[[], None] = field(default=lambda: None, repr=False)

    def journal(self) -> Journal:
        """A connection of this process's own."""
        return Journal(self.config.state / "journal.sqlite")

    def spool(self) -> Spool:
        """The spool."""
        return Spool(self.config.state / "spool")

    def who(self, uid: str) -> str:
        """The keyed hash that stands for an identifier wherever it is told."""
        return pseudonym(uid, self.key)

    def rest(self, seconds: float) -> bool:
        """Wait, beating; True if this process is to stop."""
        deadline = time.monotonic() + seconds
        while True:
            self.beat()
            left = deadline - time.monotonic()
            if self.stop.wait(max(0.0, min(left, 1.0))) or left <= 1.0:
                return self.stop.is_set()


def open_state(state: Path) -> bytes:
    """Make the state directory (mode 0700) if it is not there; returns its key.

    Raises:
        StorageError: if it cannot be written.
    """
    with durable.storage(state):
        if not state.exists():
            state.mkdir(mode=0o700, parents=True)
            durable.sync_directory(state.parent)
        os.chmod(state, 0o700)
        path = state / "key"
        if not path.exists():
            durable.write_bytes(path, secrets.token_bytes(32), mode=0o600)
        return path.read_bytes()


def visit(config: Config) -> Station:
    """The station of a state directory that a daemon has made, for commands that look at it or steer it.

    Raises:
        StorageError: if there is none.
    """
    try:
        return Station(config, (config.state / "key").read_bytes())
    except OSError as error:
        raise StorageError(
            f"{config.state} is no state directory that can be read ({error.strerror}): start the daemon once, or run "
            "this as its user"
        ) from error


def claim(state: Path) -> int:
    """Lock the state directory for this daemon; the kernel frees it when the last process that holds it dies.

    Raises:
        StorageError: if another daemon has it.
    """
    handle = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise StorageError(f"another daemon uses {state}: stop it, or set another state directory") from error
    return handle


def name_process(name: str) -> None:
    """Let `ps -o comm` and `top` show what this process does (proc(5), /proc/pid/comm: 15 characters)."""
    with suppress(OSError):
        Path("/proc/self/comm").write_text(f"hscc-{name}", encoding="ascii")


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when its supervisor dies (prctl(2)); it may have died already."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
