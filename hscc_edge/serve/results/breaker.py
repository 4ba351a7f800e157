"""A circuit breaker: after several failures in a row a destination is left alone for a while, then tried once."""

from __future__ import annotations

import random
from dataclasses import dataclass

from hscc_edge.serve.config import Destination

TRIPS = 5  # failures in a row after which it opens


@dataclass(frozen=True, slots=True)
class Breaker:
    """How a destination has behaved lately.

    Attributes:
        failures: in a row, of the destination and not of an object.
        until: nothing is sent before this tick.
    """

    failures: int = 0
    until: float = 0.0

    @property
    def open(self) -> bool:
        """Whether the next try is a probe, of one object."""
        return self.failures >= TRIPS

    def ready(self, now: float) -> bool:
        """Whether something may be sent at this tick."""
        return now >= self.until


def failed(breaker: Breaker, destination: Destination, now: float) -> Breaker:
    """After one more failure: a longer wait each time, and at least `pause_s` once it is open."""
    failures = breaker.failures + 1
    wait_s = back_off_s(destination, failures - 1)
    if failures >= TRIPS:
        wait_s = max(wait_s, destination.pause_s * random.uniform(0.9, 1.1))
    return Breaker(failures, now + wait_s)


def back_off_s(destination: Destination, attempts: int) -> float:
    """How long to wait after so many failures: doubled each time up to a limit, with jitter."""
    limit = min(destination.first_retry_s * 2.0 ** min(attempts, 30), destination.last_retry_s)
    return limit * random.uniform(0.5, 1.0)
