"""A function in a forked process of its own: what crashes or hangs it costs an answer, and nothing else.

The process holds no socket, no journal and no lock, and the kernel ends it with its parent. It is asked and answers
through pipes; what comes back are bytes, never objects.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from fcntl import F_SETPIPE_SZ, fcntl
from typing import NoReturn

from hscc_edge.errors import EngineError
from hscc_edge.serve.station import die_with_parent, name_process

TICK_S = 1.0
PIPE_BYTES = 1 << 20


@dataclass(slots=True)
class _Process:
    pid: int
    asks: int
    answers: int


class Child:
    """One forked process, started when it is needed and anew after it has died; for one thread."""

    def __init__(
        self,
        name: str,
        live: Callable[[int, int], None],
        failed: type[EngineError],
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """Nothing is started yet.

        Args:
            name: how messages call it, as in "the inference".
            live: is called in the process with the handles that asks come from and answers go to.
            failed: what is raised when it dies or does not answer; its text is the end of a sentence.
            beat: is called while an answer is waited for.
        """
        self._name, self._serve, self._failed, self._beat = name, live, failed, beat
        self._process: _Process | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, if it runs."""
        return self._process.pid if self._process else None

    def start(self) -> bool:
        """Start the process; False if it runs already."""
        if self._process is not None:
            return False
        asks, answers = os.pipe(), os.pipe()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _live(self._name, self._serve, parent, asks[0], answers[1])
        os.close(asks[0])
        os.close(answers[1])
        with suppress(OSError):  # a user's pipes may be limited: then an answer takes more turns
            fcntl(answers[0], F_SETPIPE_SZ, PIPE_BYTES)
        self._process = _Process(pid, asks[1], answers[0])
        return True

    def ask(self, content: bytes) -> None:
        """Hand over an ask; where it is more than a pipe holds, the process must be waiting to be asked."""
        process = self._running()
        try:
            write_all(process.asks, content)
        except OSError as error:
            self._gone(error)

    def answered(self) -> bool:
        """Whether a part of an answer is there, or the process has died."""
        return bool(_poll(self._running().answers).poll(0))

    def receive(self, size: int, until: float) -> bytearray:
        """Exactly `size` bytes of its answers, by `until` of the monotonic clock; else it is ended."""
        answers, found = self._running().answers, bytearray(size)
        view, at, waiting = memoryview(found), 0, _poll(answers)
        while at < size:
            left = until - time.monotonic()
            if left <= 0:
                self.close()
                raise self._failed(f"{self._name} took too long and was ended")
            self._beat()
            if not waiting.poll(1000.0 * min(left, TICK_S)):
                continue
            count = os.readv(answers, [view[at:]])
            if count == 0:
                self._gone()
            at += count
        return found

    def malformed(self) -> NoReturn:
        """End it, since what it says makes no sense."""
        self.close()
        raise self._failed(f"{self._name} gave a malformed answer")

    def close(self) -> None:
        """End the process; a second call does nothing."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGKILL)
        self._bury()

    def _running(self) -> _Process:
        if self._process is None:
            raise self._failed(f"{self._name} is not running")
        return self._process

    def _bury(self) -> int:
        process, self._process = self._running(), None
        for handle in (process.asks, process.answers):
            os.close(handle)
        return os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1])

    def _gone(self, error: Exception | None = None) -> NoReturn:
        """The process closed its pipe: it died."""
        code = self._bury()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise self._failed(f"{self._name} died ({how})") from error


def write_all(handle: int, *parts: bytes | bytearray | memoryview) -> None:
    """Write to a pipe, however often that takes."""
    for part in parts:
        left = memoryview(part).cast("B")
        while left:
            left = left[os.write(handle, left) :]


def read_all(handle: int, size: int) -> bytes:
    """`size` bytes from a pipe, or what came before its end."""
    found = bytearray()
    while len(found) < size and (part := os.read(handle, size - len(found))):
        found += part
    return bytes(found)


def _live(name: str, serve: Callable[[int, int], None], parent: int, asks: int, answers: int) -> NoReturn:
    """The forked process's whole life; it leaves without the parent's clean-up."""
    code = 1
    try:
        die_with_parent(parent)
        name_process(name.removeprefix("the "))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        _close_all_but(asks, answers)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        serve(asks, answers)
        code = 0
    finally:
        os._exit(code)


def _poll(handle: int) -> select.poll:
    found = select.poll()
    found.register(handle, select.POLLIN)
    return found


def _close_all_but(*kept: int) -> None:
    """Let go of every handle of the parent's above the three standard ones: sockets, journal, locks."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            with suppress(OSError):  # the listing's own handle is closed by then
                os.close(int(name))
