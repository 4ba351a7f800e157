"""One association in one thread: pynetdicom's protocol, waiting in the kernel where pynetdicom polls.

pynetdicom runs two threads for each association, which wake a thousand times a second and hand each PDU over a queue;
with eight senders that takes more time than the work. Its state machine, its coding of PDUs and messages and its
services are used as they are; replaced is what drives them, and each buffer in it has a limit.
"""

from __future__ import annotations

import logging
import queue
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from hscc_edge.errors import extra
from hscc_edge.serve.doors.admission import NO_RESOURCES
from hscc_edge.serve.doors.bounded_socket import BoundedSocket
from hscc_edge.serve.doors.draft import Draft
from hscc_edge.serve.doors.store_message import StoreRequest, store_request, store_response
from hscc_edge.serve.timer import SteadyTimer

with extra("device"):
    from pynetdicom._globals import MODE_ACCEPTOR
    from pynetdicom.association import Association
    from pynetdicom.dimse import DIMSEServiceProvider
    from pynetdicom.dimse_messages import DIMSEMessage
    from pynetdicom.dimse_primitives import C_CANCEL
    from pynetdicom.dul import DULServiceProvider
    from pynetdicom.pdu import A_ABORT_RQ
    from pynetdicom.pdu_primitives import P_DATA

LOG = logging.getLogger(__name__)
P_DATA_TF = 0x04
ASSOCIATE = (0x01, 0x02)
MOST_ASSOCIATE, MOST_OTHER, SLACK = 1 << 18, 1024, 64
MOST_COMMAND, MOST_IN_MEMORY = 1 << 16, 4 << 20
LAST = 0x02  # of a fragment's control header
TURN_S, SETTLE_S = 0.5, 2.0


class Upper(DULServiceProvider):
    """The upper layer (PS3.8), driven by its association's own thread."""

    most_pdu = 1 << 17
    _refused = False

    def start(self) -> None:
        """There is no thread to start."""
        self._idle_timer.start()
        self.assoc._dul_ready.set()

    def is_alive(self) -> bool:
        """Whether the connection is still to be served."""
        return not self._kill_thread

    def step(self, seconds: float) -> bool:
        """Do what is due, or wait so long for something to come in; whether anything was done."""
        try:
            return self._step(seconds)
        except Exception as error:  # pynetdicom raises whatever a malformed PDU leads to: the association ends
            LOG.warning("event=association_broken reason=%s", type(error).__name__)
            self._break()
            return False

    def _step(self, seconds: float) -> bool:
        if self.artim_timer.expired:
            self.event_queue.put("Evt18")
        moved = False
        if self.event_queue.empty() and not self._process_recv_primitive():
            self.socket.patience_s = seconds  # type: ignore[union-attr]
            moved = self._is_transport_event()
            if moved:
                self._idle_timer.restart()
        try:
            event = self.event_queue.get(block=False)
        except queue.Empty:
            return moved
        self.state_machine.do_action(event)
        return True

    def _break(self) -> None:
        """A-ABORT by the provider, past the state machine, whose state is not known any more."""
        abort = A_ABORT_RQ()
        abort.source, abort.reason_diagnostic = 0x02, 0x00
        if self.socket is not None and self.socket.socket is not None:
            self.socket.send(abort.encode())
        self.assoc.is_aborted, self.assoc.is_established, self.assoc._kill = True, False, True
        self._kill_thread = True

    def send_pdu(self, primitive: Any) -> None:
        """Send at once from the association's thread; from another one, let that thread do it."""
        super().send_pdu(primitive)
        if threading.current_thread() is not self.assoc:
            self.socket.wake()  # type: ignore[union-attr]
            return
        while not self.to_provider_queue.empty() and not self._kill_thread:
            self.step(0.0)

    def receive_pdu(self, wait: bool = False, timeout: float | None = None) -> Any:
        """The next primitive for the service user."""
        deadline = time.monotonic() + (timeout or 0.0)
        while wait and self.to_user_queue.empty() and not self._kill_thread and time.monotonic() < deadline:
            self.step(min(TURN_S, max(0.0, deadline - time.monotonic())))
        return super().receive_pdu(wait=False)

    def settle(self) -> None:
        """Send what is left to be sent, and take leave as the state machine has it."""
        deadline = time.monotonic() + SETTLE_S
        while not self._kill_thread and time.monotonic() < deadline:
            if self.to_provider_queue.empty() and self.state_machine.current_state != "Sta13":
                break
            self.step(0.05)
        self._kill_thread = True

    def _read_pdu_data(self) -> None:
        """Read one PDU, refusing its length before its content."""
        connection: Any = self.socket
        try:
            connection.begin()
            head = connection.recv(6)
            if len(head) < 6:
                self.event_queue.put("Evt17")
                return
            kind, length = head[0], struct.unpack(">L", head[2:])[0]
            if length > self._most(kind):
                self._refuse(kind, f"bytes={length}")
                return
            body = connection.recv(length)
        except OSError:
            self.event_queue.put("Evt17")
            return
        if len(body) < length:
            self.event_queue.put("Evt17")
            return
        self._take(kind, head, body)

    def _take(self, kind: int, head: bytes, body: bytes) -> None:
        """Hand a PDU to the state machine, but data in Sta6 past it: there DT-2 changes nothing (PS3.8 table 9-10)."""
        try:
            if kind == P_DATA_TF and self.state_machine.current_state == "Sta6":
                self._messages.receive_fragments(fragments(body))
                return
            pdu, event = self._decode_pdu(bytearray(head + body))
        except Exception as error:  # pynetdicom raises whatever a malformed PDU leads to
            self._refuse(kind, f"reason={type(error).__name__}")
            return
        self._recv_pdu.put(pdu)
        self.event_queue.put(event)

    @property
    def _messages(self) -> Messages:
        found: Any = self.assoc.dimse
        return cast("Messages", found)

    def _refuse(self, kind: int, what: str) -> None:
        """Told once a connection: what follows a PDU of a wrong length is no PDU at all."""
        if not self._refused:
            LOG.warning("event=pdu_refused type=%d %s", kind, what)
        self._refused = True
        self.event_queue.put("Evt19")

    def _most(self, kind: int) -> int:
        if kind == P_DATA_TF:
            return self.most_pdu + SLACK
        return MOST_ASSOCIATE if kind in ASSOCIATE else MOST_OTHER


def fragments(body: bytes) -> Iterator[tuple[int, memoryview]]:
    """The presentation data values of a P-DATA-TF PDU (PS3.8 section 9.3.5): (context, control header and content).

    Raises:
        ValueError: if a length is wrong.
    """
    view, position = memoryview(body), 0
    while position < len(view):
        length, context = struct.unpack_from(">LB", view, position) if position + 6 <= len(view) else (0, 0)
        end = position + 4 + length
        if length < 2 or end > len(view):
            raise ValueError("fragment length")
        yield context, view[position + 5 : end]
        position = end


class Messages(DIMSEServiceProvider):
    """Messages (PS3.7) put together from fragments: an object on disk, everything else in memory and small."""

    open_draft: Callable[[StoreRequest], Draft]

    def __init__(self, association: Any) -> None:
        super().__init__(association)
        self._served = association
        self._command, self._memory_bytes = bytearray(), 0
        self._storing: tuple[StoreRequest, Draft] | None = None
        self._later: deque[Any] = deque()

    def get_msg(self, block: bool = False) -> Any:
        """The next message; (None, None) if there is none now, or, with `block`, in the time for an answer."""
        if not block:
            self._be_idle()
        deadline = time.monotonic() + ((self.dimse_timeout or 0.0) if block else TURN_S)
        while self.msg_queue.empty() and self.dul.to_user_queue.empty() and self.dul.is_alive():
            left = deadline - time.monotonic()
            if left <= 0 or self._served.ends or (not self._served.dul.step(min(TURN_S, left)) and not block):
                break
        if self.msg_queue.empty():
            return None, None
        context, found = super().get_msg(block=False)
        if block and (isinstance(found, _Object) or getattr(found, "is_valid_request", False)):
            self._later.append((context, found))  # a request that comes while we wait for an answer has its turn later
            return self.get_msg(block=True)
        return context, found

    def _be_idle(self) -> None:
        """Between two messages."""
        while self._later:
            self.msg_queue.put(self._later.popleft())
        if self._served.ends:
            self._served.abort()
        elif self.msg_queue.empty() and self._served.is_established:
            self._served.on_idle()

    def receive_primitive(self, primitive: Any) -> None:
        """Data in another state than Sta6, that is, after a release was asked for.

        Raises:
            ValueError: always.
        """
        raise ValueError("data after release")

    def receive_fragments(self, found: Iterable[tuple[int, memoryview]]) -> None:
        """Take fragments in: (context, control header and content), PS3.8 annex E.

        Raises:
            ValueError, KeyError and what pynetdicom raises: if they make no message.
        """
        for context, fragment in found:
            if fragment[0] & 1:
                self._add_command(context, fragment)
            else:
                self._add_data(context, fragment)

    def _add_command(self, context: int, fragment: memoryview) -> None:
        self._command += fragment[1:]
        if len(self._command) > MOST_COMMAND or self.message is not None or self._storing is not None:
            raise ValueError("unexpected command")
        if not fragment[0] & LAST:
            return
        command, self._command, self._memory_bytes = bytes(self._command), bytearray(), 0
        request = store_request(command, context, self._served._accepted_cx[context].transfer_syntax[0])
        if request is not None:
            self._storing = request, self.open_draft(request)
            return
        self.message = DIMSEMessage()
        if self.message.decode_msg(_fragment(context, b"\x03" + command), self.assoc):
            self._hand_over(context)

    def _add_data(self, context: int, fragment: memoryview) -> None:
        if self._storing is not None:
            request, draft = self._storing
            draft.write(fragment[1:])
            if fragment[0] & LAST:
                self._storing = None
                self.msg_queue.put((context, _Object(request, draft)))  # type: ignore[arg-type]
            return
        self._memory_bytes += len(fragment)
        if self.message is None or self._memory_bytes > MOST_IN_MEMORY:
            raise ValueError("unexpected data")
        if self.message.decode_msg(_fragment(context, bytes(fragment)), self.assoc):
            self._hand_over(context)

    def _hand_over(self, context: int) -> None:
        message: Any = self.message
        self.message = None
        found = message.message_to_primitive()
        if not isinstance(found, C_CANCEL):
            self.msg_queue.put((context, found))

    def forget(self) -> None:
        """Remove drafts of objects that nobody will take in, since the association has ended."""
        if self._storing is not None:
            self._storing[1].give_up()
        while self._later:
            self.msg_queue.put(self._later.popleft())
        while not self.msg_queue.empty():
            _, found = self.msg_queue.get_nowait()
            if isinstance(found, _Object):
                found.draft.give_up()


@dataclass(frozen=True, slots=True)
class _Object:
    """A C-STORE request that is here as a whole."""

    request: StoreRequest
    draft: Draft


def _fragment(context: int, content: bytes) -> Any:
    part = P_DATA()
    part.presentation_data_value_list.append((context, content))
    return part


class Served(Association):
    """An association that a peer asked for.

    Attributes:
        ends: set by another thread to have it aborted after the object in hand.
    """

    dul: Upper
    dimse: Messages

    def __init__(self, entity: Any, connection: Any, tls: ssl.SSLContext | None, limit_s: float) -> None:
        super().__init__(entity, MODE_ACCEPTOR)
        self.ends = False
        self.dul, self.dimse = Upper(self), Messages(self)
        self.dul.artim_timer = SteadyTimer(self.acse_timeout)
        self.dul._idle_timer = SteadyTimer(self.network_timeout)
        self._connection, self._tls, self._limit_s = connection, tls, limit_s
        self.on_store: Callable[[StoreRequest, Draft], int]
        self.on_end: Callable[[], None]
        self.on_idle: Callable[[], None] = lambda: None

    def run_reactor(self) -> None:
        """The thread's whole life; TLS is agreed upon here, where a slow peer keeps nobody waiting."""
        socket_ = None
        try:
            self._connection.settimeout(self.acse_timeout)
            if self._tls is not None:
                self._connection = self._tls.wrap_socket(self._connection, server_side=True)
            socket_ = BoundedSocket(self, self._connection, self._limit_s)
            self.set_socket(socket_)
            super().run_reactor()
            self.dul.settle()
        except Exception as error:  # pynetdicom raises whatever a malformed request leads to
            LOG.warning("event=connection_failed reason=%s", type(error).__name__)
        finally:
            self.dimse.forget()
            if socket_ is not None:
                socket_.forget()
            self._connection.close()
            self.on_end()

    def kill(self) -> None:
        """End; what is still to be sent is sent."""
        self._reactor_checkpoint.set()
        self._kill, self.is_established, self._is_paused = True, False, True
        if threading.current_thread() is self:
            self.dul.settle()

    def end(self) -> None:
        """Ask it, from another thread, to end after the object in hand."""
        self.ends = True
        if isinstance(self.dul.socket, BoundedSocket):
            self.dul.socket.wake()

    def _serve_request(self, msg: Any, context_id: int) -> None:
        """A C-STORE is answered here, so that a private SOP class is stored like any other; the rest by pynetdicom."""
        if not isinstance(msg, _Object):
            super()._serve_request(msg, context_id)
            return
        try:
            status = self.on_store(msg.request, msg.draft)
        except Exception as error:  # whatever it is, the object is not kept and its sender is told so
            LOG.error("event=store_failed reason=%s", type(error).__name__)
            msg.draft.give_up()
            status = NO_RESOURCES
        self.dul.send_pdu(_fragment(context_id, b"\x03" + store_response(msg.request, status)))
