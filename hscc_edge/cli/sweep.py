"""`hscc-edge sweep`: methods, budgets, seeds and hyper-parameters; which compressions nothing beats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hscc_edge.cli.output import JsonFlag, Output

if TYPE_CHECKING:
    from hscc_edge.compress.front import Front


def sweep(
    bundle: Annotated[Path, typer.Argument(help="Dense bundle.")],
    recipe: Annotated[Path, typer.Option(help="TOML: methods, budgets, seeds, objectives, search.")],
    cohort: Annotated[Path, typer.Option(help="Its train split calibrates, its val split judges.")],
    out: Annotated[Path, typer.Option(help="Directory of the study; one that is begun is gone on with.")],
    workers: Annotated[int, typer.Option(help="Processes; each holds one network's statistics.")] = 1,
    trials: Annotated[int | None, typer.Option(help="At most so many trials now; the next run goes on.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run a sweep, or go on with one that was cut off; --out holds front.json and front.html then.

    Trials are measured on the val split, or on train patients set aside if there is none; never on the test split.

    Example: hscc-edge sweep dense --recipe sweep-paper.toml --cohort cohort --out sweep --workers 2
    """
    from hscc_edge.compress.sweep import Sweep, run_sweep
    from hscc_edge.compress.sweep_recipe import read_sweep

    output, found = Output(as_json), read_sweep(recipe)
    with output.progress(f"sweep {found.name}") as advance:
        front = run_sweep(Sweep(found, bundle, cohort, out), workers, trials, advance)
    _show(output, front, out)
    done = [entry for entry in front.entries if entry.outcome is not None]
    output.result(
        {"front": str(out / "front.json"), "page": str(out / "front.html"), "measured": len(done),
         "refused": len(front.entries) - len(done), "left": front.left,
         "pareto": [entry.name for entry in done if entry.pareto], "importances": front.importances}
    )  # fmt: skip


def _show(output: Output, front: Front, out: Path) -> None:
    best = [(entry, entry.outcome) for entry in front.entries if entry.pareto and entry.outcome is not None]
    rows = [
        (f"{entry.method} {entry.budget} seed {entry.seed}", f"{outcome['kl']:.4f}", f"{outcome['accuracy']:+.2f}",
         *("-" if outcome[name] is None else f"{1 / outcome[name]:.2f}x" for name in ("flops", "bytes", "latency")))
        for entry, outcome in sorted(best, key=lambda pair: pair[1]["kl"])
    ]  # fmt: skip
    refused = sum(entry.outcome is None for entry in front.entries)
    title = f"front of {len(front.entries) - refused} trials; {refused} refused, {front.left} left"
    output.table(title, ("trial", "KL", "points lost", "FLOPs", "bytes", "speed-up"), rows)
    for name, shares in front.importances.items():
        ordered = sorted(shares.items(), key=lambda item: -item[1])
        told = ", ".join(f"{key} {100 * value:.0f} %" for key, value in ordered)
        output.say(f"variance of {name} within a budget: {told}")
    output.say(f"page: {out / 'front.html'}")
