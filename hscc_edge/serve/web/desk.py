"""Who visits a page, what they may, and how an answer is made: the frame around every page of the dashboard."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any
from urllib.parse import parse_qs

from hscc_edge import __version__
from hscc_edge.errors import HsccError, extra
from hscc_edge.serve.config_rules import is_loopback
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.operations import alarms
from hscc_edge.serve.station import Station
from hscc_edge.serve.web import csrf, words
from hscc_edge.serve.web.accounts import OPERATOR, VIEWER, accounts_file, read_accounts
from hscc_edge.serve.web.attempts import Attempts
from hscc_edge.serve.web.live import Watch
from hscc_edge.serve.web.sessions import Session, Sessions

with extra("device"):
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import HTMLResponse, RedirectResponse, Response

LOG = logging.getLogger(__name__)
MOST_BYTES, MOST_FIELDS, FORM_S = 64 << 10, 2_000, 10.0
PAGES = (
    ("/", "Now"), ("/studies", "Studies"), ("/outbox", "Outbox"), ("/models", "Models"), ("/charts", "Charts"),
    ("/box", "Box"), ("/audit", "Audit"),
)  # fmt: skip
FILTERS = ("moment", "stamp", "ago", "span", "size", "number", "sop_class")
Form = Mapping[str, list[str]]


class Desk:
    """What every page of one process works with."""

    def __init__(self, station: Station) -> None:
        config = station.config
        self.station, self.config, self.journal = station, config, station.journal()
        self.sessions = Sessions(config.state, station.key, config.web.session_s, secure=config.web.tls is not None)
        self.attempts, self.watch, self.hashing = Attempts(), Watch(station), threading.Lock()

    @cached_property
    def templates(self) -> Environment:
        """Compiled once; a name that a template does not get is an error, not an empty place."""
        found = Environment(
            loader=PackageLoader("hscc_edge.serve.web"), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        found.filters.update({name: getattr(words, name) for name in FILTERS})
        found.globals.update(STATES=words.STATES, PRIORITIES=words.PRIORITIES, DOORS=words.DOORS, PAGES=PAGES)
        return found

    def close(self) -> None:
        """Close what it holds open."""
        self.watch.close()
        self.journal.close()


@dataclass(frozen=True, slots=True)
class Visit:
    """One request, by whom.

    Attributes:
        role: viewer, operator, or "" for those who may see nothing.
        open: whether everyone on this machine is a viewer, since there is no account.
        form: a POST request's fields.
    """

    desk: Desk
    request: Request
    session: Session
    role: str
    open: bool
    form: Form = field(default_factory=dict, repr=False)

    @property
    def journal(self) -> Journal:
        """The journal."""
        return self.desk.journal

    @property
    def address(self) -> str:
        """Where the request comes from."""
        return self.request.client.host if self.request.client is not None else ""

    def asked(self, name: str) -> str:
        """A value of the query; "" if it is not there."""
        return self.request.query_params.get(name, "")[:100]

    def given(self, name: str) -> str:
        """A value of the form; "" if it is not there."""
        return self.form.get(name, [""])[0][:1000]

    def page(self, template: str, status: int = 200, **values: object) -> Response:
        """A page in the frame of all pages."""
        desk, path = self.desk, self.request.url.path
        stands = alarms.read_status(desk.config.state)
        found = alarms.alarms(desk.config, desk.journal, stands) if self.role else []
        text = desk.templates.get_template(template).render(
            visit=self, path=path, config=desk.config, csrf=csrf.token(desk.station.key, self.session), now=time.time(),
            alarms=found, operator=self.role == OPERATOR, version=__version__, status=stands, **values,
        )  # fmt: skip
        return HTMLResponse(text, status)


Answer = Callable[[Visit], Response]
Endpoint = Callable[[Request], Awaitable[Response]]


def endpoint(answer: Answer, role: str = VIEWER) -> Endpoint:
    """An answer for those who have the role ("" for everyone), in a thread, with forms checked."""
    return partial(_serve, answer, role)


async def _serve(answer: Answer, role: str, request: Request) -> Response:
    desk: Desk = request.app.state.desk
    try:
        form = await asyncio.wait_for(_form(request), FORM_S) if request.method == "POST" else {}
        return await run_in_threadpool(_answer, desk, request, form, answer, role)
    except (asyncio.TimeoutError, ClientDisconnect):
        return Response("the form came too slowly: send it again\n", 408, {"Connection": "close"}, "text/plain")
    except HTTPException as error:
        return Response(f"{error.detail}\n", error.status_code, error.headers, "text/plain")
    except (HsccError, sqlite3.Error, OSError) as error:
        LOG.error("event=page_failed reason=%s", type(error).__name__)
        said = str(error) if isinstance(error, HsccError) else "the journal or the disk does not answer: see the log"
        return Response(f"{said}\n", 503, {"Retry-After": "5"}, "text/plain")


def _answer(desk: Desk, request: Request, form: Form, answer: Answer, role: str) -> Response:
    visit = enter(desk, request, form)
    try:
        response = _refusal(visit, role) or answer(visit)
    except HTTPException as error:
        response = problem(visit, error.status_code, str(error.detail))
    by_itself = "x-live" in request.headers and visit.session.account  # which keeps nobody signed in
    if not by_itself and "set-cookie" not in response.headers:
        desk.sessions.renew(visit.session, response)
    return response


def enter(desk: Desk, request: Request, form: Form | None = None) -> Visit:
    """Who makes a request."""
    accounts = read_accounts(accounts_file(desk.config.state))
    session = desk.sessions.read(request, accounts)
    account = accounts.get(session.account)
    everyone = not accounts and is_loopback(desk.config.web.host)
    role = account.role if account is not None else VIEWER if everyone else ""
    return Visit(desk, request, session, role, everyone, form or {})


def _refusal(visit: Visit, role: str) -> Response | None:
    request = visit.request
    if request.method == "POST" and not csrf.is_own(
        visit.desk.station.key, visit.session, request, visit.given(csrf.FIELD)
    ):
        return problem(
            visit, 403, "This form is out of date or came from another page: go back, reload, send it again."
        )
    if not role or visit.role == OPERATOR or visit.role == role:
        return None
    if visit.role:
        return problem(visit, 403, "Only an operator may do this: sign in as one.")
    if "x-live" in request.headers:
        return Response("signed out\n", 401, media_type="text/plain")
    if request.method == "GET":
        return RedirectResponse("/sign-in", 303)
    return problem(visit, 403, "Sign in first.")


def problem(visit: Visit, status: int, sentence: str) -> Response:
    """A page that says what is wrong."""
    return visit.page("problem.html.j2", status, sentence=sentence, code=status)


async def _form(request: Request) -> Form:
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "expected a form (application/x-www-form-urlencoded)")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BYTES:
            raise HTTPException(413, f"a form has at most {MOST_BYTES} bytes", {"Connection": "close"})
    try:
        return parse_qs(body.decode(), keep_blank_values=True, max_num_fields=MOST_FIELDS)
    except ValueError as error:
        raise HTTPException(400, "the form cannot be read: send it again") from error


def number(text: str, kind: type[float] = float) -> Any:
    """A number of a query or a form; None for "".

    Raises:
        HTTPException: 400 if it is none.
    """
    if not text:
        return None
    try:
        found = kind(text)
    except ValueError as error:
        raise HTTPException(400, "A part of this address is no number: begin again from the list.") from error
    if not -1e18 < found < 1e18:
        raise HTTPException(400, "A number in this address is out of range: begin again from the list.")
    return found
