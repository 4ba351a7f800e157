"""Two tiny bundles and a cohort that they read, made in no time: for what needs real files and no trained network."""

from pathlib import Path

import numpy as np
import pytest
from graphs import graph
from onnx import helper

from hscc_edge.bundle import Bundle, Code, Spec, write_bundle
from hscc_edge.data.cohort import Cohort, read_cohort
from hscc_edge.data.phantom import write_phantom

PREPROCESS = [
    {"name": "percentile", "lower": 1.0, "upper": 99.0}, {"name": "resize", "height": 4, "width": 4},
    {"name": "channels", "count": 1},
]  # fmt: skip


@pytest.fixture(scope="session")
def heads(tmp_path_factory) -> Cohort:
    """16 patients x 2 slices of 16 x 16."""
    root = tmp_path_factory.mktemp("heads") / "cohort"
    write_phantom(root, patients=16, slices=2, size=16, seed=1)
    return read_cohort(root)


def linear(root: Path, cohort: Cohort, seed: int) -> Bundle:
    """One Gemm from 4 x 4 pixels to the cohort's classes."""
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight"], ["logits"], transB=1),
    ]
    weight = np.random.default_rng(seed).normal(size=(len(cohort.classes), 16)).astype(np.float32)
    spec = Spec(
        name=f"linear-{seed}", version=1, network={"name": "alexnet", "args": {}}, preprocess=PREPROCESS,
        decision={"unit": "study", "aggregate": "mean"}, head={"kind": "softmax", "labels": list(cohort.classes)},
        findings={label: Code(**code) for label, code in cohort.codes.items()},
        site=Code("12738006", "SCT", "Brain"), procedure=Code("113091000", "SCT", "Magnetic resonance imaging"),
    )  # fmt: skip
    files = {
        "models/model.onnx": graph((1, 4, 4), nodes, {"weight": weight}, len(cohort.classes)),
        "models/model.safetensors": b"not opened here",
    }
    return write_bundle(root, spec, files)


@pytest.fixture(scope="session")
def twins(tmp_path_factory, heads) -> tuple[Bundle, Bundle]:
    """A candidate and its reference; they decide differently."""
    root = tmp_path_factory.mktemp("twins")
    return linear(root / "small", heads, 1), linear(root / "dense", heads, 2)
