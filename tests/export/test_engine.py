"""The adapter against a real builder: the key, the cache, and what is built anew."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hscc_edge import durable
from hscc_edge.errors import EngineError, InputError, StorageError
from hscc_edge.export import builder as adapter
from hscc_edge.export.builder import BuildOptions
from hscc_edge.export.engine import build_engine
from hscc_edge.export.onnx import export_onnx
from hscc_edge.runtime.engines import KEY, EngineFacts, engine_path, read_engine
from hscc_edge.runtime.nvidia import load_tensorrt, logger

SHAPE = (1, 6, 6)


@pytest.fixture(scope="module")
def content() -> bytes:
    torch.manual_seed(0)
    return export_onnx(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).eval(), SHAPE)


def build(
    content: bytes, cache: Path, max_batch: int = 2, shape: tuple[int, int, int] = SHAPE, **options: object
) -> EngineFacts:
    return build_engine(
        content, precision="fp32", shape=shape, max_batch=max_batch, cache=cache, options=BuildOptions(**options)
    )


@pytest.fixture(scope="module")
def built(content, tmp_path_factory) -> Path:
    """A cache with two engines, for batches up to 2 and up to 4. Copy it before it is changed."""
    cache = tmp_path_factory.mktemp("built")
    build(content, cache)
    build(content, cache, 4)
    return cache


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
    first = build(content, tmp_path)
    assert first.device == "+".join(adapter.RTX_CAPABILITIES) and "(no GPU)" in first.note and not first.reused
    again = build(content, tmp_path)
    assert again.path == first.path == str(engine_path(tmp_path, first.key)) and again.reused
    options = {field.name for field in dataclasses.fields(BuildOptions)}
    assert options < set(KEY), "an option that is not in the key"
    others = [
        build(content, tmp_path, 4),
        build(content, tmp_path, best_batch=2),
        build(content, tmp_path, workspace_mib=64),
        build(content, tmp_path, power_mode="MAXN"),
        build(content, tmp_path, least_share=0.25),
    ]
    assert len({first.key, *(facts.key for facts in others)}) == 6
    assert not any(facts.reused for facts in others)


def test_each_field_of_the_key_changes_it(content, built, tmp_path):
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    first = build(content, tmp_path)
    for name in KEY:
        value = getattr(first, name)
        other = "other" if isinstance(value, str) else not value if isinstance(value, bool) else (9, 9)
        changed = dataclasses.replace(first, **{name: other if isinstance(value, (str, bool, tuple)) else 77})
        assert changed.key != first.key, name


def swap_engine(facts: EngineFacts, other: EngineFacts) -> None:
    """Another engine with all its facts under this one's name."""
    for suffix in (".engine", ".json"):
        path = Path(facts.path).with_suffix(suffix)
        path.write_bytes(Path(other.path).with_suffix(suffix).read_bytes())


def damage(kind: str, facts: EngineFacts, other: EngineFacts) -> None:
    path, beside = Path(facts.path), Path(facts.path).with_suffix(".json")
    match kind:
        case "one bit":
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        case "cut":
            os.truncate(path, facts.bytes // 2)
        case "no engine":
            path.unlink()
        case "no facts":
            beside.unlink()
        case "junk facts":
            beside.write_bytes(b'["half')
        case "unknown fact":
            durable.write_json(beside, {**facts.to_json(), "colour": "red"})
        case "another engine":
            swap_engine(facts, other)
        case "another TensorRT":
            durable.write_json(beside, {**facts.to_json(), "version": "10.3.0"})
        case "another power mode":
            durable.write_json(beside, {**facts.to_json(), "power_mode": "15W"})


@pytest.mark.parametrize(
    "kind",
    ["one bit", "cut", "no engine", "no facts", "junk facts", "unknown fact", "another engine", "another TensorRT",
     "another power mode"],
)  # fmt: skip
def test_a_corrupt_or_foreign_engine_is_built_anew(kind, content, built, tmp_path):
    """Never taken, never opened; what is built in its place stands."""
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    facts, other = build(content, tmp_path), build(content, tmp_path, 4)
    assert facts.reused and other.reused
    damage(kind, facts, other)
    with pytest.raises(EngineError, match="run hscc-edge build"):
        read_engine(Path(facts.path))
    anew = build(content, tmp_path)
    assert not anew.reused and anew.path == facts.path
    assert read_engine(Path(anew.path)) == anew
    assert build(content, tmp_path).reused


def test_facts_survive_their_file(content, built):
    facts = dataclasses.replace(build(content, built), reused=False)
    assert json.loads(Path(facts.path).with_suffix(".json").read_bytes()) == json.loads(json.dumps(facts.to_json()))
    assert read_engine(Path(facts.path)) == facts


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_batch": 0}, "max_batch is 0: expected 1 to 1024"),
        ({"workspace_mib": 0}, "workspace_mib is 0: expected 1 to 1048576"),
        ({"best_batch": 3}, "best_batch is 3: expected 1 to 2"),
        ({"least_share": 1.5}, "least_share is 1.5: expected 0.0 to 1.0"),
        ({"max_batch": 8, "best_batch": 2, "dla": 0}, "best_batch is 2 for a DLA"),
    ],
)
def test_an_option_out_of_range_is_told(options, said, content, tmp_path):
    with pytest.raises(InputError, match=said):
        build(content, tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_a_refittable_engine_of_rtx_needs_a_gpu(content, tmp_path):
    with pytest.raises(EngineError, match="builds a refittable engine only where there is an NVIDIA GPU"):
        build(content, tmp_path, refittable=True)


def test_fp32_is_not_tf32():
    trt = load_tensorrt()
    builder = trt.Builder(logger(trt))
    config = adapter.configure(trt, builder, BuildOptions(), precision="fp32", shape=SHAPE, max_batch=1, gpu=False)
    assert builder.create_builder_config().get_flag(trt.BuilderFlag.TF32)
    assert not config.get_flag(trt.BuilderFlag.TF32)


@pytest.mark.parametrize("gpu", ["Orin SM87", "NVIDIA H100 80GB HBM3 SM90"])
def test_a_gpu_that_rtx_would_build_for_and_not_run_on_is_refused_before_the_build(gpu, content, tmp_path, monkeypatch):
    monkeypatch.setattr("hscc_edge.export.engine.gpu_name", lambda: gpu)
    said = rf"^tensorrt_rtx [\d.]+ does not run on this GPU \({gpu}\), only on SM75, .*SM120.* and later: install "
    with pytest.raises(EngineError, match=said):
        build_engine(content, precision="fp32", shape=(1, 64, 64), max_batch=1, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("gpu", [None, "NVIDIA A100 SM80", "NVIDIA GeForce RTX 5090 SM120", "a later one SM130"])
def test_other_gpus_and_none_are_not_refused(gpu):
    adapter.require_supported(load_tensorrt(), gpu)
    adapter.require_supported(SimpleNamespace(), gpu)


def test_a_builder_that_needs_a_gpu_is_one_sentence():
    """`tensorrt` cannot be installed here: this stands for the TypeError of its Builder without a GPU."""

    def refuse(_: object) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    with pytest.raises(EngineError, match="needs an NVIDIA GPU with its driver; run hscc-edge build on the device"):
        adapter.open_builder(
            SimpleNamespace(Builder=refuse, __name__="tensorrt", __version__="10.3"), SimpleNamespace(last="-")
        )
