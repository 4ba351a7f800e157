"""The second door: STOW-RS, the store transaction of PS3.18 section 10.5, on the one intake function.

A request's parts lie on disk as drafts until its last boundary has come; then each is admitted by itself. A request
that breaks off or is no multipart leaves nothing.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom.uid import AllTransferSyntaxes

from hscc_edge.errors import DicomError, extra
from hscc_edge.serve.doors import contexts
from hscc_edge.serve.doors.admission import NO_RESOURCES, SUCCESS, Admission, Verdict
from hscc_edge.serve.doors.content import IDENTIFIERS, Headers, are_uids, read_headers
from hscc_edge.serve.doors.multipart import Part, Parts, TooLargeError, boundary_of
from hscc_edge.serve.station import Station

with extra("device"):
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route

LOG = logging.getLogger(__name__)
JSON = "application/dicom+json"
ACCEPTED = {JSON, "application/json", "application/*", "*/*"}
AT_ONCE = 8
SLOWEST = 16 * 1024  # bytes a second, beyond the idle time that each request has
RETRY_AFTER = {"Retry-After": "10"}
OTHER_STUDY, CLASS_NOT_SUPPORTED, SYNTAX_NOT_SUPPORTED = 0xA901, 0x0122, 0xC122
TRANSFER_SYNTAXES = frozenset(str(uid) for uid in AllTransferSyntaxes)


def routes(station: Station) -> list[Route]:
    """The resources of the store transaction; call it in the process that serves them."""
    door = _Door(station)
    return [Route(path, door.store, methods=["POST"]) for path in ("/studies", "/studies/{study}")]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one part.

    Attributes:
        status: Failure Reason of PS3.18 section I.2.2, 0 if it is kept.
        sop_class: as in its file, if that could be read; `sop` likewise.
    """

    status: int
    sop_class: str = ""
    sop: str = field(default="", repr=False)


class _Door:
    """One process's STOW-RS door."""

    def __init__(self, station: Station) -> None:
        self._station, self._config, self._spool = station, station.config, station.spool()
        self._admission = Admission(station, station.journal(), self._spool)
        self._requests = 0
        self._spool.sweep_drafts()

    async def store(self, request: Request) -> Response:
        """Take a request's instances in."""
        refusal = self._unfit(request)
        if refusal is not None:
            LOG.warning("event=stow_refused status=%d", refusal.status_code)
            return refusal
        self._requests += 1
        try:
            return await self._store(request)
        finally:
            self._requests -= 1

    async def _store(self, request: Request) -> Response:
        boundary = boundary_of(request.headers.get("content-type", "")) or b""
        try:
            parts = Parts(boundary, self._draft, self._admission.most_bytes)
        except DicomError as error:
            return _refuse(400, str(error))
        try:
            async for piece in self._pieces(request):
                parts.write(piece)
            return await self._admit(parts.close(), request.path_params.get("study"))
        except (DicomError, OSError, ClientDisconnect, asyncio.TimeoutError) as error:
            refusal = _refusal(error)
            LOG.warning("event=stow_refused status=%d reason=%s", refusal.status_code, type(error).__name__)
            return refusal
        finally:
            parts.drop()

    async def _pieces(self, request: Request) -> AsyncIterator[bytes]:
        """The body as it comes; a sender that is silent for the idle time, or slower than `SLOWEST`, is given up."""
        began, received, idle_s = time.monotonic(), 0, self._config.dicom.idle_s
        stream = request.stream()
        while True:
            left_s = began + idle_s + received / SLOWEST - time.monotonic()
            try:
                piece = await asyncio.wait_for(anext(stream), max(0.0, min(idle_s, left_s)))
            except StopAsyncIteration:
                return
            received += len(piece)
            yield piece

    async def _admit(self, parts: Sequence[Part], study: str | None) -> Response:
        if not parts:
            return _refuse(400, "the body has no part: send at least one instance")
        turns = asyncio.Semaphore(AT_ONCE)

        async def one(part: Part) -> Outcome:
            async with turns:
                return await run_in_threadpool(self._judge, part, study)

        outcomes = await asyncio.gather(*(one(part) for part in parts))
        stored, status = sum(item.status == SUCCESS for item in outcomes), _status(outcomes)
        LOG.info("event=stow parts=%d stored=%d status=%d", len(parts), stored, status)
        headers = RETRY_AFTER if status == 503 else None
        return JSONResponse(answer(outcomes), status, headers=headers, media_type=JSON)

    def _judge(self, part: Part, study: str | None) -> Outcome:
        """Admit one part, after what a sender over an association would have negotiated."""
        try:
            headers = read_headers(part.path, IDENTIFIERS, TRANSFER_SYNTAXES)
            fault = self._fault(headers, study)
            verdict = (
                self._admission.refuse(fault, "stow")
                if fault
                else self._admission.admit(part.path, door="stow", first_byte=part.first_byte)
            )
        except OSError as error:
            LOG.error("event=store_failed reason=%s", type(error).__name__)
            return Outcome(NO_RESOURCES)
        if headers is None or not are_uids(headers):
            return Outcome(verdict.status)
        return Outcome(verdict.status, headers.text("SOPClassUID"), headers.text("SOPInstanceUID"))

    def _fault(self, headers: Headers | None, study: str | None) -> Verdict | None:
        if headers is None:
            return None
        if study is not None and headers.text("StudyInstanceUID") != study:
            return Verdict(OTHER_STUDY, "other study than the URL's")
        if not contexts.takes_class(self._config.dicom.sop_classes, headers.text("SOPClassUID")):
            return Verdict(CLASS_NOT_SUPPORTED, "SOP class not accepted")
        if headers.syntax not in contexts.syntaxes(self._config.dicom.transfer_syntaxes):
            return Verdict(SYNTAX_NOT_SUPPORTED, "transfer syntax not accepted")
        return None

    def _draft(self) -> Path:
        if not self._admission.has_room():
            raise OSError(errno.ENOSPC, "below the reserve")
        return self._spool.draft()

    def _unfit(self, request: Request) -> Response | None:
        """A refusal by the headers alone; whether the sender may send was asked before, in `web`."""
        if "origin" in request.headers and self._config.web.tokens is None:
            return _refuse(403, "a web page may not send here: set tokens in [web]")
        if boundary_of(request.headers.get("content-type", "")) is None:
            return _refuse(415, 'expected multipart/related; type="application/dicom" with a boundary')
        if not _takes_json(request.headers.get("accept", "*/*")):
            return _refuse(406, f"the answer is {JSON}: accept that")
        length = request.headers.get("content-length", "0")
        if not self._admission.has_room(int(length) if length.isdecimal() and len(length) < 20 else 0):
            return _refuse(503, "the disk has no room for it: send it later", RETRY_AFTER)
        if self._requests >= self._config.dicom.max_associations:
            return _refuse(503, "too many requests at once: send it later", RETRY_AFTER)
        return None


def answer(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The Store Instances Response Module (PS3.18 annex I) in the DICOM JSON model."""
    failed = [item for item in outcomes if item.status != SUCCESS]
    sequences = {
        "00081199": [_reference(item) | {"00081190": {"vr": "UR"}} for item in outcomes if item.status == SUCCESS],
        "00081198": [_reference(item) | _reason(item) for item in failed if item.sop],
        "0008119A": [_reason(item) for item in failed if not item.sop],
    }
    found = {tag: {"vr": "SQ", "Value": items} for tag, items in sequences.items() if items}
    return {"00081190": {"vr": "UR"}, **found}


def _reference(outcome: Outcome) -> dict[str, Any]:
    values = {"00081150": outcome.sop_class, "00081155": outcome.sop}
    return {tag: {"vr": "UI", "Value": [value]} for tag, value in values.items()}


def _reason(outcome: Outcome) -> dict[str, Any]:
    return {"00081197": {"vr": "US", "Value": [outcome.status]}}


def _status(outcomes: Sequence[Outcome]) -> int:
    """PS3.18 table 10.5.3-1; 503 where nothing was stored for want of room alone."""
    statuses = {outcome.status for outcome in outcomes}
    if SUCCESS in statuses:
        return 200 if len(statuses) == 1 else 202
    return 503 if statuses == {NO_RESOURCES} else 409


def _takes_json(accept: str) -> bool:
    kinds = (item.partition(";")[0].strip().lower() for item in accept.split(","))
    return not ACCEPTED.isdisjoint(kinds)


def _refusal(error: Exception) -> Response:
    if isinstance(error, TooLargeError):
        return _refuse(413, str(error))
    if isinstance(error, DicomError):
        return _refuse(400, str(error))
    if isinstance(error, asyncio.TimeoutError):  # before OSError, which it is from Python 3.11 on
        return _refuse(408, "the body came too slowly: send it anew")
    if isinstance(error, ClientDisconnect):
        return _refuse(400, "the body stops before its end")
    return _refuse(503, "the disk cannot take it: send it later", RETRY_AFTER)


def _refuse(status: int, sentence: str, headers: dict[str, str] | None = None) -> Response:
    return PlainTextResponse(sentence + "\n", status, headers={"Connection": "close", **(headers or {})})
