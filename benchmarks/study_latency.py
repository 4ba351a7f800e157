"""From a study's last instance to its report at the archive: one modality at a time, and several at once.

    python benchmarks/study_latency.py --bundle BUNDLE --out docs [--studies 100] [--slices 20] [--senders 0 1 4]

With 0 senders each study is sent when the report of the one before has arrived: the time of a daemon that has nothing
else to do. Else each sender sends study after study without a pause, faster than they are worked on: the time is mostly
that of waiting for those before. What is sent are studies of made-up MR slices by dcmtk's storescu, an association
each; a study is complete when that is released (`[study] on_release`). The time is from the journal: from when its last
instance was committed, hence acknowledged, to when the archive had answered the C-STORE of its report. A study before
the others, whose report loads what makes reports, does not count. Ends in OUT/study-latency.json and .md.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "serve"))

from box import Box, storescu, wait_for

from hscc_edge import durable
from hscc_edge.bundle import read_bundle
from hscc_edge.data.cohort import read_cohort
from hscc_edge.serve.doors.receiver import receive
from hscc_edge.validate.machine import machine_facts

TIMES = (
    "SELECT MAX(i.received), (SELECT MAX(COALESCE(d.sent, d.ended)) FROM deliveries AS d JOIN reports AS r "
    "ON r.id = d.report WHERE r.study = i.study) FROM instances AS i GROUP BY i.study ORDER BY 1"
)
UNSENT = (
    "SELECT (SELECT COUNT(*) FROM instances WHERE state = 'received') + "
    "(SELECT COUNT(*) FROM deliveries WHERE state = 'pending')"
)


def measured(root: Path, bundle: Path, studies: Sequence[Sequence[Path]], senders: int) -> dict[str, Any]:
    """Send all studies by so many senders at once; seconds from the last instance to the delivered report."""
    root.mkdir()
    with receive(root / "archive") as port:
        box = Box(root, bundle, port, quiet_s="30\non_release = true", processes=0)
        with box.running() as own:
            storescu(own, list(studies[0]))  # the first report loads its library
            wait_for(lambda: _settled(root), 120)
            with ThreadPoolExecutor(max(senders, 1)) as pool:
                sent = list(pool.map(lambda files: _sent(own, root, files, wait=not senders), studies[1:]))
            wait_for(lambda: _settled(root), 600)
    if any(len(kept) != len(files) for kept, files in zip(sent, studies[1:], strict=True)):
        raise SystemExit("not every instance was acknowledged: look at the daemon's log")
    with sqlite3.connect(root / "state" / "journal.sqlite") as db:
        rows = db.execute(TIMES).fetchall()
    if len(rows) != len(studies) or any(told is None for _, told in rows):
        raise SystemExit(
            f"{sum(told is not None for _, told in rows)} of {len(studies)} studies have a delivered report"
        )
    seconds = [told - last for last, told in rows[1:]]
    p50, p90, p99 = np.percentile(seconds, (50, 90, 99))
    return {
        "senders": senders,
        "studies": len(seconds),
        "p50_s": p50,
        "p90_s": p90,
        "p99_s": p99,
        "most_s": max(seconds),
    }


def _sent(port: int, root: Path, files: Sequence[Path], *, wait: bool) -> set[Path]:
    found = storescu(port, list(files))
    if wait:
        wait_for(lambda: _settled(root), 120)
    return found


def _settled(root: Path) -> bool:
    with sqlite3.connect(root / "state" / "journal.sqlite") as db:
        return not db.execute(UNSENT).fetchone()[0]


def markdown(found: Mapping[str, Any]) -> str:
    """One row for each number of senders."""
    versions = ", ".join(f"{name} {value}" for name, value in found["versions"].items())
    rows = [
        f"| {item['senders'] or 'one study after the other'} | {item['studies']} | {item['p50_s']:.2f} | "
        f"{item['p90_s']:.2f} | {item['p99_s']:.2f} |"
        for item in found["runs"]
    ]
    return "\n".join([
        "# From a study's last instance to its delivered report", "",
        f"Made by `benchmarks/study_latency.py`; {found['machine']}; {found['date']}; {versions}.",
        f"{found['bundle']}, a decision for each {found['unit']}, studies of {found['slices']} slices "
        f"({found['size']} x {found['size']}); modalities (storescu), archive (our receiver, writing files) and "
        "daemon on the same machine. Not run on a Jetson.", "",
        "| senders at once | studies | p50 s | p90 s | p99 s |", "|---|---|---|---|---|", *rows, "",
    ])  # fmt: skip


def main() -> None:
    """Measure each number of senders on a fresh state directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--studies", type=int, default=100)
    parser.add_argument("--slices", type=int, default=20)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--senders", type=int, nargs="+", default=[0, 1, 4])
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        words = ["--patients", told.studies, "--slices", told.slices, "--size", told.size]
        subprocess.run(
            [sys.executable, "-m", "hscc_edge", "cohort", "phantom", root / "cohort", *map(str, words)], check=True
        )
        cohort = read_cohort(root / "cohort")
        studies = [[cohort.path(item) for item in items] for items in cohort.cases("study").values()]
        runs = [measured(root / str(count), told.bundle.resolve(), studies, count) for count in told.senders]
    spec = read_bundle(told.bundle).spec
    found = {
        "bundle": told.bundle.name, "unit": spec.decision["unit"], "slices": told.slices, "size": told.size,
        "runs": runs, **machine_facts(),
    }  # fmt: skip
    durable.write_json(told.out / "study-latency.json", found)
    durable.write_text(told.out / "study-latency.md", markdown(found))
    print(json.dumps(runs))


if __name__ == "__main__":
    main()
