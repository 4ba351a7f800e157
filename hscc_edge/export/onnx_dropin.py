"""The way back of an imported network: an ONNX graph that takes the place of the one it came from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hscc_edge.errors import ExportError, ModelError, extra
from hscc_edge.export.onnx import OPSET, check_onnx, quiet_exporter, strip
from hscc_edge.model.onnx_import import Imported
from hscc_edge.model.onnx_parity import (
    TOLERANCE,
    Arrays,
    open_session,
    random_inputs,
    require_equal,
    run_onnx,
    run_torch,
)
from hscc_edge.model.onnx_source import Port, first_line
from hscc_edge.model.regional import Clustered, OwnFactors, SharedReduce

with extra("workstation"):
    import onnx
    import torch
    from torch import nn

TAILS: dict[str, nn.Module] = {"": nn.Identity(), "softmax": nn.Softmax(dim=-1), "sigmoid": nn.Sigmoid()}
REGIONAL = (Clustered, OwnFactors, SharedReduce)
HALF_TOLERANCE = 2e-3


class Complete(nn.Module):
    """An imported network with the file's own dtypes, and with what stood after its logits."""

    def __init__(self, imported: Imported) -> None:
        super().__init__()
        self.network = imported.network
        self.tails = nn.ModuleList(TAILS[name] for name in imported.tail)
        self.dtypes = tuple(getattr(torch, port.dtype) for port in imported.outputs)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The file's outputs."""
        found = self.network(*(x.float() if x.dtype == torch.float16 else x for x in inputs))
        logits = found if isinstance(found, tuple) else (found,)
        steps = zip(logits, self.tails, self.dtypes, strict=True)
        return tuple(tail(item).to(dtype) for item, tail, dtype in steps)


def export_dropin(imported: Imported, examples: Sequence[Arrays] | None = None) -> bytes:
    """The network, with layers replaced or not, as ONNX with the inputs and outputs of the file it came from.

    Names, order, layouts, dtypes, metadata and varying axes stay; a float16 file is float32 inside, and the graph is
    of opset 18 whatever the file's. Where a layer has regions, the size of an image no longer varies.

    Args:
        examples: arrays in the file's dtypes, one an input, of the size to run on; two random ones if None.

    Raises:
        ExportError: if torch cannot export the network, or not with a batch that varies as in the file, or if the graph
            under ONNX Runtime differs from the network by more than 1e-4 of the largest output.
    """
    examples = random_inputs(imported.inputs) if examples is None else examples
    traced = tuple(_twice(port, array) for port, array in zip(imported.inputs, examples[0], strict=True))
    complete = Complete(imported).eval()
    model = check_onnx(strip(_export(complete, imported, traced)))
    _restore(model, imported)
    content: bytes = model.SerializeToString(deterministic=True)
    check_onnx(content)
    _require_parity(content, complete, [*examples, traced, *_smaller(complete, model, traced)])
    return content


def _twice(port: Port, array: NDArray[Any]) -> NDArray[Any]:
    """Every image two times, where the batch varies: torch takes a batch of one for a batch that stays one."""
    return array if isinstance(port.shape[0], int) else np.concatenate([array, array])


def _smaller(complete: Complete, model: onnx.ModelProto, traced: Arrays) -> list[Arrays]:
    """The same images without the last position of every axis that varies, if the network takes them."""
    shapes = [item.type.tensor_type.shape.dim for item in model.graph.input]
    cuts = [tuple(slice(None, None if axis.dim_value else -1) for axis in shape) for shape in shapes]
    arrays = tuple(np.ascontiguousarray(array[cut]) for array, cut in zip(traced, cuts, strict=True))
    try:
        run_torch(complete, arrays)
    except ModelError:
        return []
    return [arrays]


def _export(complete: Complete, imported: Imported, traced: Arrays) -> onnx.ModelProto:
    regional = any(isinstance(module, REGIONAL) for module in complete.modules())
    axes = tuple(dict(_varying(port, regional)) for port in imported.inputs)
    try:
        with quiet_exporter():
            program = torch.onnx.export(
                complete, tuple(torch.from_numpy(array) for array in traced), opset_version=OPSET, dynamo=True,
                input_names=_plain("input", imported.inputs), output_names=_plain("output", imported.outputs),
                dynamic_shapes=(axes,), external_data=False, verbose=False,
            )  # fmt: skip
    except (RuntimeError, torch.onnx.OnnxExporterError) as error:
        raise ExportError(
            f"torch cannot export the imported network ({_reason(error)}): leave the layer that was replaced last as "
            "it was"
        ) from error
    if program is None:
        raise ExportError("torch gave no ONNX program: export another network")
    return program.model_proto


def _reason(error: Exception) -> str:
    return first_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)


def _varying(port: Port, regional: bool) -> Iterator[tuple[int, Any]]:
    for axis, size in enumerate(port.shape):
        if not isinstance(size, int) and not (regional and axis):
            yield axis, torch.export.Dim.AUTO if axis else torch.export.Dim.DYNAMIC


def _plain(kind: str, ports: Sequence[Port]) -> list[str]:
    return [f"dropin_{kind}_{number}" for number in range(len(ports))]


def _restore(model: onnx.ModelProto, imported: Imported) -> None:
    """Give the graph the file's names, axes and metadata."""
    graph, ports = model.graph, (*imported.inputs, *imported.outputs)
    names = {name: f"{name}_inner" for name in (port.name for port in ports)}
    names |= zip(_plain("input", imported.inputs), (port.name for port in imported.inputs), strict=True)
    names |= zip(_plain("output", imported.outputs), (port.name for port in imported.outputs), strict=True)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for item in (*graph.initializer, *graph.input, *graph.output):
        item.name = names.get(item.name, item.name)
    for item, port in zip((*graph.input, *graph.output), ports, strict=True):
        _name_axes(item, port, port in imported.inputs)
    del graph.value_info[:]
    onnx.helper.set_model_props(model, dict(imported.metadata))


def _name_axes(item: onnx.ValueInfoProto, port: Port, given: bool) -> None:
    for axis, size in zip(item.type.tensor_type.shape.dim, port.shape, strict=True):
        if given and axis.HasField("dim_value") and not isinstance(size, int):
            continue
        axis.Clear()
        if isinstance(size, int):
            axis.dim_value = size
        elif size:
            axis.dim_param = size


def _require_parity(content: bytes, complete: Complete, examples: Sequence[Arrays]) -> None:
    tolerance = HALF_TOLERANCE if torch.float16 in complete.dtypes else TOLERANCE
    try:
        session = open_session(content)
        for arrays in examples:
            require_equal(run_onnx(session, arrays), run_torch(complete, arrays), "torch's", tolerance)
    except ModelError as error:
        raise ExportError(f"the graph that was written back is not its network ({error})") from error
