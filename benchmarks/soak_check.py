"""The daemon's contract, checked from outside: tables of the journal, files, hashes, and what the archive has.

    python benchmarks/soak_check.py OUT/failed-1

reads `state/`, `archive/` and `acknowledged.jsonl` there and prints what is wrong. No code of the daemon is used.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
from soak_load import MINIMUM, Item, digest_of, read_items

HEARTBEAT_S = 3.0
TERMINAL = ("reported", "no-result", "conflict")


@dataclass(frozen=True, slots=True)
class Report:
    """One row of `reports`."""

    id: int
    sop: str
    study: str
    model: str
    content: bytes
    predecessor: str | None
    current: bool


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that the check looks at.

    Attributes:
        rows: (SOP Instance UID, digest, file, state, study, whether retention removed the file) of `instances`.
        archived: UID -> digest of its data set -> order of arrival.
        deliveries: how many are in each state.
    """

    state: Path
    items: Sequence[Item]
    rows: Sequence[tuple[str, str, str, str, str, int]]
    reports: Sequence[Report]
    archived: Mapping[str, Mapping[str, int]]
    deliveries: Mapping[str, int]
    journal: str


def gather(state: Path, items: Sequence[Item], archive: Path) -> Evidence:
    """Read it all; the daemon may be running, but should be idle."""
    archived: dict[str, dict[str, int]] = defaultdict(dict)
    for path in sorted(archive.glob("*.dcm")):
        number, uid, _ = path.name.split("-")
        archived[uid][digest_of(path.read_bytes())] = int(number)
    with closing(sqlite3.connect(state / "journal.sqlite", timeout=30)) as db:
        return Evidence(
            state,
            items,
            db.execute("SELECT sop, digest, file, state, study, removed IS NOT NULL FROM instances").fetchall(),
            [
                Report(*row[:6], bool(row[6]))
                for row in db.execute(
                    "SELECT id, sop, study, model, content, predecessor, current FROM reports ORDER BY id"
                )
            ],
            archived,
            dict(db.execute("SELECT state, COUNT(*) FROM deliveries GROUP BY state").fetchall()),
            sound(state / "journal.sqlite"),
        )


def sound(journal: Path) -> str:
    """What SQLite finds wrong with a journal, once it has recovered it; "" if it is well."""
    try:
        with closing(sqlite3.connect(journal, timeout=30)) as db:
            found = "; ".join(str(row[0]) for row in db.execute("PRAGMA integrity_check").fetchall())
    except sqlite3.Error as error:
        return str(error)
    return "" if found == "ok" else found


def kept(state: Path, items: Iterable[Item]) -> list[str]:
    """What is wrong with acknowledged instances, whatever the daemon has made of them so far."""
    rows: dict[tuple[str, str], list[tuple[str, str, int]]] = defaultdict(list)
    try:
        with closing(sqlite3.connect(state / "journal.sqlite", timeout=30)) as db:
            for sop, digest, *rest in db.execute("SELECT sop, digest, file, state, removed IS NOT NULL FROM instances"):
                rows[sop, digest].append(tuple(rest))
    except sqlite3.Error as error:
        return [f"lost: {item.sop} ({error})" for item in items]
    return [f"lost: {item.sop} ({problem})" for item in items if (problem := _loss(state, item, rows))]


def _loss(state: Path, item: Item, rows: Mapping[tuple[str, str], list[tuple[str, str, int]]]) -> str:
    found = rows.get((item.sop, item.digest), [])
    if len(found) != 1:
        return f"{len(found)} rows"
    ((file, stage, removed),) = found
    path = state / "spool" / file
    if removed:  # by retention, which the configuration asks for
        return "removed before its end" if stage not in TERMINAL else ""
    if not path.is_file():
        return "no file"
    return "" if digest_of(path.read_bytes()) == item.digest else "other bytes"


def problems(found: Evidence) -> Iterator[str]:
    """Every breach of the contract, as `kind: what`."""
    if found.journal:
        yield f"journal: {found.journal}"
    yield from kept(found.state, found.items)
    yield from (f"not_terminal: {sop} is {state}" for sop, _, _, state, *_ in found.rows if state not in TERMINAL)
    yield from _results(found)
    yield from _chains(found)
    yield from _archive(found)
    yield from _strays(found)
    yield from (f"undelivered: {n} deliveries {state}" for state, n in found.deliveries.items() if state != "delivered")


def _results(found: Evidence) -> Iterator[str]:
    """Each study with enough usable images has one current report a model, about exactly its reported images."""
    usable, known = defaultdict(set), {(sop, digest): state for sop, digest, _, state, *_ in found.rows}
    thinned = {study for *_, study, removed in found.rows if removed}  # late images of these may end without a result
    for item in found.items:
        if item.study not in thinned and item.usable and known.get((item.sop, item.digest)) != "conflict":
            usable[item.study].add(item.sop)
    reported = defaultdict(set)
    for sop, _, _, state, study, _ in found.rows:
        if state == "reported":
            reported[study].add(sop)
    current = defaultdict(list)
    for report in found.reports:
        if report.current:
            current[report.study, report.model].append(report)
    models = {report.model for report in found.reports} or {"any"}
    for study, images in usable.items():
        for model in models:
            if len(images) >= MINIMUM and len(current.get((study, model), [])) != 1:
                yield f"results: study {study} has {len(current.get((study, model), []))} current results"
    for (study, _), reports in current.items():
        images = _referenced(reports[0])
        if len(reports) > 1:
            yield f"duplicated_results: study {study} has {len(reports)} current results"
        if images != reported[study] or not usable[study] <= images:
            yield f"results: the report of study {study} is about {len(images)} of {len(reported[study])} images"
        if any(not item.usable for item in found.items if item.study == study):
            yield f"results: study {study} is out of scope and has a result"


def _referenced(report: Report) -> set[str]:
    dataset = pydicom.dcmread(BytesIO(report.content))
    return {
        item.ReferencedSOPInstanceUID
        for study in dataset.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }


def _chains(found: Evidence) -> Iterator[str]:
    """A later report of a study names the one before it, in the journal and in its own bytes."""
    last: dict[tuple[str, str], Report] = {}
    for report in found.reports:
        before = last.get((report.study, report.model))
        if report.predecessor != (before.sop if before else None):
            yield f"predecessor: report {report.sop} does not name the one before it"
        elif report.predecessor is not None and report.predecessor not in _named(report):
            yield f"predecessor: the bytes of report {report.sop} do not name the one before it"
        last[report.study, report.model] = report


def _named(report: Report) -> set[str]:
    dataset = pydicom.dcmread(BytesIO(report.content))
    return {
        item.ReferencedSOPInstanceUID
        for study in dataset.get("PredecessorDocumentsSequence", [])
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }


def _archive(found: Evidence) -> Iterator[str]:
    """The archive has each current report, nothing under two contents, nothing unknown, and each study in order."""
    known = {report.sop: report for report in found.reports}
    for uid, contents in found.archived.items():
        if len(contents) > 1:
            yield f"duplicated_results: {uid} is at the archive with {len(contents)} contents"
        if uid not in known:
            yield f"archive: {uid} is not in the journal"
        elif {digest_of(known[uid].content)} != set(contents):
            yield f"archive: {uid} has other bytes than the journal's"
    for report in found.reports:
        arrived = min(found.archived.get(report.sop, {}).values(), default=None)
        if report.current and arrived is None:
            yield f"missing_at_archive: {report.sop}"
        earlier = min(found.archived.get(report.predecessor or "", {}).values(), default=None)
        if arrived is not None and earlier is not None and earlier > arrived:
            yield f"order: {report.sop} came before the report that it supersedes"


def _strays(found: Evidence) -> Iterator[str]:
    rows = {file for _, _, file, _, _, removed in found.rows if not removed}
    spool = found.state / "spool"
    for path in spool.rglob("*"):
        if path.is_file() and str(path.relative_to(spool)) not in rows:
            yield f"stray: {path.relative_to(found.state)}"
    drafts = [path for path in (found.state / "drafts").rglob("*.part") if path.is_file()]
    hidden = [path for path in found.state.iterdir() if path.name.startswith(".")]
    time.sleep(HEARTBEAT_S if drafts or hidden else 0.0)  # a file that the daemon is just writing is none
    yield from (f"stray: {path.relative_to(found.state)}" for path in (*drafts, *hidden) if path.exists())


def figures(found: Evidence, wrong: Sequence[str]) -> dict[str, Any]:
    """The figures of the contract, and how often each rule was broken."""
    kinds = Counter(line.partition(":")[0] for line in wrong)
    return {
        "acknowledged": len(found.items),
        "lost": kinds.pop("lost", 0),
        "studies": len({item.study for item in found.items}),
        "results": sum(report.current for report in found.reports),
        "superseded": sum(not report.current for report in found.reports),
        "duplicated_results": kinds.pop("duplicated_results", 0),
        "conflicts": sum(state == "conflict" for _, _, _, state, *_ in found.rows),
        "other_problems": dict(kinds),
    }


def main() -> None:
    """Check a directory that a failing soak has kept."""
    root = Path(sys.argv[1])
    found = gather(root / "state", read_items(root / "acknowledged.jsonl"), root / "archive")
    wrong = list(problems(found))
    print("\n".join(wrong))
    print(json.dumps(figures(found, wrong), indent=2))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
