"""How fast instances are acknowledged: our intake, dcmtk's storescp and Orthanc on the same disk, and our memory.

    python benchmarks/intake.py --out DIR [--instances 5000] [--senders 1 4 8] [--memory-instances 50000]

For each number of dcmtk storescu that send at once, each over one association, the servers take turns: --rounds times
--instances MR images of half a megabyte, a fresh directory each time. A response is timed by storescu's own log, from
"Sending Store Request" to "Received Store Response", hence with the transfer. Ours acknowledges after fsync of file and
directory and a commit of the journal; Orthanc as it ships, with fsync of the file; storescp as it ships, without any,
once one association at a time (its default) and once with --fork. Then --memory-instances more for ours, whose
proportional set size is sampled; files are removed behind it, since the intake never reads them again.
Ends in DIR/intake.json and intake.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from intake_load import Load, make_instances, send
from intake_servers import SERVERS, Server

from hscc_edge import durable
from hscc_edge.validate.machine import machine_facts

OURS, FASTEST, ARCHIVE = "hscc-edge", ("storescp", "storescp --fork"), "orthanc"
SAMPLE_S, BEHIND_S = 1.0, 30.0
MEMORY_SENDERS, MEMORY_TURN = 8, 5000


def compare(files: Sequence[Path], senders: int, rounds: int, root: Path) -> dict[str, dict[str, float]]:
    """Of each server: instances a second (median of rounds) and the percentiles of all its responses."""
    loads: dict[str, list[Load]] = {name: [] for name in SERVERS}
    for number in range(rounds):
        for name in [*SERVERS][:: 1 if number % 2 == 0 else -1]:
            scratch = root / "turn"
            scratch.mkdir()
            with SERVERS[name](scratch / "server") as server:
                parts = [files[index::senders] for index in range(senders)]
                loads[name].append(send(server.port, server.title, parts, scratch))
            shutil.rmtree(scratch)
            os.sync()  # what one has left unwritten is not the next one's burden
            print(f"{senders} senders, {name}: {loads[name][-1].per_second:.1f} instances/s", flush=True)
    return {name: _figures(found) for name, found in loads.items()}


def _figures(loads: Sequence[Load]) -> dict[str, float]:
    responses = [value for load in loads for value in load.response_ms]
    return {
        "instances_per_s": float(np.median([load.per_second for load in loads])),
        "p50_ms": float(np.percentile(responses, 50)),
        "p99_ms": float(np.percentile(responses, 99)),
        "acknowledged": len(responses),
    }


def memory(files: Sequence[Path], count: int, root: Path) -> dict[str, Any]:
    """Our proportional set size while `count` instances come in with invented UIDs: (instances, MB) samples."""
    samples: list[tuple[int, float]] = []
    done, stop = [0], threading.Event()
    with SERVERS[OURS](root / "server") as server:

        def watch() -> None:
            while not stop.wait(SAMPLE_S):
                _remove_behind(root / "server" / "state" / "spool")
                samples.append((done[0], server.pss_mb()))

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            while done[0] < count:
                done[0] += _turn(server, files, min(MEMORY_TURN, count - done[0]), root)
                print(f"memory: {done[0]} instances, {server.pss_mb():.0f} MB", flush=True)
        finally:
            stop.set()
            watching.join()
    return {
        "instances": done[0],
        "after_a_tenth_mb": _mean(samples, 0.05 * count, 0.15 * count),
        "at_the_end_mb": _mean(samples, 0.85 * count, float("inf")),
        "peak_mb": max(mb for _, mb in samples),
        "samples": [
            {"instances": number, "pss_mb": round(mb, 1)} for number, mb in samples[:: max(1, len(samples) // 200)]
        ],
    }


def _turn(server: Server, files: Sequence[Path], count: int, root: Path) -> int:
    """Send `count` instances with UIDs that storescu makes up."""
    scratch = root / "memory"
    scratch.mkdir(exist_ok=True)
    part = files[: max(1, min(len(files), count) // MEMORY_SENDERS)]
    load = send(server.port, server.title, [part] * MEMORY_SENDERS, scratch, "+II")
    return len(load.response_ms)


def _remove_behind(spool: Path) -> None:
    for path in spool.iterdir():
        if time.time() - path.stat().st_mtime > BEHIND_S:
            path.unlink()


def _mean(samples: Sequence[tuple[int, float]], low: float, high: float) -> float | None:
    found = [mb for number, mb in samples if low <= number <= high]
    return float(np.mean(found)) if found else None


def summary(by_senders: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Per number of senders: our rate as a share of storescp's faster way and of Orthanc's."""
    rate = "instances_per_s"
    return {
        senders: {
            "of_storescp": found[OURS][rate] / max(found[name][rate] for name in FASTEST),
            "of_orthanc": found[OURS][rate] / found[ARCHIVE][rate],
        }
        for senders, found in by_senders.items()
    }


def markdown(found: Mapping[str, Any]) -> str:
    """The tables."""
    versions = ", ".join(f"{name} {value}" for name, value in found["versions"].items())
    lines = [
        "# How fast instances are acknowledged", "",
        f"Made by `benchmarks/intake.py`; {found['machine']}; {found['date']}; {versions}; {found['file_system']}.",
        f"{found['instances']} MR instances of 0.5 MB for each figure, {found['rounds']} rounds, servers in turn, the "
        "senders (dcmtk storescu) on the same machine. Response: by storescu's log, with the transfer. Not run on a "
        "Jetson.", "",
        "| senders | server | instances/s | response p50 ms | p99 ms |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for senders, servers in found["senders"].items():
        lines += [
            f"| {senders} | {name} | {one['instances_per_s']:.0f} | {one['p50_ms']:.0f} | {one['p99_ms']:.0f} |"
            for name, one in servers.items()
        ]
    lines += ["", "| senders | ours over storescp's faster way | ours over Orthanc |", "|---|---|---|"]
    lines += [
        f"| {senders} | {one['of_storescp']:.2f} | {one['of_orthanc']:.2f} |"
        for senders, one in found["ratios"].items()
    ]
    if held := found["memory"]:
        ends = [held["after_a_tenth_mb"], held["at_the_end_mb"]]
        told = " and ".join("unknown" if one is None else f"{one:.0f} MB" for one in ends)
        lines += [
            "",
            f"Memory of our processes (PSS) over {held['instances']} instances: {told} after a tenth and at the end, "
            f"{held['peak_mb']:.0f} MB at most.",
        ]
    return "\n".join([*lines, ""])


def _version(*words: str) -> str:
    found = subprocess.run(words, capture_output=True, text=True)
    return (found.stdout + found.stderr).splitlines()[0].strip("$ ")


def main() -> None:
    """Compare, watch memory, write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--instances", type=int, default=5000)
    parser.add_argument("--senders", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--memory-instances", type=int, default=50_000)
    told = parser.parse_args()
    told.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=told.out, prefix=".intake.") as scratch:
        root = Path(scratch)
        files = make_instances(root / "files", told.instances)
        by_senders = {str(number): compare(files, number, told.rounds, root) for number in told.senders}
        held = memory(files, told.memory_instances, root) if told.memory_instances else None
    facts = machine_facts()
    facts["versions"] |= {
        "dcmtk": _version("storescp", "--version").split()[2],
        "Orthanc": _version("/usr/sbin/Orthanc", "--version").split()[-1],
    }
    found = {
        **facts, "file_system": _version("stat", "-f", "-c", "%T", str(told.out)), "instances": told.instances,
        "rounds": told.rounds, "senders": by_senders, "ratios": summary(by_senders), "memory": held,
    }  # fmt: skip
    durable.write_json(told.out / "intake.json", found)
    durable.write_text(told.out / "intake.md", markdown(found))
    print(json.dumps(found["ratios"]))


if __name__ == "__main__":
    main()
