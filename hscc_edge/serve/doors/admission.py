"""The one intake of three doors: a whole file becomes a kept instance, or nothing.

Status codes are those of C-STORE, PS3.4 table B.2-1; the other doors translate them. No pixel is decoded here.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from hscc_edge import durable
from hscc_edge.serve.crash import crash_point
from hscc_edge.serve.doors import contexts
from hscc_edge.serve.doors.commit import Committer
from hscc_edge.serve.doors.content import (
    EXPECTED,
    IDENTIFIERS,
    PRIORITY,
    Headers,
    are_uids,
    digest_of_file,
    read_headers,
    same_data_set,
)  # fmt: skip
from hscc_edge.serve.instances import RECEIVED, Receipt, counts, restore, versions
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.route import priority as routed_priority
from hscc_edge.serve.spool import Spool
from hscc_edge.serve.station import Station
from hscc_edge.serve.studies import PRIORITIES

LOG = logging.getLogger(__name__)
SUCCESS, NO_RESOURCES, CLASS_MISMATCH, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000
MOST_TO_COMPARE, MOST_VERSIONS = 64 << 20, 4  # bytes of an object, and how many that came under one UID


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of an object.

    Attributes:
        status: 0x0000 if and only if it is kept, on disk and in the journal.
        reason: of a refusal, or "kept", "known", "restored"; no identifier in it.
        study: its Study Instance UID, if it could be read.
    """

    status: int
    reason: str
    study: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class _Arrival:
    """What a door knows of an object; the fields are `admit`'s arguments."""

    door: str
    first_byte: float
    sop_class: str | None
    sop: str | None = field(repr=False)
    peer: str


class Admission:
    """Made once in each process that has a door; its threads share it.

    Attributes:
        most_bytes: of one object.
    """

    def __init__(self, station: Station, journal: Journal, spool: Spool) -> None:
        """Begin; `journal` is only read from here, commits have a connection of their own."""
        self._station, self._config, self._journal, self._spool = station, station.config, journal, spool
        self._syntaxes = frozenset(contexts.syntaxes(self._config.dicom.transfer_syntaxes))
        routed = (keyword for route in self._config.route for keyword in route.when)
        self._keywords = tuple(dict.fromkeys((*IDENTIFIERS, EXPECTED, PRIORITY, *routed)))
        self.most_bytes = self._config.dicom.max_object_mib << 20
        self._committer = Committer(station.journal(), spool)

    def close(self) -> None:
        """Commit what waits, then end."""
        self._committer.close()

    def is_sound(self) -> bool:
        """Whether the thread that commits lives."""
        return self._committer.is_alive()

    def refusal(self, size: int) -> Verdict | None:
        """Why an object of so many bytes, or more, is not to be taken in now; None if it may be."""
        if size > self.most_bytes:
            return Verdict(NO_RESOURCES, "object too large")
        if not self.has_room():
            return Verdict(NO_RESOURCES, "disk reserve")
        if counts(self._journal).get(RECEIVED, 0) >= self._config.max_waiting:
            return Verdict(NO_RESOURCES, "too many waiting")
        return None

    def has_room(self, more: int = 0) -> bool:
        """Whether so many more bytes leave the disk its reserve."""
        return self._spool.free_mib() - (more >> 20) >= self._config.reserve_mib

    def refuse(self, verdict: Verdict, door: str) -> Verdict:
        """Log and count a refusal; returns it."""
        LOG.warning("event=refused status=%04X reason=%s door=%s", verdict.status, _token(verdict.reason), door)
        self._committer.count(f"refused_{verdict.status:04x}")
        return verdict

    def admit(
        self,
        draft: Path,
        *,
        door: str,
        first_byte: float,
        sop_class: str | None = None,
        sop: str | None = None,
        peer: str = "",
    ) -> Verdict:
        """Keep a PS3.10 file: file, directory and journal row are on disk when this returns with 0x0000.

        Args:
            draft: under `spool.drafts`; it is moved away or removed, whatever the verdict.
            door: "dimse", "stow" or "folder".
            first_byte: when it began to arrive, in seconds since 1970.
            sop_class: SOP class that its sender named, if any; `sop` likewise.
            peer: who sent it, as AE title@address.
        """
        try:
            crash_point("object-received")
            verdict = self._judge(draft, _Arrival(door, first_byte, sop_class, sop, peer))
        except (OSError, sqlite3.Error) as error:
            LOG.error("event=store_failed reason=%s", type(error).__name__)
            verdict = Verdict(NO_RESOURCES, "storage failed")
        finally:
            discard(draft)
        return verdict if verdict.status == SUCCESS else self.refuse(verdict, door)

    def _judge(self, draft: Path, arrival: _Arrival) -> Verdict:
        size = draft.stat().st_size
        if refused := self.refusal(size):
            return refused
        headers = read_headers(draft, self._keywords, self._syntaxes)
        if headers is None or not are_uids(headers):
            return Verdict(NOT_UNDERSTOOD, "not parsable")
        study = headers.text("StudyInstanceUID")
        if arrival.sop_class not in (None, headers.text("SOPClassUID")):
            return Verdict(CLASS_MISMATCH, "SOP class", study)
        if arrival.sop not in (None, headers.text("SOPInstanceUID")):
            return Verdict(NOT_UNDERSTOOD, "SOP instance", study)
        if not contexts.takes_class(self._config.dicom.sop_classes, headers.text("SOPClassUID")):
            return Verdict(CLASS_MISMATCH, "SOP class not accepted", study)
        receipt = self._receipt(headers, draft, size, arrival)
        reason = "known" if self._is_known(receipt, draft) else self._keep(receipt, draft)
        LOG.info("event=%s instance=%s bytes=%d door=%s", reason, self._station.who(receipt.sop), size, arrival.door)
        crash_point("reply-ready")
        return Verdict(SUCCESS, reason, study)

    def _receipt(self, headers: Headers, draft: Path, size: int, arrival: _Arrival) -> Receipt:
        study = headers.text("StudyInstanceUID")
        return Receipt(
            sop=headers.text("SOPInstanceUID"), sop_class=headers.text("SOPClassUID"), digest=digest_of_file(draft),
            series=headers.text("SeriesInstanceUID"), study=study, file="", bytes=size, door=arrival.door,
            key=self._station.who(study), first_byte=arrival.first_byte, priority=self._priority(headers),
            expected=_expected(headers), peer=arrival.peer,
        )  # fmt: skip

    def _priority(self, headers: Headers) -> int:
        """The first matching route's, or the one that was asked for: Requested Procedure Priority (0040,1003) has STAT,
        HIGH, ROUTINE, MEDIUM and LOW (PS3.3 section C.4.11)."""
        asked = PRIORITIES.get(headers.text(PRIORITY).lower(), 0)
        found: Any = {keyword: list(values) for keyword, values in headers.values.items()}
        return max(asked, routed_priority(self._config.route, found))

    def _is_known(self, receipt: Receipt, draft: Path) -> bool:
        """Whether this object is kept already, be it in another transfer syntax."""
        known = versions(self._journal, receipt.sop)
        if receipt.digest in known:
            return self._spool.holds(known[receipt.digest], receipt.digest)
        if not known or receipt.bytes > MOST_TO_COMPARE:
            return False
        return same_data_set(draft.read_bytes(), self._contents(islice(known.values(), MOST_VERSIONS)))

    def _contents(self, files: Iterable[str]) -> Iterator[bytes]:
        """Of kept files that are there and small enough to compare, one in memory at a time."""
        for path in map(self._spool.path, files):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_size <= MOST_TO_COMPARE:
                    yield path.read_bytes()

    def _keep(self, receipt: Receipt, draft: Path) -> str:
        durable.sync_file(draft)
        crash_point("draft-synced")
        name = self._spool.take(draft)
        try:
            crash_point("draft-renamed")
            kept = self._committer.commit(replace(receipt, file=name))
            if kept == name:
                return "kept"
            if not self._spool.holds(kept, receipt.digest):
                restore(self._journal, kept, name)
                return "restored"
        except BaseException:
            self._spool.drop(name)
            raise
        self._spool.drop(name)
        return "known"


def discard(draft: Path) -> None:
    """Remove a draft, if it is there; what cannot be removed now is swept when the process has ended."""
    try:
        draft.unlink(missing_ok=True)
    except OSError as error:
        LOG.error("event=draft_left reason=%s", type(error).__name__)


def _token(reason: str) -> str:
    return reason.replace(" ", "_")


def _expected(headers: Headers) -> int | None:
    text = headers.text(EXPECTED)
    return int(text) if text.isdecimal() and 0 < int(text) < 1 << 31 else None
