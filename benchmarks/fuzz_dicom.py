"""Hostile files read by `data/dicom.py` as it is, and by `data/contained.py`: crashes, hangs, memory, bare exceptions.

    python benchmarks/fuzz_dicom.py --files 5000 --out results/fuzz

Each of benchmarks/mutations.py's files must be read or refused in one sentence. The direct reader runs in a child that
is started again after a crash or a hang; what failed is kept under OUT/failures. Ends in OUT/fuzz.json; exits 1 if a
file failed. 5,000 files take about three minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import mutations

from hscc_edge import durable
from hscc_edge.data.contained import ContainedReader, Containment
from hscc_edge.data.dicom import read_frames
from hscc_edge.data.limits import MIB, Limits
from hscc_edge.errors import DicomError

SECONDS = 5.0
MEMORY_MIB = 2048
LIMITS = Limits(256 * MIB, 256 * MIB, samples=1 << 26, frames=1 << 16, decoded_bytes=256 * MIB)
FRAMES = 3
UID = re.compile(r"\d+(\.\d+){5,}")


def peak_rss_mib() -> float:
    """Of this process since it started; `ru_maxrss` would begin with what its parent had."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main() -> None:
    """Both readers over all files, or the child's part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/fuzz"))
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--child-from", type=int)
    arguments = parser.parse_args()
    if arguments.child_from is not None:
        child(arguments.corpus, arguments.files, arguments.seed, arguments.child_from)
        return
    failures = arguments.out / "failures"
    failures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        mutations.corpus(Path(folder))  # written once, so that every child has the same
        report = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
            "files": arguments.files,
            "seed": arguments.seed,
            "direct": direct(arguments, Path(folder)),
            "contained": contained(arguments, Path(folder)),
        }
    durable.write_json(arguments.out / "fuzz.json", report)
    failed = {how: report[how]["failed"] for how in ("direct", "contained")}
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    sys.exit(1 if any(failed.values()) else 0)


def attempt(content: bytes) -> str:
    """Read up to three frames; "read", "refused", or what went wrong."""
    try:
        for _ in islice(read_frames(BytesIO(content), limits=LIMITS), FRAMES):
            pass
    except DicomError as error:
        message = str(error)
        return "refused" if len(message.splitlines()) == 1 and not UID.search(message) else f"message: {message}"
    except Exception as error:  # what this looks for
        return f"{type(error).__name__}: {error}"
    return "read"


def child(folder: Path, count: int, seed: int, start: int) -> None:
    """One line of JSON a file, from number `start`."""
    logging.disable(logging.CRITICAL)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY_MIB * MIB
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    files = mutations.corpus(folder)
    for number, (_, content) in enumerate(mutations.mutants(files, count, seed)):
        if number < start:
            continue
        began = time.perf_counter()
        verdict = attempt(content)
        used = peak_rss_mib()
        line = {"number": number, "verdict": verdict, "seconds": time.perf_counter() - began, "rss_mib": used}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def direct(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All files by `read_frames`, in children that are started again where one dies."""
    results: list[dict[str, Any]] = []
    while len(results) < arguments.files:
        command = [
            sys.executable, __file__, "--files", str(arguments.files), "--seed", str(arguments.seed), "--corpus",
            str(folder), "--child-from", str(len(results)),
        ]  # fmt: skip
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            for line in process.stdout or ():
                results.append(json.loads(line))
        if len(results) < arguments.files:
            results.append({"number": len(results), "verdict": f"died with {process.returncode}", "seconds": 0.0,
                            "rss_mib": 0.0})  # fmt: skip
    return summary(arguments, folder, results, "direct")


def contained(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All files by a `ContainedReader`."""
    results, path = [], folder / "mutant.dcm"
    files = mutations.corpus(folder)
    with ContainedReader(Containment(SECONDS, MEMORY_MIB), limits=LIMITS) as reader:
        for number, (_, content) in enumerate(mutations.mutants(files, arguments.files, arguments.seed)):
            path.write_bytes(content)
            began = time.perf_counter()
            try:
                reader.image(path, 0)
                verdict = "read"
            except DicomError as error:
                words = re.search(r"its decoder (crashed|took too long|ended|gave)[^;]*", str(error))
                verdict = words[0] if words else "refused"
            used = peak_rss_mib()
            results.append({"number": number, "verdict": verdict, "seconds": time.perf_counter() - began,
                            "rss_mib": used})  # fmt: skip
    return summary(arguments, folder, results, "contained")


def summary(arguments: argparse.Namespace, folder: Path, results: list[dict[str, Any]], how: str) -> dict[str, Any]:
    """Counts, the slowest, the most memory; failing files are kept."""
    files = mutations.corpus(folder)
    named = list(mutations.mutants(files, arguments.files, arguments.seed))
    failed = [r for r in results if r["verdict"] not in ("read", "refused") or r["seconds"] > SECONDS]
    for result in failed:
        (arguments.out / "failures" / f"{how}-{result['number']:05d}.dcm").write_bytes(named[result["number"]][1])
    kinds = Counter(f"{named[r['number']][0][6:].split(' of ')[0]}: {r['verdict'][:60]}" for r in results)
    return {
        "read": sum(r["verdict"] == "read" for r in results),
        "refused": sum(r["verdict"] == "refused" for r in results),
        "failed": [{**r, "name": named[r["number"]][0]} for r in failed],
        "slowest_s": max(r["seconds"] for r in results),
        "peak_rss_mib": max(r["rss_mib"] for r in results),
        "by_kind": dict(sorted(kinds.items())),
    }


if __name__ == "__main__":
    main()
