"""Studies on their way from their files to their reports: read, inferred, decided and written at the same time.

While the networks work on one study, the files of the next are read and the report of the one before is made. What
makes a study fail is tried once more, that study alone, and then ends without a result, so that none holds up another.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Iterator
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

LOG = logging.getLogger(__name__)
PAUSE_S = 5.0
ATTEMPTS, MOST_CRASHES = 2, 50
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


class Flow:
    """Takes studies in the order of their urgency, and finishes them in that order.

    Memory grows with the inputs on their way (`Inference.ahead`), an image for each reader and the headers of a few
    studies.
    """

    def __init__(
        self,
        station: Station,
        journal: Journal,
        reader: Reader,
        lanes: dict[str, Lane],
        told: Callable[[Ending], object] = lambda found: None,
    ) -> None:
        """Nothing is on its way yet.

        Args:
            lanes: the models that look at every study, by name; may change while nothing is on its way.
            told: is called with what came of a study after that is written.
        """
        self._station, self._journal, self._spool = station, journal, station.spool()
        self._reader, self._lanes, self._told = reader, lanes, told
        self._begun: deque[_Begun] = deque()
        self._read: deque[_Read] = deque()
        self._priority = 0
        self._done = 0

    @property
    def busy(self) -> bool:
        """Whether any study is on its way."""
        return bool(self._begun or self._read)

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
                else:
                    self._settle_oldest()
        return self._taken()

    def _held(self) -> list[Due]:
        return [item.study for item in self._read] + [item.study for item in self._begun]

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
            self._read.clear()
            self._begun.clear()
            self._reader.close()
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
        """Take what the networks have done, and finish a study whose turn it is, if all of it is there."""
        self._station.beat()
        for lane in self._lanes.values():
            lane.gather()
        if self._read and not any(lane.busy(self._read[0].study.uid) for lane in self._lanes.values()):
            self._settle_oldest()

    def _settle_oldest(self) -> None:
        item, lanes = self._read[0], list(self._lanes.values())
        for lane in lanes:
            lane.wait(item.study.uid)
        crash_point("study-inferred")
        self._done += self._settle(item.study, item.reading, lanes)
        self._read.popleft()
        for lane in lanes:
            lane.forget(item.study.uid)

    def _settle(self, study: Due, reading: Reading, lanes: Iterable[Lane]) -> bool:
        """Write what came of a study; False if it is tried again."""
        if reading.fault is not None:
            return self._failed(study, reading.fault)
        try:
            found = ending(self._station, self._journal, self._spool, reading, list(lanes))
            if found.failed and study.attempts + 1 < ATTEMPTS:
                return self._failed(study, next(iter(found.failed.values())))
            crash_point("report-built")
            studies.finish(self._journal, study.uid, found.states, found.reports, found.observed)
        except StaleReport:
            self._again(study, 0.0, "StaleReport", counts=False)
            return False
        except (OSError, sqlite3.Error, StorageError):
            raise
        except Exception as error:  # whatever the report's library throws at hostile headers
            return self._failed(study, type(error).__name__)
        crash_point("study-finished")
        LOG.info("event=study_done study=%s images=%d reported=%d", study.key, len(reading.rows), found.reported)
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
