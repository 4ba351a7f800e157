"""The supervisor: forks the daemon's processes, replaces one that dies or hangs, and drains them at the end.

It opens no network connection and reads no image, so that there is little in it that could fail. The listening sockets
are its own: a process that is replaced loses no connection that is not yet accepted.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from typing import Any

from hscc_edge.lean import trim
from hscc_edge.serve.station import Station, die_with_parent, name_process

LOG = logging.getLogger(__name__)
CONTEXT: Any = multiprocessing.get_context("fork")
TICK_S = 0.2
DRAIN_S = 8.0
PAUSES_S = (0.0, 0.5, 2.0, 10.0, 30.0)
CALM_S = 60.0


@dataclass(frozen=True, slots=True)
class Role:
    """What one process does.

    Attributes:
        run: is called in the process with its station, and returns when that is to stop.
        silence_s: a process that has not beaten for so long is killed.
        patient: when another takes its place it may finish what it has begun, however long that takes.
    """

    name: str
    run: Callable[[Station], None]
    silence_s: float = 60.0
    patient: bool = False


@dataclass(slots=True)
class Child:
    """One process and what is known of it."""

    role: Role
    process: Any = None
    beat: Any = field(default_factory=lambda: CONTEXT.Value("d", 0.0, lock=False))
    deaths: int = 0
    born: float = 0.0
    not_before: float = 0.0


class Supervisor:
    """Runs roles until told to stop."""

    def __init__(self, station: Station, roles: Sequence[Role]) -> None:
        self._station = station
        self._children = [Child(role) for role in roles]
        self._retired: list[Child] = []

    def start(self) -> None:
        """Fork every process; what is in memory by now stays shared, since no collector touches it any more."""
        trim()
        gc.freeze()
        for child in self._children:
            self._fork(child)

    def step(self) -> None:
        """Wait a moment for deaths; bury the dead, kill the silent, fork anew what is due."""
        alive = [child.process.sentinel for child in self._children if child.process is not None]
        if alive:
            wait(alive, TICK_S)
        else:
            time.sleep(TICK_S)
        now = time.monotonic()
        for child in self._children:
            self._look_after(child, now)
        self._retired = [child for child in self._retired if _goes_on(child, now)]

    def replace(self, station: Station, roles: Sequence[Role]) -> None:
        """Fork processes for another configuration, then end the old ones: no moment without a listener.

        Those whose role is patient end when they have nothing left to do.
        """
        old, self._station = self._children, station
        self._children = [Child(role) for role in roles]
        self.start()
        patient = [child for child in old if child.role.patient and child.process is not None]
        for child in patient:
            os.kill(child.process.pid, signal.SIGUSR1)
        self._retired += patient
        _end([child for child in old if child not in patient])

    def stop(self) -> None:
        """Ask every process to end, wait `DRAIN_S`, kill what is left, which loses nothing."""
        _end([*self._children, *self._retired])

    def facts(self) -> dict[str, dict[str, float | int | None]]:
        """Of each process: pid, restarts, seconds since its last beat."""
        now = time.monotonic()
        return {
            child.role.name: {
                "pid": child.process.pid if child.process is not None else None,
                "restarts": child.deaths,
                "silent_s": round(now - child.beat.value, 1),
            }
            for child in self._children
        }

    def _fork(self, child: Child) -> None:
        child.beat.value = child.born = time.monotonic()
        child.process = CONTEXT.Process(
            target=_live, args=(child.role, self._station, child.beat, os.getpid()), name=child.role.name, daemon=False
        )
        child.process.start()

    def _look_after(self, child: Child, now: float) -> None:
        if child.process is not None and child.process.is_alive():
            _kill_silent(child, now)
            return
        if child.process is not None:
            LOG.error("event=process_died process=%s exit=%s", child.role.name, child.process.exitcode)
            child.process.close()
            child.process = None
            child.deaths = 1 if now - child.born > CALM_S else child.deaths + 1
            child.not_before = now + PAUSES_S[min(child.deaths, len(PAUSES_S)) - 1]
        if now >= child.not_before:
            self._fork(child)


def _live(role: Role, station: Station, beat: Any, parent: int) -> None:
    """A forked process's whole life."""
    die_with_parent(parent)
    name_process(role.name)
    stop, patient = threading.Event(), threading.Event()

    def retire(*_: object) -> None:
        patient.set()
        stop.set()

    def end(*_: object) -> None:
        patient.clear()
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGUSR1, retire)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def tell() -> None:
        beat.value = time.monotonic()

    try:
        role.run(replace(station, stop=stop, patient=patient, beat=tell))
    except Exception as error:  # its text may hold an identifier, so that only its kind is told
        LOG.error("event=process_failed process=%s reason=%s", role.name, type(error).__name__)
        os._exit(1)


def _goes_on(child: Child, now: float) -> bool:
    """Whether a process whose place another has taken still has something to do."""
    if not child.process.is_alive():
        child.process.close()
        return False
    _kill_silent(child, now)
    return True


def _kill_silent(child: Child, now: float) -> None:
    if now - child.beat.value > child.role.silence_s:
        LOG.error("event=process_hangs process=%s silent_s=%.0f", child.role.name, now - child.beat.value)
        child.process.kill()


def _end(children: Sequence[Child]) -> None:
    processes = [child.process for child in children if child.process is not None]
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + DRAIN_S
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    for process in processes:
        if process.is_alive():
            LOG.warning("event=process_killed process=%s", process.name)
            process.kill()
            process.join()
