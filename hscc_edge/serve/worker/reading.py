"""From a study's kept files to the inputs of the models that are to look at them, by the readers of `validate`.

Files are read in processes of their own, some ahead of what the networks are at, and what comes of them is taken in the
order of the files, so that the same study gives the same numbers whatever else goes on.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hscc_edge.data.steps import Pixels
from hscc_edge.errors import EngineError
from hscc_edge.serve.instances import DAMAGED, Instance
from hscc_edge.serve.station import Station
from hscc_edge.serve.worker.child import Child
from hscc_edge.serve.worker.lane import Input, Lane
from hscc_edge.serve.worker.messages import ask
from hscc_edge.serve.worker.sight import NO_VOLUME, Message, Sight, seen

LOG = logging.getLogger(__name__)
OTHER_MODELS = "out of scope: no route to this model"
OTHER_SHAPE = "out of scope: colour or size is not the model's"
MOST_READERS, AHEAD = 4, 3


class ReaderFailed(EngineError):
    """A process that reads died, hung or met what it did not expect; the text is the end of a sentence."""


@dataclass(slots=True)
class Reading:
    """One study as it was read.

    Attributes:
        reasons: (instance id, model's name) -> why that model cannot look at it; "" as name for every model.
        fault: what else went wrong, so that nothing can be said of the study.
    """

    study: str = field(repr=False)
    rows: Sequence[Instance]
    reasons: dict[tuple[int, str], str] = field(default_factory=dict)
    fault: str | None = None

    def reason(self, row: Instance, model: str) -> str | None:
        """Why a model has not looked at an instance."""
        return self.reasons.get((row.id, "")) or self.reasons.get((row.id, model))

    def dropped(self, model: str) -> set[int]:
        """Ids of the instances that a model cannot look at."""
        return {row.id for row in self.rows if self.reason(row, model) is not None}


@dataclass(frozen=True, slots=True)
class _Headed:
    """An instance in scope with what was read of its headers."""

    row: Instance
    models: frozenset[str] | None
    spacing_mm: float | None
    scanner: str

    def wanted_by(self, lane: Lane) -> bool:
        return self.models is None or lane.name in self.models


class Reader:
    """Reads studies from the spool; `begin` them in order and some ahead, `finish` them in the same order."""

    def __init__(self, station: Station) -> None:
        self._station, self._patience_s = station, station.config.work.timeout_s
        count = station.config.work.readers or max(1, min(MOST_READERS, len(os.sched_getaffinity(0)) - 1))
        self._children = [Child("the reader", self._live, ReaderFailed, station.beat) for _ in range(count)]
        self._volume_child = Child("the reader", self._live, ReaderFailed, station.beat)
        self._asks: deque[Mapping[str, Any]] = deque()
        self._broken: ReaderFailed | None = None
        self._away: deque[Child] = deque()
        self._sent = 0

    def close(self) -> None:
        """End the processes, and forget what was begun."""
        self._asks.clear()
        self._away.clear()
        self._broken = None
        for child in (*self._children, self._volume_child):
            child.close()

    def begin(self, rows: Iterable[Instance], lanes: Sequence[Lane]) -> None:
        """Let a study's files be read for these lanes."""
        steps = {lane.name: lane.steps for lane in lanes if not lane.preprocess.volume}
        self._asks.extend({"file": row.file, "digest": row.digest, "steps": steps} for row in rows)
        self._feed()

    def finish(
        self, study: str, rows: Sequence[Instance], lanes: Sequence[Lane], between: Callable[[], object]
    ) -> Reading:
        """Hand every input of a study that was begun to the lanes that it is for.

        Args:
            between: is called after each file, while others are read.

        Raises:
            ReaderFailed: if a process died or hung; all that was begun is forgotten then.
            OSError: that reading met.
            InferenceUnavailable: as `Lane.add` does.
        """
        try:
            return self._finished(study, rows, lanes, between)
        except ReaderFailed:
            self.close()
            raise

    def read(self, study: str, rows: Sequence[Instance], lanes: Sequence[Lane]) -> Reading:
        """Begin and finish one study where none is begun; raises as `finish` does."""
        self.begin(rows, lanes)
        return self.finish(study, rows, lanes, self._station.beat)

    def _finished(
        self, study: str, rows: Sequence[Instance], lanes: Sequence[Lane], between: Callable[[], object]
    ) -> Reading:
        reading, headed = Reading(study, rows), []
        for row in rows:
            item = self._taken(row, lanes, reading)
            if item is not None:
                headed.append(item)
            between()
        for lane in lanes:
            if lane.preprocess.volume and reading.fault is None:
                self._volumes([item for item in headed if item.wanted_by(lane)], lane, reading)
        return reading

    def _live(self, asks: int, answers: int) -> None:
        Sight(self._station).live(asks, answers)

    def _feed(self) -> None:
        """Keep every process busy, each with a few files ahead, in turn."""
        while self._asks and len(self._away) < AHEAD * len(self._children):
            child = self._children[self._sent % len(self._children)]
            self._sent += 1
            self._away.append(child)
            wanted = self._asks.popleft()
            try:
                child.start()
                ask(child, wanted)
            except ReaderFailed as error:
                self._broken = error
                return

    def _taken(self, row: Instance, lanes: Sequence[Lane], reading: Reading) -> _Headed | None:
        """Take what the oldest ask is answered with, and hand its inputs on."""
        if self._broken is not None:
            raise self._broken
        child = self._away.popleft()
        self._feed()
        for message, pixels in self._messages(child, reading):
            if message["kind"] == "input":
                self._add(Input((row,), message["looks"], message["scanner"]), message, pixels, lanes, reading)
                continue
            if message["reason"]:
                if message["reason"] == DAMAGED:
                    LOG.error("event=spool_damaged instance=%s", self._station.who(row.sop))
                reading.reasons[row.id, ""] = message["reason"]
                return None
            models = None if message["models"] is None else frozenset(message["models"])
            item = _Headed(row, models, message["spacing_mm"], message["scanner"])
            reading.reasons |= {(row.id, lane.name): OTHER_MODELS for lane in lanes if not item.wanted_by(lane)}
            return item
        return None

    def _messages(self, child: Child, reading: Reading) -> Iterator[Message]:
        """What one ask is answered with, up to its end or the first fault."""
        while True:
            message, pixels = seen(child, self._patience_s)
            if "errno" in message:
                raise OSError(message["errno"], os.strerror(message["errno"]))
            if message["kind"] == "fault":
                reading.fault = str(message["name"])
                return
            yield message, pixels
            if message["kind"] == "end":
                return

    def _add(
        self, given: Input, message: Mapping[str, Any], pixels: Sequence[Pixels], lanes: Sequence[Lane],
        reading: Reading,
    ) -> None:  # fmt: skip
        each = dict(zip(message["steps"], pixels, strict=True))
        for lane in lanes:
            if lane.steps in each and reading.fault is None and not lane.add(reading.study, given, each[lane.steps]):
                reading.reasons |= {(row.id, lane.name): OTHER_SHAPE for row in given.rows}

    def _volumes(self, items: Sequence[_Headed], lane: Lane, reading: Reading) -> None:
        groups: dict[str, list[_Headed]] = {}
        for item in items:
            groups.setdefault("" if lane.preprocess.series else item.row.series, []).append(item)
        for members in groups.values():
            rows = tuple(item.row for item in members)
            self._volume_child.start()
            files = [row.file for row in rows]
            ask(self._volume_child, {"files": files, "steps": lane.steps, "spacing_mm": members[0].spacing_mm})
            for message, pixels in self._messages(self._volume_child, reading):
                if message["kind"] == "input":
                    given = Input(rows, message["looks"], members[0].scanner)
                    if not lane.add(reading.study, given, pixels[0]):
                        reading.reasons |= {(row.id, lane.name): NO_VOLUME for row in rows}
                elif message["reason"]:
                    reading.reasons |= {(row.id, lane.name): NO_VOLUME for row in rows}
