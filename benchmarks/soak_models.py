"""A tiny bundle for single MR images, trained on a phantom within a minute, and a later version to switch to."""

from __future__ import annotations

import shutil
from pathlib import Path

from soak_campaign import Made

RECIPE = """
name = "soak"
preprocess = [
  { name = "percentile", lower = 1.0, upper = 99.0 },
  { name = "resize", height = 64, width = 64 },
  { name = "channels", count = 1 },
  { name = "normalise", mean = [0.3], std = [0.25] },
]
[network]
name = "alexnet"
args = { pool = 1, hidden = 32, dropout = 0.0 }
[decision]
unit = "study"
minimum_images = 2
[train]
epochs = 1
batch_size = 16
seed = 3
[site]
value = "12738006"
scheme = "SCT"
meaning = "Brain"
[procedure]
value = "113091000"
scheme = "SCT"
meaning = "Magnetic resonance imaging"
"""


def small_bundles(folder: Path) -> Made:
    """Train and export one, and make a later version of it, if that was not done before."""
    from typer.main import get_command

    from hscc_edge.bundle import read_bundle, rewrite
    from hscc_edge.cli import app
    from hscc_edge.data.phantom import write_phantom

    cohort, bundle, other = (folder / name for name in ("cohort", "bundle", "other"))
    if not other.exists():
        shutil.rmtree(folder, ignore_errors=True)
        write_phantom(cohort, patients=16, slices=3, size=64, seed=5)
        (folder / "soak.toml").write_text(RECIPE)
        for words in (
            ["train", str(folder / "soak.toml"), "--cohort", str(cohort), "--out", str(bundle)],
            ["export", str(bundle), "--cohort", str(cohort), "--images", "4"],
        ):
            get_command(app).main(words, standalone_mode=False)
        shutil.copytree(bundle, folder / "draft")
        rewrite(read_bundle(folder / "draft"), {})
        (folder / "draft").rename(other)
    return Made(bundle, other, min(cohort.rglob("*.dcm")))
