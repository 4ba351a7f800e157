"""A network in a process of its own: where it crashes, hangs or runs out of memory, a batch fails and nothing else.

Pixels go through memory that both share, so that a batch costs one copy; several may wait there for the network.
"""

from __future__ import annotations

import json
import mmap
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hscc_edge.bundle import Bundle
from hscc_edge.data.contained import confine
from hscc_edge.errors import EngineError, HsccError
from hscc_edge.lean import trim
from hscc_edge.runtime.startup import Started, timed_open
from hscc_edge.serve.station import Station
from hscc_edge.serve.worker.child import Child, read_all, write_all

ANSWER = struct.Struct("<BdI")  # whether it went well, seconds, bytes that follow
ASK = struct.Struct("<II")  # the batch's place in the memory, its inputs
START_S = 300.0
MOST_BYTES = 1 << 26
AHEAD = 32


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
        self._opening, self._confines = opening, confines or Confines()
        self.ahead = max(2, AHEAD // batch)
        self._memory = mmap.mmap(-1, max(4 * self.ahead * batch * int(np.prod(shape)), 1))
        self._inputs: NDArray[np.float32] = np.frombuffer(self._memory, np.float32).reshape(self.ahead, batch, *shape)
        self._child = Child("the inference", self._live, InferenceFailed, beat)
        self._asked: deque[int] = deque()
        self._place = 0
        self.started: dict[str, Any] = {}

    @property
    def pid(self) -> int | None:
        """Of the network's process, if it runs."""
        return self._child.pid

    @property
    def full(self) -> bool:
        """Whether a batch is to be collected before another one is handed over."""
        return len(self._asked) == self.ahead

    @property
    def answered(self) -> bool:
        """Whether `collect` need not wait."""
        return bool(self._asked) and self._child.answered()

    def start(self) -> dict[str, Any]:
        """Start the process if it does not run; returns what `Started.to_json` says of it.

        Raises:
            InferenceUnavailable: if the runtime cannot be opened there.
        """
        if self._child.start():
            self._asked.clear()
            try:
                _, content = self._answer(START_S)
                self.started = json.loads(content)
            except InferenceFailed as error:
                self.close()
                raise InferenceUnavailable(str(error)) from error
        return self.started

    def submit(self, inputs: Sequence[NDArray[np.float32]]) -> None:
        """Hand over a batch while not `full`; `collect` waits for the answers, in the order of the batches.

        Raises:
            InferenceFailed: if the process has died; what was handed over before is lost as well.
            InferenceUnavailable: if none can be started.
        """
        self.start()
        self._inputs[self._place, : len(inputs)] = inputs
        self._child.ask(ASK.pack(self._place, len(inputs)))
        self._asked.append(len(inputs))
        self._place = (self._place + 1) % self.ahead

    def collect(self) -> tuple[NDArray[np.float32], float]:
        """Logits (n, classes) of the oldest batch handed over, and the milliseconds that the network took.

        Raises:
            InferenceFailed: if it said that it could not, and while it still runs the batches behind go on; else the
                process died or did not answer in time, and they are lost.
        """
        asked = self._asked.popleft()
        seconds, content = self._answer(self._confines.seconds)
        return np.frombuffer(content, np.float32).reshape(asked, -1).copy(), 1000.0 * seconds

    def infer(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, *shape), n up to the batch -> logits (n, classes); raises as `submit` and `collect` do."""
        self.submit(list(inputs))
        return self.collect()[0]

    def close(self) -> None:
        """End the process; a second call does nothing."""
        self._asked.clear()
        self._child.close()

    def _answer(self, patience_s: float) -> tuple[float, bytes]:
        until = time.monotonic() + patience_s
        fine, seconds, size = ANSWER.unpack(self._child.receive(ANSWER.size, until))
        if size > MOST_BYTES:
            self._child.malformed()
        content = bytes(self._child.receive(size, until))
        if not fine:
            raise InferenceFailed(content.decode(errors="replace"))
        return seconds, content

    def _live(self, asks: int, answers: int) -> None:
        """The process's own loop, until the parent closes its end."""
        try:
            started = self._opening()
            trim()
            if self._confines.memory_mib:
                confine(self._confines.memory_mib)
            _tell(answers, 0.0, json.dumps(started.to_json()).encode())
            while ask := read_all(asks, ASK.size):
                place, count = ASK.unpack(ask)
                begun = time.perf_counter()
                try:
                    logits = np.ascontiguousarray(started.runtime.infer(self._inputs[place, :count]), np.float32)
                except (HsccError, MemoryError) as error:
                    _tell(answers, 0.0, _words(error), fine=False)
                    continue
                _tell(answers, time.perf_counter() - begun, logits.tobytes())
        except Exception as error:  # whatever a runtime raises: its kind is told, and nothing else of it
            with suppress(OSError):
                _tell(answers, 0.0, _words(error), fine=False)
            raise


def inference_of(station: Station, bundle: Bundle) -> Inference:
    """A bundle's network as the configuration's `[work]` asks for it, not started yet."""
    wanted = station.config.work

    def opening() -> Started:
        return timed_open(bundle, wanted.runtime, precision=wanted.precision, threads=wanted.threads)

    confines = Confines(wanted.timeout_s, wanted.memory_mib)
    return Inference(opening, bundle.spec.input_shape, wanted.batch, confines, station.beat)


def _words(error: Exception) -> bytes:
    """Our own sentence, or the name of somebody else's exception, whose text may hold anything."""
    if isinstance(error, MemoryError):
        return b"the inference ran out of memory"
    return (str(error) if isinstance(error, HsccError) else type(error).__name__).encode()


def _tell(answers: int, seconds: float, content: bytes, *, fine: bool = True) -> None:
    write_all(answers, ANSWER.pack(fine, seconds, len(content)) + content)
