"""Accepts connections from a socket that several processes share, and starts a thread for each."""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

LOG = logging.getLogger(__name__)
TURN_S, PAUSE_S = 0.5, 0.1
COURTESY_S, MOST_COURTESY = 0.002, 5  # a process lets one go first that has fewer associations


class Listener:
    """One accepting thread; `begin` makes the thread that serves (connection, peer)."""

    def __init__(self, listening: socket.socket, begin: Callable[[socket.socket, str], threading.Thread]) -> None:
        self._listening, self._begin = listening, begin
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._serving: set[Any] = set()
        self._listening.setblocking(False)  # another process may be faster: then accept must not wait
        self._thread = threading.Thread(target=self._run, name="listener", daemon=True)

    def start(self) -> None:
        """Accept from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Accept no more."""
        self._stop.set()
        self._thread.join()

    def serving(self) -> list[Any]:
        """Threads that have not ended."""
        with self._lock:
            self._serving = {thread for thread in self._serving if thread.is_alive()}
            return list(self._serving)

    def _run(self) -> None:
        ready = select.poll()
        ready.register(self._listening, select.POLLIN)
        while not self._stop.is_set():
            if ready.poll(TURN_S * 1000):
                self._accept()

    def _accept(self) -> None:
        time.sleep(COURTESY_S * min(len(self.serving()), MOST_COURTESY))
        try:
            connection, address = self._listening.accept()
        except BlockingIOError:
            return
        except OSError as error:  # no more file handles, or a peer that is gone already
            LOG.warning("event=accept_failed reason=%s", type(error).__name__)
            time.sleep(PAUSE_S)
            return
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            thread = self._begin(connection, address[0])
            with self._lock:
                self._serving.add(thread)
            thread.start()
        except (OSError, RuntimeError) as error:  # RuntimeError: no more threads
            LOG.warning("event=accept_failed reason=%s", type(error).__name__)
            connection.close()
