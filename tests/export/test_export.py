"""Graphs equal to their networks, FP16 that is FP16, engines from a real builder."""

import json
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from hscc_edge.bundle import read_bundle
from hscc_edge.errors import EngineError, ExportError, InputError
from hscc_edge.export.engine import build_engine
from hscc_edge.export.onnx import export_onnx, read_onnx
from hscc_edge.export.parity import Parity, parity, require_parity
from hscc_edge.export.precision import to_fp16
from hscc_edge.model.plan import Box
from hscc_edge.model.regional import OwnFactors, SharedReduce
from hscc_edge.runtime import open_runtime
from hscc_edge.runtime.engines import read_engine
from hscc_edge.runtime.nvidia import load_tensorrt
from hscc_edge.runtime.ort import OrtRuntime

ROOT = Path(__file__).resolve().parents[2]
BOXES = (Box((0, 0), (4, 5)), Box((0, 5), (4, 9)), Box((4, 0), (9, 9)))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A network with every factorised structure."""
    torch.manual_seed(0)
    first = nn.Conv2d(1, 6, 3, stride=2, padding=1)
    second = nn.Conv2d(6, 8, 3, padding=2, dilation=2)
    return nn.Sequential(
        SharedReduce(first, 3, BOXES), nn.ReLU(), OwnFactors(second, (2, 3, 4), BOXES), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip


def run(content: bytes, images: np.ndarray, tmp_path) -> np.ndarray:
    path = tmp_path / "graph.onnx"
    path.write_bytes(content)
    return OrtRuntime(path).infer(images)


def test_region_layers_export_as_they_compute(network, tmp_path):
    content = export_onnx(network, (1, 17, 18))
    for batch in (1, 5):
        images = np.random.default_rng(0).normal(size=(batch, 1, 17, 18)).astype(np.float32)
        with torch.no_grad():
            expected = network(torch.from_numpy(images)).numpy()
        assert np.allclose(run(content, images, tmp_path), expected, atol=1e-5)
    assert content == export_onnx(network, (1, 17, 18))
    assert not [mark for mark in (b"/site-packages", b"hscc_edge/", str(ROOT).encode(), b".py") if mark in content]
    kinds = {node.op_type for node in onnx.load_model_from_string(content).graph.node}
    assert kinds <= {
        "Conv",
        "Relu",
        "Slice",
        "Concat",
        "Pad",
        "GlobalAveragePool",
        "ReduceMean",
        "Reshape",
        "Gemm",
        "Flatten",
    }


def test_the_exporter_is_silent(network, capfd, caplog):
    export_onnx(network, (1, 17, 18))
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


class Says:
    """A runtime that gives one fixed answer an image."""

    name = "fixed"

    def __init__(self, *answers: list[float]) -> None:
        self.answers = iter(answers)

    def infer(self, images: np.ndarray) -> np.ndarray:
        return np.array([next(self.answers)], np.float32)

    def close(self) -> None: ...


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_never_passes(wrong):
    images = [np.zeros((1, 2, 2), np.float32)] * 2
    found = parity(Says([2.0, 1.0], [2.0, 1.0]), Says([2.0, 1.0], [2.0, wrong]), images)
    assert (found.overflowed, found.top1_agreement) == (1, 0.5)
    json.dumps(found.to_json(), allow_nan=False)
    with pytest.raises(ExportError, match="1 images overflowed"):
        require_parity(found)
    with pytest.raises(ExportError, match="fixed gives image 1 a logit that is not finite"):
        parity(Says([wrong, 1.0]), Says([wrong, 1.0]), images[:1])


def test_parity_gate():
    require_parity(Parity(10, 1.0, 1e-5, 3.0))
    for wrong in (Parity(10, 0.9, 1e-5, 3.0), Parity(10, 1.0, 0.1, 3.0), Parity(10, 1.0, float("nan"), 3.0)):
        with pytest.raises(ExportError, match="not its network"):
            require_parity(wrong)


def test_unknown_names_and_broken_files_are_told(dense, tmp_path):
    bundle = read_bundle(dense)
    with pytest.raises(InputError, match="unknown: expected one of eager, ort, ort-cuda, ort-tensorrt, trt"):
        open_runtime(bundle, "cuda")
    with pytest.raises(InputError, match="precision 'int4' is unknown"):
        open_runtime(bundle, "ort", precision="int4")
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(ExportError, match="not a valid ONNX"):
        read_onnx(tmp_path / "text.onnx")
    with pytest.raises(ExportError, match="does not exist"):
        read_onnx(tmp_path / "absent.onnx")
    with pytest.raises(ExportError, match="cannot be opened"):
        OrtRuntime(tmp_path / "text.onnx")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_real_builder_builds(precision, network, tmp_path):
    full = export_onnx(network, (1, 17, 18))
    content = full if precision == "fp32" else to_fp16(full)
    facts = build_engine(content, precision=precision, shape=(1, 17, 18), max_batch=4, cache=tmp_path / "cache")
    assert (
        facts.builder == load_tensorrt().__name__
        and facts.bytes == (tmp_path / "cache").joinpath(facts.path).stat().st_size
    )
    assert (facts.half_layers > 0) == (precision == "fp16")
    assert not facts.executed and not facts.inspected and "not run" in facts.note
    assert read_engine(Path(facts.path)) == facts
    other = "fp16" if precision == "fp32" else "fp32"
    with pytest.raises(EngineError, match=f"{other} was asked for"):
        build_engine(content, precision=other, shape=(1, 17, 18), max_batch=4, cache=tmp_path / "cache")


def test_the_builder_refuses_what_is_no_graph(tmp_path):
    with pytest.raises(EngineError, match="cannot parse"):
        build_engine(b"nothing", precision="fp32", shape=(1, 2, 2), max_batch=1, cache=tmp_path)
    assert not list(tmp_path.iterdir())
