"""What the dashboard's pages show of studies and deliveries; every query is bounded, however long the journal is."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import Any

from hscc_edge.serve.clock import ticks
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.tallies import by_state

PAGE, FEW = 50, 10
WINDOW, WINDOWS = 5_000, 10
MANY = 10_000
OPEN, REPORTED, ASIDE, DEAD = "open", "reported", "no-result", "dead"
FILTERS = ("", OPEN, REPORTED, ASIDE, DEAD)
KEY = re.compile(r"[0-9a-f]{1,12}")

HAS_OPEN = "EXISTS (SELECT 1 FROM instances AS i WHERE i.study = s.uid AND i.state = 'received')"
HAS_REPORT = "EXISTS (SELECT 1 FROM reports AS r WHERE r.study = s.uid AND r.current = 1)"
# From a study's reports to their deliveries, never through all open ones; hence the plus: not by that index.
SENDING = (
    "EXISTS (SELECT 1 FROM reports AS r CROSS JOIN deliveries AS d ON d.report = r.id WHERE r.study = s.uid "
    "AND r.current = 1 AND +d.state IN ({states}))"
)
HAS_DEAD, HAS_UNSENT = SENDING.format(states="'dead'"), SENDING.format(states="'pending', 'stored'")
COUNTED = f"(SELECT COUNT(*) FROM (SELECT 1 FROM instances AS i WHERE i.study = s.uid LIMIT {MANY}))"
STUDY = (
    f"SELECT s.key, s.first_byte, s.last_received, s.priority, s.expected, {COUNTED}, {HAS_OPEN}, s.attempts, "
    f"{HAS_REPORT}, {HAS_UNSENT}, {HAS_DEAD}, s.not_before FROM studies AS s "
)
FOUND = {
    OPEN: "SELECT DISTINCT study FROM instances INDEXED BY instances_open WHERE state = 'received'",
    DEAD: "SELECT DISTINCT r.study FROM deliveries AS d CROSS JOIN reports AS r ON r.id = d.report "
    "WHERE d.state = 'dead'",
}
# The few that are shown are chosen before anything is counted of them.
CHOSEN = "WHERE s.uid IN (SELECT o.uid FROM ({found}) AS f CROSS JOIN studies AS o ON o.uid = f.study"
WALKED = {REPORTED: f"NOT {HAS_OPEN} AND {HAS_REPORT}", ASIDE: f"NOT {HAS_OPEN} AND NOT {HAS_REPORT}"}
DELIVERIES = (
    "SELECT d.id, s.key, d.destination, d.form, d.state, d.attempts, d.reason, r.created, d.sent, d.ended, r.model, "
    "d.next_tick, r.current FROM deliveries AS d JOIN reports AS r ON r.id = d.report "
    "JOIN studies AS s ON s.uid = r.study "
)


@dataclass(frozen=True, slots=True)
class StudyRow:
    """One study of a list.

    Attributes:
        instances: at most `MANY` are counted.
        state: receiving, waiting, working, reported or no-result.
        sending: of its current reports: "", unsent or dead.
    """

    key: str
    first_byte: float
    last_received: float
    priority: int
    expected: int | None
    instances: int
    state: str
    sending: str


@dataclass(frozen=True, slots=True)
class Page:
    """Some rows, and where the next page begins.

    Attributes:
        older: `before` of the next page; None at the end.
        cut: the search went as far back as one page may; further back there may be more.
    """

    rows: list[StudyRow]
    older: float | None = None
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Sending:
    """One delivery; `current` is 0 where another report has taken the place of its own."""

    id: int
    key: str
    destination: str
    form: str
    state: str
    attempts: int
    reason: str | None
    created: float
    sent: float | None
    ended: float | None
    model: str
    next_tick: float
    current: int

    @property
    def wait_s(self) -> float:
        """Seconds until its next try."""
        return max(0.0, self.next_tick - ticks())


@dataclass(frozen=True, slots=True)
class Group:
    """Instances of a study that share their state, reason, SOP class and door; `removed` by retention."""

    state: str
    reason: str | None
    sop_class: str
    door: str
    count: int
    bytes: int
    removed: int


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One report of a study; `who` is the keyed hash of its SOP Instance UID."""

    id: int
    sop: str = field(repr=False)
    model: str
    digest: str
    predecessor: str | None = field(repr=False)
    current: int
    recalled: int
    created: float
    content: bytes = field(repr=False)


def studies(journal: Journal, wanted: str, before: float | None, quiet_s: float) -> Page:
    """The studies of a state, those that something came of last first.

    Open ones and those with dead letters are found by their own indices. The others are looked for among all studies
    by time, `WINDOW` at once and at most `WINDOWS` times, so that a page's time does not grow with the journal.
    """
    edge = before if before is not None else 1e18
    if wanted in (OPEN, DEAD):
        chosen = CHOSEN.format(found=FOUND[wanted])
        found = journal.read(
            f"{STUDY} {chosen} WHERE o.last_received < ? ORDER BY o.last_received DESC LIMIT ?) "
            "ORDER BY s.last_received DESC",
            (edge, PAGE + 1),
        )
        return _page([_study(row, quiet_s) for row in found])
    rows: list[StudyRow] = []
    for _ in range(WINDOWS):
        (window,) = journal.read(
            "SELECT COUNT(*), MIN(last_received) FROM (SELECT last_received FROM studies WHERE last_received < ? "
            "ORDER BY last_received DESC LIMIT ?)",
            (edge, WINDOW),
        )
        if not window[0]:
            return _page(rows)
        found = journal.read(
            f"{STUDY} WHERE s.last_received < ? AND s.last_received >= ? AND ({WALKED.get(wanted, '1')}) "
            "ORDER BY s.last_received DESC LIMIT ?",
            (edge, window[1], PAGE + 1 - len(rows)),
        )
        rows += [_study(row, quiet_s) for row in found]
        edge = window[1]
        if len(rows) > PAGE or window[0] < WINDOW:
            return _page(rows)
    return Page(rows, edge, cut=True)


def _page(rows: list[StudyRow]) -> Page:
    return Page(rows[:PAGE], rows[PAGE - 1].last_received if len(rows) > PAGE else None)


def search(journal: Journal, prefix: str, quiet_s: float) -> list[StudyRow]:
    """Studies whose key begins so, in the order of their keys."""
    if not KEY.fullmatch(prefix):
        return []
    rows = journal.read(f"{STUDY} WHERE s.key >= ? AND s.key < ? ORDER BY s.key LIMIT ?", (prefix, prefix + "g", PAGE))
    return [_study(row, quiet_s) for row in rows]


def study(journal: Journal, uid: str, quiet_s: float) -> StudyRow:
    """One study of which the UID is known."""
    return _study(journal.read(f"{STUDY} WHERE s.uid = ?", (uid,))[0], quiet_s)


def in_hand(journal: Journal, quiet_s: float, limit: int = 12) -> list[StudyRow]:
    """Open studies as the worker takes them: stat first, then the longest waiting."""
    rows = journal.read(
        f"{STUDY} {CHOSEN.format(found=FOUND[OPEN])} ORDER BY o.priority DESC, o.last_tick LIMIT ?) "
        "ORDER BY s.priority DESC, s.last_tick",
        (limit,),
    )
    return [_study(row, quiet_s) for row in rows]


def _study(row: tuple[Any, ...], quiet_s: float) -> StudyRow:
    key, first, last, priority, expected, count, is_open, attempts, reported, unsent, dead, not_before = row
    if is_open:
        late = not_before > ticks()
        state = "working" if attempts and not late else "waiting"
        if not attempts and not late and time.time() - last < quiet_s and (expected is None or count < expected):
            state = "receiving"
    else:
        state = "reported" if reported else "no-result"
    sending = "dead" if dead else "unsent" if unsent else ""
    return StudyRow(key, first, last, priority, expected, count, state, sending)


def groups(journal: Journal, uid: str) -> list[Group]:
    """A study's instances by state and reason; at most `MANY` are looked at."""
    rows = journal.read(
        "SELECT state, reason, sop_class, door, COUNT(*), SUM(bytes), COUNT(removed) FROM (SELECT * FROM instances "
        "WHERE study = ? LIMIT ?) GROUP BY 1, 2, 3, 4 ORDER BY 5 DESC LIMIT ?",
        (uid, MANY, PAGE),
    )
    return [Group(*row) for row in rows]


def reports(journal: Journal, uid: str) -> list[ReportRow]:
    """A study's reports, newest first."""
    rows = journal.read(
        "SELECT id, sop, model, digest, predecessor, current, recalled, created, content FROM reports WHERE study = ? "
        "ORDER BY id DESC LIMIT ?",
        (uid, FEW),
    )
    return [ReportRow(*row) for row in rows]


def deliveries(journal: Journal, uid: str) -> list[Sending]:
    """What is and was sent of a study, newest first."""
    return _sendings(journal.read(f"{DELIVERIES} WHERE r.study = ? ORDER BY d.id DESC LIMIT ?", (uid, PAGE)))


def dead_letters(journal: Journal, before: int | None) -> list[Sending]:
    """What only a person can send again, newest first; one more than a page if there are more."""
    edge = before if before is not None else 1 << 62
    return _sendings(
        journal.read(f"{DELIVERIES} WHERE d.state = 'dead' AND d.id < ? ORDER BY d.id DESC LIMIT ?", (edge, PAGE + 1))
    )


def unsent(journal: Journal) -> list[Sending]:
    """What is to be sent or committed to, oldest first."""
    rows = journal.read(f"{DELIVERIES} WHERE d.state IN ('pending', 'stored') ORDER BY d.id LIMIT ?", (PAGE,))
    return _sendings(rows)


def _sendings(rows: list[tuple[Any, ...]]) -> list[Sending]:
    return [Sending(*row) for row in rows]


def queue(journal: Journal) -> dict[str, int]:
    """How much is open now; open studies are counted up to `MANY`."""
    waiting, sending = by_state(journal, "instances"), by_state(journal, "deliveries")
    count = f"SELECT COUNT(*) FROM ({FOUND[OPEN]} LIMIT ?)"
    return {
        "studies": int(journal.read(count, (MANY,))[0][0]),
        "instances": waiting.get("received", 0),
        **{state: sending.get(state, 0) for state in ("pending", "stored", "dead")},
    }
