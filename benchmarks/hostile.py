"""Hostile peers against the daemon as it is: attacks on every door, a good sender beside them, and what must hold.

    python benchmarks/hostile.py --tries 10000 --out results/hostile

The daemon's supervisor must live to the end as the same process, its memory stay bounded, every instance of the good
sender be acknowledged, every attack end as it must, whatever was acknowledged be kept, and nothing be kept that was
refused. Ends in OUT/hostile.json; exits 1 if something else happened.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import pydicom
from pydicom.uid import generate_uid

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "serve"))

import attacks_dicom
import attacks_files
import attacks_http
import attacks_tls
from attacks_dicom import Ledger, Outcome
from box import Box, storescu, wait_for
from pdu_mutations import Association, record
from soak_models import add_arguments, given

from hscc_edge import durable
from hscc_edge.data.cohort import Cohort
from hscc_edge.serve.doors.receiver import receive
from hscc_edge.serve.instances import TERMINAL
from hscc_edge.serve.web.accounts import OPERATOR, accounts_file, add_account

IDLE_S = 2.0
MOST_MIB = 8
HTTP_S = 40.0
# What the attacks may add to the daemon's memory, all its processes together: one object for each of the associations
# that are allowed, and once what one hostile file may take while it is decoded (`data/limits.py`).
BOUND_MIB = 768.0
ACCOUNT, PASSWORD = "operator", "a password of several words"
SETTINGS = {
    "processes": f"2\nidle_s = {IDLE_S}\nmax_object_mib = {MOST_MIB}\n"
    "max_associations = 32\nmax_associations_per_peer = 24",
    "quiet_s": 0.5,
    "more": """
[work]
memory_mib = 512
timeout_s = 30.0
[web]
enabled = true
port = 0
stow = true
[[folder]]
path = "drop"
settle_s = 0.2
""",
}


@dataclass(slots=True)
class Watch:
    """What was seen of the daemon while it was attacked."""

    idle_mib: float = 0.0
    highest_mib: float = 0.0
    sent: int = 0
    acknowledged: int = 0
    slowest_s: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)


def memory_mib(pid: int) -> float:
    """Proportional set size of a process and all below it: pages that are shared count once."""
    total = 0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total / 2**20


@contextmanager
def watched(pid: int, port: int, source: Path, scratch: Path) -> Iterator[Watch]:
    """Measure memory, and send instances as an honest modality does, until the body ends."""
    watch = Watch(idle_mib=memory_mib(pid))
    threads = [
        threading.Thread(target=_measure, args=(watch, pid)),
        threading.Thread(target=_send, args=(watch, port, source, scratch)),
    ]
    for thread in threads:
        thread.start()
    try:
        yield watch
    finally:
        watch.stop.set()
        for thread in threads:
            thread.join()


def _measure(watch: Watch, pid: int) -> None:
    while not watch.stop.wait(0.5):
        try:
            watch.highest_mib = max(watch.highest_mib, memory_mib(pid))
        except psutil.Error:
            return


def _send(watch: Watch, port: int, source: Path, scratch: Path) -> None:
    dataset, path = pydicom.dcmread(source), scratch / "good.dcm"
    while not watch.stop.wait(0.5):
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.StudyInstanceUID = generate_uid()
        dataset.save_as(path)
        began = time.monotonic()
        served = len(storescu(port, [path]))
        watch.acknowledged += served
        watch.sent += 1
        if not served:
            print(f"{time.strftime('%H:%M:%S')} the good sender was not served", file=sys.stderr, flush=True)
        watch.slowest_s = max(watch.slowest_s, time.monotonic() - began)


def attack(
    root: Path, cohort: Cohort, bundle: Path, tries: int, seed: int, leave_out: Collection[str] = (), at_once: int = 1
) -> dict[str, Any]:
    """Run every attack against one daemon; `tries` mutated associations, the others in proportion.

    The daemon's log is left in `root`.

    Args:
        leave_out: names of attacks.
        at_once: so many attacks beside each other; few tries are then over in the time of the slowest.
    """
    source = cohort.path(cohort.instances[0])
    recorded = record(source, root / "recording")
    ledger = Ledger()
    (root / "drop").mkdir()
    with receive(root / "archive") as archive:
        box = Box(root, bundle, archive, **SETTINGS)
        process, port = box.start()
        try:
            add_account(accounts_file(root / "state"), ACCOUNT, OPERATOR, PASSWORD)
            web = int(json.loads((root / "state" / "daemon.json").read_text())["ports"]["web"])
            targets = (
                attacks_dicom.Target(port, recorded, ledger, IDLE_S),
                attacks_http.Target(web, recorded, ledger, HTTP_S, ACCOUNT, PASSWORD),
                attacks_files.Target(port, web, root / "drop", source, ledger, MOST_MIB),
            )
            with watched(process.pid, port, cohort.path(cohort.instances[1]), root) as watch:
                jobs = {name: job for name, job in _jobs(targets, tries, seed) if name not in leave_out}
                jobs["wrong certificates"] = partial(_strangers, root / "tls", bundle, recorded, max(1, tries // 1000))
                with ThreadPoolExecutor(at_once) as pool:
                    outcomes = dict(zip(jobs, pool.map(_run, jobs, jobs.values()), strict=True))
                settled = wait_for(lambda: _settled(root), 300)
            alive = process.poll() is None
        finally:
            process.terminate()
            process.wait(30)
    return _summary(root, box, outcomes, watch, ledger, alive and settled)


def _jobs(targets: tuple[Any, Any, Any], tries: int, seed: int) -> Iterator[tuple[str, Callable[[], Outcome]]]:
    yield "mutated associations", partial(attacks_dicom.mutated, targets[0], tries, seed, senders=8)
    yield "mutated HTTP requests", partial(attacks_http.mutated, targets[1], tries, seed, senders=8)
    for target, module in zip(targets, (attacks_dicom, attacks_http, attacks_files), strict=True):
        for name, (run, count) in module.ATTACKS.items():
            yield name, partial(run, target, max(1, round(count * tries / 10_000)))


def _run(name: str, job: Callable[[], Outcome]) -> Outcome:
    print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr, flush=True)
    return job()


def _strangers(root: Path, bundle: Path, recorded: Association, count: int) -> Outcome:
    with attacks_tls.target(root, bundle, recorded) as doors:
        return attacks_tls.wrong_certificates(doors, count)


def _settled(root: Path) -> bool:
    with sqlite3.connect(root / "state" / "journal.sqlite") as db:
        marks = ", ".join("?" * len(TERMINAL))
        (left,) = db.execute(f"SELECT COUNT(*) FROM instances WHERE state NOT IN ({marks})", TERMINAL).fetchone()
    return not left


def _summary(
    root: Path, box: Box, outcomes: dict[str, Outcome], watch: Watch, ledger: Ledger, alive: bool
) -> dict[str, Any]:
    log = box.log.read_text()
    found: dict[str, Any] = {
        "attacks": {
            name: {"tries": item.tries, "endings": dict(item.endings), "wrong": item.wrong}
            for name, item in outcomes.items()
        },
        "tries": sum(item.tries for item in outcomes.values()),
        "daemon": {
            "alive_and_settled": alive,
            "processes_died": log.count("event=process_died"),
            "processes_hung": log.count("event=process_hangs"),
        },
        "memory": {
            "idle_mib": round(watch.idle_mib, 1), "highest_mib": round(watch.highest_mib, 1), "bound_mib": BOUND_MIB,
        },
        "good_sender": {
            "sent": watch.sent, "acknowledged": watch.acknowledged, "slowest_s": round(watch.slowest_s, 2),
        },
        "instances": kept(root, ledger),
    }  # fmt: skip
    return {**found, "broken": list(broken(found))}


def kept(root: Path, ledger: Ledger) -> dict[str, int]:
    """What is in spool and journal against what the daemon said."""
    with sqlite3.connect(root / "state" / "journal.sqlite") as db:
        rows = db.execute("SELECT sop, file FROM instances").fetchall()
    sops, files = {row[0] for row in rows}, {row[1] for row in rows}
    spool = {path.name for path in (root / "state" / "spool").iterdir()}
    return {
        "acknowledged": len(ledger.acknowledged),
        "acknowledged_lost": len(ledger.acknowledged - sops) + len(files - spool),
        "refused": len(ledger.refused),
        "refused_but_kept": len((ledger.refused - ledger.acknowledged - ledger.unanswered) & sops),
        "kept_without_a_row": len(spool - files),
        "kept_unanswered": len((ledger.unanswered - ledger.acknowledged) & sops),
        "drafts_left": sum(1 for _ in (root / "state").rglob("*.part")),
    }


def broken(found: dict[str, Any]) -> Iterator[str]:
    """What must not be."""
    for name, item in found["attacks"].items():
        if item["wrong"]:
            yield f"{name}: {item['wrong']} ended otherwise than they must"
    if not found["daemon"]["alive_and_settled"]:
        yield "the daemon died, or has not ended its work"
    if found["memory"]["highest_mib"] > found["memory"]["idle_mib"] + found["memory"]["bound_mib"]:
        yield "memory is not bounded"
    if found["good_sender"]["acknowledged"] < found["good_sender"]["sent"] or not found["good_sender"]["sent"]:
        yield "the good sender was not served"
    for name in ("acknowledged_lost", "refused_but_kept", "kept_without_a_row", "drafts_left"):
        if found["instances"][name]:
            yield f"{name}: {found['instances'][name]}"


def main() -> None:
    """Write hostile.json and print it; exit 1 if something is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--tries", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--out", type=Path, default=Path("results/hostile"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        bundle, cohort = given(arguments, root / "small")
        found = attack(root, cohort, bundle, arguments.tries, arguments.seed)
        durable.write_bytes(arguments.out / "daemon.log", (root / "daemon.log").read_bytes())
    machine = {
        "machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version(),
        "pynetdicom": version("pynetdicom"), "date": time.strftime("%Y-%m-%d"), "seed": arguments.seed,
    }  # fmt: skip
    durable.write_json(arguments.out / "hostile.json", {**machine, **found})
    print(json.dumps(found, indent=2))
    sys.exit(1 if found["broken"] else 0)


if __name__ == "__main__":
    main()
