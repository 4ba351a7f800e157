"""What is removed from the spool: files of ended studies, too old or too many; rows and reports stay.

A study's rows are marked in one transaction before its files are unlinked: a crash in between leaves files that no row
stands for, and the daemon's start sweeps these away. A backup that is being made keeps everything where it is.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hscc_edge.serve import tallies
from hscc_edge.serve.clock import boot_id, ticks
from hscc_edge.serve.crash import crash_point
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.operations import atna
from hscc_edge.serve.station import Station
from hscc_edge.serve.timeline import note

LOG = logging.getLogger(__name__)
DAY_S, GIB = 86_400.0, 1 << 30
PAGE = 200
JUMP_S = 3600.0
CLOCK = "retention_clock"
LOCK = "backup.lock"
# Nothing of it waits for work, nothing of it is to be sent.
ENDED = (
    "NOT EXISTS (SELECT 1 FROM instances AS o WHERE o.study = ? AND o.state = 'received') AND NOT EXISTS "
    "(SELECT 1 FROM deliveries AS d JOIN reports AS r ON r.id = d.report WHERE r.study = ? "
    "AND d.state IN ('pending', 'stored'))"
)


def sweep(station: Station, journal: Journal, most: int = 100) -> int:
    """Remove the files of at most so many studies; returns of how many."""
    wanted, removed = station.config.retention, 0
    if not wanted.keep_days and not wanted.max_gib:
        return 0
    young = time.time() - wanted.keep_days * DAY_S
    with holding(station.config.state, exclusive=True) as held:
        if not held:
            return 0
        old_counts = bool(wanted.keep_days) and _clock_stands(journal)
        for study, last in _oldest(journal):
            too_old = old_counts and last < young
            too_many = wanted.max_gib and _kept_bytes(journal) > wanted.max_gib * GIB
            if removed >= most or station.stop.is_set() or not (too_old or too_many):
                break
            removed += _remove(station, journal, study)
            station.beat()
    if removed:
        LOG.info("event=removed studies=%d kept_bytes=%d", removed, _kept_bytes(journal))
    return removed


@contextmanager
def holding(state: Path, *, exclusive: bool) -> Iterator[bool]:
    """Keep spool files from being removed (shared, waits) or remove some (exclusive; False if they are being kept)."""
    handle = os.open(state / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def _oldest(journal: Journal) -> Iterator[tuple[str, float]]:
    """Ended studies with files, those received first before, and when the last of each came."""
    edge, seen = (-1.0, 0), set()
    while True:
        rows = journal.read(
            "SELECT received, id, study FROM instances WHERE removed IS NULL AND (received, id) > (?, ?) "
            "ORDER BY received, id LIMIT ?",
            (*edge, PAGE),
        )
        for received, number, study in rows:
            edge = (received, number)
            if study in seen:
                continue
            seen.add(study)
            if journal.read(f"SELECT 1 WHERE {ENDED}", (study, study)):
                ((last,),) = journal.read("SELECT last_received FROM studies WHERE uid = ?", (study,))
                yield study, last
        if len(rows) < PAGE:
            return


def _remove(station: Station, journal: Journal, study: str) -> bool:
    told = [atna.deleted(station, journal, study)] if station.config.audit.host else []
    with journal.transaction() as db:
        if not db.execute(f"SELECT 1 WHERE {ENDED}", (study, study)).fetchone():
            return False
        files = db.execute("SELECT file, bytes FROM instances WHERE study = ? AND removed IS NULL", (study,)).fetchall()
        db.execute("UPDATE instances SET removed = ? WHERE study = ? AND removed IS NULL", (time.time(), study))
        note(db, study, "removed", files=len(files), bytes=sum(size for _, size in files))
        atna.enqueue(db, told)
    crash_point("removal-noted")
    for file, _ in files:
        station.spool().drop(file)
    crash_point("files-removed")
    return True


def _kept_bytes(journal: Journal) -> int:
    return tallies.by_state(journal, "spool_bytes").get("kept", 0)


def _clock_stands(journal: Journal) -> bool:
    """Whether the wall clock goes as the boot's own does: what leapt makes nothing old for a day, nor does a new boot's
    for an hour, in which it may be set right."""
    now = (boot_id(), time.time() - ticks(), ticks())
    boot, offset, tick = (journal.fact(CLOCK) or "  ").split(" ", 2)
    if boot != now[0]:
        journal.set_fact(CLOCK, f"{now[0]} {now[1]} {now[2] - DAY_S + JUMP_S}")
        return False
    if abs(now[1] - float(offset)) > JUMP_S:
        LOG.warning("event=clock_leapt seconds=%.0f files_kept_s=%.0f", now[1] - float(offset), DAY_S)
        journal.set_fact(CLOCK, f"{now[0]} {now[1]} {now[2]}")
        return False
    return now[2] - float(tick) > DAY_S
