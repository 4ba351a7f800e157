"""The daemon under kill -9, failing disks, power loss and a moody archive: nothing acknowledged may be lost or doubled.

    python benchmarks/soak.py --points 1000 --out DIR [--seed 1] [--jobs 2]

`summary.json` in DIR tells what was tried and what came of it; the state of a campaign that broke the contract is kept
in DIR/failed-N, to be looked at by soak_check.py. docs/soak.md says what is tried and how.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import soak_faults
from soak_campaign import Broken, Campaign, Made, Point
from soak_load import dcmtk
from soak_models import small_bundles
from soak_plan import EACH, FILLED, SWEEPS, plan
from soak_points import DO, KILLS
from soak_volume import small_volume

from hscc_edge.serve.crash import POINTS

TOLD = ("points", "acknowledged", "lost", "results", "duplicated_results")
NOTHING = {"problems": [], "seconds": 0.0}


@dataclass(frozen=True, slots=True)
class Order:
    """One campaign, to be run in a process of its own."""

    number: int
    root: Path
    out: Path
    made: Made
    library: Path
    seed: int
    points: Sequence[Point]
    more: str
    until: float


def campaign(order: Order) -> dict[str, Any]:
    """Run one campaign; its figures, with `problems` if the contract was broken. It is left out if it is too late."""
    if time.monotonic() > order.until:
        return {**NOTHING, "campaign": order.number}
    if all(point.kind != "full" for point in order.points):
        return _campaign(order)
    with small_volume(order.root / "state") as volume:
        return {"small_volume": volume, **(_campaign(order) if volume else {**NOTHING, "campaign": order.number})}


def _campaign(order: Order) -> dict[str, Any]:
    running = Campaign(order.root, order.made, order.library, order.seed, order.more)
    found: dict[str, Any] = {"problems": []}
    began = time.monotonic()
    try:
        running.run(order.points, DO)
        found = running.finish()
    except Broken as error:
        running.load.save(order.root / "acknowledged.jsonl")
        found = {"problems": str(error).splitlines()}
    except Exception as error:  # one campaign's accident must not end the others; it is told in the summary
        found = {"problems": [f"accident: {type(error).__name__}: {error}"]}
    finally:
        running.close()
    tally = running.tally
    found |= {
        "campaign": order.number, "seed": order.seed, "seconds": round(time.monotonic() - began, 1),
        "kinds": dict(tally.kinds), "unreached": dict(tally.unreached), "daemon_starts": tally.starts,
        "refused_starts": tally.refused_starts, "power_cuts_examined": tally.cuts, "disk_faults": tally.faults,
        "disk_places": dict(running.disk.hits()), "archive_moods": dict(running.archive.troubles),
    }  # fmt: skip
    if found["problems"]:
        place = order.out / f"failed-{order.number}"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(order.root, place, ignore=shutil.ignore_patterns("diary"))
        (place / "found.json").write_text(json.dumps(found, indent=2))
    shutil.rmtree(order.root, ignore_errors=True)
    return found


SUMS = ("acknowledged", "lost", "studies", "results", "superseded", "duplicated_results", "conflicts", "daemon_starts",
        "refused_starts", "power_cuts_examined", "disk_faults")  # fmt: skip
COUNTS = ("kinds", "unreached", "disk_places", "archive_moods", "other_problems")


def summary(found: Sequence[dict[str, Any]], seed: int, seconds: float) -> dict[str, Any]:
    """All campaigns together."""
    total: dict[str, Any] = {name: sum(item.get(name, 0) for item in found) for name in SUMS}
    total |= {name: soak_faults.merged(item.get(name, {}) for item in found) for name in COUNTS}
    kills = [count for name, count in total["kinds"].items() if name.partition(":")[0] in KILLS]
    return {
        "points": sum(kills), **total, "campaigns": sum("seed" in item for item in found),
        "untried": [name for name in POINTS if not any(kind.endswith(f":{name}") for kind in total["kinds"])],
        "small_volume": next((item["small_volume"] for item in found if "small_volume" in item), "not tried"),
        "failed_campaigns": [item["campaign"] for item in found if item["problems"]],
        "problems": [line for item in found for line in item["problems"]][:100],
        "seed": seed, "seconds": round(seconds),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0)), "kernel": platform.release()},
        "versions": _versions(),
    }  # fmt: skip


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _versions() -> dict[str, str]:
    import pydicom
    import pynetdicom

    root = Path(__file__).resolve().parent.parent
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True)
    told = subprocess.run([dcmtk("storescu"), "--version"], capture_output=True, text=True).stdout
    return {
        "hscc_edge": commit.stdout.strip(), "python": platform.python_version(), "sqlite": sqlite3.sqlite_version,
        "pydicom": pydicom.__version__, "pynetdicom": pynetdicom.__version__,
        "dcmtk": told.split()[2].lstrip("v"),
    }  # fmt: skip


def soak(
    points: int,
    out: Path,
    made: Made,
    *,
    seed: int,
    jobs: int,
    each: int = EACH,
    sweeps: bool = False,
    minutes: float = math.inf,
) -> dict[str, Any]:
    """Run the campaigns, `jobs` at once, on a state directory of their own each; returns the summary.

    `sweeps`: also fill a small volume, and let each single call that changes the disk fail, in a start and in a study's
    life.
    """
    began, parts = time.monotonic(), plan(points, seed, each)
    if sweeps:
        parts = [*(("", [Point(kind, error, seed)]) for kind, error in SWEEPS), ("", [*FILLED]), *parts]
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        library = soak_faults.build(Path(scratch))
        orders = [
            Order(
                number,
                Path(scratch) / str(number),
                out,
                made,
                library,
                seed * 100_000 + number,
                part,
                more,
                began + 60 * minutes,
            )
            for number, (more, part) in enumerate(parts)
        ]
        found = []
        with ProcessPoolExecutor(jobs) as pool:
            for item in pool.map(campaign, orders):
                found.append(item)
                state = "ok" if not item["problems"] else f"FAILED: {item['problems'][0]}"
                print(f"campaign {item['campaign'] + 1} of {len(orders)}: {item['seconds']:.0f} s, {state}", flush=True)
    return summary(found, seed, time.monotonic() - began)


def main() -> None:
    """Write summary.json; exit 1 if the contract was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--each", type=int, default=EACH, help="points on one state directory")
    parser.add_argument("--no-sweeps", action="store_true", help="leave out the failure of each single disk call")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no campaign after so long")
    arguments = parser.parse_args()
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    found = soak(
        arguments.points, out, small_bundles(out / "small"), seed=arguments.seed, jobs=arguments.jobs,
        each=arguments.each, sweeps=not arguments.no_sweeps, minutes=arguments.minutes,
    )  # fmt: skip
    (out / "summary.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps({name: found[name] for name in TOLD}))
    sys.exit(1 if found["failed_campaigns"] else 0)


if __name__ == "__main__":
    main()
