"""The daemon: intake, worker and delivery over one state directory; may be killed at any instant."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from hscc_edge import durable
from hscc_edge.bundle import Bundle, read_bundle
from hscc_edge.errors import StorageError
from hscc_edge.runtime.startup import timed_open
from hscc_edge.serve.config import Config
from hscc_edge.serve.delivery import Delivery
from hscc_edge.serve.intake import Intake
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.spool import Spool
from hscc_edge.serve.worker import Worker

LOG = logging.getLogger(__name__)
TICK_S = 0.1
HEARTBEAT_S = 5.0
DRAIN_S = 8.0


class Daemon:
    """Opens everything in its constructor, so that what is wrong is told before a port opens."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.bundle: Bundle = read_bundle(config.bundle)
        self._started = timed_open(self.bundle, config.runtime, precision=config.precision, threads=config.threads)
        with durable.storage(config.state):
            config.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.chmod(config.state, 0o700)
            self._lock = _claim(config.state)
            self._spool = Spool(config.state / "spool")
            self._key = _key(config.state / "key")
        self.journal = Journal(config.state / "journal.sqlite")
        self._intake = Intake(config, self.journal, self._spool, self._key)
        self._worker = Worker(config, self.bundle, self._started.runtime, self.journal, self._spool, self._key)
        self._delivery = Delivery(self.journal, config.destination, config.dicom.ae_title, self._key)
        self._stop = threading.Event()

    def stop(self) -> None:
        """Ask `run` to end after the work in hand; safe in a signal handler."""
        self._stop.set()

    def run(self, until_idle_s: float | None = None) -> None:
        """Serve until `stop`, or until nothing is left to do for `until_idle_s`.

        Raises:
            StorageError: if the port cannot be opened.
        """
        swept = self._spool.sweep(self.journal.files())
        port = self._intake.start()
        self._write_status(port)
        LOG.info("event=started port=%d swept=%d model=%s", port, swept, self.bundle.digest[:12])
        LOG.info(
            "event=runtime load_s=%.2f first_inference_ms=%.1f", self._started.load_s, self._started.first_inference_ms
        )
        threads = [
            threading.Thread(target=self._loop, args=(self._worker.step, "worker"), name="worker", daemon=True),
            threading.Thread(target=self._loop, args=(self._delivery.step, "delivery"), name="delivery", daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            self._wait(port, until_idle_s)
        finally:
            self._stop.set()
            self._intake.stop()
            self._join(threads)
            self._worker.close()
            self._started.runtime.close()
            self.journal.close()
            os.close(self._lock)
            LOG.info("event=stopped")

    def _join(self, threads: Sequence[threading.Thread]) -> None:
        """Let the work in hand end; what takes longer is left as a kill would leave it, which loses nothing."""
        deadline = time.monotonic() + DRAIN_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _wait(self, port: int, until_idle_s: float | None) -> None:
        quiet_since = beat = time.monotonic()
        while not self._stop.wait(TICK_S):
            now = time.monotonic()
            if now - beat >= HEARTBEAT_S:
                beat = now
                self._beat(port)
            if until_idle_s is None:
                continue
            if self.journal.busy():
                quiet_since = now
            elif now - quiet_since >= until_idle_s:
                return

    def _loop(self, step: Callable[[Callable[[], bool]], int], name: str) -> None:
        while not self._stop.is_set():
            try:
                step(self._stop.is_set)
            except Exception as error:  # a thread that ends would leave a daemon that takes studies and reports none
                LOG.error("event=%s_failed reason=%s", name, type(error).__name__)
                self._stop.wait(1.0)
            self._stop.wait(TICK_S)

    def _beat(self, port: int) -> None:
        """A full disk stops the heartbeat, never the daemon."""
        try:
            self._write_status(port)
        except (StorageError, sqlite3.Error) as error:
            LOG.error("event=heartbeat_failed reason=%s", type(error).__name__)

    def _write_status(self, port: int) -> None:
        durable.write_json(
            self.config.state / "daemon.json",
            {"port": port, "pid": os.getpid(), "time": time.time(), "counts": self.journal.counts()},
        )


def health(config: Config) -> dict[str, object]:
    """The running daemon's own status.

    Raises:
        StorageError: if there is none, or it has not written one for a while.
    """
    path = config.state / "daemon.json"
    try:
        status: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
        age_s = time.time() - float(str(status["time"]))
    except (OSError, ValueError, KeyError) as error:
        raise StorageError(f"{path} cannot be read ({type(error).__name__}): start the daemon") from error
    if age_s > 4 * HEARTBEAT_S:
        raise StorageError(f"the daemon has been silent for {age_s:.0f} s: expected a sign every {HEARTBEAT_S:.0f} s")
    return status


def _claim(state: Path) -> int:
    """Lock the state directory for this process; the kernel frees it when the process dies."""
    handle = os.open(state / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise StorageError(f"another daemon uses {state}: stop it, or set another state directory") from error
    return handle


def _key(path: Path) -> bytes:
    if not path.exists():
        durable.write_bytes(path, secrets.token_bytes(32))
        os.chmod(path, 0o600)
    return path.read_bytes()


@contextmanager
def logging_to(stream: TextIO) -> Iterator[None]:
    """Send the daemon's own log lines to a stream, for a process that does nothing else.

    What other packages log, warn of or raise in threads may name a patient or a UID: of it only the kind is told.
    """
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").addHandler(logging.NullHandler())
    threading.excepthook = _on_thread_error
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("hscc_edge")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        threading.excepthook = threading.__excepthook__
        logging.captureWarnings(False)


def _on_thread_error(arguments: threading.ExceptHookArgs) -> None:
    LOG.error("event=thread_failed reason=%s", arguments.exc_type.__name__)
