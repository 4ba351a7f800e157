"""`hscc-edge bench`: how fast a bundle is on this device, beside the one it was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hscc_edge.cli.output import JsonFlag, Output
from hscc_edge.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from hscc_edge.bundle import Bundle
    from hscc_edge.model.decision import Decision
    from hscc_edge.validate.bench import Bench, Conditions
    from hscc_edge.validate.end_to_end import MakeReport
    from hscc_edge.validate.latency import Percentile
    from hscc_edge.validate.profile import Profiles

Scenarios = Annotated[
    str, typer.Option("--scenario", help="Some of single (one image), burst (8), backlog (throughput), by commas.")
]
LayersFlag = Annotated[
    Path | None, typer.Option(help="Time the candidates in this directory of compress --candidates, and stop.")
]


def bench(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle to time.")] = None,
    reference: Annotated[Path | None, typer.Option(help="Bundle it was made from: both run in turn.")] = None,
    cohort: Annotated[Path | None, typer.Option(help="Cohort for real images, and for DICOM file to report.")] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    scenario: Scenarios = "single,burst,backlog",
    runtime: Annotated[str, typer.Option(help="ort, ort-cuda, ort-tensorrt, trt or eager; for both.")] = "ort",
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8; for both.")] = "fp32",
    threads: Annotated[int, typer.Option(help="Of a CPU runtime.")] = 1,
    seconds: Annotated[float, typer.Option(help="Of each scenario.")] = 10.0,
    profile: Annotated[
        bool, typer.Option("--profile", help="Time every layer of both, on ONNX Runtime's CPU.")
    ] = False,
    layers: LayersFlag = None,
    out: Annotated[Path | None, typer.Option(help="JSON file with everything, raw samples among it.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Time a bundle on this device, in turn with the original at the same precision; what was not run is named.

    Example: hscc-edge bench small --reference dense --cohort cohort --profile --out bench.json
    Example: hscc-edge bench --layers candidates --out table.json   (the table that compress --table reads)
    """
    if threads < 1 or seconds < 0:
        raise InputError(f"--threads is {threads}, --seconds is {seconds}: expected 1 or more, and 0 or more")
    output = Output(as_json)
    if layers is not None:
        if bundle is not None or out is None:
            raise InputError("--layers times a directory of candidates: give --out TABLE with it, and no bundle")
        if precision != "fp32":
            raise InputError(f"--precision is {precision}: candidates are FP32 graphs; leave it out with --layers")
        _time_layers(output, layers, runtime, threads, out)
        return
    if bundle is None:
        raise InputError("no bundle was given: give BUNDLE, or --layers DIR")
    _time_bundle(output, _asked(scenario, runtime, precision, threads, seconds, profile), bundle, reference, cohort,
                 split, out)  # fmt: skip


def _asked(scenario: str, runtime: str, precision: str, threads: int, seconds: float, profile: bool) -> Conditions:
    from hscc_edge.validate.bench import Conditions
    from hscc_edge.validate.scenarios import scenario_of

    return Conditions(
        tuple(scenario_of(name) for name in scenario.split(",")), runtime, precision, threads, seconds, profile
    )


def _time_bundle(
    output: Output,
    asked: Conditions,
    bundle: Path,
    reference: Path | None,
    cohort: Path | None,
    split: str,
    out: Path | None,
) -> None:
    from hscc_edge import durable
    from hscc_edge.bundle import read_bundle
    from hscc_edge.data.cohort import read_cohort
    from hscc_edge.validate.bench import measure, steps

    candidate, original = read_bundle(bundle), None if reference is None else read_bundle(reference)
    part = None if cohort is None else read_cohort(cohort).select(split)
    with output.progress("bench", steps(asked)) as advance:
        found = measure(asked, candidate, original, part, report_maker(), advance)
    _show(output, found)
    if out is not None:
        durable.write_json(out, found.to_json())
    output.result(found.to_json())


def report_maker() -> MakeReport | None:
    """Makes the report of one case as the daemon does; None without the packages for it."""
    try:
        import pydicom

        from hscc_edge.serve.doors.content import digest_of
        from hscc_edge.serve.results.measurement_report import build_report
        from hscc_edge.serve.results.sr import reference_of, report_uid
    except MissingExtraError:
        return None

    def make(bundle: Bundle, paths: Sequence[Path], decision: Decision) -> bytes:
        uid = report_uid(bundle, [digest_of(path.read_bytes()) for path in paths])
        headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
        return build_report(bundle, headers[0], [(decision, [reference_of(image) for image in headers])], uid, None)

    return make


def _time_layers(output: Output, folder: Path, runtime: str, threads: int, out: Path) -> None:
    from hscc_edge import durable
    from hscc_edge.validate.layer_times import device_of, read_index, time_directory

    device = device_of(runtime, threads)
    with output.progress("layers", len(read_index(folder).layers)) as advance:
        table = time_directory(folder, device, advance)
    durable.write_json(out, table)
    errors = [abs(own / measured - 1) for own, measured in table["anchors"]]
    output.say(
        f"{out}: {table['runtime']}, dense {table['dense_ms']:.2f} ms; {len(errors)} whole networks that set it right "
        f"are at most {max(errors):.1%} from its sums; at the workstation: hscc-edge compress ... --table {out}"
    )
    output.result(table)


def _show(output: Output, found: Bench) -> None:
    first = len(found.bundles) == 1
    names = ("bundle",) if first else ("original", "bundle")
    columns = ("", "start-up s", "query", "queries", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "jitter ms", "images/s")
    rows = [
        (f"{outcome.scenario.name}, {name}", _start(start), outcome.scenario.images, side.samples,
         *(_ms(item) for item in side.percentiles), f"{side.jitter_ms:.2f}", f"{side.images_s:.1f}")
        for outcome in found.outcomes
        for name, side, start in zip(names, outcome.sides, found.start_up, strict=False)
    ]  # fmt: skip
    title = f"{found.conditions.precision}, {found.conditions.threads} thread(s); {found.machine['machine']}"
    output.table(title, columns, rows)
    for outcome in found.outcomes:
        if outcome.speedup is not None:
            value, low, high = outcome.speedup
            output.say(f"{outcome.scenario.name}: {value:.2f}x faster, median query ({low:.2f} to {high:.2f})")
    _show_rest(output, found, names)


def _show_rest(output: Output, found: Bench, names: Sequence[str]) -> None:
    for name, energy in zip(names, found.energy, strict=False):
        output.say(f"{name}: {energy.joules_an_image:.4f} J an image, {energy.above_idle_joules:.4f} above idle; "
                   f"{energy.watts:.1f} W ({energy.of})")  # fmt: skip
    for name, case in zip(names, found.end_to_end, strict=False):
        stages = ", ".join(f"{stage} {value:.2f}" for stage, value in case.stages_ms.items())
        output.say(f"{name}, from file to report: median {_ms(case.percentiles[0])} ms a {case.unit} ({stages})")
    if found.profiles is not None:
        _show_profile(output, found.profiles)
    if found.throttled:
        output.say(f"INVALID: the device throttled ({', '.join(found.throttled)})", style="red")
    for line in found.not_run:
        output.say(line)


def _show_profile(output: Output, found: Profiles) -> None:
    output.say("layer: original ms, bundle ms (ONNX Runtime's profiler; its own time is in them)")
    for layer in found.layers:
        text = f"  {layer.name}: {layer.reference_ms:.3f}, {layer.candidate_ms:.3f}"
        output.say(text + (" slower" if layer.slower else ""), style="red" if layer.slower else None)


def _start(start: Mapping[str, Any]) -> str:
    return "not run" if "process_s" not in start else f"{start['process_s']:.2f}"


def _ms(item: Percentile) -> str:
    """With its interval's upper end, if there is one."""
    if item.ms is None:
        return f"needs {item.needed}"
    return f"{item.ms:.2f} (to {item.high_ms:.2f})"
