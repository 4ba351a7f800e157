"""`hscc-edge validate`: a bundle against the one it was made from, on a DICOM test split."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hscc_edge.cli.output import JsonFlag, Output
from hscc_edge.errors import InputError

if TYPE_CHECKING:
    from hscc_edge.bundle import Bundle
    from hscc_edge.data.cohort import Cohort
    from hscc_edge.validate.collect import Collection, Conditions
    from hscc_edge.validate.evidence import Evidence
    from hscc_edge.validate.gate import Line
    from hscc_edge.validate.requirements import Requirements

STYLES = {"PASS": "green", "FAIL": "red", "INCONCLUSIVE": "yellow"}
PRINTED = "-"


def validate(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle to prove.")] = None,
    reference: Annotated[Path | None, typer.Option(help="Bundle it was made from.")] = None,
    cohort: Annotated[Path | None, typer.Option(help="Cohort with the split to test on.")] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    collect: Annotated[
        Path | None,
        typer.Option(
            help="Write answers and times here and stop: all that the device is needed for. "
            "With --json and - they are the JSON object."
        ),
    ] = None,
    collected: Annotated[
        Path | None, typer.Option("--from", help="Weigh what --collect wrote, on the device or here; runs nothing.")
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(help="Run on another machine, weigh here: ssh://user@host[:port][/path/of/its/hscc-edge]."),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="HTML report; its JSON is written beside it.")] = None,
    margin: Annotated[
        float | None, typer.Option(help="Points of accuracy that may be lost, declared beforehand: non-inferior?")
    ] = None,
    gate: Annotated[
        Path | None, typer.Option(help="Requirements (TOML): exit 0 if all pass, 1 if one fails, 3 if inconclusive.")
    ] = None,
    runtime: Annotated[str, typer.Option(help="ort, eager or trt; both bundles run on it.")] = "ort",
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp32",
    threads: Annotated[int, typer.Option(help="Of a CPU runtime.")] = 1,
    seconds: Annotated[
        float,
        typer.Option(help="Of each part of the timing: calls, energy, from file to report; 0 for a few calls."),
    ] = 10.0,
    as_json: JsonFlag = False,
) -> None:
    """Compare accuracy, divergence and latency with the reference, and write a report.

    Example: hscc-edge validate small --reference dense --cohort cohort --report report.html
    Example: hscc-edge validate small --reference dense --cohort cohort --gate gate.toml
    Example: hscc-edge validate small --reference dense --cohort cohort --collect found.json   (on the device)
    Example: hscc-edge validate --from found.json --report report.html   (at the workstation)
    Example: hscc-edge validate small --reference dense --cohort cohort --on ssh://hscc@jetson --report report.html
    """
    from hscc_edge.validate.collect import Conditions, read_collection

    if threads < 1 or seconds < 0:
        raise InputError(f"--threads is {threads}, --seconds is {seconds}: expected 1 or more, and 0 or more")
    _check(collect, collected, on, as_json)
    output, wanted = Output(as_json), _wanted(margin, gate)
    if collected is not None:
        found, ran = read_collection(collected), None
    else:
        conditions = Conditions(runtime, precision, threads, seconds)
        found, ran = _collect(output, bundle, reference, cohort, split, conditions, on)
    if collect is not None:
        _write(output, found, collect)
    else:
        _weigh(output, found, report, wanted, ran)


def _check(collect: Path | None, collected: Path | None, on: str | None, as_json: bool) -> None:
    if collected is not None and on is not None:
        raise InputError("--from and --on are both given: expected one, for --from runs nothing")
    if str(collect) == PRINTED and not as_json:
        raise InputError("--collect is -, without --json: expected both, or a file")


def _write(output: Output, found: Collection, place: Path) -> None:
    from hscc_edge import durable

    if str(place) == PRINTED:
        output.result(found.to_json())
        return
    durable.write_json(place, found.to_json())
    output.say(f"{place}: {found.cohort['cases']} cases; weigh them with hscc-edge validate --from {place}")
    output.result({"collection": str(place), "cases": found.cohort["cases"]})


def _wanted(margin: float | None, gate: Path | None) -> Requirements | None:
    """What is asked for; None if nothing is."""
    from hscc_edge.validate.noninferiority import check_margin
    from hscc_edge.validate.requirements import Requirements, read_requirements

    if margin is not None:
        check_margin(margin / 100)
    if gate is None:
        return None if margin is None else Requirements(margin=margin / 100)
    wanted = read_requirements(gate)
    if margin is not None and wanted.margin not in (None, margin / 100):
        raise InputError(f"--margin is {margin:g} and {gate} says another: give one of them")
    return wanted if margin is None else dataclasses.replace(wanted, margin=margin / 100)


def _collect(
    output: Output,
    bundle: Path | None,
    reference: Path | None,
    cohort: Path | None,
    split: str,
    conditions: Conditions,
    on: str | None,
) -> tuple[Collection, tuple[Bundle, Cohort] | None]:
    """What was found, and what may be asked further here: nothing of another machine's run."""
    from hscc_edge.bundle import read_bundle
    from hscc_edge.cli.bench import report_maker
    from hscc_edge.data.cohort import read_cohort
    from hscc_edge.export.remote import parse_host
    from hscc_edge.validate.collect import collect
    from hscc_edge.validate.remote import collect_there

    if bundle is None or reference is None or cohort is None:
        raise InputError("BUNDLE, --reference and --cohort are not all given: give the three, or --from alone")
    part, candidate, original = read_cohort(cohort).select(split), read_bundle(bundle), read_bundle(reference)
    if on is not None:
        host = parse_host(on)
        output.say(f"running on {host.address}: two passes over {len(part.instances)} images, then the timing")
        return collect_there(host, candidate, original, part, conditions), None
    with output.progress("validate", 2 * len(part.instances)) as advance:
        found = collect(candidate, original, part, conditions, advance, make=report_maker())
    return found, (candidate, part)


def _weigh(
    output: Output,
    found: Collection,
    report: Path | None,
    wanted: Requirements | None,
    ran: tuple[Bundle, Cohort] | None,
) -> None:
    from hscc_edge import durable
    from hscc_edge.cli.gated import gated
    from hscc_edge.validate.evidence import weigh

    evidence = weigh(found) if wanted is None else weigh(found, wanted.margin, wanted.group_margin)
    gating = None if wanted is None else gated(wanted, found, evidence, ran)
    if gating is not None and wanted is not None and wanted.lines:  # a margin alone is a verdict, no gate
        evidence = dataclasses.replace(evidence, gate=gating)
    facts = evidence.to_json()
    if report is not None:
        from hscc_edge.validate.report import render

        durable.write_text(report, render(evidence))
        durable.write_json(report.with_suffix(".json"), facts)
    _show(output, evidence, () if gating is None else gating.lines)
    output.result(facts)
    if gating is not None and wanted is not None and wanted.lines:  # a margin alone is answered, not enforced
        raise typer.Exit(gating.exit_code)


def _show(output: Output, evidence: Evidence, lines: Sequence[Line]) -> None:
    from hscc_edge.validate import claim
    from hscc_edge.validate.uses import sentence

    race, where = evidence.race, "CPU only" if evidence.cpu_only else "GPU"
    columns = ("classifier", "accuracy (95 % interval)", "macro F1", "AUC", "KL", "p50 ms", "p90 ms", "p99 ms")
    title = f"{evidence.cohort['cases']} cases on {evidence.conditions['runtime_name']}, {where}"
    output.table(title, columns, list(_rows(evidence)))
    output.say(claim.claim(evidence))
    if evidence.verdict is None:
        output.say(claim.answer(evidence))
    for line in lines:
        output.say(str(line), STYLES[line.state])
    output.say(claim.ability(evidence))
    output.say(f"{race.speedup:.2f}x faster ({race.low:.2f} to {race.high:.2f}), median call, {where}.")
    if evidence.invalid:
        output.say(evidence.invalid, "red")
    output.say(sentence(evidence.uses))
    output.say("; ".join(evidence.not_run))


def _rows(evidence: Evidence) -> Iterator[tuple[str, ...]]:
    """A row a classifier; a percentile that so many calls cannot tell is a dash."""
    import numpy as np

    from hscc_edge.validate.latency import percentile
    from hscc_edge.validate.wording import decimal, share

    found, race = evidence.comparison, evidence.race
    apart = f"{decimal(found.kl)} (SE {decimal(found.kl_se)})"
    for name, figures, told, kl, times in (
        ("original", evidence.reference_figures, evidence.reference_probabilities, "-", race.reference_ms),
        ("compressed", evidence.candidate_figures, evidence.candidate_probabilities, apart, race.candidate_ms),
    ):
        area = decimal(told.macro_auc.value, 3) if told and told.macro_auc else "-"
        clock = (decimal(percentile(np.array(times), part).ms, 2) for part in (0.5, 0.9, 0.99))
        yield name, share(figures.accuracy), decimal(figures.macro_f1.value, 3), area, kl, *clock
