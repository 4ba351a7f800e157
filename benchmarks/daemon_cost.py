"""What the daemon costs: import time, memory when idle, and what it adds to bare inference when studies are waiting.

    python benchmarks/daemon_cost.py --bundle BUNDLE... --out docs [--patients 40] [--slices 20] [--size 512]

Studies of made-up MR slices are sent by dcmtk's storescu while the daemon holds them back; then it is started anew, and
two times are read from the journal's timeline: from the first study's begin to the last one's end, in which the network
is started and what writes reports is imported, and from the end of their first quarter, which is saturation as it goes
on. Processor time is what each of the daemon's processes used from the first tenth of the images on. Bare inference is
one call of the same runtime on the same number of images, before and after, in this process.
Ends in OUT/daemon-cost.json and .md.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "serve"))

from box import Box, storescu, wait_for
from intake_servers import SERVERS

from hscc_edge import durable
from hscc_edge.bundle import read_bundle
from hscc_edge.data.cohort import read_cohort
from hscc_edge.data.dicom import read_image
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.model.decision import parse_rule
from hscc_edge.runtime import infer_each, open_runtime
from hscc_edge.validate.machine import machine_facts

IMPORTS = """
from hscc_edge.lean import UNUSED, without
with without(*UNUSED):
    import hscc_edge.serve.daemon, hscc_edge.runtime.ort
"""
ROUNDS = 7
SETTLE_S, LEAST_MS = 10.0, 0.1
WARM_UP_SHARE = 4  # the first of so many parts is not counted where saturation is meant
IDLE_LIMIT_MB, IMPORT_LIMIT_S, OVERHEAD_LIMIT = 150, 1.0, 0.10


def import_s(code: str) -> float:
    """Median seconds that importing takes in a fresh process, beyond Python's own start."""

    def once(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - start

    pairs = [(once("pass"), once(code)) for _ in range(ROUNDS)]
    return float(np.median([own - bare for bare, own in pairs]))


def memory_mb(pid: int) -> list[dict[str, float]]:
    """Resident and proportional set size in MB of a process and all that come from it (proc(5), smaps_rollup)."""
    first = psutil.Process(pid)
    found = [process.memory_full_info() for process in (first, *first.children(recursive=True))]
    return [{"rss_mb": item.rss / 1e6, "pss_mb": item.pss / 1e6} for item in found]


def idle(root: Path, bundle: Path) -> dict[str, Any]:
    """The daemon's memory after it has served nothing for a while."""
    with SERVERS["storescp"](root / "archive") as archive:
        box = Box(root, bundle, archive.port, processes=2)
        process, _ = box.start()
        try:
            time.sleep(SETTLE_S)
            found = memory_mb(process.pid)
        finally:
            process.terminate()
            process.wait(30)
    graph = bundle / "models" / "model.onnx"
    return {
        "bundle": bundle.name, "graph_mb": graph.stat().st_size / 1e6, "processes": found,
        "pss_mb": sum(item["pss_mb"] for item in found),
    }  # fmt: skip


def saturated(root: Path, bundle: Path, files: list[Path]) -> tuple[float, float, dict[str, float]]:
    """Seconds from the begin of the first study to the end of the last, all waiting from the start.

    Then seconds of all of them at the rate after the first quarter (each has as many images), and milliseconds of
    processor time an image, by what a process is called.
    """
    with SERVERS["storescp"](root / "archive") as archive:
        held = Box(root, bundle, archive.port, quiet_s=86_400, processes=2)
        with held.running() as own:
            kept = storescu(own, files)
        if len(kept) != len(files):
            raise SystemExit(f"{len(kept)} of {len(files)} instances were acknowledged")
        box = Box(root, bundle, archive.port, quiet_s=0, processes=1)
        process, _ = box.start()
        try:
            wait_for(lambda: box.states().get("received", 0) < 0.9 * len(files), 1800)
            left, before = box.states().get("received", 0), processor_s(process.pid)
            wait_for(lambda: "received" not in box.states(), 1800)
            after = processor_s(process.pid)
        finally:
            process.terminate()
            process.wait(30)
    with sqlite3.connect(root / "state" / "journal.sqlite") as db:
        (first,) = db.execute("SELECT MIN(time) FROM events WHERE kind = 'started'").fetchone()
        found = "SELECT MAX(time) FROM events WHERE kind IN ('reported', 'no-result') GROUP BY study ORDER BY 1"
        ends = [end for (end,) in db.execute(found)]
    quarter = len(ends) // WARM_UP_SHARE
    warm_s = (ends[-1] - ends[quarter - 1]) * len(ends) / (len(ends) - quarter)
    each = {name: 1000 * (after[name] - before.get(name, 0.0)) / left for name in after}
    return ends[-1] - first, warm_s, each


def processor_s(pid: int) -> dict[str, float]:
    """Seconds of processor time of a process and all that come from it, by name; like ones count together."""
    found: dict[str, float] = {}
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        name = process.name().removeprefix("hscc-") if process.pid != pid else "supervisor"
        found[name] = found.get(name, 0.0) + sum(process.cpu_times()[:2])
    return found


def bare_s(bundle: Path, files: list[Path], images: int) -> float:
    """Seconds of inference alone: `images` calls on the first images' pixels."""
    opened = read_bundle(bundle)
    preprocess = parse_preprocess(opened.spec.preprocess)
    pixels = [preprocess(read_image(path)) for path in files[:16]]
    runtime = open_runtime(opened)
    try:
        infer_each(runtime, pixels)
        start = time.perf_counter()
        for number in range(images):
            infer_each(runtime, [pixels[number % len(pixels)]])
        return time.perf_counter() - start
    finally:
        runtime.close()


def load(root: Path, bundle: Path, files: list[Path]) -> dict[str, Any]:
    """One bundle's studies through the daemon, between two measurements of bare inference."""
    root.mkdir()
    before = bare_s(bundle, files, len(files))
    seen, warm_s, processor_ms = saturated(root, bundle, files)
    bare = [before, bare_s(bundle, files, len(files))]
    spec = read_bundle(bundle).spec
    mean = float(np.mean(bare))
    return {
        "bundle": bundle.name, "unit": parse_rule(spec.decision).unit, "bare_s": bare, "saturated_s": seen,
        "bare_ms": 1000 * mean / len(files), "daemon_ms": 1000 * seen / len(files), "overhead": seen / mean - 1,
        "warm_s": warm_s, "warm_ms": 1000 * warm_s / len(files), "warm_overhead": warm_s / mean - 1,
        "processor_ms": processor_ms,
    }  # fmt: skip


def by_time(processor_ms: Mapping[str, float]) -> list[tuple[str, float]]:
    """Processes, the busiest first."""
    return sorted(processor_ms.items(), key=lambda item: -item[1])


def markdown(found: Mapping[str, Any]) -> str:
    """The figures beside what is asked of them."""
    rows = [
        ("import of daemon and runtime", f"{found['import_s']:.2f} s", f"below {IMPORT_LIMIT_S:g} s"),
    ]
    rows += [
        (f"memory when idle, all processes (PSS), with {item['bundle']}, whose graph has {item['graph_mb']:.1f} MB",
         f"{item['pss_mb']:.0f} MB", f"below {IDLE_LIMIT_MB} MB")
        for item in found["idle"]
    ]  # fmt: skip
    rows += [
        (f"{item['bundle']}, a decision for each {item['unit']}: end to end over bare inference",
         f"{item['warm_overhead']:+.0%} ({item['warm_ms']:.1f} ms an image over {item['bare_ms']:.1f}); "
         f"with the start {item['overhead']:+.0%} ({item['daemon_ms']:.1f} ms)",
         f"at most {OVERHEAD_LIMIT:+.0%}")
        for item in found["loads"]
    ]  # fmt: skip
    rows += [
        (f"{item['bundle']}, a decision for each {item['unit']}: processor time an image, by process",
         ", ".join(f"{name} {value:.1f}" for name, value in by_time(item["processor_ms"]) if value >= LEAST_MS) + " ms",
         "")
        for item in found["loads"]
    ]  # fmt: skip
    versions = ", ".join(f"{name} {value}" for name, value in found["versions"].items())
    return "\n".join([
        "# What the daemon costs", "",
        f"Made by `benchmarks/daemon_cost.py`; {found['machine']}; {found['date']}; {versions}.",
        "Not run on a Jetson.", "",
        "| what | seen | asked |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows), "",
        f"Load: {found['studies']} studies of {found['slices']} slices ({found['size']} x {found['size']}); "
        "all wait; from the end of the first quarter, and from the first's begin, to the last's end, with decoding, "
        "preprocessing, reports and journal. "
        "Inference alone: ONNX Runtime on one thread, one image a call, before and after.", "",
    ])  # fmt: skip


def main() -> None:
    """Measure the three, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--patients", type=int, default=40)
    parser.add_argument("--slices", type=int, default=20)
    parser.add_argument("--size", type=int, default=512)
    told = parser.parse_args()
    bundles = [path.resolve() for path in told.bundle]
    found: dict[str, Any] = {"import_s": import_s(IMPORTS), "slices": told.slices, "size": told.size}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for number, bundle in enumerate(bundles):
            (root / f"idle-{number}").mkdir()
            found.setdefault("idle", []).append(idle(root / f"idle-{number}", bundle))
        words = ["--patients", told.patients, "--slices", told.slices, "--size", told.size]
        subprocess.run(
            [sys.executable, "-m", "hscc_edge", "cohort", "phantom", root / "cohort", *map(str, words)], check=True
        )
        cohort = read_cohort(root / "cohort")
        files = [cohort.path(item) for item in cohort.instances]
        found["loads"] = [load(root / f"load-{number}", bundle, files) for number, bundle in enumerate(bundles)]
    found |= {"studies": told.patients, "images": len(files), **machine_facts()}
    durable.write_json(told.out / "daemon-cost.json", found)
    durable.write_text(told.out / "daemon-cost.md", markdown(found))
    print(json.dumps({"import_s": found["import_s"], "loads": found["loads"]}))


if __name__ == "__main__":
    main()
