"""The adapter against a real builder, and what it calls against a real module."""

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cuda.bindings import runtime as cudart
from torch import nn

from hscc_edge.errors import EngineError, StorageError
from hscc_edge.export import builder as adapter
from hscc_edge.export.engine import EngineFacts, build_engine
from hscc_edge.export.onnx import export_onnx
from hscc_edge.runtime import trt as runtime
from hscc_edge.runtime.trt import find_engine, load_tensorrt

SHAPE = (1, 6, 6)
OPTIONAL = {"ComputeCapability", "STRONGLY_TYPED", "EXPLICIT_BATCH"}


@pytest.fixture(scope="module")
def content() -> bytes:
    torch.manual_seed(0)
    return export_onnx(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).eval(), SHAPE)


def build(content: bytes, cache: Path, max_batch: int = 2, shape: tuple[int, int, int] = SHAPE) -> EngineFacts:
    return build_engine(content, precision="fp32", shape=shape, max_batch=max_batch, cache=cache)


def test_a_failed_build_keeps_its_log_and_nothing_else(content, tmp_path):
    with pytest.raises(EngineError, match=r"could not build the engine \(.*\): see .*\.log$") as caught:
        build(content, tmp_path, shape=(3, 6, 6))
    (log,) = tmp_path.iterdir()
    assert str(log) in str(caught.value) and "ERROR" in log.read_text()


def test_an_unwritable_cache_is_told(content, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="a part of the path is a file"):
        build(content, tmp_path / "file" / "cache")


def test_the_key_holds_what_the_engine_depends_on(content, tmp_path):
    first, again, wider = build(content, tmp_path), build(content, tmp_path), build(content, tmp_path, 4)
    assert first.path == again.path != wider.path
    assert first.device == "+".join(adapter.RTX_CAPABILITIES) and "(no GPU)" in first.note
    assert str(find_engine(content, load_tensorrt(), "fp32", tmp_path)) == wider.path


def test_an_engine_of_another_gpu_is_passed_over(content, tmp_path):
    facts, trt = build(content, tmp_path), load_tensorrt()
    assert str(find_engine(content, trt, "fp32", tmp_path, "some card SM89")) == facts.path
    with pytest.raises(EngineError, match="holds no fp32 engine"):
        find_engine(content, trt, "fp32", tmp_path, "Orin SM87")


@pytest.mark.parametrize("junk", [b"{half", b"[1]", b"\xff\xfe", b"{}"])
def test_junk_in_the_cache_is_no_engine(junk, content, tmp_path):
    (tmp_path / "0.json").write_bytes(junk)
    with pytest.raises(EngineError, match="holds no fp32 engine"):
        find_engine(content, load_tensorrt(), "fp32", tmp_path)
    assert build(content, tmp_path).path == str(find_engine(content, load_tensorrt(), "fp32", tmp_path))


def test_a_builder_that_needs_a_gpu_is_one_sentence():
    """`tensorrt` cannot be installed here: this stands for the TypeError of its Builder without a GPU."""

    def refuse(_: object) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    with pytest.raises(EngineError, match="needs an NVIDIA GPU with its driver; run hscc-edge build on the device"):
        adapter.open_builder(
            SimpleNamespace(Builder=refuse, __name__="tensorrt", __version__="10.3"), SimpleNamespace(last="-")
        )


def chains(path: Path) -> set[str]:
    """Every dotted attribute chain of a file, as written."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute) and "(" not in ast.unparse(node)}


def test_every_name_that_is_called_exists():
    """Names are read from the source; those that only some versions have are reached by getattr alone."""
    trt = load_tensorrt()
    owners = {
        "trt": trt, "builder": trt.Builder, "network": trt.INetworkDefinition, "parser": trt.OnnxParser,
        "layer": trt.ILayer, "config": trt.IBuilderConfig, "profile": trt.IOptimizationProfile,
        "self._engine": trt.ICudaEngine, "self._context": trt.IExecutionContext, "self._loader": trt.Runtime,
        "cudart": cudart, "cuda": cudart, "self._cuda": cudart, "properties": cudart.cudaDeviceProp,
        "kinds": cudart.cudaMemcpyKind,
    }  # fmt: skip
    used = chains(Path(adapter.__file__)) | chains(Path(runtime.__file__))
    checked = 0
    for chain in sorted(used):
        owner = next((name for name in owners if chain.startswith(f"{name}.")), None)
        if owner is None:
            continue
        place = owners[owner]
        for part in chain.removeprefix(f"{owner}.").split("."):
            if part in {"decode", "__name__", "__version__"}:
                break
            assert part not in OPTIONAL, f"{chain} exists in some versions only: reach it by getattr"
            assert hasattr(place, part), f"{chain}: there is no {part}"
            place = getattr(place, part)
        checked += 1
    assert checked > 30
    assert hasattr(trt.ICudaEngine, "create_engine_inspector") and hasattr(
        trt.EngineInspector, "get_engine_information"
    )
