"""A folder of unknown files -> an index: headers alone are read, on all cores, and only of what has changed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection, get_context, parent_process
from pathlib import Path

from hscc_edge.data import index
from hscc_edge.data.header import examine
from hscc_edge.data.index import DRAFTS, FAULT, LINK, Index, Row, Survey
from hscc_edge.errors import ConfigError, InputError, StorageError

CHUNK = 16
ALONE = 16 * CHUNK  # so few files are read sooner than processes start
AHEAD = 4  # chunks in flight for each process
BATCH = 1024
BATCH_S = 2.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a scan is: files in the index of those due, and their bytes."""

    files: int
    due_files: int
    size_bytes: int
    due_bytes: int


@dataclass(frozen=True, slots=True)
class ScanSummary:
    """What a folder holds and what a scan did; no identifier and no file name is in it.

    Attributes:
        files: files, links and folders that could not be listed; each has a row.
        read, unchanged, removed: files opened by this scan, not opened, and gone since the last.
        kinds: files of each kind, see `index.Row`.
        equal_copies: files beyond the first of those with the same SOP Instance UID and the same content.
        conflicts: SOP Instance UIDs that files of different content share.
        uncompared: SOP Instance UIDs of several files of one size, scanned without digests.
        faults: sentence -> files.
        malformed: keyword -> files in which its value could not be read.
    """

    files: int
    size_bytes: int
    read: int
    unchanged: int
    removed: int
    kinds: Mapping[str, int]
    patients: int
    studies: int
    series: int
    equal_copies: int
    conflicts: int
    uncompared: int
    faults: Mapping[str, int]
    malformed: Mapping[str, int]
    seconds: float


def scan(
    root: Path,
    index_path: Path,
    *,
    jobs: int | None = None,
    digest: bool = True,
    rehash: bool = False,
    key: bytes | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> ScanSummary:
    """Bring the index of `root` up to date; one that was cut off is resumed.

    A file whose size and time of change are those in the index is not opened. Symbolic links are listed and not
    followed. Time grows with the files that changed (and with their bytes, if digests are wanted); memory does not
    grow with the number of files but for SQLite's caches, and is about 60 MB for each process. More than one process is
    started by `spawn`: call it under `if __name__ == "__main__"` from a script.

    Args:
        jobs: processes that read; None is one for each core.
        digest: also hash the files that are DICOM.
        rehash: read every file again.
        key: of the stations' pseudonyms; None is a random one, kept in the index.

    Raises:
        InputError: if `root` is no folder, or the index is of another folder or has another key.
        StorageError: if the index cannot be written, or a process was killed.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f"{jobs} jobs were asked for: expected at least 1")
    if not root.is_dir():
        raise InputError(f"{root} does not exist or is no folder: give the folder with the files")
    started = time.perf_counter()
    with Index(index_path) as target:
        work = partial(examine, str(root), digest, target.key(key))
        found = walk(root, [index_path.with_name(index_path.name + end) for end in ("", *DRAFTS)])
        survey = target.survey(root.resolve(), found, digest=digest, rehash=rehash)
        alone = survey.due <= ALONE
        with closing(_results(target, work, 1 if alone else jobs or len(os.sched_getaffinity(0)))) as results:
            _fill(target, results, survey, progress)
        target.finish()
    return _summary(index_path, survey, started)


def walk(root: Path, leave_out: Iterable[Path] = ()) -> Iterator[Row]:
    """Every file beneath `root` with path, size and time; links, what is no file and folders that cannot be listed too.

    Nothing is followed or opened; memory grows with the folders that wait to be listed.
    """
    own = {os.path.relpath(path.parent.resolve() / path.name, root.resolve()) for path in leave_out}
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(path)
                    elif path not in own:
                        yield _entry(entry, path)
        except OSError as error:
            yield Row(
                folder or ".", 0, -1, FAULT, fault=f"the folder cannot be listed ({error.strerror}): check its rights"
            )


def _entry(entry: os.DirEntry[str], path: str) -> Row:
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError as error:
        return Row(
            path, 0, -1, FAULT, fault=f"the file cannot be read ({error.strerror}): check its rights and the disk"
        )
    kind = LINK if entry.is_symlink() else "" if entry.is_file(follow_symlinks=False) else "special file"
    return Row(path, 0 if kind else status.st_size, status.st_mtime_ns, kind)


Work = Callable[[Sequence[Row]], list[Row]]


def _results(target: Index, work: Work, jobs: int) -> Generator[list[Row], None, None]:
    chunks = target.due(CHUNK)
    yield from map(work, chunks) if jobs == 1 else _parallel(work, chunks, jobs)


def _fill(
    target: Index, results: Iterator[list[Row]], survey: Survey, progress: Callable[[Progress], None] | None
) -> None:
    """Write results into the index, in transactions of about a thousand files or two seconds."""
    pending: list[Row] = []
    done = size = 0
    stored = time.monotonic()
    for rows in results:
        pending += rows
        done += len(rows)
        size += sum(row.size for row in rows)
        if len(pending) >= BATCH or time.monotonic() - stored > BATCH_S or done == survey.due:
            target.store(pending)
            pending, stored = [], time.monotonic()
            if progress:
                progress(Progress(done, survey.due, size, survey.due_bytes))


def _parallel(work: Work, chunks: Iterable[Sequence[Row]], jobs: int) -> Iterator[list[Row]]:
    """Results as they come, with a few chunks in flight for each process."""
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), _follow_parent)
    waiting: set[Future[list[Row]]] = set()
    try:
        for chunk in chunks:
            waiting.add(pool.submit(work, chunk))
            if len(waiting) >= AHEAD * jobs:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        yield from (future.result() for future in as_completed(waiting))
    except BrokenProcessPool as error:
        raise StorageError(
            "a process that reads files was killed, for want of memory perhaps: scan again with fewer jobs; what was "
            "read is kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """In a process of the pool: Ctrl-C is the parent's to answer, and nobody stays behind if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_leave_with, args=(parent.sentinel,), daemon=True).start()


def _leave_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _summary(path: Path, survey: Survey, started: float) -> ScanSummary:
    equal_copies = conflicts = uncompared = 0
    for group in index.copies(path):
        equal_copies += (len(group.paths) - 1) if group.equal else 0
        conflicts += group.equal is False
        uncompared += group.equal is None
    return ScanSummary(
        files=survey.files,
        read=survey.unread,
        unchanged=survey.files - survey.unread,
        removed=survey.removed,
        equal_copies=equal_copies,
        conflicts=conflicts,
        uncompared=uncompared,
        seconds=time.perf_counter() - started,
        **index.counts(path),
    )
