"""Files that are either whole or absent: written beside their place, fsynced, then renamed; lines that are appended."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hscc_edge.errors import StorageError

REASONS = {
    errno.ENOSPC: "the disk is full: free space there",
    errno.EDQUOT: "the disk quota is used up: free space there",
    errno.EACCES: "permission is denied: choose another place or change its permissions",
    errno.EROFS: "the file system is read-only: choose another place",
    errno.EEXIST: "something stands there already: remove it or choose another place",
    errno.ENOTEMPTY: "a directory that is not empty stands there: remove it or choose another place",
    errno.ENOTDIR: "a part of the path is a file: choose another place",
}


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turn an OSError met while writing `path` into one StorageError sentence."""
    try:
        yield
    except OSError as error:
        reason = REASONS.get(error.errno or 0, error.strerror or type(error).__name__)
        raise StorageError(f"cannot write {path}: {reason}") from error


def sync_directory(path: Path) -> None:
    """fsync a directory, so that the names in it survive a power loss."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """fsync a file that another library has written."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write `content` to `path` so that a crash leaves the old file or the new one, never a part."""
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(draft, mode)
            os.replace(draft, path)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def write_text(path: Path, content: str) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: object) -> None:
    """`write_bytes` for an object as indented JSON; NaN and infinity are refused."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def append_line(path: Path, line: str) -> None:
    """Add one line to a file that several processes may add to; after a crash it is there whole or not at all.

    A part of a line that a power loss left is cut off first. Readers should take only lines that end.
    """
    with storage(path):
        fresh = not path.exists()
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with os.fdopen(handle, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            content = file.read()
            whole = content.rfind(b"\n") + 1
            file.truncate(whole)
            file.seek(whole)
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if fresh:
            sync_directory(path.parent)


def require_free(target: Path, *, replace: bool = False) -> None:
    """What `new_directory` asks of its place: for the begin of work that ends in it.

    Raises:
        StorageError: if something else than an empty directory stands there, and is not to be replaced.
    """
    with storage(target):
        if target.exists() and not replace and (not target.is_dir() or any(target.iterdir())):
            raise FileExistsError(errno.EEXIST, "taken")


@contextmanager
def new_directory(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Fill a draft directory that takes the place of `target` only if the body succeeds.

    Args:
        target: must not exist, or be an empty directory, unless `replace`.
        replace: swap an existing directory for the new one.

    Raises:
        StorageError: if `target` is taken or cannot be written.
    """
    require_free(target, replace=replace)
    with storage(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            draft.chmod(0o755)
            yield draft
            _sync_tree(draft)
            _swap(draft, target)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        sync_directory(target.parent)


def _sync_tree(root: Path) -> None:
    for directory, _, names in os.walk(root):
        for name in names:
            sync_file(Path(directory) / name)
        sync_directory(Path(directory))


def _swap(draft: Path, target: Path) -> None:
    if not target.exists():
        os.rename(draft, target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    os.rename(target, old / target.name)
    os.rename(draft, target)
    shutil.rmtree(old)
