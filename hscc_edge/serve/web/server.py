"""The HTTP door: dashboard, STOW-RS, metrics and health, by one process on the supervisor's socket.

With TLS a client certificate is optional: people sign in, while programs (STOW-RS, metrics) need a certificate or a
token. Limits on connections, headers, bodies and time hold for all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from hscc_edge.errors import ConfigError, extra
from hscc_edge.serve import tls
from hscc_edge.serve.config import Tls
from hscc_edge.serve.config_rules import is_loopback
from hscc_edge.serve.doors import stow
from hscc_edge.serve.doors.tokens import bearer, read_tokens
from hscc_edge.serve.operations import health, metrics
from hscc_edge.serve.station import Station
from hscc_edge.serve.web import dashboard
from hscc_edge.serve.web.connections import guarded_protocol, sweep
from hscc_edge.serve.web.desk import Desk

with extra("device"):
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import BaseRoute, Mount, Route
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOG = logging.getLogger(__name__)
TICK_S = 0.5
DRAIN_S = 3
KEEP_ALIVE_S = 10
MOST_CONNECTIONS = 256
MOST_HEADERS = 32 << 10
CALM_S = 1.0
PROGRAMS = ("/dicom-web", "/metrics")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}


def run(station: Station) -> None:
    """The process; ends when the station is to stop."""
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        logging.getLogger(name).disabled = True
    context = server_context(station.config.web.tls) if station.config.web.tls is not None else None
    app = application(station)
    protocol: Any = guarded_protocol
    settings = uvicorn.Config(
        app, http=protocol, ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
        proxy_headers=False, limit_concurrency=MOST_CONNECTIONS, timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S, h11_max_incomplete_event_size=MOST_HEADERS, loop="asyncio",
    )  # fmt: skip
    settings.load()
    settings.ssl = context
    try:
        asyncio.run(_serve(station, uvicorn.Server(settings)))
    finally:
        app.state.desk.close()


async def _serve(station: Station, server: uvicorn.Server) -> None:
    # The station's own signal handlers stay.
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    beating = asyncio.create_task(_beat(station, server))
    try:
        await server.serve(sockets=[station.sockets["web"]])
    finally:
        beating.cancel()


async def _beat(station: Station, server: uvicorn.Server) -> None:
    """Tell the supervisor that the loop runs, end it when asked to, and close connections that only wait."""
    known: dict[Any, tuple[object, float]] = {}
    while True:
        station.beat()
        server.should_exit = server.should_exit or station.stop.is_set()
        known = sweep(server.server_state.connections, known)
        await asyncio.sleep(TICK_S)


def server_context(settings: Tls) -> ssl.SSLContext:
    """TLS as at the DICOM door, but that a client need not show a certificate; if it does, that is checked."""
    context = tls.server_context(settings)
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


def application(station: Station) -> Starlette:
    """The application; call it in the process that serves it."""
    routes: list[BaseRoute] = [*metrics.routes(station), *map(_calm, health.routes(station)), *dashboard.routes()]
    if station.config.web.stow:
        routes.insert(0, Mount("/dicom-web", routes=stow.routes(station)))
    app = Starlette(routes=routes, exception_handlers={404: _absent, 405: _absent, Exception: _failed})
    app.state.desk = Desk(station)
    app.add_middleware(_as_middleware(partial(_checked, station)))
    app.add_middleware(_as_middleware(_with_headers))
    return app


Layer = Callable[[ASGIApp, Scope, Receive, Send], Awaitable[None]]


def _as_middleware(layer: Layer) -> Callable[[ASGIApp], ASGIApp]:
    """A function around an application, in the form that Starlette takes."""
    return lambda app: partial(layer, app)


async def _with_headers(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """What browsers are told on every answer; the files of the pages may be kept if they are asked about again."""

    async def adding(message: Message) -> None:
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message["headers"]}
            own = dict(HEADERS)
            if scope["path"].startswith("/static/"):
                own["Cache-Control"] = "no-cache"
            added = [(name.lower().encode(), value.encode()) for name, value in own.items()]
            message["headers"] = [*message["headers"], *(item for item in added if item[0] not in names)]
        await send(message)

    await app(scope, receive, adding)


async def _checked(station: Station, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Who asks under which name, and whether a program may."""
    refusal = _refusal(station, Request(scope))
    if refusal is not None:
        LOG.warning("event=web_refused status=%d", refusal.status_code)
        await refusal(scope, receive, send)
        return
    await app(scope, receive, send)


def _refusal(station: Station, request: Request) -> Response | None:
    web = station.config.web
    if is_loopback(web.host) and not _is_own_name(request.headers.get("host", ""), web.host):
        return PlainTextResponse("this address is not the box's own\n", 421)  # a name that was bound to 127.0.0.1
    if not request.scope["path"].startswith(PROGRAMS) or request.scope.get("certified"):
        return None
    if web.tokens is None:
        return PlainTextResponse("a client certificate is needed\n", 403) if web.tls is not None else None
    try:
        known = bearer(read_tokens(web.tokens), request.headers.get("authorization"))
    except ConfigError as error:
        LOG.error("event=tokens_unreadable reason=%s", type(error).__name__)
        known = None
    if known is None:
        return PlainTextResponse("a bearer token is needed\n", 401, {"WWW-Authenticate": 'Bearer realm="hscc-edge"'})
    return None


def _is_own_name(given: str, host: str) -> bool:
    name = given.rpartition(":")[0] if given.rpartition(":")[2].isdecimal() else given
    return name.strip("[]") in (host, "localhost", "127.0.0.1", "::1")


def _calm(route: Route) -> Route:
    """An answer that costs a commit is given again for a moment, so that a flood of questions costs no more."""
    kept: list[Any] = [0.0, None]

    def answer(request: Request) -> Response:
        if kept[1] is None or time.monotonic() - kept[0] > CALM_S:
            kept[:] = time.monotonic(), route.endpoint(request)
        return kept[1]  # type: ignore[no-any-return]

    return Route(route.path, answer, methods=["GET"])


def _absent(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    return PlainTextResponse("there is nothing here\n" if status == 404 else "not in this way\n", status)


def _failed(request: Request, error: Exception) -> Response:
    LOG.error("event=web_failed reason=%s", type(error).__name__)
    return PlainTextResponse("something went wrong: see the log\n", 500)
