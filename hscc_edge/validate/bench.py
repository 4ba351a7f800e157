"""Everything that `bench` measures of a bundle on this device, in turn with the original, as one object."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hscc_edge.bundle import Bundle
from hscc_edge.data.case import inputs_of, load
from hscc_edge.data.cohort import Cohort
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.errors import BundleError, MissingExtraError
from hscc_edge.runtime import Runtime, open_runtime
from hscc_edge.validate import telemetry
from hscc_edge.validate.end_to_end import EndToEnd, MakeReport, Way, time_cases
from hscc_edge.validate.energy import Energy, has_power, measure_energy
from hscc_edge.validate.machine import machine_facts
from hscc_edge.validate.predictions import bundle_facts
from hscc_edge.validate.profile import Profiles, profile
from hscc_edge.validate.scenarios import Outcome, Scenario, play
from hscc_edge.validate.telemetry import Sensor, Telemetry

Progress = Callable[[int, str], None]
SCHEMA = 1
IMAGES = 8
START_S = 300.0
WHOLE_S = 1.0
NO_GPU = "a GPU: not run"
# In a process of its own, so that the imports of the runtime's packages count as they do when the daemon starts.
START = """
import json, resource, sys, time
begun = time.perf_counter()
from pathlib import Path
from hscc_edge.bundle import read_bundle
from hscc_edge.runtime.startup import timed_open
root, kind, precision, threads = sys.argv[1:]
found = timed_open(read_bundle(Path(root)), kind, precision=precision, threads=int(threads), unverified=True).to_json()
peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({**found, "process_s": time.perf_counter() - begun, "peak_mib": peak_mib}))
"""


@dataclass(frozen=True, slots=True)
class Conditions:
    """How it is run, the same for both networks; `seconds` of each scenario."""

    scenarios: tuple[Scenario, ...]
    runtime: str = "ort"
    precision: str = "fp32"
    threads: int = 1
    seconds: float = 10.0
    profile: bool = False


@dataclass(frozen=True, slots=True)
class Bench:
    """What was measured.

    Attributes:
        machine: date, machine, versions; `before`, `after`: power mode, governors, free memory.
        bundles: facts of the reference, if there was one, and of the candidate, in the order of all pairs below.
        start_up: from a new process to the first answer: imports, digests of the bundle's files, opening, inference;
            `peak_mib` is the process's resident memory at most.
        telemetry: what the sensors saw in each scenario; `whole` from the first start-up to the last case.
        energy, end_to_end, profiles: empty or None where `not_run` says so.
        not_run: what was not measured, and why.
    """

    machine: dict[str, Any]
    before: dict[str, Any]
    after: dict[str, Any]
    conditions: Conditions
    images: str
    bundles: tuple[dict[str, Any], ...]
    start_up: tuple[dict[str, Any], ...]
    outcomes: tuple[Outcome, ...]
    telemetry: tuple[Telemetry, ...]
    whole: Telemetry
    energy: tuple[Energy, ...]
    end_to_end: tuple[EndToEnd, ...]
    profiles: Profiles | None
    not_run: tuple[str, ...]

    @property
    def throttled(self) -> tuple[str, ...]:
        """What slowed the device down meanwhile, as far as it tells; the times are then not those of the device."""
        return telemetry.throttled((*self.telemetry, self.whole))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON objects under a versioned schema; all samples are in it."""
        return {"kind": "bench", "schema": SCHEMA, "throttled": self.throttled, **asdict(self)}


def steps(asked: Conditions) -> int:
    """How often `measure` reports progress."""
    return len(asked.scenarios) + 4


def measure(
    asked: Conditions,
    candidate: Bundle,
    reference: Bundle | None = None,
    cohort: Cohort | None = None,
    make: MakeReport | None = None,
    progress: Progress = lambda steps, note: None,
    root: Path = Path("/"),
) -> Bench:
    """Measure; takes about `seconds` for each scenario, for the energy and for the way from file to report.

    Args:
        cohort: gives real images, and the files of the way to a report; without it images are noise.
        make: makes a report's bytes; None where what it needs is not installed.
        root: where /sys and /proc stand.

    Raises:
        BundleError: if the two bundles take other images.
        HsccError: as `open_runtime` does.
    """
    bundles = tuple(bundle for bundle in (reference, candidate) if bundle is not None)
    _check_alike(bundles)
    runtimes = [
        open_runtime(bundle, asked.runtime, precision=asked.precision, threads=asked.threads, unverified=True)
        for bundle in bundles
    ]
    try:
        found = measure_open(asked, bundles, runtimes, cohort, make, progress, root)
    finally:
        for runtime in runtimes:
            runtime.close()
    profiles, why = _profile(asked, reference, candidate, cohort)
    progress(1, "profile")
    lines = (*found.not_run, f"time of each layer: not run, {why}") if why else found.not_run
    return replace(found, profiles=profiles, not_run=lines, after=telemetry.settings(root))


def measure_open(
    asked: Conditions,
    bundles: Sequence[Bundle],
    runtimes: Sequence[Runtime],
    cohort: Cohort | None,
    make: MakeReport | None,
    progress: Progress = lambda steps, note: None,
    root: Path = Path("/"),
) -> Bench:
    """As `measure`, but for the profile, of runtimes that are open already: the candidate's last, as its bundle."""
    before, sensors = telemetry.settings(root), telemetry.find_sensors(root)
    images = _images(bundles[-1], cohort)
    with telemetry.recorded(sensors, WHOLE_S) as readings:
        started = tuple(_start(bundle, asked) for bundle in bundles)
        progress(1, "started")
        outcomes, seen = _play(asked, runtimes, images, sensors, progress)
        energy = measure_energy(runtimes, images, asked.seconds, sensors) if has_power(sensors) else ()
        progress(1, "energy")
        end_to_end, why = _end_to_end(asked, bundles, runtimes, cohort, make)
        progress(1, "from file to report")
    return Bench(
        machine=machine_facts(),
        before=before,
        after=telemetry.settings(root),
        conditions=asked,
        images="noise" if cohort is None else f"{len(images)} of the cohort {cohort.name}, {cohort.digest}",
        bundles=tuple(bundle_facts(bundle) for bundle in bundles),
        start_up=started,
        outcomes=outcomes,
        telemetry=seen,
        whole=telemetry.summarise(sensors, readings),
        energy=energy,
        end_to_end=end_to_end,
        profiles=None,
        not_run=tuple(_not_run(asked, runtimes, sensors, outcomes, why)),
    )


def _check_alike(bundles: Sequence[Bundle]) -> None:
    shapes = [bundle.spec.input_shape for bundle in bundles]
    if shapes[0] != shapes[-1]:
        raise BundleError(
            f"the bundles {bundles[0].root} and {bundles[-1].root} take images of {shapes[0]} and {shapes[-1]}: give a "
            "bundle and the one it was made from"
        )


def _images(bundle: Bundle, cohort: Cohort | None) -> list[NDArray[np.float32]]:
    """IMAGES preprocessed images: spread over the cohort, or noise."""
    if cohort is None:
        draws = np.random.default_rng(0)
        return [draws.standard_normal(bundle.spec.input_shape).astype(np.float32) for _ in range(IMAGES)]
    preprocess = parse_preprocess(bundle.spec.preprocess)
    inputs = inputs_of(cohort, preprocess)
    picks = np.linspace(0, len(inputs) - 1, min(IMAGES, len(inputs))).astype(int)
    return [load(cohort, inputs[pick], preprocess) for pick in picks]


def _start(bundle: Bundle, asked: Conditions) -> dict[str, Any]:
    words = [str(bundle.root), asked.runtime, asked.precision, str(asked.threads)]
    try:
        done = subprocess.run([sys.executable, "-c", START, *words], capture_output=True, text=True, timeout=START_S)
    except subprocess.TimeoutExpired:
        return {"not_run": f"no answer within {START_S:.0f} s"}
    if done.returncode != 0:
        return {"not_run": "the process failed"}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def _play(
    asked: Conditions,
    runtimes: Sequence[Runtime],
    images: Sequence[NDArray[np.float32]],
    sensors: Sequence[Sensor],
    progress: Progress,
) -> tuple[tuple[Outcome, ...], tuple[Telemetry, ...]]:
    outcomes, seen = [], []
    for scenario in asked.scenarios:
        with telemetry.recorded(sensors) as readings:
            outcomes.append(play(scenario, runtimes, images, asked.seconds))
        seen.append(telemetry.summarise(sensors, readings))
        progress(1, scenario.name)
    return tuple(outcomes), tuple(seen)


def _end_to_end(
    asked: Conditions,
    bundles: Sequence[Bundle],
    runtimes: Sequence[Runtime],
    cohort: Cohort | None,
    make: MakeReport | None,
) -> tuple[tuple[EndToEnd, ...], str]:
    """The figures, or none and why."""
    if cohort is None:
        return (), "no cohort was given"
    if make is None:
        return (), "highdicom is not installed (pip install 'hscc_edge[device]')"
    if parse_preprocess(bundles[0].spec.preprocess).volume:
        return (), "the daemon does not read volumes yet"
    ways = [Way(bundle, runtime, make) for bundle, runtime in zip(bundles, runtimes, strict=True)]
    try:
        return time_cases(ways, cohort, asked.seconds), ""
    except Exception as error:  # of a decoder or of the report's packages: the other figures stand without this one
        name = type(error).__name__  # its words may name a file
        return (), f"a case could not be read or reported ({name}): hscc-edge cohort check names files that are broken"


def _profile(
    asked: Conditions, reference: Bundle | None, candidate: Bundle, cohort: Cohort | None
) -> tuple[Profiles | None, str]:
    """The figures, or none and why."""
    if not asked.profile:
        return None, "--profile was not given"
    if asked.runtime != "ort":
        return None, f"the runtime is {asked.runtime}, and only ort is profiled"
    try:
        images = _images(candidate, cohort)
        return profile(reference or candidate, candidate, images, asked.precision, asked.threads), ""
    except MissingExtraError as error:
        return None, str(error)


def _not_run(
    asked: Conditions, runtimes: Sequence[Runtime], sensors: Sequence[Sensor], outcomes: Sequence[Outcome], why: str
) -> list[str]:
    found = [] if len(runtimes) > 1 else ["in turn with the original: not run, no --reference was given"]
    found += [f"{item.scenario.name}: {item.remark}" for item in outcomes if item.remark]
    found += [f"{words}: not measured" for kind, words in telemetry.KINDS.items() if kind not in _kinds(sensors)]
    if not has_power(sensors):
        found.append("energy an image: not measured")
    if why:
        found.append(f"from file to report: not run, {why}")
    if asked.runtime in ("ort", "eager"):
        found.append(NO_GPU)
    return found


def _kinds(sensors: Sequence[Sensor]) -> set[str]:
    return {sensor.kind for sensor in sensors}
