"""Studies: when one is complete, who works on it, and what came of it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hscc_edge.serve.clock import ticks
from hscc_edge.serve.instances import CONFLICT, NO_RESULT, RECEIVED
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.observations import Observed, record
from hscc_edge.serve.outbox import NewDelivery, enqueue
from hscc_edge.serve.timeline import note

PRIORITIES = {"routine": 0, "high": 1, "stat": 2}


@dataclass(frozen=True, slots=True)
class Due:
    """A complete study.

    Attributes:
        attempts: times that work on it began and did not end since the daemon was started.
        crashes: times that the daemon itself was killed during it.
    """

    uid: str = field(repr=False)
    key: str
    priority: int
    attempts: int
    crashes: int
    images: int


@dataclass(frozen=True, slots=True)
class NewReport:
    """A model's report on a study, to become its current one.

    Attributes:
        model: the model's name.
        digest: the bundle's digest.
        sop: the report's SOP Instance UID.
        content: the SR as a DICOM file.
        result: label, probabilities, reason and the like of each case, for pages and messages; no identifier in it.
        deliveries: where it goes and as what.
        predecessor: SOP Instance UID of the report that it says it takes the place of.
    """

    model: str
    digest: str
    sop: str = field(repr=False)
    content: bytes = field(repr=False)
    result: Mapping[str, Any]
    deliveries: Sequence[NewDelivery]
    predecessor: str | None = field(default=None, repr=False)


class StaleReport(Exception):
    """Another report became the current one after this one was made: make it anew."""


def due(journal: Journal, quiet_s: float, *, on_release: bool = False, limit: int = 64) -> list[Due]:
    """Studies with instances to work on of which all seems to be there: stat first, then the longest waiting.

    Those on which work began and did not end come last of their priority. All seems to be there when
    nothing came for `quiet_s`, or as many instances are here as its headers announced, or (`on_release`) the
    association that sent it was released.
    """
    now = ticks()
    rows = journal.read(
        "SELECT uid, key, priority, attempts, crashes, "
        "(SELECT COUNT(*) FROM instances WHERE study = uid AND state = ?) FROM studies "
        "WHERE uid IN (SELECT DISTINCT study FROM instances WHERE state = 'received') "
        "AND not_before <= ? AND (last_tick <= ? OR (released AND ?) OR "
        "(SELECT COUNT(*) FROM instances WHERE study = uid AND state != ?) >= expected) "
        "ORDER BY priority DESC, attempts + crashes > 0, last_tick LIMIT ?",
        (RECEIVED, now, now - quiet_s, on_release, CONFLICT, limit),
    )
    return [Due(*row) for row in rows]


def release(journal: Journal, studies: Sequence[str]) -> None:
    """The association that sent these studies was released."""
    with journal.transaction() as db:
        db.executemany("UPDATE studies SET released = 1 WHERE uid = ?", [(study,) for study in studies])


def claim(journal: Journal, studies: Sequence[str]) -> None:
    """Work on these begins: if the process dies before `finish`, their `attempts` tell."""
    with journal.transaction() as db:
        for study in studies:
            db.execute("UPDATE studies SET attempts = attempts + 1 WHERE uid = ?", (study,))
            note(db, study, "started")


def postpone(journal: Journal, study: str, seconds: float, reason: str, *, counts: bool) -> None:
    """Work on a study did not succeed: again later. `counts` says whether that was the study's own fault."""
    with journal.transaction() as db:
        db.execute(
            "UPDATE studies SET not_before = ?, attempts = MAX(attempts - ?, 0) WHERE uid = ?",
            (ticks() + seconds, 0 if counts else 1, study),
        )
        note(db, study, "retried", reason=reason)


def begin_life(journal: Journal) -> None:
    """The daemon starts: what it was at when it was killed is due again, and is told from what kills its worker."""
    with journal.transaction() as db:
        db.execute("UPDATE studies SET crashes = crashes + 1, attempts = 0 WHERE attempts > 0")


def finish(
    journal: Journal,
    study: str,
    outcomes: Sequence[tuple[int, str, str | None]],
    reports: Sequence[NewReport],
    observed: Sequence[Observed] = (),
) -> None:
    """Give instances their terminal states and the study its new current reports, all or nothing.

    Args:
        outcomes: (instance id, state, reason).
        observed: what each model saw.
    """
    with journal.transaction() as db:
        db.executemany(
            "UPDATE instances SET state = ?, reason = ? WHERE id = ?",
            [(state, reason, number) for number, state, reason in outcomes],
        )
        db.execute("UPDATE studies SET attempts = 0, crashes = 0, not_before = 0, released = 0 WHERE uid = ?", (study,))
        for report in reports:
            supersede(db, study, report)
        for item in observed:
            record(db, study, item)
        for reason in sorted({str(reason) for _, state, reason in outcomes if state == NO_RESULT}):
            note(db, study, "no-result", reason=reason)


def supersede(db: Any, study: str, report: NewReport) -> bool:
    """Make a report the current one of its study and model, inside a transaction; False if it is so already.

    Raises:
        StaleReport: if it names another predecessor than the current report, say because that was recalled meanwhile.
    """
    old = db.execute(
        "SELECT sop FROM reports WHERE study = ? AND model = ? AND current = 1", (study, report.model)
    ).fetchone()
    if old is not None and old[0] == report.sop:
        return False
    if (old[0] if old else None) != report.predecessor:
        raise StaleReport
    db.execute("UPDATE reports SET current = 0 WHERE study = ? AND model = ?", (study, report.model))
    (number,) = db.execute(
        "INSERT INTO reports (sop, study, model, digest, content, result, predecessor, current, created) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, 1, ?) RETURNING id",
        (
            report.sop, study, report.model, report.digest, report.content, json.dumps(report.result),
            old[0] if old else None, time.time(),
        ),
    ).fetchone()  # fmt: skip
    enqueue(db, number, report.deliveries)
    note(db, study, "reported", model=report.model, digest=report.digest[:12], superseding=old is not None)
    return True


def uid_of(journal: Journal, key: str) -> str | None:
    """The Study Instance UID that a keyed hash stands for."""
    rows = journal.read("SELECT uid FROM studies WHERE key = ?", (key,))
    return str(rows[0][0]) if rows else None
