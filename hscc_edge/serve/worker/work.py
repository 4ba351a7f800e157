"""From complete studies to their reports: which are worked on when, and by which models; how, `flow` says."""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager

from hscc_edge.bundle import Bundle
from hscc_edge.errors import HsccError, require
from hscc_edge.serve import studies
from hscc_edge.serve.audit import audit
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.observations import Observed, failures
from hscc_edge.serve.station import Station
from hscc_edge.serve.worker import models
from hscc_edge.serve.worker.drift import Watch
from hscc_edge.serve.worker.ending import Ending
from hscc_edge.serve.worker.flow import Flow
from hscc_edge.serve.worker.inference import InferenceUnavailable, inference_of
from hscc_edge.serve.worker.lane import Lane
from hscc_edge.serve.worker.reading import Reader
from hscc_edge.serve.worker.reference import Opening, opened, tested
from hscc_edge.serve.worker.shadow import Shadows
from hscc_edge.serve.worker.writing import Writer

LOG = logging.getLogger(__name__)
TICK_S, TURN_S = 0.1, 1.0
FEWEST_STUDIES = 20
TEST_FAILED = "the self-test failed"


def ready(station: Station, journal: Journal) -> list[Bundle]:
    """Install, open and test every model once, so that what is wrong with one is told before a port opens.

    One that does not open, or fails its test with none before it, is an error; else the one before it is served.

    Raises:
        HsccError: that says what is wrong.
    """
    require("highdicom", "device")
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
        while not station.rest(0.0 if done or worker.busy else TICK_S):
            done = worker.step() or worker.shadow()
        worker.finish()
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
    """Turns complete studies into reports; memory grows as `Flow`'s does, and with the networks."""

    def __init__(self, station: Station, journal: Journal, opening: Opening = inference_of) -> None:
        self._station, self._config, self._journal, self._opening = station, station.config, journal, opening
        self._reader, self._writer = Reader(station), Writer(station)
        self._shadows = Shadows(station, journal, self._reader, opening)
        self._lanes: dict[str, Lane] = {}
        self._flow = Flow(station, journal, self._reader, self._writer, self._lanes, self._told)
        self._rates: dict[str, float] = {}
        self._watches: dict[str, Watch] = {}
        self._generation = -1

    def close(self) -> None:
        """End the processes that decode, infer and write."""
        self._reader.close()
        self._writer.close()
        self._shadows.close()
        for lane in self._lanes.values():
            lane.close()

    @property
    def busy(self) -> bool:
        """Whether a study is on its way."""
        return self._flow.busy

    def finish(self) -> None:
        """End what is on its way."""
        self._flow.drain()

    def refresh(self) -> int:
        """Serve what is active now; a model that fails its self-test gives way to the one before it.

        Studies on their way end with the models that they began with; returns how many did.

        Raises:
            HsccError: if one does not open, and there is none before it.
        """
        generation = models.generation(self._journal)
        if generation == self._generation:
            return 0
        done = self._flow.drain()
        for item, model in zip(self._config.model, models.ensure(self._station, self._journal), strict=True):
            self._rates[model.name] = item.max_error_rate
            lane = self._lanes.get(model.name)
            if lane is None or lane.bundle.digest != model.digest:
                self._switch(model)
        self._shadows.refresh(list(self._lanes))
        self._generation = models.generation(self._journal)
        return done

    def step(self) -> int:
        """Work on studies that are complete now, for a second or so; returns how many were finished.

        Each study has the models that are active when it begins. Some may be on their way when the second is over; none
        is when there is nothing more to begin with.
        """
        done, until = self.refresh(), time.monotonic() + TURN_S
        due = studies.due(self._journal, self._config.study.quiet_s, on_release=self._config.study.on_release)
        for study in [study for study in due if not self._flow.holds(study.uid)]:
            if self._station.stop.is_set():
                return done
            done += self.refresh() + self._flow.take(study)
            if time.monotonic() > until:
                return done
        return done + self._flow.drain()

    def shadow(self) -> int:
        """Let each shadow look at one study more, if there is nothing else to do; returns how many did."""
        return 0 if self.busy else self._shadows.step()

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

    def _told(self, found: Ending) -> None:
        try:
            for observed in found.observed:
                self._watch(observed, failed=observed.model in found.failed)
        except (HsccError, OSError, sqlite3.Error) as error:  # the study is finished; the next one looks again
            LOG.error("event=watch_failed reason=%s", type(error).__name__)

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
