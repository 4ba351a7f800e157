"""What it costs to index a folder of DICOM files: our scan against a loop over `pydicom.dcmread`.

    python benchmarks/scan.py --files 20000 --out DIR [--scratch DIR] [--size 500000] [--rounds 2]

Writes a tree of files of `--size` bytes, each with pixels of its own and no links among them, below the scratch
directory; as many as the disk holds if it does not hold all. Every way runs in a process of its own, in turn,
`--rounds` times, once after the kernel was told to drop the files from its cache (POSIX_FADV_DONTNEED: the host of a
virtual disk may hold them still) and once with what the run before left there. Times are those of the work without the
start of Python; processor times are those of the process and its children, start included. Memory is the greatest sum
of the resident sets of a process and its children: shared pages count more than once. Ends in OUT/scan.json and
OUT/scan.md; the tree is removed.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pydicom
from pydicom.data import get_testdata_file

from hscc_edge import durable
from hscc_edge.data.facts import facts_of
from hscc_edge.data.scan import scan

LOOPS = {
    "dcmread, loop": lambda path: pydicom.dcmread(path, stop_before_pixels=True),
    "dcmread and facts, loop": lambda path: facts_of(pydicom.dcmread(path, stop_before_pixels=True)),
    "dcmread and sha256, loop": lambda path: hashed(Path(path).read_bytes()),
}
SCANS = {
    "scan, 1 job": {"digest": False, "jobs": 1},
    "scan, 2 jobs": {"digest": False, "jobs": 2},
    "scan with sha256, 1 job": {"digest": True, "jobs": 1},
    "scan with sha256, 2 jobs": {"digest": True, "jobs": 2},
}
WAYS = (*LOOPS, *SCANS)
PARTS = 4
SMALLEST = 2000
SAMPLE_S = 0.02


def main() -> None:
    """Make the tree, run every way, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--way", nargs=3, metavar=("NAME", "TREE", "INDEX"), help="run one way: used by the script")
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(one_way(arguments.way[0], Path(arguments.way[1]), Path(arguments.way[2]))))
        return
    if arguments.files < SMALLEST:
        parser.error(f"--files is {arguments.files}: expected {SMALLEST} at least, so that a quarter starts processes")
    if not arguments.out:
        parser.error("--out is missing: name the directory of the tables")
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        table = measure(Path(scratch), arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    durable.write_json(arguments.out / "scan.json", table)
    durable.write_text(arguments.out / "scan.md", markdown(table))


def measure(scratch: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every way in turn, cold and warm, then the growth of the memory."""
    from hscc_edge.validate.machine import machine_facts

    tree = scratch / "tree"
    files = min(arguments.files, int(shutil.disk_usage(scratch).free * 0.8 / arguments.size)) // PARTS * PARTS
    print(f"writing {files} files of {arguments.size} bytes", file=sys.stderr, flush=True)
    write_tree(tree, files, arguments.size)
    rows = []
    for number in range(arguments.rounds):
        for name in WAYS:
            for state in ("cold", "warm"):
                if state == "cold":
                    drop_cache(tree)
                (scratch / "index").unlink(missing_ok=True)
                rows.append({"way": name, "state": state, "round": number, **run(name, tree, scratch / "index")})
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    (scratch / "index").unlink()
    part = run("scan with sha256, 2 jobs", tree / "part0", scratch / "index")
    whole = [row["peak_mib"] for row in rows if row["way"] == "scan with sha256, 2 jobs"]
    growth = (statistics.median(whole) - part["peak_mib"]) / (files - files // PARTS) * 1e5
    return {
        **machine_facts(), "load": os.getloadavg()[0], "memory_gib": psutil.virtual_memory().total / 2**30,
        "file_system": file_system(arguments.scratch), "files": files, "size_bytes": arguments.size, "rows": rows,
        "peak_mib_of_a_quarter": part["peak_mib"], "growth_mib_per_100k_files": growth,
    }  # fmt: skip


def write_tree(root: Path, count: int, size: int) -> None:
    """A CT's headers with UIDs and pixels of their own, 100 files a series and 500 a patient, names without suffix."""
    path = get_testdata_file("CT_small.dcm", download=False)
    dataset = pydicom.dcmread(str(path))
    start = len(Path(str(path)).read_bytes()) - len(dataset.PixelData)
    dataset.Columns = 512
    dataset.Rows = max((size - start) // 1024, 1)
    length = dataset.Rows * 1024
    noise = np.random.default_rng(1).bytes(length + count)
    for number in range(count):
        patient, series = number // 500, number // 100
        folder = root / f"part{number * PARTS // count}" / f"{patient:05d}" / f"{series:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        dataset.PatientID = f"P{patient}"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"2.25.1.{patient}", f"2.25.2.{series}"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"2.25.3.{number}"
        dataset.PixelData = noise[number : number + length]
        dataset.save_as(folder / f"{number:08d}")
    os.sync()


def files_below(root: Path) -> Iterator[str]:
    """Every file's path."""
    return (os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names)


def drop_cache(root: Path) -> None:
    """Ask the kernel to forget what it holds of every file."""
    for path in files_below(root):
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def run(name: str, tree: Path, index: Path) -> dict[str, Any]:
    """One way in a process of its own, watched for its memory."""
    command = [sys.executable, __file__, "--way", name, str(tree), str(index)]
    before = os.times()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peak, watched = 0, psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, resident(watched))
            time.sleep(SAMPLE_S)
        output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise SystemExit(f"{name} ended with {process.returncode}: see above")
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return {**json.loads(output), "cpu_s": cpu_s, "peak_mib": peak / 2**20}


def resident(process: psutil.Process) -> int:
    """Resident sets of a process and its descendants, bytes; of those that have ended meanwhile, none."""
    total = 0
    try:
        for member in (process, *process.children(recursive=True)):
            total += member.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total


def one_way(name: str, tree: Path, index: Path) -> dict[str, Any]:
    """Seconds of one way; of a scan also those of a second one, which finds nothing changed."""
    started = time.perf_counter()
    if name in LOOPS:
        images = sum(LOOPS[name](path) is not None for path in files_below(tree))
        return {"seconds": time.perf_counter() - started, "images": images}
    first = scan(tree, index, **SCANS[name])
    second = scan(tree, index, **SCANS[name])
    return {
        "seconds": first.seconds, "images": first.kinds["image"], "second_s": second.seconds,
        "second_read": second.read, "index_mib": index.stat().st_size / 2**20,
    }  # fmt: skip


def hashed(content: bytes) -> pydicom.FileDataset:
    """The headers and, beside them, the digest of one file that is read once."""
    hashlib.sha256(content).hexdigest()
    return pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)


def file_system(path: Path) -> str:
    """The type of the file system that holds `path`."""
    mounts = [part for part in psutil.disk_partitions(all=True) if path.resolve().is_relative_to(part.mountpoint)]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown"


def markdown(table: dict[str, Any]) -> str:
    """Medians over the rounds."""
    size = table["files"] * table["size_bytes"] / 1e9
    lines = [
        f"`benchmarks/scan.py`: {table['files']} files of {table['size_bytes'] / 1e6:.1f} MB ({size:.1f} GB, "
        f"{table['file_system']}), medians of {len({row['round'] for row in table['rows']})} rounds, the ways in turn. "
        f"{table['machine']}, {table['memory_gib']:.0f} GiB, load {table['load']:.1f} at the end; {table['date']}; "
        f"pydicom {table['versions']['pydicom']}.",
        "",
        "Cold: the kernel was told to drop the files (the host of a virtual disk may hold them still). Warm: as the "
        "run before left the cache. Processor seconds, start and second scan included, are of the warm runs; the time "
        "of the second scan, which opens no file, stands last.",
        "",
        "| way | cold s | files/s | warm s | files/s | processor s | peak MiB | second scan s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in WAYS:
        cold, warm = (median(table, name, state, "seconds") for state in ("cold", "warm"))
        peak = max(row["peak_mib"] for row in table["rows"] if row["way"] == name)
        second = "" if name.endswith("loop") else f"{median(table, name, 'warm', 'second_s'):.2f}"
        lines.append(
            f"| {name} | {cold:.1f} | {table['files'] / cold:.0f} | {warm:.1f} | {table['files'] / warm:.0f} | "
            f"{median(table, name, 'warm', 'cpu_s'):.1f} | {peak:.0f} | {second} |"
        )
    largest = max(row["peak_mib"] for row in table["rows"] if row["way"].startswith("scan"))
    expected = largest + max(table["growth_mib_per_100k_files"], 0) * max(1e5 - table["files"], 0) / 1e5
    lines += [
        "",
        f"With two jobs a quarter of the files takes {table['peak_mib_of_a_quarter']:.0f} MiB at most; from there "
        f"memory grows by {table['growth_mib_per_100k_files']:.0f} MiB for every 100,000 files: {expected:.0f} MiB are "
        "to be expected at 100,000 (extrapolated, not run).",
    ]
    return "\n".join(lines) + "\n"


def median(table: dict[str, Any], way: str, state: str, key: str) -> float:
    """Over the rounds."""
    return statistics.median(row[key] for row in table["rows"] if row["way"] == way and row["state"] == state)


if __name__ == "__main__":
    main()
