"""A network as an ONNX graph: input "image" (batch, C, H, W), output "logits" (batch, n), FP32, opset 18."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hscc_edge.errors import ExportError, extra

with extra("workstation"):
    import onnx
    import torch
    from torch import nn

OPSET = 18


def export_onnx(network: nn.Module, shape: tuple[int, ...]) -> bytes:
    """Export by torch.export, check, and strip what is not needed to run (names of source files among it).

    Args:
        shape: (C, H, W) of one image or (C, D, H, W) of a volume; the batch is dynamic.

    Raises:
        ExportError: if torch cannot export the network, or the graph does not pass ONNX's checker.
    """
    example = torch.zeros(2, *shape)
    batch = torch.export.Dim("batch", min=1, max=1024)
    try:
        with quiet_exporter():
            program = torch.onnx.export(
                network.eval(), (example,), input_names=["image"], output_names=["logits"], opset_version=OPSET,
                dynamo=True, dynamic_shapes=({0: batch},), external_data=False, verbose=False,
            )  # fmt: skip
    except (RuntimeError, torch.onnx.OnnxExporterError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ExportError(f"torch cannot export the network ({first}): compress or export another one") from error
    if program is None:
        raise ExportError("torch gave no ONNX program: export another network")
    return strip(program.model_proto)


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silence what torch's exporter says to torch's developers; warnings about the network itself stay."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category in (FutureWarning, DeprecationWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        log.setLevel(level)


def strip(model: onnx.ModelProto) -> bytes:
    """The checked bytes of a graph without what is not needed to run it."""
    graph = model.graph
    del model.metadata_props[:], graph.metadata_props[:], model.functions[:]
    model.doc_string = graph.doc_string = ""
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        item.doc_string = ""
        del item.metadata_props[:]
    content: bytes = model.SerializeToString(deterministic=True)
    check_onnx(content)
    return content


def check_onnx(content: bytes) -> onnx.ModelProto:
    """The parsed, shape-inferred graph.

    Raises:
        ExportError: if it is no ONNX model or breaks ONNX's rules.
    """
    model = parse_onnx(content)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # onnx's exceptions share no narrower class
        raise _invalid(error) from error
    return model


def parse_onnx(content: bytes) -> onnx.ModelProto:
    """The parsed graph, its rules not checked: for graphs that were checked when they were written.

    Raises:
        ExportError: if it is no ONNX model.
    """
    try:
        return onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's exceptions share no narrower class
        raise _invalid(error) from error


def _invalid(error: Exception) -> ExportError:
    return ExportError(f"this is not a valid ONNX model ({type(error).__name__}): export the bundle again")


def read_onnx(path: Path) -> bytes:
    """The bytes of a valid ONNX file.

    Raises:
        ExportError: if it is missing, or is no ONNX model.
    """
    if not path.is_file():
        raise ExportError(f"{path} does not exist: run hscc-edge export first")
    content = path.read_bytes()
    check_onnx(content)
    return content
