"""The daemon: intake, work, delivery and the rest as processes over one state directory; killed at any instant, it
loses nothing."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

from hscc_edge import __version__, durable
from hscc_edge.errors import HsccError, StorageError
from hscc_edge.serve import instances, outbox, tls
from hscc_edge.serve.audit import audit, mend
from hscc_edge.serve.config import Config
from hscc_edge.serve.config_file import read_config
from hscc_edge.serve.doors import folder, intake
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.notify import notify
from hscc_edge.serve.operations import upkeep
from hscc_edge.serve.operations.health import HEARTBEAT_S
from hscc_edge.serve.results import delivery
from hscc_edge.serve.station import Station, claim, open_state
from hscc_edge.serve.supervisor import Role, Supervisor
from hscc_edge.serve.worker import work

LOG = logging.getLogger(__name__)
BACKLOG = 128
STATUS = "daemon.json"
MOST_INTAKES = 4


def roles(config: Config) -> list[Role]:
    """The processes that a configuration asks for."""
    listeners = config.dicom.processes or min(MOST_INTAKES, len(os.sched_getaffinity(0)))
    found = [Role(f"intake-{number + 1}", intake.run, patient=True) for number in range(listeners)]
    found += [Role(f"folder-{number + 1}", folder.role(item)) for number, item in enumerate(config.folder)]
    found.append(Role("work", work.run, silence_s=max(60.0, 2 * config.work.timeout_s)))
    found.append(Role("delivery", delivery.run))
    found.append(Role("upkeep", upkeep.run))
    if config.web.enabled:
        found.append(Role("web", _web))
    return found


def _web(station: Station) -> None:
    from hscc_edge.serve.web import server  # by the process that needs it, and by no other

    server.run(station)


class Daemon:
    """Checks everything in its constructor, so that what is wrong is told before a port opens."""

    def __init__(self, path: Path) -> None:
        self.path, self.config = path, read_config(path)
        tls.check(self.config)
        key = open_state(self.config.state)
        self._lock = claim(self.config.state)
        for draft in self.config.state.glob(f".{STATUS}.*"):  # of a daemon that was killed while it wrote
            draft.unlink(missing_ok=True)
        self.station = Station(self.config, key)
        journal = self.station.journal()
        try:
            journal.begin_boot()
            self._attempt("audit", lambda: mend(self.station, journal))
            self.models = work.ready(self.station, journal)
            self.swept = self.station.spool().sweep(instances.files(journal))
        finally:
            journal.close()
        self._asked: set[int] = set()
        self._wake = threading.Event()

    def on_signal(self, number: int, frame: object = None) -> None:
        """SIGTERM and SIGINT end the daemon, SIGHUP reads its configuration and certificates anew."""
        self._asked.add(number)

    def run(self, until_idle_s: float | None = None) -> None:
        """Serve until a signal, or until nothing is left to do for `until_idle_s`.

        Raises:
            StorageError: if a port cannot be opened, or the first heartbeat not be written.
        """
        self._open_doors()
        supervisor = Supervisor(self.station, roles(self.config))
        supervisor.start()
        try:
            self._write_status(supervisor)
            LOG.info("event=started ports=%s swept=%d models=%d", self._ports(), self.swept, len(self.models))
            self._attempt("audit", lambda: self._audit("started"))
            notify("READY=1")
            self._look_after(supervisor, until_idle_s)
        except sqlite3.Error as error:
            raise StorageError(
                f"{self.config.state} cannot be written ({type(error).__name__}): look at its disk"
            ) from error
        finally:
            notify("STOPPING=1")
            supervisor.stop()
            for door in self.station.sockets.values():
                door.close()
            os.close(self._lock)
            self._attempt("audit", lambda: self._audit("stopped"))
            LOG.info("event=stopped")

    def _look_after(self, supervisor: Supervisor, until_idle_s: float | None) -> None:
        quiet_since = beat = time.monotonic()
        while not self._asked & {signal.SIGTERM, signal.SIGINT}:
            supervisor.step()
            now = time.monotonic()
            if signal.SIGHUP in self._asked:
                self._asked.discard(signal.SIGHUP)
                self._reload(supervisor)
            if now - beat >= HEARTBEAT_S:
                beat = now
                self._attempt("heartbeat", lambda: self._write_status(supervisor))
                notify("WATCHDOG=1")
            if until_idle_s is not None:
                quiet_since = now if self._with_journal(busy) else quiet_since
                if now - quiet_since >= until_idle_s:
                    return

    def _audit(self, action: str) -> None:
        audit(self.station, action, version=__version__)

    def _attempt(self, what: str, action: Callable[[], object]) -> None:
        """A full disk stops the heartbeat, never the daemon."""
        try:
            action()
        except (HsccError, OSError, sqlite3.Error) as error:
            LOG.error("event=%s_failed reason=%s", what, type(error).__name__)

    def _reload(self, supervisor: Supervisor) -> None:
        notify("RELOADING=1")
        try:
            config = read_config(self.path)
            tls.check(config)
        except HsccError as error:
            LOG.error("event=reload_refused reason=%s", error)
            notify("READY=1")
            return
        fixed = ("state", "dicom.host", "dicom.port", "web.host", "web.port", "web.enabled", "log")
        if changed := [name for name in fixed if attrgetter(name)(config) != attrgetter(name)(self.config)]:
            LOG.error("event=reload_refused reason=%s needs a restart", changed[0])
        else:
            self.config, self.station = config, replace(self.station, config=config)
            supervisor.replace(self.station, roles(config))
            LOG.info("event=reloaded")
        notify("READY=1")

    def _open_doors(self) -> None:
        doors = {"dicom": (self.config.dicom.host, self.config.dicom.port)}
        if self.config.web.enabled:
            doors["web"] = (self.config.web.host, self.config.web.port)
        for name, (host, port) in doors.items():
            try:
                self.station.sockets[name] = socket.create_server(
                    (host, port), backlog=BACKLOG, family=socket.AF_INET6 if ":" in host else socket.AF_INET
                )
            except OSError as error:
                raise StorageError(
                    f"port {port} on {host} cannot be opened ({error.strerror}): stop what uses it, or set another "
                    f"port in [{name}]"
                ) from error

    def _ports(self) -> dict[str, int]:
        return {name: door.getsockname()[1] for name, door in self.station.sockets.items()}

    def _with_journal(self, action: Callable[[Journal], object]) -> object:
        journal = self.station.journal()
        try:
            return action(journal)
        finally:
            journal.close()

    def _write_status(self, supervisor: Supervisor) -> None:
        durable.write_json(
            self.config.state / STATUS,
            {
                "port": self._ports()["dicom"],
                "ports": self._ports(),
                "pid": os.getpid(),
                "time": time.time(),
                "counts": self._with_journal(counts),
                "processes": supervisor.facts(),
            },
        )


def counts(journal: Journal) -> dict[str, dict[str, int]]:
    """Instances and deliveries by state; no identifier is in it."""
    return {"instances": instances.counts(journal), "deliveries": outbox.counts(journal)}


def busy(journal: Journal) -> bool:
    """Whether anything is still to be worked on or sent."""
    found = journal.read(
        "SELECT EXISTS (SELECT 1 FROM instances WHERE state = 'received') "
        "OR EXISTS (SELECT 1 FROM deliveries WHERE state IN ('pending', 'stored'))"
    )
    return bool(found[0][0])
