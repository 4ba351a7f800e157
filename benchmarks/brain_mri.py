"""The public brain MRI pictures as a cohort, and networks trained on them; both kept in a cache."""

from __future__ import annotations

import argparse
import hashlib
import os
import tarfile
from pathlib import Path

from hscc_edge.cli.demo import Steps
from hscc_edge.cli.output import Output
from hscc_edge.data.cohort import read_cohort
from hscc_edge.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "calibration" / "recipes"


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A command line with what every benchmark on these pictures needs."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hscc_edge"
    found.add_argument("--data", type=Path, required=True, help="directory with training.tar and testing.tar")
    found.add_argument("--out", type=Path, required=True, help="directory for what is made and measured")
    found.add_argument("--cache", type=Path, default=home / "brain-mri", help="keeps the cohort and trained bundles")
    return found


def prepare(data: Path, cache: Path, network: str = "alexnet") -> tuple[Path, Path]:
    """The cohort, and the trained and exported bundle."""
    steps = Steps(Output())
    cohort = prepare_cohort(steps, data, cache)
    return cohort, prepare_dense(steps, cohort, cache, network)


def prepare_cohort(steps: Steps, data: Path, cache: Path) -> Path:
    """The cohort, imported from DATA's two archives, unless it is in the cache.

    Exact duplicates are dropped, and from the test split every picture that is nearly equal to one in train.
    """
    cohort = cache / "cohort"
    if (cohort / "cohort.toml").is_file():
        return cohort
    pictures = cache / "pictures"
    for split in ("training", "testing"):
        archive = data / f"{split}.tar"
        if not archive.is_file():
            raise InputError(f"{archive} does not exist: give the directory of training.tar and testing.tar")
        with tarfile.open(archive) as tar:
            tar.extractall(pictures / split, filter="data")
    raw = cache / "cohort-raw"
    steps.run("import", "cohort", "import", pictures, raw, "--drop-duplicates", "--name", "brain-mri", "--overwrite")
    steps.run("clean", "cohort", "clean", raw, cohort, "--jobs", 2)
    return cohort


def prepare_dense(steps: Steps, cohort: Path, cache: Path, network: str = "alexnet") -> Path:
    """The trained and exported bundle of a recipe, unless it is in the cache for this recipe and train split."""
    recipe = RECIPES / f"brain-mri-{network}.toml"
    if not recipe.is_file():
        raise InputError(f"{recipe} does not exist: give a network that has a recipe in calibration/recipes")
    train = read_cohort(cohort).select("train")
    key = hashlib.sha256(recipe.read_bytes() + train.digest.encode()).hexdigest()[:16]
    dense = cache / f"dense-{network}-{key}"
    if not (dense / "manifest.json").is_file():
        steps.run("train", "train", recipe, "--cohort", cohort, "--out", dense)
    if not (dense / "models" / "model.onnx").is_file():
        steps.run("export", "export", dense, "--cohort", cohort, "--precision", "fp32")
    return dense
