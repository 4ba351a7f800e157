"""Delivery: what the outbox holds goes out, one thread a destination, so that none waits for another."""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

from pydicom.uid import Comprehensive3DSRStorage

from hscc_edge.errors import HsccError, StorageError
from hscc_edge.serve import outbox
from hscc_edge.serve.audit import audit
from hscc_edge.serve.clock import ticks
from hscc_edge.serve.config import Destination
from hscc_edge.serve.crash import crash_point
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.results.breaker import Breaker, back_off_s, failed
from hscc_edge.serve.results.commitment import ask, sop_class_of
from hscc_edge.serve.results.outcome import TAKEN, UNANSWERED, UNREACHABLE, UNSUPPORTED, Outcome
from hscc_edge.serve.results.sinks import SINKS, Outcomes
from hscc_edge.serve.results.sr import enhanced
from hscc_edge.serve.station import Station

LOG = logging.getLogger(__name__)
TICK_S = 0.1
BATCH = 16
DRAIN_S = 6.0
SILENCE_S = 60.0  # beyond four times its own patience a thread counts as hung


def run(station: Station) -> None:
    """The process that empties the outbox: one thread a destination."""
    journal = station.journal()
    couriers = [Courier(station, journal, destination) for destination in station.config.destination]
    for courier in couriers:
        courier.start()
    while not station.rest(1.0):
        if stuck := next((courier for courier in couriers if courier.silent), None):
            raise StorageError(f"nothing moves at the destination {stuck.name}: this process is begun anew")
    deadline = time.monotonic() + DRAIN_S
    for courier in couriers:
        courier.join(max(0.0, deadline - time.monotonic()))


class Courier:
    """Sends what is due to one destination, in order for each study."""

    def __init__(self, station: Station, journal: Journal, destination: Destination) -> None:
        self._station, self._journal, self._destination = station, journal, destination
        self._breaker, self._last = Breaker(), time.monotonic()
        self._told: bool | None = None  # what the journal says of the circuit, None if this process has not said it
        self._thread = threading.Thread(target=self._run, name=destination.name, daemon=True)

    @property
    def name(self) -> str:
        """The destination's."""
        return self._destination.name

    @property
    def silent(self) -> bool:
        """Whether it has hung, or died, longer than any wait of its own."""
        return time.monotonic() - self._last > SILENCE_S + 4 * self._destination.timeout_s

    def start(self) -> None:
        """Begin the thread."""
        self._thread.start()

    def join(self, seconds: float) -> None:
        """Wait for the end of the thread; what it was at is sent again by the next process."""
        self._thread.join(seconds)

    def step(self) -> int:
        """Send what is due; returns how many objects the destination has taken."""
        if not self._breaker.ready(ticks()):
            return 0
        taken = self._send(outbox.due(self._journal, self.name, 1 if self._breaker.open else BATCH))
        if self._destination.commitment and self._breaker.ready(ticks()):
            self._ask(outbox.awaiting(self._journal, self.name))
        return taken

    def _run(self) -> None:
        with self._turn():
            while not self._station.stop.wait(TICK_S):
                self._last = time.monotonic()
                try:
                    self.step()
                except (HsccError, OSError, sqlite3.Error) as error:
                    # what was sent could not be written down: the destination must not get it again without a pause
                    LOG.error("event=delivery_postponed destination=%s reason=%s", self.name, type(error).__name__)
                    self._breaker = failed(self._breaker, self._destination, ticks())

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """At a reload the old process ends what it is at before the new one sends to the same destination."""
        path = self._station.config.state / f"delivery-{self._station.who(self.name)}.turn"
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not self._station.stop.is_set():
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    self._last = time.monotonic()
                    self._station.stop.wait(TICK_S)
            yield
        finally:
            os.close(handle)

    def _send(self, items: Sequence[outbox.Delivery]) -> int:
        if not items:
            return 0
        taken = 0
        crash_point("delivery-begun")
        with closing(SINKS[self._destination.kind](items, self._destination, self._station)) as outcomes:
            for item in items:
                outcome = self._next(outcomes)
                if outcome is None:
                    break
                crash_point("delivery-answered")
                self._last = time.monotonic()
                self._note(item, outcome)
                crash_point("delivery-noted")
                taken += outcome.kind == TAKEN
                if not outcome.alive or self._station.stop.is_set():
                    break
        return taken

    def _next(self, outcomes: Outcomes) -> Outcome | None:
        try:
            return next(outcomes, None)
        except (HsccError, OSError) as error:  # a certificate or a token that is not there
            return Outcome(UNREACHABLE, type(error).__name__)
        except Exception as error:  # whatever a library throws at an answer; the object's attempts are counted
            return Outcome(UNANSWERED, type(error).__name__)

    def _note(self, item: outbox.Delivery, outcome: Outcome) -> None:
        """Write down what became of one object, and what that says of the destination."""
        self._judge(outcome)
        if outcome.kind == TAKEN:
            self._taken(item)
        elif outcome.kind == UNSUPPORTED and _is_replaceable(item):
            outbox.replace(self._journal, item, *enhanced(item.content), "sent as an Enhanced SR: the other is refused")
            LOG.warning("event=sent_as_enhanced_sr destination=%s", self.name)
        else:
            self._failed(item, outcome)

    def _taken(self, item: outbox.Delivery) -> None:
        who = self._station.who(item.sop)
        if self._destination.commitment:
            outbox.stored(self._journal, item)
            LOG.info("event=stored report=%s destination=%s", who, self.name)
        else:
            outbox.delivered(self._journal, item)
            LOG.info("event=delivered report=%s destination=%s attempts=%d", who, self.name, item.attempts + 1)
        audit(self._station, "report-sent", report=who, destination=self.name, form=item.form)

    def _failed(self, item: outbox.Delivery, outcome: Outcome) -> None:
        who, tries = self._station.who(item.sop), item.attempts + outcome.counts
        if outcome.counts and tries >= self._destination.attempts:
            outbox.bury(self._journal, item, outcome.reason)
            LOG.error("event=dead_letter report=%s destination=%s reason=%s", who, self.name, outcome.reason)
            return
        wait_s = back_off_s(self._destination, max(item.attempts, self._breaker.failures - 1))
        outbox.postpone(self._journal, item, wait_s, outcome.reason, counts=outcome.counts)
        LOG.warning("event=delivery_failed report=%s destination=%s reason=%s", who, self.name, outcome.reason)

    def _ask(self, items: Sequence[outbox.Delivery]) -> None:
        """Ask for commitment to what is stored; what was asked for too often is a dead letter."""
        for item in items:
            if item.attempts >= self._destination.attempts:
                outbox.bury(self._journal, item, "never committed")
                LOG.error("event=dead_letter report=%s destination=%s", self._station.who(item.sop), self.name)
        items = [item for item in items if item.attempts < self._destination.attempts]
        if not items:
            return
        outcome = ask(self._station, self._journal, self._destination, items)
        self._last = time.monotonic()
        self._judge(outcome)
        if outcome.kind != TAKEN:
            wait_s = back_off_s(self._destination, min(item.attempts for item in items))
            outbox.unasked(self._journal, items, wait_s, outcome.reason, counts=outcome.counts)
            LOG.warning("event=commitment_not_asked destination=%s reason=%s", self.name, outcome.reason)

    def _judge(self, outcome: Outcome) -> None:
        self._breaker = Breaker() if outcome.alive else failed(self._breaker, self._destination, ticks())
        if self._breaker.open != self._told:
            LOG.info("event=circuit destination=%s open=%s", self.name, self._breaker.open)
            self._journal.set_fact(f"circuit.{self.name}", "open" if self._breaker.open else "closed")
            self._told = self._breaker.open


def _is_replaceable(item: outbox.Delivery) -> bool:
    """Whether an Enhanced SR may be sent in its place.

    Not after a try that counts, of which nobody knows whether the archive stored the object: it would have two results.
    """
    plain = item.form == "comprehensive-3d-sr" and sop_class_of(item.content) == Comprehensive3DSRStorage
    return plain and not item.attempts
