"""kill -9 of the daemon at random moments while dcmtk's storescu sends, then the contract's invariants.

    python benchmarks/kill_daemon.py --bundle BUNDLE --cohort COHORT --points 25

An instance counts as acknowledged when storescu printed success for it. Each of them must be in the spool with its
digest and in exactly one terminal state; each study in scope must have exactly one current report, at the archive.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pydicom

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "serve"))

from box import Box, storescu, wait_for

from hscc_edge.data.cohort import Cohort, read_cohort
from hscc_edge.serve.instances import TERMINAL
from hscc_edge.serve.receiver import receive


def run_points(root: Path, cohort: Cohort, bundle: Path, points: int, seed: int) -> dict[str, Any]:
    """Kill the daemon `points` times while it is sent the cohort, then let it finish and check."""
    choice = random.Random(seed)
    files = [cohort.path(item) for item in cohort.instances]
    acknowledged: set[Path] = set()
    with receive(root / "archive") as archive_port:
        station = Box(root, bundle, archive_port)
        for _ in range(points):
            acknowledged |= _one_point(station, files, choice)
        with station.running() as port:
            acknowledged |= storescu(port, files)
            wait_for(lambda: _settled(root), 120)
        summary = check_invariants(root, cohort, acknowledged)
    return {"points": points, "seed": seed, **summary}


def _one_point(station: Box, files: list[Path], choice: random.Random) -> set[Path]:
    """Start, send some studies from two senders, kill at a random moment; what was acknowledged."""
    process, port = station.start()
    acknowledged: set[Path] = set()
    lock = threading.Lock()

    def send(part: list[Path]) -> None:
        done = storescu(port, part)
        with lock:
            acknowledged.update(done)

    some = choice.sample(files, min(len(files), 30))
    senders = [threading.Thread(target=send, args=(part,)) for part in (some[:15], some[15:])]
    for sender in senders:
        sender.start()
    time.sleep(choice.uniform(0.0, 2.0))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for sender in senders:
        sender.join()
    return acknowledged


def _settled(root: Path) -> bool:
    with sqlite3.connect(root / "state" / "journal.sqlite") as db:
        (open_rows,) = db.execute("SELECT COUNT(*) FROM instances WHERE state = 'received'").fetchone()
        (pending,) = db.execute("SELECT COUNT(*) FROM deliveries WHERE state = 'pending'").fetchone()
        (rows,) = db.execute("SELECT COUNT(*) FROM instances").fetchone()
    return bool(rows and not open_rows and not pending)


def check_invariants(root: Path, cohort: Cohort, acknowledged: set[Path]) -> dict[str, int]:
    """Count what the contract forbids."""
    with sqlite3.connect(root / "state" / "journal.sqlite") as db:
        rows = db.execute("SELECT sop, digest, file, state FROM instances").fetchall()
        current = dict(db.execute("SELECT study, sop FROM reports WHERE current = 1").fetchall())
        doubled = db.execute("SELECT COUNT(*) - COUNT(DISTINCT study) FROM reports WHERE current = 1").fetchone()[0]
    sop_of = {cohort.path(item): item.sop for item in cohort.instances}
    study_of = {cohort.path(item): item.study for item in cohort.instances}
    states: dict[str, list[tuple[str, str, str]]] = {}
    for sop, digest, file, state in rows:
        states.setdefault(sop, []).append((digest, file, state))
    archived = {pydicom.dcmread(path).SOPInstanceUID for path in (root / "archive").glob("*.dcm")}
    studies = {study_of[path] for path in acknowledged}
    return {
        "acknowledged": len(acknowledged),
        "lost": sum(not _kept(root, states.get(sop_of[path], [])) for path in acknowledged),
        "not_terminal": sum(state not in TERMINAL for *_, state in rows),
        "studies": len(studies),
        "results": len(current.keys() & studies),
        "duplicated_results": int(doubled),
        "missing_at_archive": sum(sop not in archived for sop in current.values()),
    }


def _kept(root: Path, found: list[tuple[str, str, str]]) -> bool:
    """Exactly one row, whose file holds the data set with the journal's digest."""
    if len(found) != 1:
        return False
    digest, file, _ = found[0]
    path = root / "state" / "spool" / file
    if not path.is_file():
        return False
    content = path.read_bytes()
    start = 132 + 12 + int.from_bytes(content[140:144], "little")  # preamble, group length element, group 2
    return hashlib.sha256(content[start:]).hexdigest() == digest


def main() -> None:
    """Print one JSON object; exit 1 if an invariant is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--points", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        cohort = read_cohort(arguments.cohort)
        summary = run_points(Path(scratch), cohort, arguments.bundle.resolve(), arguments.points, arguments.seed)
    print(json.dumps(summary))
    broken = ("lost", "not_terminal", "duplicated_results", "missing_at_archive")
    sys.exit(1 if any(summary[key] for key in broken) or summary["results"] != summary["studies"] else 0)


if __name__ == "__main__":
    main()
