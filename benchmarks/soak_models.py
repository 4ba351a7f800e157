"""A tiny bundle for single MR images, trained on a phantom within a minute, and a later version to switch to."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from small_model import recipe, trained
from soak_campaign import Made

from hscc_edge.data.cohort import Cohort, read_cohort


def small_bundles(folder: Path) -> Made:
    """Train and export one, and make a later version of it, if that was not done before."""
    from hscc_edge.bundle import read_bundle, rewrite
    from hscc_edge.data.phantom import write_phantom

    cohort, bundle, other = (folder / name for name in ("cohort", "bundle", "other"))
    if not other.exists():
        shutil.rmtree(folder, ignore_errors=True)
        write_phantom(cohort, patients=16, slices=3, size=64, seed=5)
        (folder / "soak.toml").write_text(recipe("soak"))
        trained(folder / "soak.toml", cohort, bundle, "--images", "4")
        shutil.copytree(bundle, folder / "draft")
        rewrite(read_bundle(folder / "draft"), {})
        (folder / "draft").rename(other)
    return Made(bundle, other, min(cohort.rglob("*.dcm")))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is served and what is sent, for `given`."""
    parser.add_argument("--bundle", type=Path, help="with --cohort: without them small ones are made")
    parser.add_argument("--cohort", type=Path)


def given(arguments: argparse.Namespace, folder: Path) -> tuple[Path, Cohort]:
    """The bundle and the cohort that were named, or small ones made in `folder`."""
    bundle = arguments.bundle or small_bundles(folder).bundle
    return bundle.resolve(), read_cohort(arguments.cohort or folder / "cohort")
