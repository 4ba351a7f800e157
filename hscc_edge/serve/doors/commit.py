"""Group commit: what several senders wait for is put on disk in one turn, so that safety does not cost one each."""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
import time
from collections import Counter
from concurrent.futures import Future

from hscc_edge.serve.crash import crash_point
from hscc_edge.serve.instances import Receipt, receive
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.spool import Spool

LOG = logging.getLogger(__name__)
MOST_AT_ONCE = 256
COUNT_EVERY_S = 1.0
Waiting = tuple[Receipt, "Future[str]"]


class Committer:
    """One thread of a process; processes take turns in the journal's own lock."""

    def __init__(self, journal: Journal, spool: Spool) -> None:
        """Start; the journal's connection is from now on this thread's, and closed by `close`."""
        self._journal, self._spool = journal, spool
        self._waiting: queue.Queue[Waiting | None] = queue.Queue()
        self._lock, self._counted, self._told = threading.Lock(), Counter[str](), 0.0
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
        self._thread.start()

    def commit(self, receipt: Receipt) -> str:
        """Wait until a file that is in the spool is recorded; returns the file that its row stands for.

        Raises:
            OSError, sqlite3.Error: if it is not recorded.
        """
        done: Future[str] = Future()
        self._waiting.put((receipt, done))
        return done.result()

    def count(self, name: str) -> None:
        """Add one to a counter of the journal, within a second or so: a flood of refusals costs no flood of commits."""
        with self._lock:
            self._counted[name] += 1

    def is_alive(self) -> bool:
        """Whether the thread lives."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Commit what waits, then end."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        going = True
        while going:
            batch = self._next()
            going = None not in batch
            if found := [item for item in batch if item is not None]:
                self._commit(found)
            if not going or time.monotonic() - self._told >= COUNT_EVERY_S:
                self._tell_counts()
        self._journal.close()

    def _next(self) -> list[Waiting | None]:
        """All that waits, at least one item; nothing if nothing came for a while."""
        batch: list[Waiting | None] = []
        try:
            batch.append(self._waiting.get(timeout=COUNT_EVERY_S))
            while len(batch) < MOST_AT_ONCE:
                batch.append(self._waiting.get_nowait())
        except queue.Empty:
            pass
        return batch

    def _commit(self, batch: list[Waiting]) -> None:
        try:
            self._spool.sync()
            crash_point("directory-synced")
            files = receive(self._journal, [receipt for receipt, _ in batch])
            crash_point("receipt-committed")
        except Exception as error:  # whatever it is, each sender waits for an answer and gets this one
            for _, done in batch:
                done.set_exception(error)
            return
        for (_, done), file in zip(batch, files, strict=True):
            done.set_result(file)

    def _tell_counts(self) -> None:
        self._told = time.monotonic()
        with self._lock:
            counted, self._counted = self._counted, Counter()
        try:
            for name, number in counted.items():
                self._journal.count(name, number)
        except (OSError, sqlite3.Error):
            LOG.warning("event=counters_lost reason=journal")
