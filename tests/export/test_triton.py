"""The model repository, read by Triton's own protobuf schema (of NVIDIA's tritonclient)."""

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from typer.testing import CliRunner

from hscc_edge.bundle import Bundle, read_bundle
from hscc_edge.cli.triton import triton
from hscc_edge.errors import EngineError, ExportError, InputError, StorageError
from hscc_edge.export.engine import build_engine
from hscc_edge.export.triton import Serving, Tensor, graph_tensors, model_config, write_repository
from hscc_edge.runtime.engines import EngineFacts, engine_path, write_engine
from hscc_edge.runtime.ort import OrtRuntime


def triton_schema() -> ModuleType:
    """`model_config_pb2`, loaded from its file: the package around it wants grpcio, which nothing here needs."""
    path = importlib.metadata.distribution("tritonclient").locate_file("tritonclient/grpc/model_config_pb2.py")
    spec = importlib.util.spec_from_file_location("model_config_pb2", str(path))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCHEMA = triton_schema()


def read_config(text: str) -> Any:
    """A `ModelConfig`; a field or value that Triton does not know raises."""
    return text_format.Parse(text, SCHEMA.ModelConfig())


@pytest.fixture(scope="module")
def bundle(dense: Path) -> Bundle:
    return read_bundle(dense)


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_int8_is_served_as_an_engine_alone(bundle, tmp_path):
    with pytest.raises(InputError, match=r"INT8 was asked for as an ONNX file, .* give --engine with one of"):
        write_repository(bundle, tmp_path / "r", Serving("mri"), precision="int8")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("max_batch", "kind"), [(8, "gpu"), (1, "cpu")])
def test_tritons_schema_reads_the_configuration(precision, max_batch, kind, bundle, tmp_path):
    serving = Serving("brain.mri-1", max_batch, queue_delay_us=750, instances=2, kind=kind)
    facts = write_repository(bundle, tmp_path / "r", serving, precision=precision)
    assert files(tmp_path / "r") == {
        "README.md", "brain.mri-1/config.pbtxt", "brain.mri-1/labels.txt", "brain.mri-1/1/model.onnx",
        "brain.mri-1/1/bundle.json",
    }  # fmt: skip
    config = read_config((tmp_path / "r/brain.mri-1/config.pbtxt").read_text())
    assert (config.name, config.platform, config.max_batch_size) == ("brain.mri-1", "onnxruntime_onnx", max_batch)
    (image,), (logits,), (group,) = config.input, config.output, config.instance_group
    assert (image.name, tuple(image.dims), image.data_type) == ("image", (1, 64, 64), SCHEMA.DataType.TYPE_FP32)
    assert (logits.name, tuple(logits.dims)) == ("logits", (len(bundle.spec.labels),))
    assert group.count == 2 and group.kind == getattr(SCHEMA.ModelInstanceGroup, f"KIND_{kind.upper()}")
    assert config.HasField("dynamic_batching") == (max_batch > 1)
    assert config.dynamic_batching.max_queue_delay_microseconds == (750 if max_batch > 1 else 0)
    assert not config.HasField("ensemble_scheduling")
    labels = (tmp_path / "r/brain.mri-1" / logits.label_filename).read_text().splitlines()
    assert tuple(labels) == bundle.spec.labels
    stored = json.loads((tmp_path / "r/brain.mri-1/1/bundle.json").read_text())
    content = (tmp_path / "r/brain.mri-1/1/model.onnx").read_bytes()
    assert stored["bundle_digest"] == facts["bundle_digest"] == bundle.digest
    assert stored["sha256"] == hashlib.sha256(content).hexdigest()


def test_the_schema_refuses_what_triton_does_not_know():
    """The check can fail."""
    good = model_config(Serving("m"), "onnxruntime_onnx", [Tensor("i", "TYPE_FP32", (1, 2))], [])
    read_config(good)
    for old, new in (("TYPE_FP32", "TYPE_FLOAT"), ("max_batch_size", "batch"), ("KIND_GPU", "KIND_TPU")):
        with pytest.raises(text_format.ParseError):
            read_config(good.replace(old, new))


def test_the_served_file_takes_what_the_configuration_says(bundle, tmp_path):
    write_repository(bundle, tmp_path / "r", Serving("m"))
    config = read_config((tmp_path / "r/m/config.pbtxt").read_text())
    images = np.zeros((config.max_batch_size, *config.input[0].dims), np.float32)
    logits = OrtRuntime(tmp_path / "r/m/1/model.onnx").infer(images)
    assert logits.shape == (config.max_batch_size, *config.output[0].dims)


def test_preprocessing_is_told_and_nothing_identifies(bundle, tmp_path):
    write_repository(bundle, tmp_path / "r", Serving("m"))
    readme, config = (tmp_path / "r/README.md").read_text(), (tmp_path / "r/m/config.pbtxt").read_text()
    assert all(json.dumps(step) in readme for step in bundle.spec.preprocess)
    assert "no ensemble" in readme and "no ensemble" in config
    assert not re.search(r"\d+(\.\d+){5,}", readme + config) and str(bundle.root) not in readme + config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "a/b"}, "the model's name is 'a/b'"),
        ({"name": ""}, "give --name"),
        ({"name": 'a"'}, "expected letters"),
        ({"max_batch": 0}, "max_batch is 0: expected 1 to 1024"),
        ({"instances": 65}, "instances is 65"),
        ({"queue_delay_us": -1}, "queue_delay_us is -1"),
        ({"kind": "tpu"}, "the kind of instance is 'tpu': expected one of gpu, cpu"),
    ],
)
def test_an_option_out_of_range_is_told_and_nothing_is_written(options, message, bundle, tmp_path):
    with pytest.raises(InputError, match=message):
        write_repository(bundle, tmp_path / "r", Serving(**{"name": "m", **options}))
    assert not list(tmp_path.iterdir())


def test_a_taken_place_is_left_alone(bundle, tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(StorageError, match="something stands there already"):
        write_repository(bundle, tmp_path, Serving("m"))
    assert files(tmp_path) == {"mine"}


def raised(bundle: Bundle, version: int) -> Bundle:
    """The same bundle under another version."""
    return dataclasses.replace(bundle, spec=dataclasses.replace(bundle.spec, version=version))


def test_a_version_is_added_beside_the_old_one(bundle, tmp_path):
    out = tmp_path / "r"
    write_repository(bundle, out, Serving("m"))
    before = (out / "m/1/model.onnx").read_bytes()
    write_repository(raised(bundle, 2), out, Serving("m"), precision="fp16", add=True)
    assert (out / "m/1/model.onnx").read_bytes() == before != (out / "m/2/model.onnx").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"r"}
    for change, serving, message in (
        (2, Serving("m"), "has a version 2 already"),
        (3, Serving("m", max_batch=4), "another configuration or other labels"),
        (3, Serving("n"), "holds no model n"),
    ):
        with pytest.raises(InputError, match=message):
            write_repository(raised(bundle, change), out, serving, add=True)
    assert {path.name for path in (out / "m").iterdir()} == {"1", "2", "config.pbtxt", "labels.txt"}
    assert {path.name for path in tmp_path.iterdir()} == {"r"}


@pytest.fixture(scope="module")
def engine(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> EngineFacts:
    content = bundle.path("models/model.fp16.onnx").read_bytes()
    cache = tmp_path_factory.mktemp("engines")
    return build_engine(content, precision="fp16", shape=bundle.spec.input_shape, max_batch=4, cache=cache)


def claim(engine: EngineFacts, folder: Path, **changes: object) -> Path:
    """A copy of an engine whose facts say something else: `tensorrt` itself cannot be installed here."""
    other = dataclasses.replace(engine, **{"builder": "tensorrt", **changes})
    path = engine_path(folder, other.key)
    write_engine(dataclasses.replace(other, path=str(path)), Path(engine.path).read_bytes())
    return path


def test_an_engine_is_served_as_a_plan(bundle, engine, tmp_path):
    path = claim(engine, tmp_path, version="10.3.0", device="Orin SM87")
    facts = write_repository(bundle, tmp_path / "r", Serving("m", max_batch=4), engine=path)
    config = read_config((tmp_path / "r/m/config.pbtxt").read_text())
    assert config.platform == facts["platform"] == "tensorrt_plan" and facts["precision"] == "fp16"
    assert (tmp_path / "r/m/1/model.plan").read_bytes() == path.read_bytes()
    assert "TensorRT 10.3.0 for Orin SM87" in (tmp_path / "r/README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "serving", "message"),
    [
        ({"builder": "tensorrt_rtx"}, {}, "the engine is of tensorrt_rtx for gpu"),
        ({"dla": 0}, {}, "for DLA core 0"),
        ({}, {"kind": "cpu"}, "for cpu"),
        ({}, {"max_batch": 5}, "max_batch is 5, and the engine takes at most 4"),
        ({"onnx_sha256": "0" * 64}, {}, "built from another graph"),
        ({"precision": "fp32"}, {}, "built from another graph"),
    ],
)
def test_an_engine_that_triton_cannot_serve_is_refused(changes, serving, message, bundle, engine, tmp_path):
    path = claim(engine, tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        write_repository(bundle, tmp_path / "r", Serving(**{"name": "m", "max_batch": 4, **serving}), engine=path)
    assert not (tmp_path / "r").exists()


def test_an_altered_engine_is_not_served(bundle, engine, tmp_path):
    path = claim(engine, tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(EngineError, match="was altered"):
        write_repository(bundle, tmp_path / "r", Serving("m", max_batch=4), engine=path)
    path.with_suffix(".json").unlink()
    with pytest.raises(EngineError, match="no engine with its facts"):
        write_repository(bundle, tmp_path / "r", Serving("m", max_batch=4), engine=path)


def test_a_file_that_is_no_graph_is_told(tmp_path):
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(ExportError, match=r"text.onnx cannot be opened"):
        graph_tensors(tmp_path / "text.onnx")


def test_the_verb_writes_it(dense, tmp_path):
    import typer

    app = typer.Typer()
    app.command()(triton)
    done = CliRunner().invoke(app, [str(dense), "--out", str(tmp_path / "r"), "--name", "m", "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["model"] == "m" and facts["version"] == 1 and (tmp_path / "r/m/1/model.onnx").is_file()
