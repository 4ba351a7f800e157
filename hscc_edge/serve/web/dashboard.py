"""The dashboard: its pages by address, and the stream that tells them of changes."""

from __future__ import annotations

from hscc_edge.errors import HsccError, extra
from hscc_edge.serve.web import box_pages, sign_in, study_pages
from hscc_edge.serve.web.accounts import OPERATOR
from hscc_edge.serve.web.desk import Desk, endpoint, enter
from hscc_edge.serve.web.live import MOST_STREAMS

with extra("device"):
    from starlette.requests import Request
    from starlette.responses import Response, StreamingResponse
    from starlette.routing import BaseRoute, Mount, Route
    from starlette.staticfiles import StaticFiles


def routes() -> list[BaseRoute]:
    """Every page, form and file; what changes something is for operators alone."""
    return [
        Route("/", endpoint(study_pages.now)),
        Route("/studies", endpoint(study_pages.studies)),
        Route("/studies/find", endpoint(study_pages.find), methods=["POST"]),
        Route("/studies/{key}", endpoint(study_pages.study)),
        Route("/outbox", endpoint(study_pages.outgoing)),
        Route("/outbox/redrive", endpoint(study_pages.redrive, OPERATOR), methods=["POST"]),
        Route("/models", endpoint(box_pages.served)),
        Route("/models/roll-back", endpoint(box_pages.roll_back, OPERATOR), methods=["POST"]),
        Route("/charts", endpoint(box_pages.charts)),
        Route("/box", endpoint(box_pages.box)),
        Route("/audit", endpoint(box_pages.audited)),
        Route("/sign-in", endpoint(sign_in.form, ""), methods=["GET"]),
        Route("/sign-in", endpoint(sign_in.sign_in, ""), methods=["POST"]),
        Route("/sign-out", endpoint(sign_in.sign_out, ""), methods=["POST"]),
        Route("/live", live),
        Mount("/static", StaticFiles(packages=[("hscc_edge.serve.web", "static")])),
    ]


async def live(request: Request) -> Response:
    """The stream that tells pages of changes."""
    desk: Desk = request.app.state.desk
    try:
        visit = enter(desk, request)
    except HsccError:
        return Response("the accounts cannot be read\n", 503, media_type="text/plain")
    if not visit.role:
        return Response("sign in first\n", 401, media_type="text/plain")
    if desk.watch.streams >= MOST_STREAMS:
        return Response("too many pages are open\n", 503, {"Retry-After": "60"}, "text/plain")
    stream = desk.watch.events(lambda: bool(enter(desk, request).role))
    return StreamingResponse(stream, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
