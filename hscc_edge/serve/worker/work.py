"""From complete studies to their reports: read, infer, decide, write, all by the code of `validate`.

The images of several studies share batches. What makes a batch fail is tried once more, each study alone, and then
ends without a result, so that no study holds up the others.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hscc_edge.bundle import Bundle
from hscc_edge.errors import HsccError, StorageError
from hscc_edge.serve import studies
from hscc_edge.serve.audit import audit
from hscc_edge.serve.crash import crash_point
from hscc_edge.serve.instances import NO_RESULT, RECEIVED, any_removed, of_study
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.observations import Observed, failures
from hscc_edge.serve.station import Station
from hscc_edge.serve.studies import Due, StaleReport
from hscc_edge.serve.worker import models
from hscc_edge.serve.worker.drift import Watch
from hscc_edge.serve.worker.ending import Ending, ending
from hscc_edge.serve.worker.inference import InferenceUnavailable, inference_of
from hscc_edge.serve.worker.lane import Lane
from hscc_edge.serve.worker.models import FAILED
from hscc_edge.serve.worker.reading import Reader, Reading
from hscc_edge.serve.worker.reference import Opening, opened, tested
from hscc_edge.serve.worker.shadow import Shadows

LOG = logging.getLogger(__name__)
TICK_S, PAUSE_S, TURN_S = 0.1, 5.0, 1.0
ATTEMPTS, MOST_CRASHES = 2, 50
FEWEST_STUDIES = 20
WORKER_DIED, TEST_FAILED = "failed: the worker died", "the self-test failed"
REMOVED = "came after retention had removed files of its study: send the whole study again"


def ready(station: Station, journal: Journal) -> list[Bundle]:
    """Install, open and test every model once, so that what is wrong with one is told before a port opens.

    One that does not open, or fails its test with none before it, is an error; else the one before it is served.

    Raises:
        HsccError: that says what is wrong.
    """
    studies.begin_life(journal)
    return [_ready(station, journal, model) for model in models.ensure(station, journal)]


def _ready(station: Station, journal: Journal, model: models.Model) -> Bundle:
    try:
        bundle = models.load(station, model)
        tested(station, bundle)
    except InferenceUnavailable:
        raise
    except HsccError:
        old = _roll_back(station, journal, model.name, TEST_FAILED)
        if old is None:
            raise
        return _ready(station, journal, old)
    return bundle


def _roll_back(station: Station, journal: Journal, name: str, reason: str) -> models.Model | None:
    """Go back to the model before, and tell who looks after this one."""
    old = models.roll_back(journal, name, reason)
    if old is not None:
        LOG.error("event=model_rolled_back to=%s reason=%s", old.digest[:12], reason.replace(" ", "_"))
        audit(station, "model-rollback", account="hscc-edge", model=name, reason=reason)
    return old


def run(station: Station) -> None:
    """The process that works on complete studies until the station is to stop."""
    with _turn(station) as first:
        if not first:
            return
        journal = station.journal()
        worker = Worker(station, journal)
        done = 0
        while not station.rest(0.0 if done else TICK_S):
            done = worker.step() or worker.shadow()
        worker.close()
        journal.close()


@contextmanager
def _turn(station: Station) -> Iterator[bool]:
    """One worker at a time, also while a reload's new one waits for the old one's end; False if it is to stop."""
    handle = os.open(station.config.state / "work.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if station.rest(TICK_S):
                    yield False
                    return
                continue
            break
        yield True
    finally:
        os.close(handle)


class Worker:
    """Turns complete studies into reports; memory grows with a batch, an image and the headers of a few studies."""

    def __init__(self, station: Station, journal: Journal, opening: Opening = inference_of) -> None:
        self._station, self._config, self._journal, self._opening = station, station.config, journal, opening
        self._spool = station.spool()
        self._reader = Reader(station, self._spool)
        self._shadows = Shadows(station, journal, self._reader, opening)
        self._lanes: dict[str, Lane] = {}
        self._rates: dict[str, float] = {}
        self._watches: dict[str, Watch] = {}
        self._generation = -1

    def close(self) -> None:
        """End the processes that decode and infer."""
        self._reader.close()
        self._shadows.close()
        for lane in self._lanes.values():
            lane.close()

    def refresh(self) -> None:
        """Serve what is active now; a model that fails its self-test gives way to the one before it.

        Raises:
            HsccError: if one does not open, and there is none before it.
        """
        generation = models.generation(self._journal)
        if generation == self._generation:
            return
        for item, model in zip(self._config.model, models.ensure(self._station, self._journal), strict=True):
            self._rates[model.name] = item.max_error_rate
            lane = self._lanes.get(model.name)
            if lane is None or lane.bundle.digest != model.digest:
                self._switch(model)
        self._shadows.refresh(list(self._lanes))
        self._generation = models.generation(self._journal)

    def step(self) -> int:
        """Work on studies that are complete now, for a second or so; returns how many were finished.

        Each group of studies has the models that are active when it begins. What fails for want of disk or a runtime is
        tried again later.
        """
        self.refresh()
        done, until = 0, time.monotonic() + TURN_S
        due = studies.due(self._journal, self._config.study.quiet_s, on_release=self._config.study.on_release)
        for group in groups(due, self._config.work.batch):
            if self._station.stop.is_set() or time.monotonic() > until:
                break
            self.refresh()
            done += self._work(group)
        return done

    def shadow(self) -> int:
        """Let each shadow look at one study more; returns how many did."""
        return self._shadows.step()

    def _switch(self, model: models.Model) -> None:
        try:
            bundle = models.load(self._station, model)
            inference = opened(self._station, bundle, self._opening)
        except HsccError as error:
            LOG.error("event=model_failed model=%s reason=%s", model.digest[:12], type(error).__name__)
            if model.name not in self._lanes and isinstance(error, InferenceUnavailable):
                raise  # at the start it is the device that is not ready, not the model that is worse
            old = _roll_back(self._station, self._journal, model.name, TEST_FAILED)
            if old is None:
                raise
            if (lane := self._lanes.get(model.name)) is None or lane.bundle.digest != old.digest:
                self._switch(old)
            return
        if (lane := self._lanes.get(model.name)) is not None:
            lane.close()
        self._watches[model.name] = Watch(self._journal, self._config.drift, model.name, bundle)
        self._lanes[model.name] = Lane(model.name, bundle, inference, self._config.work.batch)
        LOG.info("event=serving model=%s runtime=%s", model.digest[:12], inference.started["runtime"])

    def _work(self, group: Sequence[Due]) -> int:
        """Work on a group of studies together; returns how many were finished."""
        left = {study.uid: study for study in group}
        done = 0
        try:
            for study in group:
                if study.attempts >= ATTEMPTS or study.crashes >= MOST_CRASHES:
                    self._give_up(left.pop(study.uid), WORKER_DIED)
                    done += 1
                elif any_removed(self._journal, study.uid):
                    self._give_up(left.pop(study.uid), REMOVED)
                    done += 1
            if not left:
                return done
            studies.claim(self._journal, list(left))
            crash_point("study-claimed")
            for uid, (reading, fault) in self._infer(list(left.values())).items():
                done += self._settle(left[uid], reading, fault)
                del left[uid]
        except (OSError, sqlite3.Error, StorageError, InferenceUnavailable) as error:
            for study in left.values():
                LOG.error("event=study_postponed study=%s reason=%s", study.key, type(error).__name__)
                self._again(study, PAUSE_S, type(error).__name__, counts=False)
        return done

    def _infer(self, group: Sequence[Due]) -> dict[str, tuple[Reading, str | None]]:
        """Of each study what was read, and what else went wrong with it, after every batch is done."""
        found: dict[str, tuple[Reading, str | None]] = {}
        lanes = list(self._lanes.values())
        for lane in lanes:
            lane.begin()
        for study in group:
            rows = of_study(self._journal, study.uid)
            try:
                found[study.uid] = self._reader.read(study.uid, rows, lanes), None
            except (OSError, InferenceUnavailable):
                raise
            except Exception as error:  # whatever a codec or a step throws at hostile input: this study's alone
                found[study.uid] = Reading(study.uid, rows), type(error).__name__
            crash_point("study-decoded")
        for lane in lanes:
            lane.flush()
        crash_point("study-inferred")
        return found

    def _settle(self, study: Due, reading: Reading, fault: str | None) -> bool:
        """Write what came of a study; False if it is tried again."""
        if fault is not None:
            return self._failed(study, fault)
        try:
            found = ending(self._station, self._journal, self._spool, reading, list(self._lanes.values()))
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
        self._told(study, reading, found)
        return True

    def _told(self, study: Due, reading: Reading, found: Ending) -> None:
        LOG.info(
            "event=study_done study=%s images=%d reported=%d", study.key, len(reading.rows), found.reported
        )  # fmt: skip
        try:
            for observed in found.observed:
                self._watch(observed, failed=observed.model in found.failed)
        except (HsccError, OSError, sqlite3.Error) as error:  # the study is finished; the next one looks again
            LOG.error("event=watch_failed reason=%s", type(error).__name__)

    def _failed(self, study: Due, reason: str) -> bool:
        """Once more, alone, or the end; whether it is the end."""
        LOG.error("event=study_failed study=%s reason=%s", study.key, reason.replace(" ", "_"))
        if study.attempts + 1 < ATTEMPTS:
            self._again(study, 0.0, reason, counts=True)
            return False
        self._give_up(study, FAILED + reason)
        return True

    def _give_up(self, study: Due, reason: str) -> None:
        rows = [row for row in of_study(self._journal, study.uid) if row.state == RECEIVED]
        studies.finish(self._journal, study.uid, [(row.id, NO_RESULT, reason) for row in rows], [])

    def _again(self, study: Due, pause_s: float, reason: str, *, counts: bool) -> None:
        try:
            studies.postpone(self._journal, study.uid, pause_s, reason, counts=counts)
        except sqlite3.Error:
            self._station.rest(PAUSE_S)

    def _watch(self, observed: Observed, *, failed: bool) -> None:
        """Go back from a model that failed on too many of the last hundred studies, or by choice where they drift."""
        name = observed.model
        if failed:
            bad, of = failures(self._journal, observed.digest)
            if of >= FEWEST_STUDIES and bad > self._rates[name] * of:
                _roll_back(self._station, self._journal, name, f"{bad} of the last {of} studies failed")
            return
        reason = self._watches[name].seen(len(observed.seen))
        if reason is not None:
            LOG.warning("event=drift model=%s", observed.digest[:12])
            if self._config.drift.roll_back:
                _roll_back(self._station, self._journal, name, f"drift: {reason}")


def groups(due: Sequence[Due], batch: int) -> Iterator[list[Due]]:
    """Studies to be worked on together: as many of one priority as fill a batch; alone what has gone wrong before."""
    held: list[Due] = []
    for study in due:
        alone = bool(study.attempts or study.crashes)
        if held and (alone or study.priority != held[0].priority or sum(item.images for item in held) >= batch):
            yield held
            held = []
        held.append(study)
        if alone:
            yield held
            held = []
    if held:
        yield held
