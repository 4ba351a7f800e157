"""Both classifiers over every case of a split, on one runtime, and timed in turn: all that needs the device itself.

Runs without torch and without the statistics. What it finds is one JSON object; `evidence.py` makes figures of it,
elsewhere and later.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hscc_edge.bundle import Bundle
from hscc_edge.data.case import inputs_of, load
from hscc_edge.data.cohort import Cohort
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.data.subgroups import by_case
from hscc_edge.errors import BundleError, InputError
from hscc_edge.model.decision import question
from hscc_edge.runtime import Runtime, open_runtime
from hscc_edge.validate import bench
from hscc_edge.validate.end_to_end import MakeReport
from hscc_edge.validate.latency import Latency, Race, compare_times, race
from hscc_edge.validate.machine import machine_facts
from hscc_edge.validate.predict import check_fit, predict
from hscc_edge.validate.predictions import Predictions, bundle_facts, read_predictions
from hscc_edge.validate.scenarios import scenario_of
from hscc_edge.validate.uses import Use, read_use, record

Progress = Callable[[int, str], None]
KIND, SCHEMA = "collection", 1
TIMED_IMAGES = 8


@dataclass(frozen=True, slots=True)
class Conditions:
    """How it was run: `threads` of the CPU runtime, `seconds` of each part of the timing, 0 for a few calls alone."""

    runtime: str = "ort"
    precision: str = "fp32"
    threads: int = 1
    seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class Collection:
    """What both classifiers said and how long they took.

    Attributes:
        cohort: name, source, digest, splits, classes and counts of what they were run on; no file, no identifier.
        conditions: how it was run, on which machine, with which versions.
        race: calls of both in turn, batch 1, model alone.
        timing: the object of `bench` that the race is from: warm-up, percentiles, start-up, from file to report,
            energy, temperature, clocks, throttling; None where a few calls alone were timed.
        columns: of subgroups, such as "sex" -> value of every case; those of the cohort's table that are known.
        uses: every look at these splits so far, this one last.
    """

    reference: Predictions
    candidate: Predictions
    cohort: Mapping[str, Any]
    conditions: Mapping[str, Any]
    race: Race
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    uses: tuple[Use, ...] = ()
    timing: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON objects under a versioned schema."""
        return {
            "kind": KIND, "schema": SCHEMA, "reference": self.reference.to_json(),
            "candidate": self.candidate.to_json(), "cohort": dict(self.cohort), "conditions": dict(self.conditions),
            "race": asdict(self.race), "columns": {name: list(values) for name, values in self.columns.items()},
            "uses": [asdict(use) for use in self.uses], "timing": self.timing,
        }  # fmt: skip


def collect(
    candidate: Bundle,
    reference: Bundle,
    cohort: Cohort,
    conditions: Conditions,
    progress: Progress | None = None,
    purpose: str = "validate",
    make: MakeReport | None = None,
) -> Collection:
    """Run both bundles on the same runtime over every case, then time them interleaved.

    One image is in memory at a time; time grows with the images, and the result with images x labels. That the split
    was looked at is written down first, beside the cohort (`uses.py`), for `purpose`.

    Args:
        make: makes a report's bytes, for the way from file to report; None where what it needs is not installed.

    Raises:
        BundleError: if the bundles differ in labels, head, decision or preprocessing.
        CohortError: if the cohort's classes are not theirs.
    """
    check_alike(candidate, reference)
    check_fit(reference, cohort)
    uses = record(cohort, (candidate.digest, reference.digest), purpose)
    old, new = (
        open_runtime(bundle, conditions.runtime, precision=conditions.precision, threads=conditions.threads)
        for bundle in (reference, candidate)
    )
    try:
        first, second = (
            Predictions(
                bundle_facts(bundle), runtime.name, conditions.precision,
                tuple(predict(bundle, runtime, cohort, progress)),
            )
            for bundle, runtime in ((reference, old), (candidate, new))
        )  # fmt: skip
        timed, timing = _time((reference, candidate), (old, new), cohort, conditions, make)
    finally:
        old.close()
        new.close()
    facts = {**asdict(conditions), "runtime_name": first.runtime, **machine_facts()}
    columns = by_case(cohort, first.rule.unit)
    return Collection(first, second, cohort_facts(cohort, first), facts, timed, columns, uses, timing)


def _time(
    bundles: tuple[Bundle, Bundle],
    runtimes: tuple[Runtime, Runtime],
    cohort: Cohort,
    conditions: Conditions,
    make: MakeReport | None,
) -> tuple[Race, Mapping[str, Any] | None]:
    """The race, and what it is part of."""
    if conditions.seconds == 0:
        return race(*runtimes, _some_images(bundles[0], cohort), 0), None
    asked = bench.Conditions(
        (scenario_of("single"),), conditions.runtime, conditions.precision, conditions.threads, conditions.seconds
    )
    found = bench.measure_open(asked, bundles, runtimes, cohort, make)
    first, second = (np.array(side.samples_ms) for side in found.outcomes[0].sides)
    return compare_times(first, second), found.to_json()


def read_collection(path: Path) -> Collection:
    """What `validate --collect` wrote.

    Raises:
        InputError: if the file is missing, no such JSON, or of another schema.
    """
    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: give the file that validate --collect wrote") from error
    return parse_collection(raw, str(path))


def parse_collection(raw: object, name: str) -> Collection:
    """A collection from its JSON object; `name` says in messages where that came from.

    Raises:
        InputError: if it is no such object, or of another schema.
    """
    if not isinstance(raw, dict) or (raw.get("kind"), raw.get("schema")) != (KIND, SCHEMA):
        raise InputError(f"{name} is no collection of schema {SCHEMA}: give the file that validate --collect wrote")
    try:
        return Collection(
            read_predictions(raw["reference"]), read_predictions(raw["candidate"]), dict(raw["cohort"]),
            dict(raw["conditions"]), _read_race(raw["race"]),
            {name: tuple(values) for name, values in raw.get("columns", {}).items()},
            tuple(read_use(use) for use in raw.get("uses", ())), raw.get("timing"),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{name} is malformed ({type(error).__name__}): collect again") from error


def _read_race(raw: Mapping[str, Any]) -> Race:
    """A race from its JSON; lists become tuples again."""
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()}
    values |= {name: Latency(**raw[name]) for name in ("reference", "candidate")}
    return Race(**values)


def cohort_facts(cohort: Cohort, predictions: Predictions) -> dict[str, Any]:
    """What may be said about a cohort: its digest and counts."""
    cases = predictions.cases
    return {
        "name": cohort.name,
        "source": cohort.source,
        "digest": cohort.digest,
        "splits": sorted({item.split for item in cohort.instances}),
        "unit": predictions.rule.unit,
        "cases": len(cases),
        "images": len(cohort.instances),
        "patients": len({case.patient for case in cases}),
        "classes": list(cohort.classes),
        "per_class": {label: sum(case.label == label for case in cases) for label in cohort.classes},
    }


def check_alike(candidate: Bundle, reference: Bundle) -> None:
    """Refuse bundles that do not answer the same question.

    Raises:
        BundleError: if they differ in labels, decision (but for what was fitted to each) or preprocessing.
    """
    pairs = {
        name: (getattr(candidate.spec, name), getattr(reference.spec, name))
        for name in ("head", "decision", "preprocess")
    }
    pairs["decision"] = (question(candidate.spec.decision), question(reference.spec.decision))
    for name, (new, old) in pairs.items():
        if new != old:
            raise BundleError(
                f"the bundles {candidate.root} and {reference.root} differ in {name}: compare a bundle with the one it "
                "was made from"
            )


def _some_images(bundle: Bundle, cohort: Cohort) -> list[NDArray[np.float32]]:
    preprocess = parse_preprocess(bundle.spec.preprocess)
    inputs = inputs_of(cohort, preprocess)
    step = max(len(inputs) // TIMED_IMAGES, 1)
    return [load(cohort, items, preprocess) for items in inputs[::step][:TIMED_IMAGES]]
