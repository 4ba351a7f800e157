"""The C-STORE provider: `0x0000` is returned only after file, directory and journal row are on disk.

Status codes: PS3.4 table B.2-1. No pixel is decoded here.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import socket
import sqlite3
import threading
import time
from collections.abc import Mapping
from typing import Any

from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)  # fmt: skip

from hscc_edge.errors import extra
from hscc_edge.serve.content import identifiers, same_data_set
from hscc_edge.serve.instances import Receipt, receive, restore, versions
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.spool import Spool
from hscc_edge.serve.station import Station

with extra("device"):
    from pynetdicom import AE, AllStoragePresentationContexts, evt
    from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
    from pynetdicom.transport import ThreadedAssociationServer

LOG = logging.getLogger(__name__)
DRAIN_S = 2.0
# Deflated Explicit VR is not among them: pydicom inflates it without a limit, so that 1 MB can claim 1 GB
SYNTAXES = [
    ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian,
    JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless,
    JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2K, RLELossless,
]  # fmt: skip
SUCCESS, NO_RESOURCES, CLASS_MISMATCH, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000


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
            entity.add_supported_context(str(context.abstract_syntax), SYNTAXES)
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

    def _on_requested(self, event: Any) -> None:
        address = ipaddress.ip_address(event.assoc.requestor.address)
        if self._networks and not any(address in network for network in self._networks):
            LOG.warning("event=association_rejected reason=address")
            event.assoc.acse.send_reject(0x01, 0x01, 0x01)
            event.assoc.kill()

    def _on_store(self, event: Any) -> int:
        try:
            return self._store(event)
        except (OSError, sqlite3.Error) as error:
            LOG.error("event=store_failed reason=%s", type(error).__name__)
            return NO_RESOURCES

    def _store(self, event: Any) -> int:
        request = event.request
        size = request.DataSet.getbuffer().nbytes
        if self._spool.free_mib() < self._config.reserve_mib or size > self._config.dicom.max_object_mib << 20:
            LOG.warning("event=refused status=A700 bytes=%d free_mib=%d", size, self._spool.free_mib())
            return NO_RESOURCES
        content = event.encoded_dataset()
        found = identifiers(content)
        if found is None:
            LOG.warning("event=refused status=C000 bytes=%d", size)
            return NOT_UNDERSTOOD
        if found["SOPClassUID"] != request.AffectedSOPClassUID:
            LOG.warning("event=refused status=A900 bytes=%d", size)
            return CLASS_MISMATCH
        if found["SOPInstanceUID"] != request.AffectedSOPInstanceUID:
            LOG.warning("event=refused status=C000 reason=instance_uid bytes=%d", size)
            return NOT_UNDERSTOOD
        self._keep(found, content, hashlib.sha256(request.DataSet.getbuffer()).hexdigest())
        return SUCCESS

    def _keep(self, found: Mapping[str, str], content: bytes, digest: str) -> None:
        sop, study = found["SOPInstanceUID"], found["StudyInstanceUID"]
        who, began = self._station.who(sop), time.time()
        if self._is_known(sop, digest, content):
            LOG.info("event=known instance=%s bytes=%d", who, len(content))
            return
        name = self._spool.keep(content)
        receipt = Receipt(
            sop, found["SOPClassUID"], digest, found["SeriesInstanceUID"], study, name, len(content), "dimse",
            self._station.who(study), began,
        )  # fmt: skip
        try:
            (kept,) = receive(self._journal, [receipt])
            if kept != name and not self._spool.holds(kept, digest):
                restore(self._journal, kept, name)
                kept = name
        except BaseException:
            self._spool.drop(name)
            raise
        if kept != name:
            self._spool.drop(name)
        LOG.info("event=kept instance=%s bytes=%d", who, len(content))

    def _is_known(self, sop: str, digest: str, content: bytes) -> bool:
        """Whether this object is kept already, be it in another transfer syntax."""
        known = versions(self._journal, sop)
        if digest in known:
            return self._spool.holds(known[digest], digest)
        return any(
            self._spool.holds(file, other) and same_data_set(self._spool.path(file).read_bytes(), content)
            for other, file in known.items()
        )
