"""Sessions of the dashboard: a signed cookie, renewed by each request of a person's, that ends idle, old or signed out.

The cookie carries all that there is to a session, so that a process that is replaced signs nobody out. What was signed
out is remembered in a file until its cookie would have ended by itself.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hscc_edge import durable
from hscc_edge.errors import StorageError, extra
from hscc_edge.serve.web.accounts import Account

with extra("device"):
    from itsdangerous import BadSignature, URLSafeTimedSerializer
    from starlette.requests import Request
    from starlette.responses import Response

LONGEST_S = 12 * 3600.0
RENEW_S = 30.0
CLOCK_SLACK_S = 60.0


@dataclass(frozen=True, slots=True)
class Session:
    """A visit by one browser.

    Attributes:
        id: random, another one after each sign-in.
        account: "" before signing in.
        generation: of the account's password when it began.
        begun, seen: seconds since 1970; `seen` is when the cookie was signed.
    """

    id: str
    account: str = ""
    generation: int = 0
    begun: float = 0.0
    seen: float = 0.0


def serializer(key: bytes, purpose: str) -> URLSafeTimedSerializer:
    """Signs for one purpose with a key that is derived from the station's."""
    secret = hashlib.blake2b(b"dashboard", key=key[:64]).digest()
    return URLSafeTimedSerializer(secret, salt=purpose, signer_kwargs={"digest_method": hashlib.sha256})


def begin(account: Account | None = None) -> Session:
    """A new session, of an account or of nobody yet."""
    now, name = time.time(), secrets.token_urlsafe(18)
    if account is None:
        return Session(name, begun=now)
    return Session(name, account.name, account.generation, now)


def cookie_name(secure: bool) -> str:
    """The prefix keeps other hosts and paths from setting it (RFC 6265bis section 4.1.3)."""
    return "__Host-hscc" if secure else "hscc"


class Sessions:
    """Reads, renews and ends sessions of one state directory."""

    def __init__(self, state: Path, key: bytes, idle_s: float, *, secure: bool) -> None:
        self._path, self._idle_s, self._secure = state / "sessions.json", idle_s, secure
        self._signer = serializer(key, "session")

    def read(self, request: Request, accounts: Mapping[str, Account]) -> Session:
        """The request's session; a new one of nobody if its cookie is missing, forged, idle, old or signed out."""
        try:
            text, moment = self._signer.loads(
                request.cookies.get(cookie_name(self._secure), ""), max_age=int(self._idle_s), return_timestamp=True
            )
            name, account, generation, begun = text
            found = Session(str(name), str(account), int(generation), float(begun), moment.timestamp())
        except (BadSignature, ValueError, TypeError):
            return begin()
        return found if self._stands(found, accounts) else begin()

    def _stands(self, session: Session, accounts: Mapping[str, Account]) -> bool:
        age = time.time() - session.begun
        if not -CLOCK_SLACK_S <= age <= LONGEST_S or session.id in self._ended():
            return False
        account = accounts.get(session.account)
        return not session.account or (account is not None and account.generation == session.generation)

    def renew(self, session: Session, response: Response) -> None:
        """Give the browser a cookie that lives from now, unless it has a fresh one."""
        now = time.time()
        if now - session.seen < RENEW_S:
            return
        text = self._signer.dumps([session.id, session.account, session.generation, session.begun])
        response.set_cookie(
            cookie_name(self._secure), str(text), path="/", secure=self._secure, httponly=True, samesite="strict"
        )

    def end(self, session: Session, response: Response) -> None:
        """Sign out: no copy of its cookie opens anything again.

        Raises:
            StorageError: if that cannot be kept; then the session stands.
        """
        now = time.time()
        left = {name: until for name, until in self._ended().items() if until > now}
        left[session.id] = now + self._idle_s + CLOCK_SLACK_S
        durable.write_bytes(self._path, json.dumps(left).encode(), mode=0o600)
        response.delete_cookie(
            cookie_name(self._secure), path="/", secure=self._secure, httponly=True, samesite="strict"
        )

    def _ended(self) -> dict[str, float]:
        try:
            return {str(name): float(until) for name, until in json.loads(self._path.read_text()).items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError) as error:
            raise StorageError(
                f"the ended sessions in {self._path} cannot be read ({type(error).__name__}): remove the file, and "
                "change the passwords of those who signed out in the last hour"
            ) from error
