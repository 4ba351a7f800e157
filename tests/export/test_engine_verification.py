"""Parity of one runtime with another, batch by batch, and what the gate says; of an engine it needs a GPU: not run."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hscc_edge.errors import EngineError, ExportError, GateError, InputError
from hscc_edge.export.engine import build_engine
from hscc_edge.export.onnx import export_onnx
from hscc_edge.export.parity import Parity
from hscc_edge.export.refit import _keep, refit_engine
from hscc_edge.export.verification import LIMITS, agreement, require_agreement, verify_engine
from hscc_edge.runtime import PRECISIONS
from hscc_edge.runtime.engines import EngineFacts, engine_path, read_engine, write_engine
from hscc_edge.runtime.nvidia import gpu_name
from hscc_edge.runtime.ort import OrtRuntime

SHAPE = (1, 6, 6)


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    layers = (nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    path.write_bytes(export_onnx(nn.Sequential(*layers).eval(), SHAPE))
    return path


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return list(np.random.default_rng(0).normal(size=(7, *SHAPE)).astype(np.float32))


@pytest.fixture(scope="module")
def facts(graph, tmp_path_factory) -> EngineFacts:
    cache = tmp_path_factory.mktemp("cache")
    return build_engine(graph.read_bytes(), precision="fp32", shape=SHAPE, max_batch=3, cache=cache)


class Wrong:
    """A real runtime whose answers are altered in batches of a size that is not 1."""

    def __init__(self, runtime: OrtRuntime, factor: float) -> None:
        self._runtime, self._factor, self.name, self.batches = runtime, factor, "wrong", []

    def infer(self, images: np.ndarray) -> np.ndarray:
        self.batches.append(len(images))
        return self._runtime.infer(images) * np.float32(1.0 if len(images) == 1 else self._factor)

    def close(self) -> None:
        self._runtime.close()


def test_single_images_and_full_batches_are_both_compared(graph, images, facts):
    other = Wrong(OrtRuntime(graph), 1.0)
    found = agreement(OrtRuntime(graph), other, images, (1, 3))
    assert other.batches == [1] * 7 + [3, 3, 1]
    assert {batch: (one.images, one.top1_agreement) for batch, one in found.items()} == {1: (7, 1.0), 3: (7, 1.0)}
    require_agreement(found, facts)
    assert set(agreement(OrtRuntime(graph), other, images, (1, 1))) == {1}


@pytest.mark.parametrize(("factor", "said"), [(1.01, "top-1 agreement 1.0000, largest"), (np.nan, "6 of 7 images")])
def test_an_engine_that_is_wrong_in_batches_alone_is_refused(factor, said, graph, images, facts):
    found = agreement(OrtRuntime(graph), Wrong(OrtRuntime(graph), factor), images, (1, 3))
    with pytest.raises(GateError, match=rf"the fp32 engine is not its graph at batch 3: .*{said}.*it is not activated"):
        require_agreement(found, facts)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_has_limits_and_each_of_them_holds(precision, facts):
    limits, asked = LIMITS[precision], dataclasses.replace(facts, precision=precision)
    least, most = limits.top1_agreement, limits.relative_difference * 4.0
    require_agreement({1: Parity(100, least, most, 4.0)}, asked)
    for wrong in (
        Parity(100, least - 0.001, 0.0, 4.0),
        Parity(100, 1.0, most * 1.001, 4.0),
        Parity(100, 1.0, float("nan"), 4.0),
        Parity(100, 1.0, 0.0, 4.0, overflowed=1),
    ):
        with pytest.raises(GateError, match=f"the {precision} engine is not its graph at batch 1"):
            require_agreement({1: wrong}, asked)


def test_no_image_verifies_nothing(graph):
    with pytest.raises((ExportError, ValueError)):
        agreement(OrtRuntime(graph), OrtRuntime(graph), [], (1,))


def test_without_a_gpu_nothing_is_verified(graph, images, facts):
    if gpu_name() is not None:
        verified = verify_engine(Path(facts.path), graph, images)
        assert verified.executed and set(verified.parity["batches"]) == {"1", "3"}
        return
    with pytest.raises(EngineError, match="TensorRT needs an NVIDIA GPU, and CUDA finds none"):
        verify_engine(Path(facts.path), graph, images)
    assert read_engine(Path(facts.path)) == facts and not facts.executed and facts.parity is None


def test_an_engine_is_held_to_its_own_graph(images, facts, tmp_path):
    (tmp_path / "other.onnx").write_bytes(b"another graph")
    with pytest.raises(EngineError, match="was built from another graph than"):
        verify_engine(Path(facts.path), tmp_path / "other.onnx", images)


def test_refit_needs_a_refittable_engine_and_a_gpu(graph, facts, tmp_path):
    with pytest.raises(InputError, match="was not built refittable: run hscc-edge build --refittable once"):
        refit_engine(Path(facts.path), graph.read_bytes(), tmp_path)
    able = dataclasses.replace(facts, refittable=True)
    able = dataclasses.replace(able, path=str(engine_path(tmp_path, able.key)))
    write_engine(able, Path(facts.path).read_bytes())
    if gpu_name() is None:
        with pytest.raises(EngineError, match="TensorRT needs an NVIDIA GPU"):
            refit_engine(Path(able.path), graph.read_bytes(), tmp_path)
    assert [path.name for path in tmp_path.glob("*.engine")] == [Path(able.path).name]


def test_a_refitted_engine_has_a_key_of_its_own_and_must_be_verified_again(facts, tmp_path):
    """What is kept of an engine's bytes after a refit; the refit itself needs a GPU."""
    verified = dataclasses.replace(facts, refittable=True, executed=True, parity={})
    found = _keep(verified, b"refitted", b"another graph", tmp_path, 0.5)
    assert read_engine(Path(found.path)) == found and found.key != verified.key
    assert found.refitted_from == facts.sha256 and found.parity is None and not found.executed
    assert found.onnx_sha256 == hashlib.sha256(b"another graph").hexdigest()
