"""An archive (PACS) that is in a bad mood when it is told to be; it keeps everything that it ever answered for.

Each different object is one file, NUMBER-UID-DIGEST.dcm: in order of arrival, the digest is that of the data set. Two
files of one UID are two contents under one name, which no archive may ever be sent.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts, build_role, evt
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]

WELL = "well"
MOODS = ("refuses", "hangs", "hangs-in-store", "fails", "dies-in-store", "dies-after-store", "resets")
FAILURES = (0xA700, 0xA900, 0xC001, 0x0110)  # not 0x0122: what has refused a class must not have stored it before
SMALL_PDU = 2048


class Archive:
    """A C-STORE and storage commitment provider on loopback.

    Attributes:
        mood: one of MOODS, or WELL.
        daemon_port: where commitment is answered, on an association of the archive's own; 0 for none.
        troubles: how often each mood was felt.
    """

    def __init__(self, directory: Path, hang_s: float = 3.0) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory, self.mood, self.hang_s, self.daemon_port = directory, WELL, hang_s, 0
        self.troubles: Counter[str] = Counter()
        self._kept: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()
        entity = AE(ae_title="ARCHIVE")
        for context in AllStoragePresentationContexts:  # one syntax, so that what arrives has the journal's very bytes
            entity.add_supported_context(str(context.abstract_syntax), ExplicitVRLittleEndian)
        entity.add_supported_context(Verification)
        entity.add_supported_context(StorageCommitmentPushModel)
        entity.maximum_pdu_size = SMALL_PDU  # a report takes several, so that there is a middle to die in
        handlers: list[Any] = [
            (evt.EVT_CONN_OPEN, self._on_connection), (evt.EVT_REQUESTED, self._on_request),
            (evt.EVT_PDU_RECV, self._on_pdu), (evt.EVT_C_STORE, self._on_store), (evt.EVT_N_ACTION, self._on_action),
        ]  # fmt: skip
        self._server: Any = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.port = int(self._server.server_address[1])

    def close(self) -> None:
        """End it."""
        self._server.shutdown()

    def _feels(self, *moods: str) -> bool:
        if self.mood not in moods:
            return False
        self.troubles[self.mood] += 1
        return True

    def _on_connection(self, event: Any) -> None:
        if self._feels("resets"):
            event.assoc.dul.socket.close()

    def _on_request(self, event: Any) -> None:
        if self._feels("refuses"):
            event.assoc.acse.send_reject(0x02, 0x01, 0x02)
            event.assoc.kill()
        elif self._feels("hangs"):
            time.sleep(self.hang_s)

    def _on_pdu(self, event: Any) -> None:
        if isinstance(event.pdu, P_DATA_TF) and self._feels("dies-in-store"):
            event.assoc.dul.socket.close()

    def _on_store(self, event: Any) -> int:
        if self._feels("fails"):
            return FAILURES[self.troubles["fails"] % len(FAILURES)]
        if self._feels("hangs-in-store"):
            time.sleep(self.hang_s)
        self._keep(event)
        if self._feels("dies-after-store"):
            event.assoc.dul.socket.close()
        return 0x0000

    def _keep(self, event: Any) -> None:
        uid = str(event.request.AffectedSOPInstanceUID)
        digest = hashlib.sha256(event.request.DataSet.getvalue()).hexdigest()
        with self._lock:
            if (uid, digest) not in self._kept:
                self._kept[uid, digest] = len(self._kept)
                path = self.directory / f"{self._kept[uid, digest]:06d}-{uid}-{digest[:16]}.dcm"
                path.write_bytes(event.encoded_dataset())

    def _on_action(self, event: Any) -> tuple[int, None]:
        if self._feels("fails", "hangs-in-store"):
            return 0x0110, None
        request = event.action_information
        threading.Thread(target=self._answer, args=(request,), daemon=True).start()
        return 0x0000, None

    def _answer(self, request: Any) -> None:
        """N-EVENT-REPORT (PS3.4 J.3.3) of what is kept and what is not, on an association of our own."""
        from pydicom.dataset import Dataset

        have = {uid for uid, _ in self._kept}
        answer = Dataset()
        answer.TransactionUID = request.TransactionUID
        items = list(request.ReferencedSOPSequence)
        answer.ReferencedSOPSequence = [item for item in items if item.ReferencedSOPInstanceUID in have]
        failed = [item for item in items if item.ReferencedSOPInstanceUID not in have]
        for item in failed:
            item.FailureReason = 0x0112
        if failed:
            answer.FailedSOPSequence = failed
        entity = AE(ae_title="ARCHIVE")
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 5
        entity.add_requested_context(StorageCommitmentPushModel)
        role = build_role(StorageCommitmentPushModel, scp_role=True)
        association = entity.associate("127.0.0.1", self.daemon_port, ae_title="HSCC_EDGE", ext_neg=[role])
        if association.is_established:
            association.send_n_event_report(
                answer, 2 if failed else 1, StorageCommitmentPushModel, "1.2.840.10008.1.20.1.1"
            )
            association.release()
