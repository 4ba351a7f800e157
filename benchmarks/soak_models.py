"""Two tiny bundles for single MR images, trained on a phantom within a minute: one to serve, one to switch to."""

from __future__ import annotations

from pathlib import Path

from soak_campaign import Made

RECIPE = """
name = "soak"
preprocess = [
  {{ name = "percentile", lower = 1.0, upper = 99.0 }},
  {{ name = "resize", height = 64, width = 64 }},
  {{ name = "channels", count = 1 }},
  {{ name = "normalise", mean = [0.3], std = [0.25] }},
]
[network]
name = "alexnet"
args = {{ pool = 1, hidden = 32, dropout = 0.0 }}
[decision]
unit = "study"
minimum_images = 2
[train]
epochs = 1
batch_size = 16
seed = {seed}
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
    """Train and export them, if that was not done before."""
    from typer.main import get_command

    from hscc_edge.cli import app
    from hscc_edge.data.phantom import write_phantom

    cohort, found = folder / "cohort", []
    if not cohort.exists():
        write_phantom(cohort, patients=16, slices=3, size=64, seed=5)
    for seed in (3, 4):
        bundle, recipe = folder / f"bundle-{seed}", folder / "soak.toml"
        if not (bundle / "reports").exists():
            recipe.write_text(RECIPE.format(seed=seed))
            for words in (
                ["train", str(recipe), "--cohort", str(cohort), "--out", str(bundle)],
                ["export", str(bundle), "--cohort", str(cohort), "--images", "4"],
            ):
                get_command(app).main(words, standalone_mode=False)
        found.append(bundle)
    return Made(found[0], found[1], min(cohort.rglob("*.dcm")))
