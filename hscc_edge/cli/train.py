"""`hscc-edge train`: a recipe and a cohort become a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hscc_edge import durable
from hscc_edge.cli.output import JsonFlag, Output


def train(
    recipe: Annotated[Path, typer.Argument(help="Training recipe (TOML), see calibration/recipes.")],
    cohort: Annotated[Path, typer.Option(help="Cohort directory with a train split.")],
    out: Annotated[Path, typer.Option(help="New bundle directory.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what stands at --out.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a classifier and write its bundle; deterministic from the recipe's seed.

    Example: hscc-edge train calibration/recipes/phantom-alexnet.toml --cohort cohort --out dense
    """
    from hscc_edge.data.case import inputs_of
    from hscc_edge.data.cohort import read_cohort
    from hscc_edge.model import train as training
    from hscc_edge.model.recipe import read_recipe

    output = Output(as_json)
    durable.require_free(out, replace=overwrite)
    parsed, images = read_recipe(recipe), read_cohort(cohort)
    if training.slow_bf16(parsed.schedule):
        output.say("warning: this CPU emulates bf16, which took three times as long: fp32 in the recipe is faster here")
    total = training.steps_of(parsed.schedule, len(inputs_of(images.select("train"), parsed.preprocess)))
    with output.progress(f"train {parsed.name}", total) as advance:
        bundle = training.train(parsed, images, out, replace=overwrite, progress=advance)
    output.say(f"bundle {out}: {parsed.network['name']}, {bundle.spec.training['images']} training images")
    output.result({"bundle": str(out), "digest": bundle.digest, "training": bundle.spec.training})
