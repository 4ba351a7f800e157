"""How often the drift alarm errs, and how soon it finds a shift: streams of studies against the daemon's own watch.

    .venv/bin/python benchmarks/drift.py --out results/drift [--streams 100] [--cases 2000]

Three synthetic cohorts are made: on one a small classifier is trained, on the next it is calibrated, and the last holds
the studies of a hospital. Each of those is decided as it is and as a changed scanner or protocol would have sent it. A
stream is drawn from them with replacement, in any order, and goes case by case into a journal that `serve.drift.Watch`
looks at.
Ends in drift.json: for each kind of stream the share of streams with an alarm, alarms per 10,000 cases, and the median
number of cases from the shift to the alarm.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from small_model import recipe, trained
from typer.main import get_command

from hscc_edge import durable
from hscc_edge.bundle import Bundle, read_bundle
from hscc_edge.cli import app
from hscc_edge.data.appearance import appearance, row_spacing_mm
from hscc_edge.data.cohort import Cohort, read_cohort
from hscc_edge.data.dicom import Image, read_dataset, read_image
from hscc_edge.data.phantom import write_phantom
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.model.decision import decide, parse_rule
from hscc_edge.model.head import energy, parse_head
from hscc_edge.runtime import Runtime, open_runtime
from hscc_edge.serve.config import Drift
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.observations import Observation, Observed, record
from hscc_edge.serve.worker.drift import Watch
from hscc_edge.validate.drift import DRIFT
from hscc_edge.validate.machine import machine_facts

ALEXNET = "{ pool = 3, hidden = 128, dropout = 0.0, he = true }"
SHM = Path("/dev/shm")  # nothing of a stream need outlive it, and a disk would wait for every commit
WINDOWS = (100, 200, 400)
Pixels = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Change:
    """What another scanner or protocol does to a picture, to its spacing (a factor), and to the scanner's name."""

    pixels: Callable[[Pixels, np.random.Generator], Pixels]
    spacing: float = 1.0
    scanner: str = "a"


def _noise(share: float) -> Callable[[Pixels, np.random.Generator], Pixels]:
    return lambda pixels, random: (pixels + random.normal(0, share * np.ptp(pixels), pixels.shape)).astype(np.float32)


def _scaled(factor: float) -> Callable[[Pixels, np.random.Generator], Pixels]:
    return lambda pixels, random: pixels * np.float32(factor)


def _blurred(pixels: Pixels, random: np.random.Generator) -> Pixels:
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(pixels, 1.0), np.float32)


CHANGES = {
    "none": Change(lambda pixels, random: pixels),
    "noise of 3 % of the range more": Change(_noise(0.03)),
    "noise of 10 % of the range more": Change(_noise(0.10)),
    "values 15 % larger": Change(_scaled(1.15)),
    "values twice as large": Change(_scaled(2.0)),
    "a softer kernel": Change(_blurred),
    "pixels a tenth larger": Change(lambda pixels, random: pixels, spacing=1.1),
    "another scanner, the same pictures": Change(lambda pixels, random: pixels, scanner="b"),
}


def main() -> None:
    """Write drift.json and print a line for each kind of stream."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--cases", type=int, default=2000, help="of an unshifted stream; shifted ones have half of it")
    parser.add_argument("--patients", type=int, default=600)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bundle, hospital = prepare(Path(scratch), arguments.patients)
        pools = {name: list(seen(bundle, hospital, change)) for name, change in CHANGES.items()}
        rows = [
            {"reference": reference, "window": window, "change": name, **measured}
            for reference in ("calibration cohort", "first cases")
            for window in WINDOWS
            for name in (CHANGES if window == Drift().window else ("none",))
            for measured in [measure(Path(scratch), bundle, pools, reference, window, name, arguments)]
        ]
    for row in rows:
        print(row)
    facts = {
        "streams": arguments.streams,
        "cases": arguments.cases,
        "patients": arguments.patients,
        "settings": dataclasses.asdict(Drift()),
    }
    durable.write_json(arguments.out / "drift.json", {"machine": machine_facts(), **facts, "rows": rows})


def prepare(scratch: Path, patients: int) -> tuple[Bundle, Cohort]:
    """A calibrated bundle, and the cohort of a hospital that it has not seen."""
    for seed, name in enumerate(("own", "calibration", "hospital")):
        write_phantom(scratch / name, patients=patients, slices=2, size=64, seed=seed)
    text = recipe("drift", ALEXNET, minimum_images=1, train="epochs = 20\nlearning_rate = 7e-4")
    (scratch / "drift.toml").write_text(text, encoding="utf-8")
    bundle = trained(
        scratch / "drift.toml", scratch / "own", scratch / "bundle", "--images", "8", "--precision", "fp32"
    )
    words = ["calibrate", str(bundle), "--cohort", str(scratch / "calibration"), "--split", "train"]
    get_command(app).main(words, standalone_mode=False)
    return read_bundle(scratch / "bundle"), read_cohort(scratch / "hospital")


def seen(bundle: Bundle, cohort: Cohort, change: Change) -> Iterator[Observation]:
    """What the daemon would observe of each study after a change."""
    runtime, random = open_runtime(bundle), np.random.default_rng(0)
    for uid, items in cohort.cases("study").items():
        images = [read_image(cohort.path(item)) for item in items]
        changed = [dataclasses.replace(image, pixels=change.pixels(image.pixels, random)) for image in images]
        spacing = row_spacing_mm(read_dataset(cohort.path(items[0]), pixels=False))
        yield _observation(bundle, runtime, uid, changed, (spacing or 1.0) * change.spacing, change.scanner)
    runtime.close()


def _observation(
    bundle: Bundle, runtime: Runtime, uid: str, images: list[Image], spacing: float, scanner: str
) -> Observation:
    preprocess, rule = parse_preprocess(bundle.spec.preprocess), parse_rule(bundle.spec.decision)
    head = parse_head(bundle.spec.head)
    logits = np.concatenate([runtime.infer(preprocess(image)[None]) for image in images])
    looks = [appearance(image, spacing) for image in images]
    inputs: dict[str, float | str] = {name: float(np.mean([look[name] for look in looks])) for name in looks[0]}
    decision = decide(rule, head, logits)
    return Observation(
        uid, decision.label, decision.probabilities, float(energy(head, logits).mean()), {**inputs, "scanner": scanner}
    )


def measure(
    scratch: Path,
    bundle: Bundle,
    pools: dict[str, list[Observation]],
    reference: str,
    window: int,
    name: str,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Run streams of one kind; a shifted one begins with as many unshifted cases as two windows."""
    files = dict(bundle.files)
    if reference == "first cases":
        files.pop(DRIFT)
    waits, cases = [], arguments.cases if name == "none" else arguments.cases // 2
    alarms = 0
    for number in range(arguments.streams):
        random = np.random.default_rng([number, window])
        before = [pools["none"][i] for i in random.integers(0, len(pools["none"]), 2 * window)]
        after = [pools[name][i] for i in random.integers(0, len(pools[name]), cases)]
        served = dataclasses.replace(bundle, digest=f"{number}", files=files)
        with tempfile.TemporaryDirectory(dir=SHM if SHM.is_dir() else scratch) as place:
            raised = _alarms(Path(place), served, window, before, after)
        alarms += len(raised)
        waits += [raised[0]] if raised else []
    return {
        "streams_with_alarm": len(waits) / arguments.streams,
        "alarms_per_10000_cases": 10_000 * alarms / (arguments.streams * cases) if name == "none" else None,
        "median_cases_to_alarm": median(waits) if waits and name != "none" else None,
    }


def _alarms(place: Path, bundle: Bundle, window: int, before: list[Observation], after: list[Observation]) -> list[int]:
    """After how many cases of `after` an alarm was raised, each time; alarms before them are not counted."""
    journal = Journal(place / "journal.sqlite")
    watch = Watch(journal, Drift(window=window), "drift", bundle)
    step, found = window // 4, []
    stream = [*before, *after]
    for start in range(0, len(stream), step):
        part = stream[start : start + step]
        with journal.transaction() as db:
            record(db, "study", Observed("drift", bundle.digest, part))
        if watch.seen(len(part)) is not None and start >= len(before):
            found.append(start + len(part) - len(before))
    journal.close()
    return found


if __name__ == "__main__":
    main()
