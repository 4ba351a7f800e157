"""Server-sent events: a page is told that the journal or the heartbeat changed, and asks for itself anew."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from hscc_edge.serve.station import Station

TICK_S = 1.0
ALIVE_S = 15.0
LONGEST_S = 1800.0
MOST_STREAMS = 32


class Watch:
    """Notices commits of any process, by SQLite's data version, without reading a table."""

    def __init__(self, station: Station) -> None:
        self.streams = 0
        self._station, self._status = station, station.config.state / "daemon.json"
        self._db = sqlite3.connect(
            f"file:{station.config.state / 'journal.sqlite'}?mode=ro", uri=True, check_same_thread=False
        )
        self._seen: tuple[object, ...] = ()
        self._looked, self._number = 0.0, 0

    def number(self) -> int:
        """Grows when something changed; however many streams ask, it looks once a tick."""
        now = time.monotonic()
        if now - self._looked >= 0.9 * TICK_S:
            self._looked = now
            seen = (*self._db.execute("PRAGMA data_version").fetchone(), _changed(self._status))
            self._number += seen != self._seen
            self._seen = seen
        return self._number

    async def events(self, stands: Callable[[], bool]) -> AsyncIterator[str]:
        """One stream; it ends with the process, with its session, or to be asked for anew."""
        self.streams += 1
        try:
            began = spoken = time.monotonic()
            number = self.number()
            yield "retry: 2000\n\n"
            while not self._station.stop.is_set() and time.monotonic() - began < LONGEST_S:
                await asyncio.sleep(TICK_S)
                if (found := self.number()) != number:
                    number, spoken = found, time.monotonic()
                    yield f"event: changed\ndata: {number}\n\n"
                elif time.monotonic() - spoken >= ALIVE_S:
                    spoken = time.monotonic()
                    if not stands():
                        yield "event: ended\ndata: session\n\n"
                        return
                    yield ": alive\n\n"
        finally:
            self.streams -= 1

    def close(self) -> None:
        """Close its connection."""
        self._db.close()


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
