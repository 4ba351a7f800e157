"""Whether a state directory is whole: the journal, the files that its rows stand for, and what must always hold."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass

from hscc_edge.serve import audit, instances, outbox, tallies
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.operations.retention import holding
from hscc_edge.serve.station import Station

PAGE = 1000
YOUNG_S = 3600.0
STATES = (instances.RECEIVED, *instances.TERMINAL)
SENDINGS = (outbox.PENDING, outbox.STORED, outbox.DELIVERED, outbox.DEAD, outbox.WITHHELD)
# Each query finds rows that must not be there.
RULES = {
    "an instance in an unknown state": f"SELECT id FROM instances WHERE state NOT IN {STATES}",
    "a delivery in an unknown state": f"SELECT id FROM deliveries WHERE state NOT IN {SENDINGS}",
    "an instance without its study": "SELECT id FROM instances WHERE study NOT IN (SELECT uid FROM studies)",
    "an instance that ended without a result and without a reason": (
        "SELECT id FROM instances WHERE state = 'no-result' AND reason IS NULL"
    ),
    "a reported instance of a study without a report": (
        "SELECT id FROM instances WHERE state = 'reported' AND study NOT IN (SELECT study FROM reports)"
    ),
    "two current reports of one study and model": (
        "SELECT study FROM reports GROUP BY study, model HAVING SUM(current) > 1"
    ),
    "a study whose reports are all superseded": (
        "SELECT study FROM reports GROUP BY study, model HAVING SUM(current) = 0 AND SUM(recalled) = 0"
    ),
    "an ended delivery without a time": (
        "SELECT id FROM deliveries WHERE state IN ('delivered', 'dead') AND ended IS NULL"
    ),
    "a file that was removed before its instance ended": (
        "SELECT id FROM instances WHERE removed IS NOT NULL AND state = 'received'"
    ),
}


@dataclass(frozen=True, slots=True)
class Found:
    """What a check has seen; nothing in `faults` if all is well."""

    instances: int
    bytes: int
    audit_lines: int
    faults: tuple[str, ...]


def check(station: Station, journal: Journal, *, running: bool) -> Found:
    """Look at everything; reads every kept file once.

    Args:
        running: a daemon uses the directory, so that young files need no row yet.
    """
    number = size = lines = 0
    faults: list[str] = []
    try:
        faults += [
            f"the journal is damaged: {text}" for (text,) in journal.read("PRAGMA integrity_check") if text != "ok"
        ]
        faults += ["the journal has a row whose other row is missing" for _ in journal.read("PRAGMA foreign_key_check")]
        faults += list(_rules(journal))
        with holding(station.config.state, exclusive=False):
            number, size, missing = _files(station, journal)
            faults += missing
            faults += list(_strays(station, journal, running))
        lines, broken = audit.verify(station.config.state, station.key, journal)
        faults += [f"audit: {text}" for text in broken]
    except sqlite3.DatabaseError as error:
        faults.append(f"the journal is damaged and cannot be read to its end ({error}): restore a backup")
    return Found(number, size, lines, tuple(faults))


def _rules(journal: Journal) -> Iterator[str]:
    for name, query in RULES.items():
        if found := len(journal.read(query)):
            yield f"{name}: {found}"
    journal.read("BEGIN")  # tables and tallies of one instant, and no writer waits
    try:
        counted = tallies.recount(journal)
        told = {what: tallies.tally(journal, what) for what in tallies.COUNTED}
    finally:
        journal.read("COMMIT")
    yield from (f"the tally of {what} is not the count of its rows" for what in counted if counted[what] != told[what])


def _files(station: Station, journal: Journal) -> tuple[int, int, list[str]]:
    """(instances, bytes, faults); a row that was changed meanwhile is looked at again."""
    number = size = last = 0
    faults, spool = [], station.spool()
    while rows := journal.read(
        "SELECT id, file, digest, bytes, sop FROM instances WHERE removed IS NULL AND id > ? ORDER BY id LIMIT ?",
        (last, PAGE),
    ):
        for last, file, digest, length, sop in rows:
            number, size = number + 1, size + length
            if spool.holds(file, digest):
                continue
            again = journal.read("SELECT file, digest FROM instances WHERE id = ? AND removed IS NULL", (last,))
            if again and not spool.holds(*again[0]):
                state = "damaged" if spool.path(file).exists() else "missing"
                faults.append(f"the file of instance {station.who(sop)} is {state}: send it again")
        station.beat()
    return number, size, faults


def _strays(station: Station, journal: Journal, running: bool) -> Iterator[str]:
    old = time.time() - (YOUNG_S if running else 0.0)
    known, spool = instances.files(journal), station.spool()
    stray = [
        path
        for path in spool.root.iterdir()
        if path.is_file() and path.name not in known and path.stat().st_mtime <= old
    ]
    if stray:
        yield f"{len(stray)} files that no row stands for: the daemon's next start removes them"
