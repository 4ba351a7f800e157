"""Models are switched and gone back from while studies come in: nothing is lost, doubled, or held up.

    .venv/bin/python benchmarks/model_switch.py --out results/switch [--studies 120] [--switches 20]

A real daemon is sent studies by dcmtk's storescu, without a pause, while other processes activate a later version of
its bundle and roll back from it by turns. Then each acknowledged instance must be in one terminal state, and each study
must have exactly one current report, which is at the archive. Ends in model_switch.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import pydicom

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "serve"))

from box import Box, storescu, wait_for
from small_model import recipe, trained

from hscc_edge import durable
from hscc_edge.bundle import read_bundle, rewrite
from hscc_edge.data.cohort import Cohort, read_cohort
from hscc_edge.data.phantom import write_phantom
from hscc_edge.serve.doors.receiver import receive
from hscc_edge.serve.instances import TERMINAL
from hscc_edge.validate.machine import machine_facts


def main() -> None:
    """Print one JSON object and write it; exit 1 if anything was lost or doubled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--studies", type=int, default=120)
    parser.add_argument("--switches", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = switched(Path(scratch), arguments.studies, arguments.switches)
    durable.write_json(arguments.out / "model_switch.json", {"machine": machine_facts(), **found})
    print(json.dumps(found))
    sys.exit(1 if found["not_terminal"] or found["without_report"] or found["doubled"] or found["not_archived"] else 0)


def switched(root: Path, studies: int, switches: int) -> dict[str, Any]:
    """Send, switch, wait, count."""
    cohort, first, second = prepare(root, studies)
    files = [cohort.path(item) for item in cohort.instances]
    with receive(root / "archive") as port:
        station = Box(root, first, port, quiet_s=0.2)
        config = station.config.read_text(encoding="utf-8")
        station.config.write_text(config.replace(f'bundle = "{first}"', f'bundle = "{first}"\nname = "tiny"'))
        with station.running() as own:
            command(root, "install", str(second))
            sent: set[Path] = set()
            sender = threading.Thread(target=lambda: sent.update(*[storescu(own, part) for part in parts(files)]))
            sender.start()
            for number in range(switches):
                switch(root, read_bundle(second).digest, number)
            sender.join()
            wait_for(lambda: settled(root), 300)
        return {"switches": switches, "acknowledged": len(sent), **counted(root, cohort, sent)}


def prepare(root: Path, studies: int) -> tuple[Cohort, Path, Path]:
    """Studies, a bundle, and a later version that is less sure."""
    cohort = write_phantom(root / "cohort", patients=studies, slices=3, size=64, seed=1)
    (root / "tiny.toml").write_text(recipe(), encoding="utf-8")
    trained(root / "tiny.toml", cohort.root, root / "first", "--images", "8", "--precision", "fp32")
    shutil.copytree(root / "first", root / "second")
    found = read_bundle(root / "second")
    rewrite(found, {}, decision={**found.spec.decision, "temperature": 3.0})
    return read_cohort(cohort.root), root / "first", root / "second"


def parts(files: list[Path]) -> list[list[Path]]:
    """Associations of a few studies each."""
    return [files[start : start + 9] for start in range(0, len(files), 9)]


def command(root: Path, *words: str) -> None:
    """`hscc-edge models ...` in a process of its own, as an operator runs it."""
    subprocess.run(
        [sys.executable, "-m", "hscc_edge", "models", words[0], str(root / "serve.toml"), *words[1:], "--json"],
        check=True, capture_output=True,
    )  # fmt: skip


def switch(root: Path, second: str, number: int) -> None:
    """Activate or roll back by turns."""
    if number % 2 == 0:
        command(root, "activate", second)
    else:
        command(root, "rollback", "--reason", "a test")
    time.sleep(0.5)


def settled(root: Path) -> bool:
    """Whether nothing is left to be worked on or sent."""
    with sqlite3.connect(root / "state" / "journal.sqlite") as db:
        (waiting,) = db.execute("SELECT COUNT(*) FROM instances WHERE state = 'received'").fetchone()
        (pending,) = db.execute("SELECT COUNT(*) FROM deliveries WHERE state = 'pending'").fetchone()
    return not waiting and not pending


def counted(root: Path, cohort: Cohort, sent: set[Path]) -> dict[str, Any]:
    """What the contract forbids, and how reports went over from one bundle to the other."""
    with sqlite3.connect(root / "state" / "journal.sqlite") as db:
        states = dict(db.execute("SELECT sop, state FROM instances").fetchall())
        reports = db.execute("SELECT study, sop, digest, created FROM reports WHERE current = 1").fetchall()
        moments = [at for (at,) in db.execute("SELECT time FROM events WHERE kind IN ('activated', 'rolled-back')")]
        failed = db.execute("SELECT COUNT(*) FROM observations WHERE failed IS NOT NULL").fetchone()[0]
    study_of = {cohort.path(item): item.study for item in cohort.instances}
    sop_of = {cohort.path(item): item.sop for item in cohort.instances}
    wanted = {study_of[path] for path in sent}
    archived = {str(pydicom.dcmread(path).SOPInstanceUID) for path in (root / "archive").glob("*.dcm")}
    held = [row[0] for row in reports]
    gaps = [min((made - at for *_, made in reports if made > at), default=None) for at in moments[1:]]
    known = [gap for gap in gaps if gap is not None]
    return {
        "studies": len(wanted),
        "not_terminal": sum(states.get(sop_of[path]) not in TERMINAL for path in sent),
        "without_report": len(wanted - set(held)),
        "doubled": len(held) - len(set(held)),
        "not_archived": sum(sop not in archived for _, sop, *_ in reports),
        "reports_by_bundle": sorted(sum(row[2] == digest for row in reports) for digest in {row[2] for row in reports}),
        "failed": failed,
        "median_s_to_next_report": round(median(known), 3) if known else None,
        "longest_s_to_next_report": round(max(known), 3) if known else None,
    }


if __name__ == "__main__":
    main()
