"""A model repository for NVIDIA Triton: one model, its ONNX graph or TensorRT engine, for servers of many models.

    OUT/README.md
    OUT/<name>/config.pbtxt  labels.txt  <version>/{model.onnx or model.plan, bundle.json}

There is no ensemble: preprocessing, calibration of the logits and the decision stay in this package, whose client sends
preprocessed images. The configuration is protobuf text of `inference.ModelConfig` (Triton's model_config.proto).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hscc_edge import durable
from hscc_edge.bundle import Bundle
from hscc_edge.errors import ExportError, InputError, extra
from hscc_edge.runtime import PRECISIONS, check_precision
from hscc_edge.runtime.engines import EngineFacts, read_engine

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
KINDS = ("gpu", "cpu")
TYPES = {"tensor(float)": "TYPE_FP32", "tensor(float16)": "TYPE_FP16"}
LABELS = "labels.txt"


@dataclass(frozen=True, slots=True)
class Serving:
    """How Triton serves the model.

    Attributes:
        name: of the model, as clients call it.
        max_batch: largest batch that Triton makes of waiting requests.
        queue_delay_us: how long a request may wait for others.
        instances: copies of the model on each device.
        kind: gpu or cpu; an engine needs a GPU.
    """

    name: str
    max_batch: int = 8
    queue_delay_us: int = 500
    instances: int = 1
    kind: str = "gpu"


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output: its name, Triton type and dimensions without the batch."""

    name: str
    kind: str
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """The file to serve, as Triton calls its platform, and what stands in its `bundle.json`."""

    platform: str
    filename: str
    source: Path
    facts: dict[str, Any]


def write_repository(
    bundle: Bundle,
    out: Path,
    serving: Serving,
    *,
    precision: str = "fp32",
    engine: Path | None = None,
    add: bool = False,
) -> dict[str, Any]:
    """Write the repository; it appears whole or not at all.

    Args:
        precision: which of the bundle's ONNX files, fp32 or fp16; an engine brings its own.
        engine: an engine of this bundle from the cache, in place of the ONNX file.
        add: `out` is such a repository already, and the bundle's version is added to its model.

    Raises:
        InputError: if an option is out of range, INT8 is asked for without an engine, or the model cannot be added.
        ExportError: if the ONNX file does not take and give what the bundle says.
        EngineError: if the engine was altered, is of another bundle, or cannot be served by Triton.
        StorageError: if `out` is taken or cannot be written.
    """
    _check(serving, bundle.spec.labels)
    check_precision(precision)
    model = _onnx_model(bundle, precision) if engine is None else _plan_model(bundle, engine, serving)
    graph = bundle.path(PRECISIONS[precision if engine is None else model.facts["precision"]])
    inputs, outputs = graph_tensors(graph)
    _check_tensors(bundle, inputs, outputs)
    config = model_config(serving, model.platform, inputs, outputs)
    labels = "".join(f"{label}\n" for label in bundle.spec.labels)
    version = bundle.spec.version
    with durable.new_directory(out, replace=add) as draft:
        if add:
            _copy_old(out, draft, serving.name, version, config, labels)
        place = draft / serving.name / str(version)
        place.mkdir(parents=True)
        (draft / "README.md").write_text(_readme(bundle, serving, model), encoding="utf-8")
        (draft / serving.name / "config.pbtxt").write_text(config, encoding="utf-8")
        (draft / serving.name / LABELS).write_text(labels, encoding="utf-8")
        shutil.copyfile(model.source, place / model.filename)
        (place / "bundle.json").write_text(json.dumps(model.facts, indent=2) + "\n", encoding="utf-8")
    return {
        "repository": str(out),
        "model": serving.name,
        "version": version,
        "platform": model.platform,
        **model.facts,
    }


def model_config(serving: Serving, platform: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> str:
    """`config.pbtxt`: protobuf text, one field a line."""
    lines = [
        "# The input is a preprocessed image, the output logits: preprocessing, calibration and the decision stay in",
        "# hscc_edge, and there is no ensemble. See README.md beside this model.",
        f'name: "{serving.name}"',
        f'platform: "{platform}"',
        f"max_batch_size: {serving.max_batch}",
    ]
    for field, tensors in (("input", inputs), ("output", outputs)):
        for tensor in tensors:
            label = f'\n  label_filename: "{LABELS}"' if field == "output" else ""
            dims = ", ".join(str(size) for size in tensor.dims)
            lines.append(
                f'{field} {{\n  name: "{tensor.name}"\n  data_type: {tensor.kind}\n  dims: [ {dims} ]{label}\n}}'
            )
    lines.append(f"instance_group {{\n  kind: KIND_{serving.kind.upper()}\n  count: {serving.instances}\n}}")
    if serving.max_batch > 1:
        lines.append(f"dynamic_batching {{\n  max_queue_delay_microseconds: {serving.queue_delay_us}\n}}")
    return "\n".join(lines) + "\n"


def graph_tensors(path: Path) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and outputs of an ONNX file as ONNX Runtime reads them, without the batch.

    Raises:
        ExportError: if it cannot be opened, or a tensor is of a type or shape that is not served.
    """
    with extra("device"):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no narrower class
        raise ExportError(f"{path} cannot be opened ({type(error).__name__}): export the bundle again") from error
    found: list[list[Tensor]] = []
    for tensors in (session.get_inputs(), session.get_outputs()):
        found.append([])
        for tensor in tensors:
            kind, (batch, *dims) = TYPES.get(tensor.type), tensor.shape
            if kind is None or not isinstance(batch, str) or not all(isinstance(size, int) for size in dims):
                raise ExportError(
                    f"the tensor {tensor.name} of {path} is {tensor.type} {tensor.shape}: expected floating point, a "
                    "batch of any size and other sizes that are fixed; export the bundle again"
                )
            found[-1].append(Tensor(tensor.name, kind, tuple(dims)))
    return found[0], found[1]


def _check(serving: Serving, labels: Sequence[str]) -> None:
    if not NAME.fullmatch(serving.name):
        raise InputError(
            f"the model's name is {serving.name!r}: expected letters, digits, '_', '.' and '-'; give --name"
        )
    limits = {"max_batch": (1, 1024), "queue_delay_us": (0, 1_000_000), "instances": (1, 64)}
    for field, (low, high) in limits.items():
        value = getattr(serving, field)
        if not low <= value <= high:
            raise InputError(f"{field} is {value}: expected {low} to {high}")
    if serving.kind not in KINDS:
        raise InputError(f"the kind of instance is {serving.kind!r}: expected one of {', '.join(KINDS)}")
    if any("\n" in label or "\r" in label for label in labels):
        raise InputError("a label of the bundle has a line break: Triton's labels are one a line; name the class anew")


def _check_tensors(bundle: Bundle, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    given = [tensor.dims for tensor in inputs]
    if given != [bundle.spec.input_shape] or len(outputs) != 1 or len(outputs[0].dims) != 1:
        raise ExportError(
            f"the bundle's graph takes {given} and gives {[tensor.dims for tensor in outputs]}: expected "
            f"{bundle.spec.input_shape} and one row of logits; export the bundle again"
        )


def _onnx_model(bundle: Bundle, precision: str) -> Model:
    if precision == "int8":
        raise InputError(
            "INT8 was asked for as an ONNX file, and Triton's ONNX Runtime would round its biases by products of FP16 "
            "scales, which may underflow: give --engine with one of hscc-edge build --precision int8, or fp16"
        )
    name = PRECISIONS[precision]
    facts = {"bundle_digest": bundle.digest, "precision": precision, "sha256": bundle.files.get(name, "")}
    return Model("onnxruntime_onnx", "model.onnx", bundle.path(name), facts)


def _plan_model(bundle: Bundle, path: Path, serving: Serving) -> Model:
    found = read_engine(path)
    _check_engine(bundle, found, serving)
    facts = {
        "bundle_digest": bundle.digest, "precision": found.precision, "sha256": found.sha256,
        "tensorrt": found.version, "cuda": found.cuda, "device": found.device,
    }  # fmt: skip
    return Model("tensorrt_plan", "model.plan", path, facts)


def _check_engine(bundle: Bundle, found: EngineFacts, serving: Serving) -> None:
    expected = bundle.files.get(PRECISIONS.get(found.precision, ""))
    if expected != found.onnx_sha256:
        raise InputError(
            "the engine was built from another graph than this bundle's: run hscc-edge build on the bundle"
        )
    if found.builder != "tensorrt" or found.dla is not None or serving.kind != "gpu":
        where = f"DLA core {found.dla}" if found.dla is not None else serving.kind
        raise InputError(
            f"the engine is of {found.builder} for {where}: Triton takes engines of tensorrt on a GPU; serve the "
            "ONNX file"
        )
    if serving.max_batch > found.max_batch:
        raise InputError(
            f"max_batch is {serving.max_batch}, and the engine takes at most {found.max_batch}: give --max-batch "
            f"{found.max_batch}, or build a larger one"
        )


def _copy_old(out: Path, draft: Path, name: str, version: int, config: str, labels: str) -> None:
    """The repository as it stands, if the new version takes and gives the same."""
    model = out / name
    try:
        same = (model / "config.pbtxt").read_text("utf-8") == config and (model / LABELS).read_text("utf-8") == labels
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{out} holds no model {name}: write a new repository, without --add") from error
    if not same:
        raise InputError(
            f"the model {name} in {out} has another configuration or other labels: give this one another --name"
        )
    if (model / str(version)).exists():
        raise InputError(f"the model {name} in {out} has a version {version} already: raise the bundle's version")
    shutil.copytree(out, draft, dirs_exist_ok=True)


def _readme(bundle: Bundle, serving: Serving, model: Model) -> str:
    steps = "\n".join(f"- `{json.dumps(step)}`" for step in bundle.spec.preprocess)
    where = (
        f"It was built by TensorRT {model.facts['tensorrt']} for {model.facts['device']}: Triton's container must have "
        "that TensorRT and run on that GPU.\n"
        if model.platform == "tensorrt_plan"
        else ""
    )
    return (
        f"# {serving.name}\n\n"
        f"Model repository for NVIDIA Triton (`tritonserver --model-repository=.`); platform `{model.platform}`.\n"
        f"{where}\nThe model takes preprocessed images and gives logits. There is no ensemble: these steps run in the\n"
        "client, by `hscc_edge.data.preprocess`, and so do the calibration of the logits and the decision:\n\n"
        f"{steps}\n\n"
        "`labels.txt` names the logits in order. `bundle.json` beside each model file holds its bundle's digest.\n"
    )
