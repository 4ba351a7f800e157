"""How often somebody may try to sign in: by address, by account, and by both, in memory that does not grow."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque

WINDOW_S = 900.0
MOST = {"pair": 5, "address": 20, "account": 50}
KEPT = 10_000


class Attempts:
    """Failed tries of the last `WINDOW_S`; those longest untouched are forgotten when `KEPT` are held."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tries: OrderedDict[tuple[str, ...], deque[float]] = OrderedDict()

    def wait_s(self, address: str, account: str) -> float:
        """Count a try before the password is looked at; 0 if it may be looked at, else the time to wait."""
        now = time.monotonic()
        with self._lock:
            held = [(self._of(key), MOST[key[0]]) for key in _keys(address, account)]
            waits = []
            for tries, most in held:
                while tries and tries[0] <= now - WINDOW_S:
                    tries.popleft()
                if len(tries) >= most:
                    waits.append(tries[0] + WINDOW_S - now)
            if not waits:
                for tries, _ in held:
                    tries.append(now)
            return max(waits, default=0.0)

    def forget(self, address: str, account: str) -> None:
        """The password was right: its own tries count no longer; those on other accounts still do."""
        with self._lock:
            for key in _keys(address, account):
                tries = self._of(key)
                if key[0] == "pair":
                    tries.clear()
                elif tries:
                    tries.pop()

    def _of(self, key: tuple[str, ...]) -> deque[float]:
        found = self._tries.setdefault(key, deque())
        self._tries.move_to_end(key)
        while len(self._tries) > KEPT:
            self._tries.popitem(last=False)
        return found


def _keys(address: str, account: str) -> list[tuple[str, ...]]:
    name = account[:64].casefold()
    return [("pair", address, name), ("address", address), ("account", name)]
