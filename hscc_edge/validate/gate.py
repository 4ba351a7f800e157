"""The gate: every requirement held against what was measured, one line each: PASS, FAIL or INCONCLUSIVE.

A sampled figure passes or fails by its whole interval; where the interval holds the limit, and where nothing was
measured, the line is INCONCLUSIVE. Nothing passes by not having been run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from hscc_edge.errors import ConfigError
from hscc_edge.export.parity import Parity
from hscc_edge.validate import noninferiority
from hscc_edge.validate.compare import Comparison
from hscc_edge.validate.intervals import Proportion
from hscc_edge.validate.latency import Race, percentile
from hscc_edge.validate.metrics import ClassFigures
from hscc_edge.validate.requirements import Requirements
from hscc_edge.validate.subgroups import CLASS, Group

PASS, FAIL, INCONCLUSIVE = "PASS", "FAIL", "INCONCLUSIVE"
EXIT = {PASS: 0, FAIL: 1, INCONCLUSIVE: 3}
STATES = {noninferiority.NON_INFERIOR: PASS, noninferiority.INFERIOR: FAIL, noninferiority.INCONCLUSIVE: INCONCLUSIVE}


@dataclass(frozen=True, slots=True)
class Line:
    """One requirement: its name, such as `sensitivity.glioma`; PASS, FAIL or INCONCLUSIVE; the figures in words."""

    name: str
    state: str
    figures: str

    def __str__(self) -> str:
        """As it is printed."""
        return f"{self.state:<12}  {self.name}: {self.figures}"


@dataclass(frozen=True, slots=True)
class Found:
    """What was measured of the candidate; what was not is None or missing, with the reason in `not_run`.

    Attributes:
        classes: label -> figures at its operating point, or as decided.
        groups: with the words of the gate's own margin.
        runtime: that the race was run on.
        parity: "onnx" and "engine".
        not_run: requirement, such as "memory", -> why it was not measured.
        invalid: why the times say nothing of the device; "" if nothing speaks against them.
    """

    comparison: Comparison
    classes: Mapping[str, ClassFigures]
    groups: tuple[Group, ...]
    race: Race | None
    runtime: str
    peak_mib: float | None = None
    parity: Mapping[str, Parity] = field(default_factory=dict)
    not_run: Mapping[str, str] = field(default_factory=dict)
    invalid: str = ""


@dataclass(frozen=True, slots=True)
class Gating:
    """The lines, in the order of the gate."""

    lines: tuple[Line, ...]

    @property
    def state(self) -> str:
        """FAIL if any line fails, else INCONCLUSIVE if any is, else PASS."""
        states = {line.state for line in self.lines}
        return FAIL if FAIL in states else INCONCLUSIVE if INCONCLUSIVE in states or not states else PASS

    @property
    def exit_code(self) -> int:
        """0, 1 or 3."""
        return EXIT[self.state]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object."""
        return {"state": self.state, "lines": [asdict(line) for line in self.lines]}


def hold(wanted: Requirements, found: Found) -> Gating:
    """Hold what was found against what is wanted.

    Raises:
        ConfigError: if the gate names a class or a column that is not there.
    """
    lines = [*_accuracy(wanted, found), *_sensitivity(wanted, found), *_groups(wanted, found)]
    return Gating((*lines, *_latency(wanted, found), *_memory(wanted, found), *_parity(wanted, found)))


def _accuracy(wanted: Requirements, found: Found) -> Iterator[Line]:
    if wanted.margin is not None:
        verdict = noninferiority.judge(found.comparison.pairs, wanted.margin)
        yield Line("accuracy.margin_points", STATES[verdict.word], noninferiority.sentence(verdict))


def _sensitivity(wanted: Requirements, found: Found) -> Iterator[Line]:
    for label, least in wanted.sensitivity.items():
        if label not in found.classes:
            raise ConfigError(
                f"line {wanted.lines.get(f'sensitivity.{label}', 0)} of the gate names the class {label!r}: expected "
                f"one of {', '.join(found.classes)}"
            )
        figures = found.classes[label]
        place = "as decided" if figures.threshold is None else f"from probability {figures.threshold:g} upwards"
        share = figures.sensitivity
        yield Line(f"sensitivity.{label}", at_least(share, least), f"{_share(share)}, {place}; at least {_cent(least)}")


def _groups(wanted: Requirements, found: Found) -> Iterator[Line]:
    if wanted.group_margin is None and wanted.group_accuracy is None:
        return
    held = {group.column for group in found.groups}
    if missing := [column for column in wanted.group_columns if column not in held]:
        for column in missing:
            yield Line(f"subgroups.{column}", INCONCLUSIVE, "not run: no case has a value of it, or all have the same")
    elif not held - {CLASS} and not wanted.group_columns:
        yield Line("subgroups", INCONCLUSIVE, "not run: the cohort's table has no column with two values")
    for group in found.groups:
        if not wanted.group_columns or group.column in wanted.group_columns:
            yield from _group(wanted, group)


def _group(wanted: Requirements, group: Group) -> Iterator[Line]:
    size = f"{group.cases} cases of {group.patients} patients{', too few to say much' if group.small else ''}"
    if wanted.group_margin is not None:
        told = (
            f"{group.word} at {100 * wanted.group_margin:g} points (Holm): difference {100 * group.difference:+.1f} "
            f"points, 95 % interval {100 * group.low:+.1f} to {100 * group.high:+.1f}, {size}"
        )
        worst = f"; most of {group.worst}" if group.worst else ""
        yield Line(f"subgroups.{group.name}.margin_points", STATES[group.word], told + worst)
    if wanted.group_accuracy is not None:
        state = at_least(group.candidate, wanted.group_accuracy)
        if group.small and state == PASS:
            state = INCONCLUSIVE
        told = f"{_share(group.candidate)}, {size}; at least {_cent(wanted.group_accuracy)}"
        yield Line(f"subgroups.{group.name}.accuracy", state, told)


def _latency(wanted: Requirements, found: Found) -> Iterator[Line]:
    why = f"not run: {found.not_run.get('latency', 'not timed')}" if found.race is None else found.invalid
    if not why and wanted.runtime and wanted.runtime != found.runtime:
        why = f"not run: timed on {found.runtime}, and the gate asks for {wanted.runtime}"
    for name, limit in (("p99_ms", wanted.p99_ms), ("speedup", wanted.speedup)):
        if limit is None:
            continue
        if why or found.race is None:
            yield Line(f"latency.{name}", INCONCLUSIVE, why)
        else:
            yield (_p99 if name == "p99_ms" else _speedup)(found.race, limit, found.runtime)


def _p99(race: Race, limit: float, runtime: str) -> Line:
    seen = percentile(np.array(race.candidate_ms), 0.99)
    low, high = seen.low_ms or 0.0, seen.high_ms if seen.high_ms is not None else np.inf
    state = PASS if high <= limit else FAIL if low > limit else INCONCLUSIVE
    ends = f"{low:.3g} to {'unknown' if high == np.inf else f'{high:.3g}'} ms"
    lack = f"; an upper end needs {seen.needed} calls" if high == np.inf else ""
    figures = f"99th percentile {race.candidate.p99_ms:.3g} ms, 95 % interval {ends}, {len(race.candidate_ms)} calls"
    return Line("latency.p99_ms", state, f"{figures} on {runtime}; at most {limit:g} ms{lack}")


def _speedup(race: Race, limit: float, runtime: str) -> Line:
    state = PASS if race.low >= limit else FAIL if race.high < limit else INCONCLUSIVE
    figures = f"{race.speedup:.2f}x, 95 % interval {race.low:.2f} to {race.high:.2f}, on {runtime}"
    return Line("latency.speedup", state, f"{figures}; at least {limit:g}x")


def _memory(wanted: Requirements, found: Found) -> Iterator[Line]:
    if wanted.peak_mib is None:
        return
    if found.peak_mib is None:
        yield Line("memory.peak_mib", INCONCLUSIVE, f"not run: {found.not_run.get('memory', 'not measured')}")
        return
    state = PASS if found.peak_mib <= wanted.peak_mib else FAIL
    figures = f"{found.peak_mib:.0f} MiB resident at most, in a process of its own; at most {wanted.peak_mib:g} MiB"
    yield Line("memory.peak_mib", state, figures)


def _parity(wanted: Requirements, found: Found) -> Iterator[Line]:
    between = {"onnx": "ONNX against torch", "engine": "engine against ONNX"}
    for name, limit in wanted.parity.items():
        seen = found.parity.get(name)
        if seen is None:
            why = found.not_run.get(f"parity.{name}", "not measured")
            yield Line(f"parity.{name}", INCONCLUSIVE, f"not run: {why}")
            continue
        share = seen.largest_logit_difference / max(seen.largest_logit, 1.0)
        figures = (
            f"{between[name]}{', FP16 emulated' if seen.emulated else ''}: largest difference of a logit "
            f"{share:.2g} of the largest logit, {seen.overflowed} of {seen.images} images overflowed, same class in "
            f"{_cent(seen.top1_agreement)}; at most {limit:g}, none overflowed"
        )
        yield Line(f"parity.{name}", PASS if share <= limit and not seen.overflowed else FAIL, figures)


def at_least(share: Proportion, least: float) -> str:
    """Whether a share's whole interval is on one side of a limit."""
    if share.low is None or share.high is None:
        return INCONCLUSIVE
    return PASS if share.low >= least else FAIL if share.high < least else INCONCLUSIVE


def _share(share: Proportion) -> str:
    if share.value is None or share.low is None or share.high is None:
        return "not run: no case"
    ends = f"95 % interval {_cent(share.low)} to {_cent(share.high)}"
    return f"{_cent(share.value)} ({share.count} of {share.of}), {ends}"


def _cent(value: float) -> str:
    return f"{100 * value:.1f} %"
