"""An HTTP peer on loopback that answers as it is told, and a FHIR endpoint that obeys conditional creates."""

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fhir.resources.R4B.bundle import Bundle
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

Answer = Callable[[Request, bytes], Response]


@contextmanager
def peer(answer: Answer, context: ssl.SSLContext | None = None) -> Iterator[str]:
    """The URL of a server that gives every POST to `answer`."""

    async def on_post(request: Request) -> Response:
        return answer(request, await request.body())

    app = Starlette(routes=[Route("/{path:path}", on_post, methods=["POST"])])
    options = uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=5)
    options.load()
    if context is not None:
        options.ssl = context
    server = uvicorn.Server(options)
    with socket.create_server(("127.0.0.1", 0)) as door:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
        thread.start()
        try:
            yield f"http{'s' if context else ''}://127.0.0.1:{door.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


class Fhir:
    """Keeps resources by identifier: a transaction's conditional creates, as FHIR R4 section 3.1.0.8.1 has them."""

    def __init__(self, fail_after_commit: int = 0) -> None:
        self.kept: dict[str, dict[str, Any]] = {}
        self.posts, self._fail = 0, fail_after_commit

    def __call__(self, request: Request, body: bytes) -> Response:
        self.posts += 1
        bundle = Bundle.model_validate_json(body)
        answers = []
        for entry, raw in zip(bundle.entry, json.loads(body)["entry"], strict=True):
            condition = entry.request.ifNoneExist
            answers.append({"response": {"status": "200" if condition in self.kept else "201"}})
            self.kept.setdefault(condition, raw["resource"])
        if self.posts <= self._fail:
            return Response(status_code=500)
        return JSONResponse({"resourceType": "Bundle", "type": "transaction-response", "entry": answers})
