"""The C-STORE provider: `0x0000` is returned only after file, directory and journal row are on disk.

Status codes: PS3.4 table B.2-1. No pixel is decoded here.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
import time
from typing import Any

from hscc_edge.errors import extra
from hscc_edge.serve.admission import NO_RESOURCES, Admission, discard
from hscc_edge.serve.contexts import SYNTAXES
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.spool import Spool
from hscc_edge.serve.station import Station

with extra("device"):
    from pynetdicom import AE, AllStoragePresentationContexts, evt
    from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
    from pynetdicom.transport import ThreadedAssociationServer

LOG = logging.getLogger(__name__)
DRAIN_S = 2.0


class _Server(ThreadedAssociationServer):  # type: ignore[misc]
    """pynetdicom's server on a socket that the supervisor holds and several processes share."""

    def __init__(self, listening: socket.socket, *arguments: Any, **options: Any) -> None:
        self._listening = listening
        super().__init__(*arguments, **options)

    def server_bind(self) -> None:
        self.socket.close()
        self.socket = self._listening.dup()
        self.socket.setblocking(False)  # another process may have been faster: then accept must not wait
        self.server_address = self.socket.getsockname()

    def server_activate(self) -> None:
        """It listens already."""

    def server_close(self) -> None:
        self.socket.close()

    def get_request(self) -> Any:
        client, address = self.socket.accept()
        client.setblocking(True)
        return client, address


def run(station: Station) -> None:
    """One process that accepts associations until the station is to stop."""
    journal = station.journal()
    intake = Intake(station, journal, station.spool())
    intake.start()
    while not station.rest(1.0):
        pass
    intake.stop()
    journal.close()


class Intake:
    """Starts and stops the provider; each association runs in a thread of pynetdicom."""

    def __init__(self, station: Station, journal: Journal, spool: Spool) -> None:
        self._station, self._config, self._journal, self._spool = station, station.config, journal, spool
        self._admission = Admission(station, journal, spool)
        self._server: Any = None
        self._networks = [ipaddress.ip_network(address) for address in station.config.dicom.allowed_addresses]

    def start(self) -> None:
        """Accept from the station's socket."""
        listener = self._config.dicom
        entity = AE(ae_title=listener.ae_title)
        entity.maximum_associations = listener.max_associations
        entity.maximum_pdu_size = listener.max_pdu
        entity.network_timeout = entity.acse_timeout = entity.dimse_timeout = listener.idle_s
        entity.require_calling_aet = list(listener.allowed_ae)
        entity.require_called_aet = True
        entity.add_supported_context(Verification)
        for context in AllStoragePresentationContexts:
            entity.add_supported_context(str(context.abstract_syntax), list(SYNTAXES))
        handlers: list[Any] = [(evt.EVT_C_STORE, self._on_store), (evt.EVT_REQUESTED, self._on_requested)]
        self._server = _Server(
            self._station.sockets["dicom"], entity, (listener.host, 0), listener.ae_title, entity.supported_contexts,
            evt_handlers=handlers,
        )  # fmt: skip
        entity._servers.append(self._server)
        threading.Thread(target=self._server.serve_forever, args=(0.5,), daemon=True).start()

    def stop(self) -> None:
        """Accept no more, let associations end for a moment, abort the others; these send again without an answer."""
        self._server.shutdown()
        deadline = time.monotonic() + DRAIN_S
        while self._server.active_associations and time.monotonic() < deadline:
            time.sleep(0.02)
        for association in self._server.active_associations:
            association.abort()
        self._admission.close()

    def _on_requested(self, event: Any) -> None:
        address = ipaddress.ip_address(event.assoc.requestor.address)
        if self._networks and not any(address in network for network in self._networks):
            LOG.warning("event=association_rejected reason=address")
            event.assoc.acse.send_reject(0x01, 0x01, 0x01)
            event.assoc.kill()

    def _on_store(self, event: Any) -> int:
        request, began = event.request, time.time()
        if refused := self._admission.refusal(request.DataSet.getbuffer().nbytes):
            return self._admission.refuse(refused, "dimse").status
        draft = self._spool.draft()
        try:
            draft.write_bytes(event.encoded_dataset())
        except OSError:
            discard(draft)
            return NO_RESOURCES
        return self._admission.admit(
            draft, door="dimse", first_byte=began, sop_class=request.AffectedSOPClassUID,
            sop=request.AffectedSOPInstanceUID,
        ).status  # fmt: skip
