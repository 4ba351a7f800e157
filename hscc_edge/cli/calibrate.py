"""`hscc-edge calibrate`: fit a temperature and a limit of familiarity to a bundle, and keep them in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hscc_edge.cli.output import JsonFlag, Output
from hscc_edge.errors import InputError

if TYPE_CHECKING:
    from hscc_edge.validate.fitting import Fitted

REPORT = "reports/calibration.json"


def calibrate(
    bundle: Annotated[Path, typer.Argument(help="Exported bundle; what is fitted is written into it.")],
    cohort: Annotated[Path, typer.Option(help="Cohort with a split that figures are never taken on.")],
    split: Annotated[str, typer.Option(help="val or train; never test.")] = "val",
    temperature: Annotated[bool, typer.Option(help="Fit a temperature, so that probabilities are honest.")] = True,
    false_alarms: Annotated[
        float | None,
        typer.Option(help="Per cent of familiar cases that a limit of free energy may turn away; no limit without it."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Fit a temperature, and a limit beyond which a case gets no decision, on a split that is not tested on.

    How the split's cases look is kept in the bundle too, for a device to see by what its own studies are unlike them.
    A bundle compressed from this one does not inherit them: fit again.

    Example: hscc-edge calibrate small --cohort cohort --split val --false-alarms 1
    """
    from hscc_edge.bundle import read_bundle, rewrite
    from hscc_edge.data.cohort import read_cohort
    from hscc_edge.runtime import open_runtime
    from hscc_edge.validate.drift import DRIFT, familiar
    from hscc_edge.validate.fitting import fit

    if false_alarms is not None and not 0 < false_alarms < 100:
        raise InputError(f"--false-alarms is {false_alarms}: expected per cent, over 0 and under 100")
    if not temperature and false_alarms is None:
        raise InputError("nothing to fit was named: leave --no-temperature out, or give --false-alarms")
    output, part, found = Output(as_json), read_cohort(cohort).select(split), read_bundle(bundle)
    with output.progress("calibrate", len(part.instances) * (2 if false_alarms is None else 3)) as advance:
        share = None if false_alarms is None else false_alarms / 100
        fitted = fit(found, part, with_temperature=temperature, false_alarms=share, progress=advance)
        looks = familiar(found, fitted.decision, open_runtime(found), part, advance)
    files = {REPORT: _json(fitted.to_json()), DRIFT: _json(looks.to_json())}
    written = rewrite(found, files, decision=fitted.decision)
    _show(output, fitted, split)
    output.result({"bundle": str(written.root), "digest": written.digest, **fitted.to_json()})


def _json(content: object) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def _show(output: Output, fitted: Fitted, split: str) -> None:
    if split == "train":
        output.say("warning: fitted on train, where a classifier is surer of itself than on what it has not seen")
    if fitted.log_loss is not None and fitted.error is not None:
        before, after = fitted.log_loss
        first, second = (f"{100 * (error.value or 0):.1f}" for error in fitted.error)
        output.say(
            f"temperature {fitted.temperature:.3f}: log loss {before:.4f} -> {after:.4f}, calibration error {first} -> "
            f"{second} % on {split}"
        )
    if fitted.energy_limit is not None and fitted.false_alarms is not None:
        output.say(
            f"limit of free energy {fitted.energy_limit:.3f}: {fitted.false_alarms.count} of {fitted.false_alarms.of} "
            "familiar cases beyond it"
        )
        rows = [(item.kind, f"{100 * (item.share.value or 0):.1f} %") for item in fitted.caught]
        output.table("foreign pictures beyond the limit", ("kind", "caught"), rows)
