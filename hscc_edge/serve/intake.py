"""The C-STORE provider: `0x0000` is returned only after file, directory and journal row are on disk.

Status codes: PS3.4 table B.2-1. No pixel is decoded here.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import warnings
from io import BytesIO
from typing import Any

import pydicom
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
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

from hscc_edge.data.dicom import FAULTS
from hscc_edge.data.pseudonym import pseudonym
from hscc_edge.errors import StorageError, extra
from hscc_edge.serve.config import Config
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.spool import Spool

with extra("device"):
    from pynetdicom import AE, AllStoragePresentationContexts, evt
    from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

LOG = logging.getLogger(__name__)
SYNTAXES = [
    ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian,
    JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless,
    JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2K, RLELossless,
]  # fmt: skip
SUCCESS, NO_RESOURCES, CLASS_MISMATCH, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000
IDENTIFIERS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")


class Intake:
    """Starts and stops the provider; each association runs in a thread of pynetdicom."""

    def __init__(self, config: Config, journal: Journal, spool: Spool, key: bytes) -> None:
        self._config, self._journal, self._spool, self._key = config, journal, spool, key
        self._server: Any = None

    def start(self) -> int:
        """Listen; returns the port.

        Raises:
            StorageError: if the port is in use or not allowed.
        """
        listener = self._config.dicom
        entity = AE(ae_title=listener.ae_title)
        entity.maximum_associations = listener.max_associations
        entity.network_timeout = entity.acse_timeout = entity.dimse_timeout = listener.idle_s
        entity.require_calling_aet = list(listener.allowed_ae)
        entity.require_called_aet = True
        entity.add_supported_context(Verification)
        for context in AllStoragePresentationContexts:
            entity.add_supported_context(str(context.abstract_syntax), SYNTAXES)
        try:
            self._server = entity.start_server(
                (listener.host, listener.port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._on_store)]
            )
        except OSError as error:
            raise StorageError(
                f"port {listener.port} on {listener.host} cannot be opened ({error.strerror}): stop what uses it, or "
                "set another port in [dicom]"
            ) from error
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """Close the port and the associations."""
        if self._server is not None:
            self._server.shutdown()

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

    def _keep(self, found: dict[str, str], content: bytes, digest: str) -> None:
        name = self._spool.keep(content)
        try:
            fresh = self._journal.receive(
                found["SOPInstanceUID"], digest, found["SeriesInstanceUID"], found["StudyInstanceUID"], name
            )
        except BaseException:
            self._spool.drop(name)
            raise
        if not fresh:
            self._spool.drop(name)
        who = pseudonym(found["SOPInstanceUID"], self._key)
        LOG.info("event=%s instance=%s bytes=%d", "kept" if fresh else "known", who, len(content))


def identifiers(content: bytes) -> dict[str, str] | None:
    """The UIDs that an object cannot be kept without, None if it cannot be parsed or lacks one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(BytesIO(content), specific_tags=list(IDENTIFIERS), stop_before_pixels=True)
            found = {keyword: str(dataset.get(keyword) or "") for keyword in IDENTIFIERS}
        except FAULTS:
            return None
    return found if all(found.values()) else None
