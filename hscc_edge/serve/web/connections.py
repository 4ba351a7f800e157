"""Connections of the HTTP door: how many from one address, how long one may wait, and whether TLS knew the peer."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from hscc_edge.errors import extra

with extra("device"):
    from starlette.types import ASGIApp, Receive, Scope, Send
    from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_S, STUCK_S = 12.0, 30.0
MOST_FROM_ONE = 64


def guarded_protocol(**values: Any) -> H11Protocol:
    """uvicorn's protocol; `scope["certified"]` tells whether the peer has shown a certificate of our authorities."""
    made = H11Protocol(**values)
    inner: ASGIApp = made.app

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["certified"] = bool(made.transport.get_extra_info("peercert"))
        await inner(scope, receive, send)

    made.app = app
    return made


def sweep(
    connections: Iterable[Any], known: Mapping[Any, tuple[object, float]], now: float | None = None
) -> dict[Any, tuple[object, float]]:
    """Close connections that have waited too long in one state, and those beyond `MOST_FROM_ONE` of one address.

    uvicorn bounds the time between requests alone: a peer that sends a header byte by byte, or never reads its answer,
    would stay for ever. Returns each connection's state and since when it is in it, for the next sweep.
    """
    moment = time.monotonic() if now is None else now
    found, counts = {}, dict[str, int]()
    for connection in list(connections):
        state, limit_s = _state(connection)
        before, since = known.get(connection, (None, moment))
        since = since if before == state else moment
        address = connection.client[0] if connection.client else ""
        counts[address] = counts.get(address, 0) + 1
        if moment - since > limit_s or counts[address] > MOST_FROM_ONE:
            connection.transport.abort()
        else:
            found[connection] = (state, since)
    return found


def _state(connection: Any) -> tuple[object, float]:
    """What a connection does, such that it has not moved where this stays the same, and how long it may stay so."""
    cycle = connection.cycle
    if cycle is None or cycle.response_complete:
        return ("waiting", id(cycle)), HEADER_S
    unread = connection.transport.get_write_buffer_size()
    return ("stuck" if unread else "busy", unread), STUCK_S if unread else float("inf")
