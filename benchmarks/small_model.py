"""A classifier of MR studies that trains on a phantom cohort within seconds: for tests and the daemon's benchmarks."""

from __future__ import annotations

from pathlib import Path

NARROW = "{ pool = 1, hidden = 32, dropout = 0.0, width = 0.25 }"


def recipe(name: str = "tiny", args: str = NARROW, minimum_images: int = 2, train: str = "epochs = 1") -> str:
    """A training recipe (TOML) for studies of 64 x 64 images; `args` are AlexNet's, `train` lines of its schedule."""
    return f"""
name = "{name}"
preprocess = [
  {{ name = "percentile", lower = 1.0, upper = 99.0 }},
  {{ name = "resize", height = 64, width = 64 }},
  {{ name = "channels", count = 1 }},
  {{ name = "normalise", mean = [0.3], std = [0.25] }},
]
[network]
name = "alexnet"
args = {args}
[decision]
unit = "study"
minimum_images = {minimum_images}
[train]
batch_size = 16
seed = 3
{train}
[site]
value = "12738006"
scheme = "SCT"
meaning = "Brain"
[procedure]
value = "113091000"
scheme = "SCT"
meaning = "Magnetic resonance imaging"
"""


def trained(path: Path, cohort: Path, out: Path, *options: str) -> Path:
    """The bundle at `out`, trained by the recipe at `path` and exported with these options of `hscc-edge export`."""
    from typer.main import get_command

    from hscc_edge.cli import app

    for words in (
        ["train", str(path), "--cohort", str(cohort), "--out", str(out)],
        ["export", str(out), "--cohort", str(cohort), *options],
    ):
        get_command(app).main(words, standalone_mode=False)
    return out
