"""Ways to hand results over, by the `kind` of a destination: one function each, an outcome an object, in order.

A function may stop early where the destination is gone; what it yielded nothing for was not tried.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any
from uuid import uuid4

import pydicom

from hscc_edge.errors import extra
from hscc_edge.serve.config import Destination
from hscc_edge.serve.outbox import Delivery
from hscc_edge.serve.results.outcome import BUSY, REFUSED, TAKEN, UNANSWERED, UNREACHABLE, UNSUPPORTED, Outcome
from hscc_edge.serve.results.storage_user import (
    DUPLICATE,
    OUT_OF_RESOURCES,
    UnsupportedError,
    association,
    contexts_for,
    outcome_of,
    send,
)
from hscc_edge.serve.station import Station
from hscc_edge.serve.tls import client_context

Outcomes = Generator[Outcome, None, None]
Sink = Callable[[Sequence[Delivery], Destination, Station], Outcomes]
START, END = b"\x0b", b"\x1c\r"  # of a message, HL7 v2 MLLP release 1
LONGEST_ACK = 1 << 16
NOT_NOW = (401, 403, 404, 408, 425, 429, 502, 503, 504)  # the address, the token or the service is at fault


def to_archive(items: Sequence[Delivery], destination: Destination, station: Station) -> Outcomes:
    """C-STORE, all of them over one association."""
    datasets = [pydicom.dcmread(BytesIO(item.content)) for item in items]
    try:
        with association(destination, station.config.dicom.ae_title, contexts_for(datasets)) as peer:
            for dataset in datasets:
                if not peer.is_established:
                    return
                yield outcome_of(send(peer, dataset))
    except UnsupportedError as error:
        yield from (Outcome(UNSUPPORTED, str(error)) for _ in items)
    except ConnectionError as error:
        yield Outcome(UNREACHABLE, str(error))


def to_web_archive(items: Sequence[Delivery], destination: Destination, station: Station) -> Outcomes:
    """STOW-RS (PS3.18 section 10.5), one request each, so that each has its own answer."""
    boundary = f"hscc-{uuid4().hex}"
    headers = {
        "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        "Accept": "application/dicom+json",
    }
    opening = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    closing = f"\r\n--{boundary}--\r\n".encode()
    url = destination.url.rstrip("/") + "/studies"
    with _client(destination) as client:
        for item in items:
            yield _posted(client, url, opening + item.content + closing, headers, _stored)


def to_fhir(items: Sequence[Delivery], destination: Destination, station: Station) -> Outcomes:
    """POST of a transaction bundle whose entries are created only if no resource has their identifier yet."""
    headers = {"Content-Type": "application/fhir+json", "Accept": "application/fhir+json"}
    with _client(destination) as client:
        for item in items:
            yield _posted(client, destination.url, item.content, headers, _created)


def to_hl7(items: Sequence[Delivery], destination: Destination, station: Station) -> Outcomes:
    """HL7 v2 over MLLP: a connection for each message, and its acknowledgement must name it."""
    for item in items:
        try:
            link = _connect(destination)
        except OSError as error:
            yield Outcome(UNREACHABLE, type(error).__name__)
            return
        try:
            with link:
                link.sendall(START + item.content + END)
                yield _acknowledged(_answer(link), item.content)
        except OSError:
            yield Outcome(UNANSWERED, "no answer")


SINKS: dict[str, Sink] = {"dicom": to_archive, "stow": to_web_archive, "hl7": to_hl7, "fhir": to_fhir}


@contextmanager
def _client(destination: Destination) -> Iterator[Any]:
    with extra("device"):
        import httpx

    token = destination.token_file.read_text().strip() if destination.token_file else ""
    with httpx.Client(
        verify=client_context(destination.tls) if destination.tls else True,
        timeout=destination.timeout_s,
        headers={"Authorization": f"Bearer {token}"} if token else {},
        trust_env=False,
    ) as client:
        yield client


def _posted(client: Any, url: str, body: bytes, headers: dict[str, str], judge: Callable[[Any], Outcome]) -> Outcome:
    with extra("device"):
        import httpx

    try:
        answer = client.post(url, content=body, headers=headers)
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        return Outcome(UNREACHABLE, type(error).__name__)
    except httpx.HTTPError as error:
        return Outcome(UNANSWERED, type(error).__name__)
    if answer.status_code in NOT_NOW:
        return Outcome(BUSY, f"HTTP status {answer.status_code}")
    if answer.status_code < 300 or answer.status_code == 409:
        return judge(answer)
    return Outcome(UNANSWERED if answer.status_code >= 500 else REFUSED, f"HTTP status {answer.status_code}")


def _stored(answer: Any) -> Outcome:
    """What a STOW-RS response says of the one instance (PS3.18 table 10.5.3-1 and I.2)."""
    try:
        content = json.loads(answer.content) if answer.content else {}
        failed = content.get("00081198", {}).get("Value") or []
        reasons = [int(item["00081197"]["Value"][0]) for item in failed]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        failed, reasons = [], []
    if all(reason == DUPLICATE for reason in reasons) and (reasons or answer.status_code < 300):
        return Outcome(TAKEN)
    kind = BUSY if reasons and reasons[0] & 0xFF00 == OUT_OF_RESOURCES else REFUSED
    return Outcome(kind, f"failure reason {reasons[0]:#06x}" if reasons else f"HTTP status {answer.status_code}")


def _created(answer: Any) -> Outcome:
    """A transaction is done as a whole or not at all (FHIR R4 section 3.1.0.11.2)."""
    return Outcome(TAKEN) if answer.status_code < 300 else Outcome(REFUSED, f"HTTP status {answer.status_code}")


def _connect(destination: Destination) -> socket.socket:
    link = socket.create_connection((destination.host, destination.port), timeout=destination.timeout_s)
    if destination.tls is None:
        return link
    return client_context(destination.tls).wrap_socket(link, server_hostname=destination.host)


def _answer(link: socket.socket) -> bytes:
    found = b""
    while END not in found and len(found) < LONGEST_ACK:
        part = link.recv(4096)
        if not part:
            break
        found += part
    return found


def _acknowledged(answer: bytes, message: bytes) -> Outcome:
    """HL7 v2.5.1 section 2.9.2: MSA-1 is AA or CA where it was taken, MSA-2 the message's own control id."""
    own = message.split(b"|", 10)[9]
    for segment in answer.strip(START + END).split(b"\r"):
        fields = segment.split(b"|")
        if fields[0] == b"MSA" and len(fields) > 2 and fields[2].strip() == own:
            code = fields[1].decode("ascii", "replace")
            return Outcome(TAKEN) if code in ("AA", "CA") else Outcome(REFUSED, f"acknowledgement {code[:2]}")
    return Outcome(UNANSWERED, "no acknowledgement")
