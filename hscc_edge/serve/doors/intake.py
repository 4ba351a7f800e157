"""The C-STORE provider: `0x0000` is returned only after file, directory and journal row are on disk.

Objects are streamed to a draft and taken in by `admission`; what drives an association is `reactor`.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
import sqlite3
import threading
import time
from collections import Counter
from typing import Any

from hscc_edge.errors import StorageError, extra
from hscc_edge.serve import studies, tls
from hscc_edge.serve.audit import audit
from hscc_edge.serve.doors import commitment_scp, contexts
from hscc_edge.serve.doors.admission import NOT_UNDERSTOOD, SUCCESS, Admission, Verdict
from hscc_edge.serve.doors.content import UID
from hscc_edge.serve.doors.draft import Draft, head_of
from hscc_edge.serve.doors.listener import Listener
from hscc_edge.serve.doors.reactor import Served
from hscc_edge.serve.doors.seats import Lobby, Seats
from hscc_edge.serve.doors.store_message import StoreRequest
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.results.commitment import PUSH_MODEL, on_event_report
from hscc_edge.serve.results.storage_user import PLAIN
from hscc_edge.serve.spool import Spool
from hscc_edge.serve.station import Station

with extra("device"):
    from pynetdicom import AE, _config, evt
    from pynetdicom.presentation import build_context
    from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
    from pynetdicom.transport import AddressInformation

LOG = logging.getLogger(__name__)
DRAIN_S, REPORT_EVERY_S = 2.0, 1.0
NOT_AUTHORISED = 0x0124  # PS3.7 annex C
MOST_IN_LOBBY, LONGEST_IN_LOBBY_S = 64, 10.0
LIMIT_EXCEEDED, ADDRESS = (0x02, 0x03, 0x02), (0x01, 0x01, 0x01)  # result, source, reason: PS3.8 section 9.3.4


def run(station: Station) -> None:
    """One process that accepts associations until the station is to stop."""
    intake = Intake(station, station.journal(), station.spool())
    intake.start()
    while not station.rest(1.0):
        if not intake.is_sound():
            raise StorageError("the thread that commits has ended: this process is to be replaced")
    intake.stop()


class Intake:
    """Starts and stops the provider; each association runs in a thread of its own."""

    def __init__(self, station: Station, journal: Journal, spool: Spool) -> None:
        self._station, self._config, self._journal, self._spool = station, station.config, journal, spool
        self._admission = Admission(station, journal, spool)
        door = self._config.dicom
        self._syntaxes = contexts.syntaxes(door.transfer_syntaxes)
        self._networks = [ipaddress.ip_network(address) for address in door.allowed_addresses]
        self._seats = Seats(self._config.state / "seats", door.max_associations, door.max_associations_per_peer)
        self._lobby = Lobby(MOST_IN_LOBBY)
        self._tls = None if door.tls is None else tls.server_context(door.tls)
        self._entity = _entity(station)
        asks = door.commitment or any(item.commitment for item in self._config.destination)
        self.services = {str(Verification), *([PUSH_MODEL] if asks else [])}
        self._listener = Listener(station.sockets["dicom"], self._begin)

    def start(self) -> None:
        """Accept from the station's socket."""
        _config.LOG_HANDLER_LEVEL = "none"  # pynetdicom formats a text of each message otherwise
        self._spool.sweep_drafts()
        self._listener.start()
        if self._config.dicom.commitment and self._config.dicom.commitment_peers:
            threading.Thread(target=self._report, name="promises", daemon=True).start()

    def _report(self) -> None:
        """Tell senders of our promises over associations of our own."""
        journal = self._station.journal()
        while not self._station.stop.wait(REPORT_EVERY_S):
            try:
                commitment_scp.step(self._station, journal, self._spool)
            except (OSError, sqlite3.Error) as error:
                LOG.error("event=commitment_failed reason=%s", type(error).__name__)
        journal.close()

    def is_sound(self) -> bool:
        """Whether what is sent can be taken in."""
        return self._admission.is_sound()

    def stop(self) -> None:
        """Accept no more, let associations end for a moment, abort the others; these send again without an answer.

        Where another process has taken this one's place, they have all the time they want.
        """
        self._listener.stop()
        while self._station.patient.is_set() and self._listener.serving():
            self._wait(1.0)
        self._wait(DRAIN_S)
        for association in self._listener.serving():
            association.end()
        self._wait(DRAIN_S)
        self._admission.close()
        self._seats.close()
        self._journal.close()

    def _tell(self, action: str, **facts: object) -> None:
        """A full disk ends no association because of its audit line."""
        try:
            audit(self._station, action, **facts)
        except StorageError as error:
            LOG.error("event=audit_failed reason=%s", type(error).__name__)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._listener.serving() and time.monotonic() < deadline:
            self._station.beat()
            time.sleep(0.02)

    def _begin(self, connection: socket.socket, peer: str) -> Served:
        """The thread of a new connection."""
        served = Served(self._entity, connection, self._tls, self._config.dicom.idle_s)
        visit = _Visit(self, served, connection, peer)
        served.dimse.open_draft, served.on_store, served.on_end = visit.open_draft, visit.store, visit.end
        served.bind(evt.EVT_REQUESTED, visit.requested)
        served.bind(evt.EVT_REJECTED, visit.rejected)
        served.bind(evt.EVT_ACCEPTED, visit.accepted)
        served.bind(evt.EVT_RELEASED, visit.released)
        served.bind(evt.EVT_C_ECHO, lambda event: SUCCESS)
        served.bind(evt.EVT_N_ACTION, visit.commitment_asked)
        served.bind(evt.EVT_N_EVENT_REPORT, visit.commitment_answered)
        served.on_idle = visit.report
        return served


class _Visit:
    """What one association may do and has done."""

    def __init__(self, intake: Intake, served: Served, connection: socket.socket, peer: str) -> None:
        self._intake, self._served, self._peer = intake, served, peer
        self._seat: tuple[int, int] | None = None
        self._promises: list[int] = []
        self._studies = Counter[str]()
        acceptor = served.acceptor
        acceptor.ae_title, acceptor.maximum_length = intake._config.dicom.ae_title, intake._config.dicom.max_pdu
        served.dul.most_pdu = intake._config.dicom.max_pdu
        served.requestor.address_info = AddressInformation.from_tuple(connection.getpeername())
        acceptor.address_info = AddressInformation.from_tuple(connection.getsockname())
        self._place = intake._lobby.enter(connection)

    def requested(self, event: Any) -> None:
        """An A-ASSOCIATE-RQ is here: answer what is in it, unless it is refused."""
        self._intake._lobby.leave(self._place)
        address = ipaddress.ip_address(self._peer.partition("%")[0])
        networks = self._intake._networks
        if networks and not any(address in network for network in networks):
            self._reject(ADDRESS, "address")
            return
        self._seat = self._intake._seats.take(self._peer)
        if self._seat is None:
            self._reject(LIMIT_EXCEEDED, "limit")
            return
        requestor: Any = self._served.requestor
        offered = requestor.primitive.presentation_context_definition_list
        self._served.acceptor.supported_contexts = self._accepted(offered)

    def _accepted(self, offered: Any) -> list[Any]:
        """For each class that is taken, what its sender offers first comes first: nothing is recompressed for us."""
        names, wanted = self._intake._config.dicom.sop_classes, dict[str, list[str]]()
        for context in offered:
            uid = str(context.abstract_syntax)
            if uid in self._intake.services or contexts.takes_class(names, uid):
                syntaxes = PLAIN if uid in self._intake.services else self._intake._syntaxes
                found = [str(syntax) for syntax in context.transfer_syntax if str(syntax) in syntaxes]
                wanted.setdefault(uid, []).extend(found)
        return [_context(uid, found) for uid, found in wanted.items() if found]

    def _reject(self, code: tuple[int, int, int], reason: str) -> None:
        self._refused(reason)
        self._served.acse.send_reject(*code)
        self._served.kill()

    def rejected(self, event: Any) -> None:
        """A title was wrong: told by pynetdicom."""
        self._refused("ae_title")

    def accepted(self, event: Any) -> None:
        """Negotiated."""
        self._intake._tell("association-accepted", peer=self._name())

    def _refused(self, reason: str) -> None:
        LOG.warning("event=association_rejected reason=%s", reason)
        self._intake._tell("association-refused", peer=self._name(), address=self._peer, reason=reason)

    def open_draft(self, request: StoreRequest) -> Draft:
        """Where the object goes that a C-STORE request announces."""
        admission = self._intake._admission
        head = head_of(request.sop_class, request.sop, request.syntax)
        draft = Draft(self._intake._spool.draft(), head, admission.refusal, admission.most_bytes)
        if not UID.fullmatch(request.sop_class) or not UID.fullmatch(request.sop):
            draft.refused = Verdict(NOT_UNDERSTOOD, "UIDs")
        return draft

    def store(self, request: StoreRequest, draft: Draft) -> int:
        """Take an object in that is here as a whole; its status."""
        admission = self._intake._admission
        if refused := draft.finish():
            return admission.refuse(refused, "dimse").status
        verdict = admission.admit(
            draft.path, door="dimse", first_byte=draft.first_byte, sop_class=request.sop_class, sop=request.sop,
            peer=self._name(),
        )  # fmt: skip
        if verdict.status == SUCCESS and verdict.study is not None:
            self._studies[verdict.study] += 1
        return verdict.status

    def _name(self) -> str:
        """Calling AE title and address, without what an AE title should not have (PS3.5 section 6.2)."""
        title = str(self._served.requestor.ae_title)
        return f"{re.sub('[^A-Za-z0-9_. -]', '?', title)}@{self._peer}"

    def commitment_asked(self, event: Any) -> tuple[int, None]:
        """A sender wants a promise; those without an address get it on this association."""
        if not self._intake._config.dicom.commitment:
            return NOT_AUTHORISED, None
        title = str(self._served.requestor.ae_title)
        status, number = commitment_scp.request(self._intake._journal, title, event)
        if number is not None and title not in commitment_scp.addresses(self._intake._config.dicom):
            self._promises.append(number)
        return status, None

    def commitment_answered(self, event: Any) -> tuple[int, None]:
        """An archive promises to keep our results."""
        return on_event_report(self._intake._journal, self._intake._station, event.event_information), None

    def report(self) -> None:
        """Answer requests for promises, between two messages."""
        intake = self._intake
        while self._promises and self._served.is_established:
            given = commitment_scp.promise(intake._journal, self._promises.pop(0))
            if given is not None:
                self._served._is_paused = True  # this is its own thread: nothing runs beside it
                commitment_scp.tell(intake._station, intake._journal, intake._spool, given, self._served)
                self._served._is_paused = False

    def released(self, event: Any) -> None:
        """Its sender has said that this was all."""
        if not self._intake._config.study.on_release or not self._studies:
            return
        try:
            studies.release(self._intake._journal, sorted(self._studies))
        except sqlite3.Error as error:  # they are due when they have been quiet for long enough
            LOG.error("event=release_failed reason=%s", type(error).__name__)

    def end(self) -> None:
        """The connection is closed."""
        self._intake._lobby.leave(self._place)
        if self._seat is not None:
            self._intake._seats.give_back(self._seat)
            self._seat = None
        for study, number in self._studies.items():
            key = self._intake._station.who(study)
            self._intake._tell("study-received", study=key, instances=number, door="dimse", peer=self._name())


def _context(uid: str, syntaxes: list[str]) -> Any:
    found = build_context(uid, list(dict.fromkeys(syntaxes)))
    if uid == PUSH_MODEL:  # asked by a sender, or answered by an archive that then is the provider
        found.scu_role = found.scp_role = True
    return found


def _entity(station: Station) -> Any:
    """What pynetdicom knows of us; limits on associations are `seats`'."""
    door = station.config.dicom
    entity = AE(ae_title=door.ae_title)
    entity.maximum_associations = 1 << 30
    entity.network_timeout = entity.dimse_timeout = door.idle_s
    entity.acse_timeout = min(door.idle_s, LONGEST_IN_LOBBY_S)
    entity.require_calling_aet = list(door.allowed_ae)
    entity.require_called_aet = True
    return entity
