"""The third door: a watched folder. What settles in it is copied to a draft, admitted, and only then removed from it.

A crash between the two takes the file in again, which the intake knows and answers as before. What is refused goes to
the subfolder `refused`, each with a `.reason` beside it. Nothing is followed out of the folder: its files are reached
by handles of their directories, and links and special files are refused.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hscc_edge.serve.clock import ticks
from hscc_edge.serve.config import Folder
from hscc_edge.serve.doors.admission import NO_RESOURCES, SUCCESS, Admission, Verdict, discard
from hscc_edge.serve.spool import Spool
from hscc_edge.serve.station import Station

LOG = logging.getLogger(__name__)
REFUSED = "refused"
REASON = ".reason"
LONGEST_REST_S = 2.0
LATER_S = 10.0
COPY_BYTES = 1 << 20
Shape = tuple[int, int, int, int]


@dataclass(slots=True)
class Seen:
    """A file as it looked when it last changed; `since` and `not_before` in ticks."""

    shape: Shape
    since: float
    not_before: float = 0.0


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of the folder: its directory's handle and its name there."""

    directory: int
    name: str = field(repr=False)
    shape: Shape
    regular: bool


def role(folder: Folder) -> Callable[[Station], None]:
    """What the process for one folder runs."""

    def run(station: Station) -> None:
        station.spool().sweep_drafts()
        watch = Watch(station, folder, Admission(station, station.journal(), station.spool()))
        while not station.rest(min(LONGEST_REST_S, max(0.1, folder.settle_s / 2))):
            watch.step()

    return run


class Watch:
    """One folder and what was seen in it."""

    def __init__(self, station: Station, folder: Folder, admission: Admission) -> None:
        self._station, self._folder, self._admission = station, folder, admission
        self._spool: Spool = station.spool()
        self._seen: dict[str, Seen] = {}
        self._missing = False

    def step(self) -> int:
        """Look once, take what has settled; returns how many files were taken in."""
        taken, seen = 0, {}
        try:
            for path, entry in self._entries():
                self._station.beat()
                if self._station.stop.is_set():
                    return taken
                now = ticks()
                known = self._seen.get(path)
                if known is None or known.shape != entry.shape:
                    known = Seen(entry.shape, now)
                seen[path] = known
                if now - known.since >= self._folder.settle_s and now >= known.not_before:
                    taken += self._take(entry, known)
        except OSError as error:
            self._tell_missing(error)
            return taken
        self._seen, self._missing = seen, False
        return taken

    def _entries(self) -> Iterator[tuple[str, Entry]]:
        """Every file below the folder but hidden ones and what was refused; links are not followed."""
        root = os.fspath(self._folder.path)
        os.stat(root)
        for top, names, files, handle in os.fwalk(root, follow_symlinks=False):
            links = [name for name in names if _is_link(name, handle)]
            names[:] = [name for name in names if name not in links and not (top == root and name == REFUSED)]
            for name in [*files, *links]:
                with contextlib.suppress(FileNotFoundError):
                    if not name.startswith("."):
                        found = os.stat(name, dir_fd=handle, follow_symlinks=False)
                        yield os.path.join(top, name), Entry(handle, name, _shape(found), stat.S_ISREG(found.st_mode))

    def _take(self, entry: Entry, known: Seen) -> int:
        if not entry.regular:
            return self._refuse(entry, known, "not a file: links and special files are not followed")
        if entry.shape[2] > self._admission.most_bytes:
            return self._refuse(entry, known, "larger than max_object_mib in [dicom]")
        draft, first_byte = self._spool.draft(), time.time()
        try:
            if not self._admission.has_room(entry.shape[2]):
                verdict = Verdict(NO_RESOURCES, "disk reserve")
            elif not _copy(entry, draft):
                return 0
            else:
                verdict = self._admission.admit(draft, door="folder", first_byte=first_byte)
        except OSError as error:
            verdict = Verdict(NO_RESOURCES, type(error).__name__)
        finally:
            discard(draft)
        return self._settle(entry, known, verdict)

    def _settle(self, entry: Entry, known: Seen, verdict: Verdict) -> int:
        """Remove what is kept, put aside what is refused, and leave what there was no room for."""
        if verdict.status == SUCCESS:
            with self._change(entry, known):
                if _shape(os.stat(entry.name, dir_fd=entry.directory, follow_symlinks=False)) == entry.shape:
                    os.unlink(entry.name, dir_fd=entry.directory)
            return 1
        if verdict.status == NO_RESOURCES:
            LOG.warning("event=folder_waits status=%04X reason=%s", verdict.status, verdict.reason)
            known.not_before = ticks() + LATER_S
            return 0
        return self._refuse(entry, known, f"status {verdict.status:#06x}: {verdict.reason}")

    def _refuse(self, entry: Entry, known: Seen, reason: str) -> int:
        LOG.warning("event=folder_refused file=%s reason=%s", self._station.who(ascii(entry.name)), reason)
        with self._change(entry, known), _refused(self._folder.path) as aside:
            name = entry.name if _is_free(entry.name, aside) else f"{secrets.token_hex(4)}-{entry.name[-100:]}"
            os.rename(entry.name, name, src_dir_fd=entry.directory, dst_dir_fd=aside)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(name[:200] + REASON, flags, 0o600, dir_fd=aside), "w", encoding="utf-8") as file:
                file.write(reason + "\n")
        return 0

    @contextlib.contextmanager
    def _change(self, entry: Entry, known: Seen) -> Iterator[None]:
        """What the folder does not allow is told, and tried again later."""
        try:
            yield
        except OSError as error:
            LOG.error(
                "event=folder_unchanged file=%s reason=%s", self._station.who(ascii(entry.name)), type(error).__name__
            )
            known.not_before = ticks() + LATER_S

    def _tell_missing(self, error: OSError) -> None:
        if not self._missing:
            LOG.error("event=folder_unreadable reason=%s", type(error).__name__)
        self._missing = True


def _shape(found: os.stat_result) -> Shape:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _is_link(name: str, directory: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _is_free(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return True
    return False


@contextlib.contextmanager
def _refused(folder: Path) -> Iterator[int]:
    """A handle of the folder of refused files, which is made if it is not there and must not be a link."""
    path = folder / REFUSED
    path.mkdir(mode=0o700, exist_ok=True)
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


def _copy(entry: Entry, draft: Path) -> bool:
    """Copy a file; False if it is another one by now, or changed meanwhile."""
    handle = os.open(entry.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=entry.directory)
    with os.fdopen(handle, "rb", buffering=0) as source, draft.open("xb") as target:
        if _shape(os.fstat(handle)) != entry.shape:
            return False
        left = entry.shape[2]
        while left > 0 and (piece := source.read(min(left, COPY_BYTES))):
            left -= target.write(piece)
        return left == 0 and _shape(os.fstat(handle)) == entry.shape
