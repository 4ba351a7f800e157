"""A bundle with a plan, and records about it made by the code that makes them; no network is trained or run."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from hscc_edge.bundle import Bundle, Code, Spec, write_bundle
from hscc_edge.model.decision import decide, parse_rule
from hscc_edge.model.head import parse_head
from hscc_edge.model.plan import Box, LayerPlan, Plan
from hscc_edge.validate.collect import Collection
from hscc_edge.validate.evidence import weigh
from hscc_edge.validate.latency import compare_times
from hscc_edge.validate.pack.contents import Contents, gather
from hscc_edge.validate.pack.pack import Pack, write_pack
from hscc_edge.validate.predict import Case
from hscc_edge.validate.predictions import Predictions, bundle_facts

LABELS = ("ring", "blob", "none")
WHEN = "2026-11-25T08:00:00Z"
QUARTERS = tuple(Box((4 * i, 4 * j), (4 * i + 4, 4 * j + 4)) for i in (0, 1) for j in (0, 1))
PLAN = Plan(
    "hscc", "flops=3x",
    (
        LayerPlan("features.0", "dense", (), (), "64x1x11x11", 800, 800, 100, 100, 0.0, "too small to gain"),
        LayerPlan("features.3", "one-region", (8,), (), "192x64x5x5", 900, 3000, 120, 500, 0.02),
        LayerPlan("features.6", "shared-reduce", (16,), QUARTERS, "384x192x3x3", 700, 3200, 300, 700, 0.01),
    ),
)  # fmt: skip
EXPORT = {
    "fp32": {"images": 8, "top1_agreement": 1.0, "largest_logit_difference": 2e-6, "emulated": False, "overflowed": 0},
    "fp16": {"images": 8, "top1_agreement": 0.875, "largest_logit_difference": 2e-2, "emulated": True, "overflowed": 3},
}
LOCK = {
    "digest": "a" * 64, "table": "b" * 64, "images": 180, "overridden": ["2 files that cannot be read"],
    "reason": "broken before they came", "created": "2026-11-24T10:00:00+00:00", "version": "0.1.0",
    "check": {
        "unreadable": ["dicom/DOE^JOHN.dcm", "dicom/2.dcm"], "altered": [], "missing": [], "patients_in_two_splits": 0,
        "duplicates": {"exact": {"across_splits": 0}, "near": {"across_splits": 0}},
    },
}  # fmt: skip


def spec(name: str, plan: Plan | None = None, **more: object) -> Spec:
    return Spec(
        name=name, version=1, network={"name": "alexnet", "args": {}},
        preprocess=[{"name": "resize", "height": 16, "width": 16}, {"name": "channels", "count": 1}],
        decision={"unit": "study", "aggregate": "mean"}, head={"kind": "softmax", "labels": list(LABELS)}, findings={},
        site=Code("12738006", "SCT", "Brain"), procedure=Code("113091000", "SCT", "Magnetic resonance imaging"),
        plan=None if plan is None else plan.to_json(), **more,
    )  # fmt: skip


def predictions(bundle: Bundle, seed: int) -> Predictions:
    """40 cases of 40 patients, right three times out of four."""
    generator = np.random.default_rng(seed)
    rule, head = parse_rule(bundle.spec.decision), parse_head(bundle.spec.head)
    cases = []
    for index in range(40):
        logits = generator.normal(size=(2, 3)).astype(np.float32)
        logits[:, index % 3] += 2.0
        cases.append(Case(f"case{index}", f"patient{index}", LABELS[index % 3], decide(rule, head, logits), logits))
    return Predictions(bundle_facts(bundle), "onnxruntime 1.0 CPU", "fp32", tuple(cases))


@pytest.fixture(scope="session")
def dense_bundle(tmp_path_factory) -> Bundle:
    files = {"models/model.safetensors": save({"w": np.arange(6, dtype=np.float32)})}
    return write_bundle(tmp_path_factory.mktemp("pack") / "dense", spec("tiny"), files)


@pytest.fixture(scope="session")
def small(tmp_path_factory, dense_bundle) -> Bundle:
    """A compressed bundle with an export report in it."""
    files = {
        "models/model.safetensors": save({"w": np.ones(3, dtype=np.float32)}), "models/model.onnx": b"not opened here",
        "reports/export.json": (json.dumps(EXPORT, indent=2) + "\n").encode(),
    }  # fmt: skip
    calibration = {"cohort": "c" * 64, "images": 32}
    made = spec("tiny-hscc", PLAN, parent=dense_bundle.digest, calibration=calibration)
    return write_bundle(tmp_path_factory.mktemp("pack") / "small", made, files)


@pytest.fixture(scope="session")
def records(tmp_path_factory, small, dense_bundle) -> dict[str, Path]:
    """Files as the other verbs write them."""
    root = tmp_path_factory.mktemp("records")
    first, second = predictions(dense_bundle, 1), predictions(small, 2)
    cohort = {
        "name": "phantom", "source": "synthetic", "digest": "d" * 64, "splits": ["test"], "unit": "study", "cases": 40,
        "images": 80, "patients": 40, "classes": list(LABELS), "per_class": {"ring": 14, "blob": 13, "none": 13},
    }  # fmt: skip
    conditions = {
        "runtime": "ort", "precision": "fp32", "threads": 1, "seconds": 1.0, "runtime_name": "onnxruntime 1.0 CPU",
        "date": "2026-11-24 09:00 UTC", "machine": "Linux x86_64", "python": "3.11", "versions": {"numpy": "2.0"},
    }  # fmt: skip
    times = np.random.default_rng(0).normal(10, 0.1, size=(2, 60)) / [[1.0], [3.0]]
    evidence = weigh(Collection(first, second, cohort, conditions, compare_times(*times)))
    lines = [{"split": "test", "bundle": small.digest, "date": "2026-11-24"}, {"split": "test", "date": "2026-11-25"}]
    texts = {
        "report.json": json.dumps(evidence.to_json()), "cohort.lock": json.dumps(LOCK),
        "uses.jsonl": "".join(json.dumps(line) + "\n" for line in lines),
    }  # fmt: skip
    for name, text in texts.items():
        (root / name).write_text(text)
    return {name.partition(".")[0]: root / name for name in texts}


@pytest.fixture(scope="session")
def contents(small, dense_bundle, records) -> Contents:
    return gather(small.root, list(records.values()), WHEN, approved=dense_bundle.root)


@pytest.fixture(scope="session")
def pack(contents, tmp_path_factory) -> Pack:
    """Without the PDF, which has tests of its own."""
    return write_pack(contents, tmp_path_factory.mktemp("made") / "pack", pdf=False)


@pytest.fixture
def copy_of(tmp_path):
    """A copy of a bundle whose files may be altered."""
    import shutil

    def copied(root: Path) -> Path:
        return Path(shutil.copytree(root, tmp_path / root.name))

    return copied
