"""The spool: received objects as files whose names say nothing, each whole and on disk before it counts.

An object is written as a draft in a directory of its process's own, and moved into the spool when it is whole.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
import threading
from pathlib import Path

from hscc_edge import durable
from hscc_edge.serve.doors.content import digest_of_file


class Spool:
    """Files under one directory of the state volume; drafts lie beside it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._drafts: Path | None = None
        self._held = -1
        self._lock = threading.Lock()
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def drafts(self) -> Path:
        """Where this process may write a file that is not yet whole; what it leaves there when it dies is removed."""
        with self._lock:
            if self._drafts is None:
                self._drafts = self._open_drafts()
            return self._drafts

    def draft(self) -> Path:
        """The name of a new draft."""
        return self.drafts / f"{secrets.token_hex(16)}.part"

    def keep(self, content: bytes) -> str:
        """Write and fsync a file and its directory; returns its name. Raises OSError, and keeps nothing, on failure."""
        draft = self.draft()
        name = ""
        try:
            draft.write_bytes(content)
            durable.sync_file(draft)
            name = self.take(draft)
            self.sync()
        except OSError:
            draft.unlink(missing_ok=True)
            if name:
                self.drop(name)
            raise
        return name

    def take(self, draft: Path) -> str:
        """Move a draft into the spool; its name there is on disk after `sync`."""
        name = f"{secrets.token_hex(16)}.dcm"
        os.rename(draft, self.root / name)
        return name

    def sync(self) -> None:
        """Put the names of all files that were taken so far on disk."""
        durable.sync_directory(self.root)

    def path(self, name: str) -> Path:
        """Where a kept file is."""
        return self.root / name

    def holds(self, name: str, digest: str) -> bool:
        """Whether a kept file is there, with the data set of that digest."""
        try:
            return digest_of_file(self.path(name)) == digest
        except OSError:
            return False

    def drop(self, name: str) -> None:
        """Forget a file that no journal row stands for."""
        self.path(name).unlink(missing_ok=True)

    def free_mib(self) -> int:
        """Free space of the volume."""
        return shutil.disk_usage(self.root).free >> 20

    def sweep(self, known: set[str]) -> int:
        """Remove what a crash left: drafts, and files whose row was never committed, hence never acknowledged."""
        stray = [path for path in self.root.iterdir() if path.name not in known]
        for path in stray:
            path.unlink()
        return len(stray) + self.sweep_drafts()

    def sweep_drafts(self) -> int:
        """Remove drafts of processes that are no more."""
        above = self._above_drafts()
        if not above.is_dir():
            return 0
        turn, removed = _open(above), 0
        try:
            fcntl.flock(turn, fcntl.LOCK_EX)
            for directory in above.iterdir():
                removed += _remove_if_left(directory)
        finally:
            os.close(turn)
        return removed

    def _above_drafts(self) -> Path:
        return self.root.with_name("drafts")

    def _open_drafts(self) -> Path:
        """A directory locked by this process: the kernel frees the lock when it dies, however it dies."""
        above = self._above_drafts()
        above.mkdir(mode=0o700, exist_ok=True)
        turn = _open(above)
        try:
            fcntl.flock(turn, fcntl.LOCK_EX)
            drafts = Path(tempfile.mkdtemp(prefix="", dir=above))
            self._held = _open(drafts)
            fcntl.flock(self._held, fcntl.LOCK_EX)
        finally:
            os.close(turn)
        return drafts


def _open(directory: Path) -> int:
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _remove_if_left(directory: Path) -> int:
    handle = _open(directory)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return 0
    else:
        removed = len(list(directory.iterdir()))
        shutil.rmtree(directory)
        return removed
    finally:
        os.close(handle)
