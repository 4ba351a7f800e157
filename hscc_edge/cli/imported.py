"""`hscc-edge import`: a hospital's own model becomes a dense bundle."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from hscc_edge.cli.output import JsonFlag, Output


def import_model(
    source: Annotated[
        str,
        typer.Argument(
            help="model.onnx; model.pt2 (torch.export.save); model.ts (TorchScript); a MONAI bundle directory; or "
            "package.module:function, which gives a torch network."
        ),
    ],
    recipe: Annotated[Path, typer.Option(help="Recipe (TOML) with labels and findings; see docs/import.md.")],
    out: Annotated[Path, typer.Option(help="New bundle directory.")],
    weights: Annotated[
        Path | None, typer.Option(help="Of package.module:function: .safetensors, or .pt with a state dict.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what stands at --out.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make a dense bundle of a trained model, for compress, export, validate and serve.

    A .pt that holds a state dict or a pickled network is no model by itself: give the Python function that builds the
    network as SOURCE, and the state dict as --weights.

    Example: hscc-edge import model.onnx --recipe site.toml --out dense
    Example: hscc-edge import ward.networks:chest --weights chest.safetensors --recipe site.toml --out dense
    """
    from hscc_edge.model.adoption import adopt
    from hscc_edge.model.recipe import read_recipe

    output, parsed = Output(as_json), read_recipe(recipe)
    sys.path.insert(0, str(Path.cwd()))  # where a user's own package lies, as for python -m
    bundle = adopt(source, parsed, out, weights, replace=overwrite)
    facts = bundle.spec.training
    output.say(f"bundle {out}: from {facts['imported']}, labels {', '.join(bundle.spec.labels)}")
    output.say("checked on a black image and on noise: finite, the same under ONNX Runtime, rebuilt from the bundle")
    output.result({"bundle": str(out), "digest": bundle.digest, "network": bundle.spec.network, "training": facts})
