"""The spool: received objects as files whose names say nothing, each whole and on disk before it counts."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from hscc_edge import durable
from hscc_edge.serve.content import digest_of

DRAFT = ".part"


class Spool:
    """Files under one directory of the state volume."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def keep(self, content: bytes) -> str:
        """Write and fsync a file and its directory; returns its name. Raises OSError, and keeps nothing, on failure."""
        name = f"{secrets.token_hex(16)}.dcm"
        draft = self.root / (name + DRAFT)
        try:
            with draft.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.rename(draft, self.root / name)
            durable.sync_directory(self.root)
        except OSError:
            draft.unlink(missing_ok=True)
            (self.root / name).unlink(missing_ok=True)
            raise
        return name

    def path(self, name: str) -> Path:
        """Where a kept file is."""
        return self.root / name

    def holds(self, name: str, digest: str) -> bool:
        """Whether a kept file is there, with the data set of that digest."""
        try:
            return digest_of(self.path(name).read_bytes()) == digest
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
        return len(stray)
