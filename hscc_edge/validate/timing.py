"""What `bench` measured of both classifiers during a validation, from its JSON: valid or not, lacks, rows of text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hscc_edge.validate.bench import NO_GPU
from hscc_edge.validate.end_to_end import STAGES

FEW = (
    "warm-up until stable, jitter, throughput, start-up, from file to report, energy, temperature, clocks, throttling: "
    "not measured, a few calls alone were timed (--seconds 0)"
)
NONE = "not measured"


def invalid(timing: Mapping[str, Any] | None) -> str:
    """Why the times say nothing of the device; "" if nothing speaks against them."""
    return f"invalid: throttled ({', '.join(timing['throttled'])})" if timing and timing["throttled"] else ""


def not_measured(timing: Mapping[str, Any] | None) -> tuple[str, ...]:
    """What was not measured, each with the reason; on which device it was not is the evidence's to say."""
    return (FEW,) if timing is None else tuple(line for line in timing["not_run"] if line != NO_GPU)


def rows(timing: Mapping[str, Any], images_a_case: float) -> list[tuple[str, str, str]]:
    """(what, original, compressed), percentiles of a call apart.

    Args:
        images_a_case: in one unit of decision, the mean; its energy is that of so many images.
    """
    return [(name, *pair) for name, pair in _pairs(timing, images_a_case)]


def _pairs(timing: Mapping[str, Any], images_a_case: float) -> Iterator[tuple[str, tuple[str, str]]]:
    sides = timing["outcomes"][0]["sides"]
    yield "Warm-up", _both(sides, lambda side: _warm(side["warm_up"]))
    yield "Jitter, ms from one call to the next", _both(sides, lambda side: f"{side['jitter_ms']:.3f}")
    yield "Images a second", _both(sides, _throughput)
    starts = timing["start_up"]
    yield "Start-up, s from a new process to the first answer", _both(starts, lambda start: _figure(start, "process_s"))
    yield "First inference, ms", _both(starts, lambda start: _figure(start, "first_inference_ms"))
    yield "Memory, MiB resident at most, in that process", _both(starts, lambda start: _figure(start, "peak_mib"))
    whole = timing["end_to_end"]
    unit = whole[0]["unit"] if whole else "case"
    yield f"From DICOM file to report, ms a {unit}, median", _both(whole, lambda case: _percentile(case, 0.5))
    yield f"From DICOM file to report, ms a {unit}, 90th percentile", _both(whole, lambda case: _percentile(case, 0.9))
    yield "Of it: decode, preprocess, infer, report, ms, medians", _both(whole, lambda case: _stages(case["stages_ms"]))
    energy = timing["energy"]
    yield "Energy, J an image, model alone", _both(energy, lambda item: f"{item['joules_an_image']:.4f}")
    name = f"Energy, J a case of {images_a_case:.3g} images, model alone"
    yield name, _both(energy, lambda item: f"{images_a_case * item['joules_an_image']:.4f}")


def _both(sides: Sequence[Mapping[str, Any]], text: Callable[[Mapping[str, Any]], str]) -> tuple[str, str]:
    return (text(sides[0]), text(sides[1])) if len(sides) == 2 else (NONE, NONE)


def _warm(found: Mapping[str, Any]) -> str:
    return f"{found['calls']} calls, {'stable' if found['stable'] else 'not stable'}"


def _throughput(side: Mapping[str, Any]) -> str:
    return f"{side['images_s']:.1f} ({side['images_s_low']:.1f} to {side['images_s_high']:.1f})"


def _figure(start: Mapping[str, Any], name: str) -> str:
    return f"{start[name]:.2f}" if name in start else f"not run: {start.get('not_run', NONE)}"


def _stages(found: Mapping[str, float]) -> str:
    return ", ".join(f"{found[name]:.1f}" for name in STAGES)


def _percentile(case: Mapping[str, Any], share: float) -> str:
    found = next(item for item in case["percentiles"] if item["share"] == share)
    if found["ms"] is None:
        return f"not enough cases: {found['needed']:,} needed"
    low = "?" if found["low_ms"] is None else f"{found['low_ms']:.1f}"
    return f"{found['ms']:.1f} ({low} to {found['high_ms']:.1f})"


def device(timing: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, before and after or meanwhile), of the device as a whole; "not measured" where it has no sensor."""
    before, after, whole = timing["before"], timing["after"], timing["whole"]
    settings = (("Power mode", "power_mode"), ("CPU governors", "governors"), ("Free memory, MiB", "available_mib"))
    found = [(name, _change(_plain(before[key]), _plain(after[key]))) for name, key in settings]
    found += [
        (f"Temperature, {zone}", f"{_ends(timing, 'celsius', zone, 'C')}, {highest:.1f} C at most")
        for zone, (_, _, highest) in whole["celsius"].items()
    ]
    found += [
        (f"Clock, {clock}", f"{_ends(timing, 'megahertz', clock, 'MHz')}, {low:.0f} to {high:.0f}, mean {mean:.0f}")
        for clock, (low, mean, high) in whole["megahertz"].items()
    ]
    found += [(f"{words[:1].upper()}{words[1:]}", NONE) for words in whole["not_measured"]]
    if timing["throttled"]:
        found.append(("Throttling", ", ".join(timing["throttled"])))
    elif "throttling" not in whole["not_measured"]:
        found.append(("Throttling", "none seen"))
    return found


def _ends(timing: Mapping[str, Any], kind: str, name: str, unit: str) -> str:
    values = (timing[end][kind] for end in ("before", "after"))
    return _change(*(f"{found[name]:.1f} {unit}" if name in found else NONE for found in values))


def _change(first: str, last: str) -> str:
    return NONE if first == last == NONE else f"{first} before, {last} after"


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
