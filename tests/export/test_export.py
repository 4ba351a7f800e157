"""Graphs equal to their networks, FP16 that is FP16, engines from a real builder, and one contract for runtimes."""

import json
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from hscc_edge.bundle import read_bundle
from hscc_edge.data.case import stream
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.errors import EngineError, ExportError, InputError
from hscc_edge.export.engine import build_engine
from hscc_edge.export.onnx import check_onnx, export_onnx, read_onnx
from hscc_edge.export.parity import Parity, parity, require_parity
from hscc_edge.export.precision import emulated_fp16, half_weights, to_fp16
from hscc_edge.model.plan import Box
from hscc_edge.model.regional import OwnFactors, SharedReduce
from hscc_edge.runtime import RUNTIMES, infer_each, open_runtime
from hscc_edge.runtime.ort import OrtRuntime
from hscc_edge.runtime.trt import find_engine, load_tensorrt

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


def test_fp16_is_fp16_inside_and_fp32_outside(network, tmp_path):
    full = export_onnx(network, (1, 17, 18))
    half = check_onnx(to_fp16(full))
    kinds = {
        t.data_type for t in half.graph.initializer if t.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    }
    assert half_weights(half) > 0 and kinds == {onnx.TensorProto.FLOAT16}
    ends = [item.type.tensor_type.elem_type for item in (*half.graph.input, *half.graph.output)]
    assert ends == [onnx.TensorProto.FLOAT] * 2
    images = np.random.default_rng(1).normal(size=(2, 1, 17, 18)).astype(np.float32)
    exact, rounded = run(full, images, tmp_path), run(emulated_fp16(full), images, tmp_path)
    assert 0 < np.abs(exact - rounded).max() < 1e-2


def test_emulation_shows_an_overflow_that_the_cpu_hides(tmp_path):
    big = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        big[1].weight.fill_(3e4)
    full, images = export_onnx(big, (1, 2, 2)), np.ones((1, 1, 2, 2), np.float32)
    assert np.isfinite(run(full, images, tmp_path)).all()
    assert not np.isfinite(run(emulated_fp16(full), images, tmp_path)).any()


class Tokens(nn.Module):
    """Attention over pixels: shapes are computed inside the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)
        self.token = nn.Parameter(torch.zeros(1, 1, 4))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.conv(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        return self.head((torch.softmax(x @ x.transpose(1, 2), -1) @ x)[:, 0])


def test_emulation_leaves_integers_alone(tmp_path):
    torch.manual_seed(0)
    full = export_onnx(Tokens().eval(), (1, 8, 8))
    assert "Shape" in {node.op_type for node in check_onnx(full).graph.node}
    images = np.random.default_rng(2).normal(size=(2, 1, 8, 8)).astype(np.float32)
    assert np.allclose(run(full, images, tmp_path), run(emulated_fp16(full), images, tmp_path), atol=1e-2)


def test_a_weight_beyond_fp16_is_refused_not_clipped():
    big = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        big[1].weight[0, 0] = 1e5
    with pytest.raises(ExportError, match=r"reaches 1e\+05, and FP16 ends at 65504"):
        to_fp16(export_onnx(big, (1, 2, 2)))


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


@pytest.mark.parametrize("kind", RUNTIMES)
def test_runtimes_keep_one_contract(kind, dense, phantom):
    """The same logits as torch, one image or several a call; or, without a GPU, one clear error."""
    bundle = read_bundle(dense)
    if kind == "trt":
        with pytest.raises(EngineError, match="TensorRT needs an NVIDIA GPU"):
            open_runtime(bundle, kind)
        return
    runtime, reference = open_runtime(bundle, kind), open_runtime(bundle, "eager")
    images = [image for _, image in stream(phantom.select("val"), parse_preprocess(bundle.spec.preprocess))]
    found = parity(reference, runtime, images)
    assert found.images == len(images) and found.top1_agreement == 1 and found.largest_logit_difference < 1e-4
    assert infer_each(runtime, images).shape == (len(images), 4)
    assert np.allclose(runtime.infer(np.stack(images)), infer_each(runtime, images), atol=1e-5)
    assert runtime.name and runtime.close() is None


def test_unknown_names_and_broken_files_are_told(dense, tmp_path):
    bundle = read_bundle(dense)
    with pytest.raises(InputError, match="unknown: expected one of eager, ort, trt"):
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
    assert str(find_engine(content, load_tensorrt(), precision, tmp_path / "cache")) == facts.path
    other = "fp16" if precision == "fp32" else "fp32"
    with pytest.raises(EngineError, match=f"{other} was asked for"):
        build_engine(content, precision=other, shape=(1, 17, 18), max_batch=4, cache=tmp_path / "cache")


def test_the_builder_refuses_what_is_no_graph(tmp_path):
    with pytest.raises(EngineError, match="cannot parse"):
        build_engine(b"nothing", precision="fp32", shape=(1, 2, 2), max_batch=1, cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_altered_or_absent_engine_is_not_opened(network, tmp_path):
    content, trt = export_onnx(network, (1, 17, 18)), load_tensorrt()
    with pytest.raises(EngineError, match="holds no fp32 engine of this bundle"):
        find_engine(content, trt, "fp32", tmp_path)
    facts = build_engine(content, precision="fp32", shape=(1, 17, 18), max_batch=1, cache=tmp_path)
    with open(facts.path, "ab") as file:
        file.write(b"more")
    with pytest.raises(EngineError, match="was altered"):
        find_engine(content, trt, "fp32", tmp_path)
