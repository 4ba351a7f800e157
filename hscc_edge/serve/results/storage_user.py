"""Associations that we ask for, as the user of a storage service: C-STORE of data sets, with TLS by choice."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pydicom
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from hscc_edge.errors import extra
from hscc_edge.serve.config import Destination
from hscc_edge.serve.results.outcome import BUSY, REFUSED, TAKEN, UNANSWERED, UNSUPPORTED, Outcome
from hscc_edge.serve.tls import client_context

with extra("device"):
    from pynetdicom import AE, evt

PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
DUPLICATE = 0x0111  # the destination has this instance already
OUT_OF_RESOURCES = 0xA700  # PS3.4 table B.2-1, with 0x122 and the like from PS3.7 annex C


class UnsupportedError(ConnectionError):
    """The peer accepts none of the presentation contexts, and has no other fault."""


@contextmanager
def association(
    destination: Destination, calling: str, contexts: Sequence[tuple[str, Sequence[str]]], handlers: Sequence[Any] = ()
) -> Iterator[Any]:
    """An established association, released at the end.

    Args:
        contexts: (abstract syntax, transfer syntaxes), proposed in this order.

    Raises:
        UnsupportedError: if the peer answers and takes none of the contexts.
        ConnectionError: if there is no association for another reason.
    """
    entity, wait_s = AE(ae_title=calling), destination.timeout_s
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = wait_s
    for abstract, syntaxes in contexts:
        entity.add_requested_context(abstract, list(syntaxes))
    tls = (client_context(destination.tls), destination.host) if destination.tls else None
    found = entity.associate(
        destination.host,
        destination.port,
        ae_title=destination.ae_title,
        tls_args=tls,
        evt_handlers=[(evt.EVT_CONN_OPEN, _at_once), *handlers],
    )
    if not found.is_established:
        if found.rejected_contexts and not found.accepted_contexts:
            raise UnsupportedError("no presentation context accepted")
        raise ConnectionError("association rejected" if found.is_rejected else "no association")
    try:
        yield found
    finally:
        if found.is_established:
            found.release()


def _at_once(event: Any) -> None:
    """A command and its data set are two writes, of which the second would wait for the peer's late acknowledgement."""
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def contexts_for(datasets: Sequence[pydicom.Dataset]) -> list[tuple[str, Sequence[str]]]:
    """The presentation contexts that some data sets need; little endian ones may be converted to the default syntax."""
    pairs = dict.fromkeys((str(item.SOPClassUID), str(item.file_meta.TransferSyntaxUID)) for item in datasets)
    return [(sop_class, PLAIN if syntax in PLAIN else (syntax,)) for sop_class, syntax in pairs]


def send(peer: Any, dataset: pydicom.Dataset) -> int:
    """C-STORE one data set; the status of the answer, -1 for none, -2 if no context for it was accepted."""
    accepted = {str(context.abstract_syntax) for context in peer.accepted_contexts}
    if str(dataset.SOPClassUID) not in accepted:
        return -2
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer = peer.send_c_store(dataset)
    except ValueError:
        return -2
    except (RuntimeError, AttributeError):
        return -1
    if "Status" in answer:
        return int(answer.Status)
    peer.abort()  # if the peer did, pynetdicom may not know yet, and would wait for the answer to a release
    return -1


def outcome_of(status: int) -> Outcome:
    """What a status of `send` means."""
    if status in (0x0000, DUPLICATE) or status & 0xF000 == 0xB000:
        return Outcome(TAKEN)
    if status == -1:
        return Outcome(UNANSWERED, "no answer")
    if status in (-2, 0x0122):
        return Outcome(UNSUPPORTED, "no presentation context accepted")
    kind = BUSY if status & 0xFF00 == OUT_OF_RESOURCES else REFUSED
    return Outcome(kind, f"status {status:#06x}")


def store(datasets: Sequence[pydicom.Dataset], destination: Destination, calling: str) -> list[int]:
    """Send data sets over one association; their status codes, 0x0000 for stored, -1 for no answer."""
    try:
        with association(destination, calling, contexts_for(datasets)) as peer:
            return [send(peer, item) for item in datasets]
    except ConnectionError:
        return [-1] * len(datasets)
