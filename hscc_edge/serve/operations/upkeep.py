"""What is looked after from time to time: the audit chain's end, audit messages, latencies, traces, retention, the
journal's size, the log's size, drift, certificates and alarms."""

from __future__ import annotations

import logging
import re
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from hscc_edge.errors import HsccError
from hscc_edge.serve import audit, logs
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.operations import atna, latency, retention, traces
from hscc_edge.serve.operations.alarms import BAD, alarms, read_status
from hscc_edge.serve.operations.certificates import certificates
from hscc_edge.serve.station import Station

LOG = logging.getLogger(__name__)
TICK_S = 1.0
WAL_BYTES = 64 << 20
WARN_DAYS = (30, 14, 7, 1, 0)


@dataclass(slots=True)
class Memory:
    """What the process remembers between its rounds; all of it may be lost."""

    repository: atna.Repository | None = None
    tracer: traces.Tracer | None = None
    told: dict[str, float] = field(default_factory=dict)
    standing: dict[str, str] = field(default_factory=dict)
    done: dict[str, float] = field(default_factory=dict)


Task = Callable[[Station, Journal, Memory], object]


def run(station: Station) -> None:
    """The process; ends when the station is to stop."""
    journal, memory = station.journal(), Memory()
    while not station.rest(TICK_S):
        step(station, journal, memory)
    for task in LAST:
        _attempt(task, station, journal, memory)
    for thing in (memory.repository, memory.tracer):
        if thing is not None:
            thing.close()
    journal.close()


def step(station: Station, journal: Journal, memory: Memory) -> None:
    """Do what is due; one task's failure is told and hinders no other."""
    for task, every_s in TASKS.items():
        now = time.monotonic()
        if now - memory.done.get(task.__name__, -every_s) >= every_s and not station.stop.is_set():
            memory.done[task.__name__] = now
            _attempt(task, station, journal, memory)
            station.beat()


def _attempt(task: Task, station: Station, journal: Journal, memory: Memory) -> None:
    name = task.__name__.strip("_")
    try:
        task(station, journal, memory)
    except (HsccError, OSError, sqlite3.Error) as error:
        LOG.error("event=upkeep_failed task=%s reason=%s", name, type(error).__name__)
    except Exception as error:  # a library that fails in a new way must not end what keeps the disk from filling
        LOG.error("event=upkeep_broken task=%s reason=%s", name, type(error).__name__)


def _seal(station: Station, journal: Journal, memory: Memory) -> None:
    audit.seal(station, journal)


def _latency(station: Station, journal: Journal, memory: Memory) -> None:
    while latency.absorb(journal) and not station.stop.is_set():
        station.beat()


def _collect(station: Station, journal: Journal, memory: Memory) -> None:
    if station.config.audit.host:
        atna.collect(station, journal)


def _send(station: Station, journal: Journal, memory: Memory) -> None:
    if not station.config.audit.host:
        return
    memory.repository = memory.repository or atna.Repository(station.config)
    while memory.repository.send(journal) and not station.stop.is_set():
        station.beat()


def _traces(station: Station, journal: Journal, memory: Memory) -> None:
    if station.config.traces:
        memory.tracer = memory.tracer or traces.open_tracer(station.config.traces)
        memory.tracer.step(journal)


def _retention(station: Station, journal: Journal, memory: Memory) -> None:
    retention.sweep(station, journal)


def _checkpoint(station: Station, journal: Journal, memory: Memory) -> None:
    """SQLite folds the log back by itself; it begins anew only when nobody reads, which is tried where it is long."""
    log = journal.path.with_name(journal.path.name + "-wal")
    if log.exists() and log.stat().st_size > WAL_BYTES:
        journal.read("PRAGMA busy_timeout = 200")  # writers wait as long as this does
        try:
            journal.read("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            journal.read("PRAGMA busy_timeout = 30000")


def _logs(station: Station, journal: Journal, memory: Memory) -> None:
    logs.put_aside(station.config.log)


def _certificates(station: Station, journal: Journal, memory: Memory) -> None:
    """Told once at each threshold, and again after a restart."""
    for item in certificates(station.config):
        name = f"{item.used_for} {item.part}"
        if item.days is None:
            LOG.error("event=certificate_unreadable used_for=%s part=%s", item.used_for, item.part)
            continue
        passed = [days for days in WARN_DAYS if item.days < days]
        if passed and memory.told.get(name, 1e9) > passed[-1]:
            level = logging.ERROR if item.days < 7 else logging.WARNING
            LOG.log(level, "event=certificate_ends used_for=%s part=%s days=%.1f", item.used_for, item.part, item.days)
        memory.told[name] = passed[-1] if passed else 1e9


def _alarms(station: Station, journal: Journal, memory: Memory) -> None:
    """Told when one begins and when it is over, not in between."""
    now = {
        re.sub(r"\d+", "#", alarm.title): alarm
        for alarm in alarms(station.config, journal, read_status(station.config.state))
    }
    for name, alarm in now.items():
        if memory.standing.get(name) != alarm.level:
            level = logging.ERROR if alarm.level == BAD else logging.WARNING
            LOG.log(level, "event=alarm severity=%s says=%s", alarm.level, alarm.title)
    for name in memory.standing.keys() - now.keys():
        LOG.info("event=alarm_over says=%s", name)
    memory.standing = {name: alarm.level for name, alarm in now.items()}


# Each task and how often it is due, in seconds.
TASKS: dict[Task, float] = {
    _seal: 1.0, _latency: 1.0, _collect: 1.0, _send: 1.0, _traces: 2.0, _logs: 10.0, _alarms: 15.0,
    _checkpoint: 60.0, _retention: 60.0, _certificates: 3600.0,
}  # fmt: skip
LAST: tuple[Task, ...] = (_seal, _collect, _send, _latency)
