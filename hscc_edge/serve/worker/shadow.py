"""Shadows: candidates that see each study after the active model has reported it; nothing of theirs is sent.

They work while no study waits, in processes of their own, so that what a candidate does wrong costs nothing but its own
observation. A study is ticked off before it is looked at: one on which the whole worker dies is not tried again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from hscc_edge.errors import HsccError
from hscc_edge.serve.instances import of_study
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.observations import Observation, Observed, record
from hscc_edge.serve.station import Station
from hscc_edge.serve.worker import models
from hscc_edge.serve.worker.ending import observation
from hscc_edge.serve.worker.inference import InferenceUnavailable
from hscc_edge.serve.worker.lane import Lane
from hscc_edge.serve.worker.reading import Reader
from hscc_edge.serve.worker.reference import Opening, opened

LOG = logging.getLogger(__name__)
PAUSE_S = 60.0


class Shadows:
    """The candidates of every served name."""

    def __init__(self, station: Station, journal: Journal, reader: Reader, opening: Opening) -> None:
        self._station, self._journal, self._reader, self._opening = station, journal, reader, opening
        self._lanes: dict[str, Lane] = {}
        self._not_before = 0.0

    def close(self) -> None:
        """End their processes."""
        for lane in self._lanes.values():
            lane.close()
        self._lanes = {}

    def refresh(self, names: Sequence[str]) -> None:
        """Open the shadows of these names that are not open, and close those that are none any more."""
        found = [models.find(self._journal, name, models.SHADOW) for name in names]
        wanted = {model.digest: model for model in found if model is not None}
        for digest in self._lanes.keys() - wanted.keys():
            self._lanes.pop(digest).close()
        for digest in wanted.keys() - self._lanes.keys():
            self._open(wanted[digest])

    def step(self) -> int:
        """Let each shadow look at one study that it has not seen; returns how many did."""
        if time.monotonic() < self._not_before:
            return 0
        return sum([self._look(lane) for lane in self._lanes.values()])

    def _open(self, model: models.Model) -> None:
        try:
            bundle = models.load(self._station, model)
            inference = opened(self._station, bundle, self._opening)
        except HsccError as error:
            LOG.error("event=shadow_failed model=%s reason=%s", model.digest[:12], type(error).__name__)
            return
        batch = self._station.config.work.batch
        self._lanes[model.digest] = Lane(model.name, bundle, inference, batch)

    def _look(self, lane: Lane) -> bool:
        study = self._next(lane)
        if study is None:
            return False
        try:
            seen = self._seen(study, lane)
        except InferenceUnavailable:
            LOG.error("event=shadow_unavailable model=%s", lane.bundle.digest[:12])
            self._not_before = time.monotonic() + PAUSE_S
            return False
        with self._journal.transaction() as db:
            record(db, study, Observed(lane.name, lane.bundle.digest, seen), shadow=True)
        return True

    def _seen(self, study: str, lane: Lane) -> Sequence[Observation]:
        who = self._station.who(study)
        lane.clear()
        try:
            reading = self._reader.read(study, of_study(self._journal, study), [lane])
            lane.wait(study)
        except InferenceUnavailable:
            raise
        except Exception as error:  # whatever a step throws at hostile input: the active model has had its turn
            return [Observation(who, failed=type(error).__name__)]
        if reading.fault is not None:
            return [Observation(who, failed=reading.fault)]
        if study in lane.failed:
            return [Observation(who, failed=lane.failed[study])]
        return [observation(self._station, case) for case in lane.decided(study, reading.dropped(lane.name))]

    def _next(self, lane: Lane) -> str | None:
        """The study that the active model saw first of those that this shadow has not been shown; it is ticked off."""
        name = f"shadow:{lane.bundle.digest}"
        rows = self._journal.read(
            "SELECT id, study FROM observations WHERE id > ? AND model = ? AND shadow = 0 AND time >= "
            "(SELECT since FROM models WHERE digest = ?) ORDER BY id LIMIT 1",
            (int(self._journal.fact(name) or 0), lane.name, lane.bundle.digest),
        )
        if not rows:
            return None
        first, study = rows[0]
        (last,) = self._journal.read(
            "SELECT COALESCE((SELECT MIN(id) - 1 FROM observations WHERE id > ? AND model = ? AND shadow = 0 AND "
            "study != ?), (SELECT MAX(id) FROM observations))",
            (first, lane.name, study),
        )[0]
        self._journal.set_fact(name, str(last))
        return str(study)
