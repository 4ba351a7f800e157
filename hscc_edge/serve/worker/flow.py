"""Studies on their way from their files to their reports: read, inferred, decided and written at the same time.

While the networks work on one study, the files of the next are read and the reports of those before are written. What
makes a study fail is tried once more, that study alone, and then ends without a result, so that none holds up another.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from hscc_edge.errors import StorageError
from hscc_edge.serve import studies
from hscc_edge.serve.crash import crash_point
from hscc_edge.serve.instances import NO_RESULT, RECEIVED, Instance, any_removed, of_study
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.station import Station
from hscc_edge.serve.studies import Due, StaleReport
from hscc_edge.serve.worker.ending import Ending, ending
from hscc_edge.serve.worker.inference import InferenceUnavailable
from hscc_edge.serve.worker.lane import Lane
from hscc_edge.serve.worker.models import FAILED
from hscc_edge.serve.worker.reading import Reader, ReaderFailed, Reading
from hscc_edge.serve.worker.writing import Writer, WriterFailed

LOG = logging.getLogger(__name__)
PAUSE_S = 5.0
ATTEMPTS, MOST_CRASHES = 2, 50
MOST_WRITTEN = 16  # studies whose reports are on their way
WORKER_DIED = "failed: the worker died"
REMOVED = "came after retention had removed files of its study: send the whole study again"


@dataclass(frozen=True, slots=True)
class _Begun:
    study: Due
    rows: list[Instance]


@dataclass(frozen=True, slots=True)
class _Read:
    study: Due
    reading: Reading


@dataclass(frozen=True, slots=True)
class _Decided:
    study: Due
    images: int
    found: Ending


class Flow:
    """Takes studies in the order of their urgency, and finishes them in that order.

    Memory grows with the inputs on their way (`Inference.ahead`), an image for each reader, and the headers and reports
    of a few studies.
    """

    def __init__(
        self,
        station: Station,
        journal: Journal,
        reader: Reader,
        writer: Writer,
        lanes: dict[str, Lane],
        told: Callable[[Ending], object] = lambda found: None,
    ) -> None:
        """Nothing is on its way yet.

        Args:
            lanes: the models that look at every study, by name; may change while nothing is on its way.
            told: is called with what came of a study after that is written.
        """
        self._station, self._journal = station, journal
        self._reader, self._writer, self._lanes, self._told = reader, writer, lanes, told
        self._begun: deque[_Begun] = deque()
        self._read: deque[_Read] = deque()
        self._decided: deque[_Decided] = deque()
        self._priority = 0
        self._done = 0

    @property
    def busy(self) -> bool:
        """Whether any study is on its way."""
        return bool(self._begun or self._read or self._decided)

    def holds(self, uid: str) -> bool:
        """Whether a study is on its way."""
        return any(study.uid == uid for study in self._held())

    def take(self, study: Due) -> int:
        """Begin with a study; returns how many have been finished meanwhile.

        Those that have gone wrong before are worked on alone.
        """
        alone = bool(study.attempts or study.crashes)
        done = self.drain() if alone else 0
        with self._postponing(study):
            if study.attempts >= ATTEMPTS or study.crashes >= MOST_CRASHES:
                self._done += self._give_up(study, WORKER_DIED)
            elif any_removed(self._journal, study.uid):
                self._done += self._give_up(study, REMOVED)
            else:
                self._begin(study)
            while len(self._begun) > 1:
                self._look()
        return done + self._taken() + (self.drain() if alone else 0)

    def drain(self) -> int:
        """Finish all that is on its way; returns how many studies that were."""
        while self.busy:
            with self._postponing():
                if self._begun:
                    self._look()
                elif self._read:
                    self._decide_oldest()
                else:
                    self._finish_oldest()
        return self._taken()

    def _held(self) -> list[Due]:
        waiting = [*(item.study for item in self._decided), *(item.study for item in self._read)]
        return waiting + [item.study for item in self._begun]

    def _taken(self) -> int:
        done, self._done = self._done, 0
        return done

    @contextmanager
    def _postponing(self, *taken: Due) -> Iterator[None]:
        """What fails for want of disk or a runtime is no study's fault: all are tried again later."""
        try:
            yield
        except (OSError, sqlite3.Error, StorageError, InferenceUnavailable) as error:
            reason = type(error).__name__
            held = {study.uid: study for study in (*self._held(), *taken)}
            self._decided.clear()
            self._read.clear()
            self._begun.clear()
            self._reader.close()
            self._writer.close()
            for lane in self._lanes.values():
                lane.clear()
            for study in held.values():
                LOG.error("event=study_postponed study=%s reason=%s", study.key, reason)
                self._again(study, PAUSE_S, reason, counts=False)

    def _begin(self, study: Due) -> None:
        begun = _Begun(study, [])
        self._begun.append(begun)
        studies.claim(self._journal, [study.uid])
        crash_point("study-claimed")
        begun.rows.extend(of_study(self._journal, study.uid))
        self._reader.begin(begun.rows, list(self._lanes.values()))

    def _look(self) -> None:
        """Read the oldest study that is begun, while older ones are inferred and finished."""
        begun, lanes = self._begun[0], list(self._lanes.values())
        study = begun.study
        if study.priority != self._priority:  # what is urgent shares no batch with what is not
            self._priority = study.priority
            for lane in lanes:
                lane.push()
        try:
            reading = self._reader.finish(study.uid, begun.rows, lanes, self._meanwhile)
        except ReaderFailed as error:
            reading = Reading(study.uid, begun.rows, fault=str(error))
            for other in list(self._begun)[1:]:
                self._reader.begin(other.rows, lanes)
        crash_point("study-decoded")
        self._read.append(_Read(study, reading))
        self._begun.popleft()

    def _meanwhile(self) -> None:
        """Take what the networks and the writers have done, and go on with the oldest study of which all is there."""
        self._station.beat()
        for lane in self._lanes.values():
            lane.gather()
        if self._read and not any(lane.busy(self._read[0].study.uid) for lane in self._lanes.values()):
            self._decide_oldest()
        if self._decided and self._writer.ready(self._decided[0].study.uid):
            self._finish_oldest()

    def _decide_oldest(self) -> None:
        if len(self._decided) == MOST_WRITTEN:
            self._finish_oldest()
        item, lanes = self._read[0], list(self._lanes.values())
        for lane in lanes:
            lane.wait(item.study.uid)
        crash_point("study-inferred")
        self._done += self._guarded(item.study, lambda: self._decide(item.study, item.reading, lanes))
        self._read.popleft()
        for lane in lanes:
            lane.forget(item.study.uid)

    def _finish_oldest(self) -> None:
        item = self._decided[0]
        self._done += self._guarded(item.study, lambda: self._finish(item))
        self._decided.popleft()

    def _guarded(self, study: Due, step: Callable[[], bool]) -> bool:
        """Whether a step was the end of a study; what goes wrong but for disk and journal is its fault."""
        try:
            return step()
        except StaleReport:
            self._again(study, 0.0, "StaleReport", counts=False)
            return False
        except WriterFailed as error:
            return self._failed(study, str(error))
        except (OSError, sqlite3.Error, StorageError):
            raise
        except Exception as error:  # whatever a library throws at hostile headers
            return self._failed(study, type(error).__name__)

    def _decide(self, study: Due, reading: Reading, lanes: Sequence[Lane]) -> bool:
        """Have a study's reports written, if it did not fail."""
        if reading.fault is not None:
            return self._failed(study, reading.fault)
        found = ending(self._station, self._journal, reading, lanes)
        if found.failed and study.attempts + 1 < ATTEMPTS:
            return self._failed(study, next(iter(found.failed.values())))
        self._writer.begin(study.uid, found.writings)
        self._decided.append(_Decided(study, len(reading.rows), found))
        return False

    def _finish(self, item: _Decided) -> bool:
        """Write down what came of a study."""
        study, found = item.study, item.found
        reports = [*found.reports, *self._writer.finish(study.uid)]
        crash_point("report-built")
        studies.finish(self._journal, study.uid, found.states, reports, found.observed)
        crash_point("study-finished")
        LOG.info("event=study_done study=%s images=%d reported=%d", study.key, item.images, found.reported)
        self._told(found)
        return True

    def _failed(self, study: Due, reason: str) -> bool:
        """Once more, alone, or the end; whether it is the end."""
        LOG.error("event=study_failed study=%s reason=%s", study.key, reason.replace(" ", "_"))
        if study.attempts + 1 < ATTEMPTS:
            self._again(study, 0.0, reason, counts=True)
            return False
        return self._give_up(study, FAILED + reason)

    def _give_up(self, study: Due, reason: str) -> bool:
        rows = [row for row in of_study(self._journal, study.uid) if row.state == RECEIVED]
        studies.finish(self._journal, study.uid, [(row.id, NO_RESULT, reason) for row in rows], [])
        return True

    def _again(self, study: Due, pause_s: float, reason: str, *, counts: bool) -> None:
        try:
            studies.postpone(self._journal, study.uid, pause_s, reason, counts=counts)
        except sqlite3.Error:
            self._station.rest(PAUSE_S)
