"""Limits on connections: how many associations there may be in all and for one peer, over all processes.

A seat is a lock on one byte of a file, so that the kernel gives back the seats of a process that dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import threading
import zlib
from collections import OrderedDict
from pathlib import Path

LOG = logging.getLogger(__name__)
PEER_ROOM = 1 << 14  # bytes for one peer's seats; limits are smaller (config_rules)


class Seats:
    """The seats of this process; made after a fork."""

    def __init__(self, path: Path, most: int, most_per_peer: int) -> None:
        self._most, self._most_per_peer = most, most_per_peer
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._lock, self._own = threading.Lock(), set[int]()

    def take(self, peer: str) -> tuple[int, int] | None:
        """A seat for a peer's association, to be given back; None if all of them, or all of the peer's, are taken."""
        start = PEER_ROOM * (1 + zlib.crc32(peer.encode()))
        with self._lock:
            one = self._first(range(self._most))
            other = None if one is None else self._first(range(start, start + self._most_per_peer))
            if one is not None and other is not None:
                return one, other
            if one is not None:
                self._give(one)
            return None

    def give_back(self, seat: tuple[int, int]) -> None:
        """Free a seat."""
        with self._lock:
            for place in seat:
                self._give(place)

    def taken(self) -> int:
        """Associations of this process."""
        with self._lock:
            return len(self._own) // 2

    def close(self) -> None:
        """Free them all."""
        os.close(self._handle)

    def _first(self, places: range) -> int | None:
        for place in places:
            if place in self._own:
                continue
            try:
                fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            except OSError:
                continue
            self._own.add(place)
            return place
        return None

    def _give(self, place: int) -> None:
        self._own.discard(place)
        fcntl.lockf(self._handle, fcntl.LOCK_UN, 1, place)


class Lobby:
    """Connections that have not yet asked for an association: when there are too many, the one that waits longest goes.

    So a thousand that never say a word keep nobody out who speaks at once.
    """

    def __init__(self, most: int) -> None:
        self._most, self._lock, self._next = most, threading.Lock(), 0
        self._waiting: OrderedDict[int, socket.socket] = OrderedDict()

    def enter(self, connection: socket.socket) -> int:
        """Let one in; returns the number to leave by. Another handle is kept, since TLS takes the first one over."""
        handle = connection.dup()
        with self._lock:
            self._next += 1
            number, self._waiting[self._next] = self._next, handle
            oldest = self._waiting.popitem(last=False)[1] if len(self._waiting) > self._most else None
        if oldest is not None:
            LOG.warning("event=connection_dropped reason=lobby_full")
            with contextlib.suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)
            oldest.close()
        return number

    def leave(self, number: int) -> None:
        """It has asked, or is gone."""
        with self._lock:
            handle = self._waiting.pop(number, None)
        if handle is not None:
            handle.close()
