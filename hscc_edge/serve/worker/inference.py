"""A network in a process of its own: where it crashes, hangs or runs out of memory, a batch fails and nothing else.

Pixels go through memory that both share, so that a batch costs one copy; what comes back are numbers, never objects.
The process holds no socket, no journal and no lock, and the kernel ends it with its parent.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import select
import signal
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from hscc_edge.bundle import Bundle
from hscc_edge.data.contained import confine
from hscc_edge.errors import EngineError, HsccError
from hscc_edge.runtime.startup import Started, timed_open
from hscc_edge.serve.station import Station, die_with_parent

ANSWER = struct.Struct("<BdI")  # whether it went well, seconds, bytes that follow
ASK = struct.Struct("<I")
START_S = 300.0
TICK_S = 1.0
MOST_BYTES = 1 << 26


class InferenceFailed(EngineError):
    """A batch made the network's process fail; the text is the end of a sentence, without identifiers."""


class InferenceUnavailable(EngineError):
    """The network's process does not start, whatever it is given."""


@dataclass(frozen=True, slots=True)
class Confines:
    """What one batch may cost.

    Attributes:
        seconds: longest wait for it.
        memory_mib: by so much the process's address space may grow over what it has when it is ready; 0: no limit.
    """

    seconds: float = 120.0
    memory_mib: int = 0


@dataclass(slots=True)
class _Child:
    pid: int
    asks: int
    answers: int


class Inference:
    """One network behind a pipe; for one thread. It is started by the first batch, and anew after it has died."""

    def __init__(
        self,
        opening: Callable[[], Started],
        shape: tuple[int, ...],
        batch: int = 1,
        confines: Confines | None = None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """Nothing is started yet.

        Args:
            opening: is called in the process, and opens the runtime there.
            shape: of one input.
            batch: most inputs at once.
            beat: is called while an answer is waited for.
        """
        self._opening, self._shape, self._batch = opening, shape, batch
        self._confines, self._beat = confines or Confines(), beat
        self._memory = mmap.mmap(-1, max(4 * batch * int(np.prod(shape)), 1))
        self._inputs: NDArray[np.float32] = np.frombuffer(self._memory, np.float32).reshape(batch, *shape)
        self._child: _Child | None = None
        self._asked = 0
        self.started: dict[str, Any] = {}

    def start(self) -> dict[str, Any]:
        """Start the process if it does not run; returns what `Started.to_json` says of it.

        Raises:
            InferenceUnavailable: if the runtime cannot be opened there.
        """
        if self._child is None:
            self._fork()
            try:
                _, content = self._answer(START_S)
                self.started = json.loads(content)
            except InferenceFailed as error:
                self.close()
                raise InferenceUnavailable(str(error)) from error
        return self.started

    def submit(self, inputs: Sequence[NDArray[np.float32]]) -> None:
        """Hand over a batch; `collect` waits for its answer.

        Raises:
            InferenceFailed, InferenceUnavailable: if there is no process to take it.
        """
        self.start()
        self._inputs[: len(inputs)] = inputs
        try:
            os.write(self._running().asks, ASK.pack(len(inputs)))
        except OSError as error:
            self._gone(error)
        self._asked = len(inputs)

    def collect(self) -> tuple[NDArray[np.float32], float]:
        """Logits (n, classes) of the batch handed over, and the milliseconds that the network took.

        Raises:
            InferenceFailed: if the process died, did not answer in time, or said that it could not.
        """
        asked, self._asked = self._asked, 0
        seconds, content = self._answer(self._confines.seconds)
        return np.frombuffer(content, np.float32).reshape(asked, -1).copy(), 1000.0 * seconds

    def infer(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, *shape), n up to the batch -> logits (n, classes); raises as `submit` and `collect` do."""
        self.submit(list(inputs))
        return self.collect()[0]

    def close(self) -> None:
        """End the process; a second call does nothing."""
        if self._child is None:
            return
        with suppress(ProcessLookupError):
            os.kill(self._child.pid, signal.SIGKILL)
        self._bury()

    def _running(self) -> _Child:
        if self._child is None:
            raise InferenceFailed("the inference is not running")
        return self._child

    def _bury(self) -> int:
        child, self._child, self._asked = self._running(), None, 0
        for handle in (child.asks, child.answers):
            os.close(handle)
        return os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])

    def _gone(self, error: Exception | None = None) -> NoReturn:
        """The process closed its pipe: it died."""
        code = self._bury()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise InferenceFailed(f"the inference died ({how})") from error

    def _fork(self) -> None:
        asks, answers = os.pipe(), os.pipe()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _live(self, parent, asks[0], answers[1])
        os.close(asks[0])
        os.close(answers[1])
        self._child = _Child(pid, asks[1], answers[0])

    def _answer(self, patience_s: float) -> tuple[float, bytes]:
        until = time.monotonic() + patience_s
        fine, seconds, size = ANSWER.unpack(self._received(ANSWER.size, until))
        if size > MOST_BYTES:
            self.close()
            raise InferenceFailed("the inference gave a malformed answer")
        content = self._received(size, until)
        if not fine:
            raise InferenceFailed(content.decode(errors="replace"))
        return seconds, content

    def _received(self, size: int, until: float) -> bytes:
        child, found = self._running(), b""
        waiting = select.poll()
        waiting.register(child.answers, select.POLLIN)
        while len(found) < size:
            left = until - time.monotonic()
            if left <= 0:
                self.close()
                raise InferenceFailed("the inference took too long and was ended")
            self._beat()
            if not waiting.poll(1000.0 * min(left, TICK_S)):
                continue
            part = os.read(child.answers, size - len(found))
            if not part:
                self._gone()
            found += part
        return found

    def serve(self, asks: int, answers: int) -> None:
        """The process's own loop, until the parent closes its end."""
        started = self._opening()
        if self._confines.memory_mib:
            confine(self._confines.memory_mib)
        _tell(answers, 0.0, json.dumps(started.to_json()).encode())
        while ask := os.read(asks, ASK.size):
            (count,) = ASK.unpack(ask)
            begun = time.perf_counter()
            try:
                logits = np.ascontiguousarray(started.runtime.infer(self._inputs[:count]), np.float32)
            except (HsccError, MemoryError) as error:
                _tell(answers, 0.0, _words(error), fine=False)
                continue
            _tell(answers, time.perf_counter() - begun, logits.tobytes())


def inference_of(station: Station, bundle: Bundle) -> Inference:
    """A bundle's network as the configuration's `[work]` asks for it, not started yet."""
    wanted = station.config.work

    def opening() -> Started:
        return timed_open(bundle, wanted.runtime, precision=wanted.precision, threads=wanted.threads)

    confines = Confines(wanted.timeout_s, wanted.memory_mib)
    return Inference(opening, bundle.spec.input_shape, wanted.batch, confines, station.beat)


def _live(inference: Inference, parent: int, asks: int, answers: int) -> NoReturn:
    """The forked process's whole life; it leaves without the parent's clean-up."""
    code = 1
    try:
        die_with_parent(parent)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _close_all_but(asks, answers)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        inference.serve(asks, answers)
        code = 0
    except Exception as error:  # whatever a runtime raises: its kind is told, and nothing else of it
        with suppress(OSError):
            _tell(answers, 0.0, _words(error), fine=False)
    finally:
        os._exit(code)


def _words(error: Exception) -> bytes:
    """Our own sentence, or the name of somebody else's exception, whose text may hold anything."""
    if isinstance(error, MemoryError):
        return b"the inference ran out of memory"
    return (str(error) if isinstance(error, HsccError) else type(error).__name__).encode()


def _tell(answers: int, seconds: float, content: bytes, *, fine: bool = True) -> None:
    message = memoryview(ANSWER.pack(fine, seconds, len(content)) + content)
    while message:
        message = message[os.write(answers, message) :]


def _close_all_but(*kept: int) -> None:
    """Let go of every handle of the parent's above the three standard ones: sockets, journal, locks."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            with suppress(OSError):  # the listing's own handle is closed by then
                os.close(int(name))
