"""From DICOM files on disk to a report on disk, as the daemon goes, by stage: decode, preprocess, infer, report."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hscc_edge import durable
from hscc_edge.bundle import Bundle
from hscc_edge.data.cohort import Cohort
from hscc_edge.data.contained import ContainedReader
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.model.decision import Decision, decide, parse_rule
from hscc_edge.model.head import parse_head
from hscc_edge.runtime import Runtime, infer_each
from hscc_edge.validate.latency import SHARES, Percentile, percentile

STAGES = ("decode", "preprocess", "infer", "report")
WARM_UP = 2
MINIMUM = 5
MakeReport = Callable[[Bundle, Sequence[Path], Decision], bytes]


@dataclass(frozen=True, slots=True)
class EndToEnd:
    """One network's cases.

    Attributes:
        unit: what a case is: image, series or study; `images` of all cases together.
        stages_ms: stage -> median milliseconds a case. The report is decided, made, written and fsynced in the last.
        percentiles: of a whole case.
        samples_ms: every whole case, in order.
    """

    name: str
    unit: str
    cases: int
    images: int
    stages_ms: dict[str, float]
    percentiles: tuple[Percentile, ...]
    samples_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Way:
    """A bundle with its open runtime and the function that makes its report's bytes."""

    bundle: Bundle
    runtime: Runtime
    make: MakeReport


def time_cases(ways: Sequence[Way], cohort: Cohort, seconds: float) -> tuple[EndToEnd, ...]:
    """Take the cohort's cases in turn through each way (A B B A) for about `seconds`; for bundles of images.

    A case that gets no decision, such as a study with too few images, ends without a report.

    Raises:
        DicomError: if a file cannot be decoded.
    """
    unit = parse_rule(ways[0].bundle.spec.decision).unit
    cases = [list(dict.fromkeys(map(cohort.path, items))) for items in cohort.cases(unit).values()]
    times: list[list[tuple[float, ...]]] = [[] for _ in ways]
    images = [0] * len(ways)
    with tempfile.TemporaryDirectory() as name, ContainedReader() as reader:
        for way in ways:
            for paths in cases[:WARM_UP]:
                _one(way, paths, reader, Path(name))
        number, deadline = 0, time.perf_counter() + seconds
        while number < MINIMUM or time.perf_counter() < deadline:
            paths = cases[number % len(cases)]
            for side in range(len(ways)) if number % 2 else reversed(range(len(ways))):
                times[side].append(_one(ways[side], paths, reader, Path(name)))
                images[side] += len(paths)
            number += 1
    return tuple(_found(way, unit, count, part) for way, count, part in zip(ways, images, times, strict=True))


def _one(way: Way, paths: Sequence[Path], reader: ContainedReader, folder: Path) -> tuple[float, ...]:
    """Seconds of each stage."""
    spec, preprocess = way.bundle.spec, parse_preprocess(way.bundle.spec.preprocess)
    rule, head = parse_rule(spec.decision), parse_head(spec.head)
    marks = [time.perf_counter()]
    images = [reader.read(path) for path in paths]
    marks.append(time.perf_counter())
    pixels = [preprocess(image) for image in images]
    marks.append(time.perf_counter())
    logits = infer_each(way.runtime, pixels)
    marks.append(time.perf_counter())
    decision = decide(rule, head, logits)
    if decision.label is not None:
        durable.write_bytes(folder / "report.dcm", way.make(way.bundle, paths, decision))
    marks.append(time.perf_counter())
    return tuple(np.diff(marks).tolist())


def _found(way: Way, unit: str, images: int, times: Sequence[tuple[float, ...]]) -> EndToEnd:
    stages = 1000 * np.array(times)
    whole = stages.sum(axis=1)
    medians = (float(value) for value in np.median(stages, axis=0))
    return EndToEnd(
        name=way.runtime.name,
        unit=unit,
        cases=len(times),
        images=images,
        stages_ms=dict(zip(STAGES, medians, strict=True)),
        percentiles=tuple(percentile(whole, share) for share in SHARES),
        samples_ms=tuple(round(float(value), 4) for value in whole),
    )
