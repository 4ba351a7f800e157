"""Studies that ended without a result, and how a person sends them to work again."""

from __future__ import annotations

from dataclasses import dataclass

from hscc_edge.serve.clock import ticks
from hscc_edge.serve.instances import NO_RESULT, RECEIVED
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.timeline import note


@dataclass(frozen=True, slots=True)
class Set:
    """Instances of a study that were set aside for one reason; `removed` of them have no file any more."""

    key: str
    state: str
    reason: str
    count: int
    removed: int
    received: float


def aside(journal: Journal, limit: int = 200) -> list[Set]:
    """What was set aside, newest first, of the newest hundred thousand such instances."""
    rows = journal.read(
        "SELECT s.key, i.state, COALESCE(i.reason, ''), COUNT(*), COUNT(i.removed), MAX(i.received) FROM "
        "(SELECT * FROM instances WHERE state IN ('no-result', 'conflict') ORDER BY id DESC LIMIT 100000) AS i "
        "JOIN studies AS s ON s.uid = i.study GROUP BY s.key, i.state, i.reason ORDER BY 6 DESC LIMIT ?",
        (limit,),
    )
    return [Set(*row) for row in rows]


def release(journal: Journal, study: str) -> int:
    """Let a study be worked on again: its instances without a result whose files are kept; returns how many."""
    with journal.transaction() as db:
        number = db.execute(
            "UPDATE instances SET state = ?, reason = NULL WHERE study = ? AND state = ? AND removed IS NULL",
            (RECEIVED, study, NO_RESULT),
        ).rowcount
        if number:
            db.execute("UPDATE studies SET attempts = 0, not_before = 0, last_tick = ? WHERE uid = ?", (ticks(), study))
            note(db, study, "released", instances=number)
    return int(number)
