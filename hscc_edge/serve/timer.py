"""A timer that no change of the clock moves, in the form that pynetdicom asks for."""

from __future__ import annotations

import time

from hscc_edge.errors import extra

with extra("device"):
    from pynetdicom.timer import Timer


class SteadyTimer(Timer):
    """pynetdicom's own reads the time of day, so that a clock set forward would end every association."""

    def start(self) -> None:
        """Begin anew."""
        self._start_time, self._end_time = time.monotonic(), None

    def stop(self) -> None:
        """Stand still."""
        self._end_time = time.monotonic()

    @property
    def remaining(self) -> float:
        """Seconds until it expires; 1 if it never does."""
        if self.timeout is None:
            return 1.0
        if self._start_time is None:
            return self.timeout
        now = time.monotonic() if self._end_time is None else self._end_time
        return self.timeout - (now - self._start_time)
