"""Backup and restore of a state directory, while its daemon runs.

The copy is as of one instant of the journal: SQLite's backup API takes it, and retention removes nothing meanwhile, so
that each file that the copy names is there. Spool files never change once they are kept; on the same file system they
are hard links. The copy holds patients' images and the station's key: keep it where the state directory may be.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hscc_edge import __version__, durable
from hscc_edge.digest import sha256_of
from hscc_edge.errors import InputError, StorageError
from hscc_edge.serve import audit
from hscc_edge.serve.config import Config
from hscc_edge.serve.instances import files as kept_files
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.operations.retention import LOCK, holding
from hscc_edge.serve.station import Station

MANIFEST = "backup.json"
JOURNAL = "journal.sqlite"
# What belongs to the running daemon, or is copied in its own way.
LEFT_OUT = {
    "lock", LOCK, "work.lock", "seats", "daemon.json", "sessions.json", JOURNAL, "journal.sqlite-wal",
    "journal.sqlite-shm", "spool", "drafts",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Copied:
    """What a backup or a restore has copied."""

    folder: Path
    instances: int
    files: int
    bytes: int


def export(station: Station, out: Path) -> Copied:
    """Write a backup to a directory that does not exist yet, whole or not at all.

    Raises:
        StorageError: if it cannot be written, or a kept file is missing in the state directory.
    """
    state = station.config.state
    if out.resolve().is_relative_to(state.resolve()):
        raise InputError(f"{out} lies in the state directory: choose a place outside of it")
    with holding(state, exclusive=False), durable.new_directory(out) as draft:
        draft.chmod(0o700)
        with durable.storage(out):
            _copy_journal(state / JOURNAL, draft / JOURNAL)
            names = _named(draft / JOURNAL)
            size = sum(_link(state / "spool" / name, draft / "spool" / name) for name in sorted(names))
            others = {name: _copy(state / name, draft / name) for name in _others(state)}
        digests = {JOURNAL: _digest(draft / JOURNAL), **others}
        facts = {"version": __version__, "time": time.time(), "instances": len(names), "files": digests}
        durable.write_json(draft / MANIFEST, facts)
    return Copied(out, len(names), len(digests), size)


def restore(source: Path, config: Config) -> Copied:
    """Make a state directory from a backup; the backup stays as it is.

    Raises:
        InputError: if `source` is no backup, or one of its files was changed.
        StorageError: if there is a state directory already.
    """
    facts = _manifest(source)
    for name, digest in facts["files"].items():
        path = source / name
        if not path.is_file() or _digest(path) != digest:
            raise InputError(f"{path} is not what was backed up: take another backup")
    names = _named(source / JOURNAL)
    with durable.new_directory(config.state) as draft:
        draft.chmod(0o700)
        with durable.storage(config.state):
            size = sum(_copy_file(source / "spool" / name, draft / "spool" / name) for name in sorted(names))
            for name in facts["files"]:
                _copy_file(source / name, draft / name)
    return Copied(config.state, len(names), len(facts["files"]), size)


def _manifest(source: Path) -> dict[str, dict[str, str]]:
    try:
        facts: dict[str, dict[str, str]] = json.loads((source / MANIFEST).read_text(encoding="utf-8"))
        inside = all((source / name).resolve().is_relative_to(source.resolve()) for name in facts["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{source} is no backup: expected a directory made by hscc-edge state export") from error
    if not inside:
        raise InputError(f"{source} names files outside of it: expected a directory made by hscc-edge state export")
    return facts


def _copy_journal(source: Path, target: Path) -> None:
    with (
        contextlib.closing(sqlite3.connect(source, timeout=30)) as old,
        contextlib.closing(sqlite3.connect(target)) as new,
    ):
        old.backup(new)  # in one step: with several, each commit in between would begin it anew
        new.execute("PRAGMA journal_mode=DELETE")
    target.chmod(0o600)


def _named(path: Path) -> set[str]:
    """The spool files that a copy's rows stand for."""
    journal = Journal(path)
    try:
        return kept_files(journal)
    finally:
        journal.close()
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        path.with_suffix(".turn").unlink(missing_ok=True)


def _others(state: Path) -> Iterator[str]:
    """Every other file of the state directory, by its path in it: key, models, accounts, audit lines."""
    for folder, names, files in os.walk(state):
        inside = Path(folder).relative_to(state)
        names[:] = [name for name in names if str(inside / name) not in LEFT_OUT and not name.startswith(".")]
        yield from (
            str(inside / name)
            for name in files
            if str(inside / name) not in LEFT_OUT and not name.startswith(".") and not name.endswith(".turn")
        )


def _copy(source: Path, target: Path) -> str:
    """Copy a file as it is between two audit lines; returns its digest."""
    with source.open("rb") as file:
        if source.name == audit.NAME:
            fcntl.flock(file, fcntl.LOCK_SH)
        _copy_file(source, target)
    return _digest(target)


def _copy_file(source: Path, target: Path) -> int:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o600)
    return target.stat().st_size


def _link(source: Path, target: Path) -> int:
    target.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError as error:
        raise StorageError(
            f"{source}, which the journal names, is missing: run hscc-edge state check, then send that study again"
        ) from error
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
            raise
        shutil.copyfile(source, target)
    return target.stat().st_size


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return sha256_of(file)
