"""Signing in and out: limited tries, another session each time, and a line in the audit file."""

from __future__ import annotations

import logging

from hscc_edge.errors import StorageError, extra
from hscc_edge.serve.audit import audit
from hscc_edge.serve.web import words
from hscc_edge.serve.web.accounts import accounts_file, authenticate, read_accounts
from hscc_edge.serve.web.desk import Desk, Visit
from hscc_edge.serve.web.sessions import begin

with extra("device"):
    from starlette.responses import RedirectResponse, Response

LOG = logging.getLogger(__name__)
HASH_WAIT_S = 10.0


def form(visit: Visit) -> Response:
    """Name and password."""
    return visit.page("sign-in.html.j2", fault="", nobody=not read_accounts(accounts_file(visit.desk.config.state)))


def sign_in(visit: Visit) -> Response:
    """Begin a session of an account's, another one than the browser had."""
    desk, name = visit.desk, visit.given("name").strip()
    accounts = read_accounts(accounts_file(desk.config.state))
    wait_s = desk.attempts.wait_s(visit.address, name)
    if wait_s:
        response = _sign_in_again(visit, f"Too many tries: wait {words.span(wait_s)}.", 429)
        response.headers["Retry-After"] = f"{wait_s:.0f}"
        return response
    if not desk.hashing.acquire(timeout=HASH_WAIT_S):
        return _sign_in_again(visit, "Too many people sign in at once: try again.", 503)
    try:
        account = authenticate(accounts, name, visit.given("password"))
    finally:
        desk.hashing.release()
    _record(desk, "login" if account else "login-refused", name if name in accounts else "")
    if account is None:
        return _sign_in_again(visit, "The name or the password is not right.", 401)
    desk.attempts.forget(visit.address, name)
    response = RedirectResponse("/", 303)
    desk.sessions.renew(begin(account), response)
    return response


def _sign_in_again(visit: Visit, fault: str, status: int) -> Response:
    return visit.page("sign-in.html.j2", status, fault=fault, nobody=False)


def _record(desk: Desk, action: str, account: str) -> None:
    """A full disk keeps nobody from seeing that it is full."""
    LOG.info("event=%s", action.replace("-", "_"))
    try:
        audit(desk.station, action, account=account)
    except StorageError as error:
        LOG.error("event=audit_failed reason=%s", type(error).__name__)


def sign_out(visit: Visit) -> Response:
    """End the session."""
    response = RedirectResponse("/sign-in", 303)
    visit.desk.sessions.end(visit.session, response)
    if visit.session.account:
        _record(visit.desk, "logout", visit.session.account)
    return response
