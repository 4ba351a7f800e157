"""Whether a form was sent from our own page: a signed token of the session's, and where the browser says it comes from.

starlette-csrf takes its token from a header alone, which a form without JavaScript cannot set, hence these few lines
over itsdangerous, which signs.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from hscc_edge.errors import extra
from hscc_edge.serve.web.sessions import LONGEST_S, Session, serializer

with extra("device"):
    from itsdangerous import BadSignature
    from starlette.requests import Request

FIELD = "csrf"


def token(key: bytes, session: Session) -> str:
    """To be sent back in the field `FIELD` by every form of this session's pages."""
    return str(serializer(key, "csrf").dumps(session.id))


def is_own(key: bytes, session: Session, request: Request, given: str) -> bool:
    """Whether a POST request was made by a page of this session's, and not by another site in the same browser."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = request.headers.get("origin", "null")  # which browsers also say where a page tells no referrer
    if origin != "null" and urlsplit(origin).netloc != request.headers.get("host"):
        return False
    try:
        return bool(serializer(key, "csrf").loads(given, max_age=int(LONGEST_S)) == session.id)
    except BadSignature:
        return False
