"""Everything that a validation found, as one object: the report and its JSON are two views of it."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hscc_edge.bundle import Bundle
from hscc_edge.data.case import inputs_of, load
from hscc_edge.data.cohort import Cohort
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.errors import BundleError
from hscc_edge.model.head import parse_head
from hscc_edge.runtime import open_runtime
from hscc_edge.validate.compare import Comparison, compare
from hscc_edge.validate.latency import Race, race
from hscc_edge.validate.metrics import Figures, figures
from hscc_edge.validate.predict import Case, check_fit, predict

Progress = Callable[[int, str], None]
SCHEMA = 1
TIMED_IMAGES = 8
NOT_RUN = ("TensorRT on a Jetson: not run", "power and temperature: not measured")


@dataclass(frozen=True, slots=True)
class Conditions:
    """How it was run: `threads` of the CPU runtime, `seconds` of timing."""

    runtime: str = "ort"
    precision: str = "fp32"
    threads: int = 1
    seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """A candidate against its reference on one cohort."""

    reference: dict[str, Any]
    candidate: dict[str, Any]
    cohort: dict[str, Any]
    conditions: dict[str, Any]
    reference_figures: Figures
    candidate_figures: Figures
    comparison: Comparison
    race: Race
    cases: tuple[dict[str, Any], ...]
    not_run: tuple[str, ...] = NOT_RUN

    def to_json(self) -> dict[str, Any]:
        """Plain JSON objects under a versioned schema."""
        return {"schema": SCHEMA, **asdict(self)}


def gather(
    candidate: Bundle, reference: Bundle, cohort: Cohort, conditions: Conditions, progress: Progress | None = None
) -> Evidence:
    """Run both bundles on the same runtime over every case, then time them interleaved.

    Raises:
        BundleError: if the bundles differ in labels, head, decision or preprocessing.
        CohortError: if the cohort's classes are not theirs.
    """
    _check_alike(candidate, reference)
    check_fit(reference, cohort)
    old, new = (
        open_runtime(bundle, conditions.runtime, precision=conditions.precision, threads=conditions.threads)
        for bundle in (reference, candidate)
    )
    first, second = predict(reference, old, cohort, progress), predict(candidate, new, cohort, progress)
    timed = race(old, new, _some_images(reference, cohort), conditions.seconds)
    names = reference.spec.labels
    return Evidence(
        reference=_bundle_facts(reference),
        candidate=_bundle_facts(candidate),
        cohort=_cohort_facts(cohort, first, reference.spec.decision["unit"]),
        conditions={**asdict(conditions), "runtime_name": old.name, **machine_facts()},
        reference_figures=figures([case.label for case in first], [case.decision.label for case in first], names),
        candidate_figures=figures([case.label for case in second], [case.decision.label for case in second], names),
        comparison=compare(first, second, parse_head(reference.spec.head)),
        race=timed,
        cases=tuple(_case_facts(a, b) for a, b in zip(first, second, strict=True)),
    )


def machine_facts() -> dict[str, Any]:
    """Date, machine and versions, for any figure that was measured on it."""
    packages = ("hscc-edge", "numpy", "onnxruntime", "pydicom")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{platform.system()} {platform.machine()}, {_processor()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown processor"


def _check_alike(candidate: Bundle, reference: Bundle) -> None:
    for name in ("head", "decision", "preprocess"):
        if getattr(candidate.spec, name) != getattr(reference.spec, name):
            raise BundleError(
                f"the bundles {candidate.root} and {reference.root} differ in {name}: compare a bundle with the one it "
                "was made from"
            )


def _some_images(bundle: Bundle, cohort: Cohort) -> list[NDArray[np.float32]]:
    preprocess = parse_preprocess(bundle.spec.preprocess)
    inputs = inputs_of(cohort, preprocess)
    step = max(len(inputs) // TIMED_IMAGES, 1)
    return [load(cohort, items, preprocess) for items in inputs[::step][:TIMED_IMAGES]]


def _bundle_facts(bundle: Bundle) -> dict[str, Any]:
    plan = bundle.spec.plan
    return {
        "name": bundle.spec.name,
        "digest": bundle.digest,
        "network": bundle.spec.network["name"],
        "method": "dense" if plan is None else plan["method"],
        "budget": None if plan is None else plan["budget"],
        "flops": None if plan is None else sum(layer["flops"] for layer in plan["layers"]),
        "dense_flops": None if plan is None else sum(layer["dense_flops"] for layer in plan["layers"]),
        "params": None if plan is None else sum(layer["params"] for layer in plan["layers"]),
        "dense_params": None if plan is None else sum(layer["dense_params"] for layer in plan["layers"]),
        "parent": bundle.spec.parent,
    }


def _cohort_facts(cohort: Cohort, cases: Sequence[Case], unit: str) -> dict[str, Any]:
    return {
        "name": cohort.name,
        "source": cohort.source,
        "digest": cohort.digest,
        "unit": unit,
        "cases": len(cases),
        "images": len(cohort.instances),
        "patients": len({case.patient for case in cases}),
        "classes": list(cohort.classes),
        "per_class": {label: sum(case.label == label for case in cases) for label in cohort.classes},
    }


def _case_facts(first: Case, second: Case) -> dict[str, Any]:
    return {
        "case": first.key,
        "label": first.label,
        "reference": first.decision.label,
        "candidate": second.decision.label,
        "probabilities": [round(value, 6) for value in second.decision.probabilities],
    }
