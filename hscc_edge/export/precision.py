"""FP16 written into the graph where its range allows, FP32 elsewhere; and what it gives, emulated on a CPU."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from hscc_edge.errors import ExportError, extra
from hscc_edge.export.calibrate import Span
from hscc_edge.export.onnx import check_onnx, parse_onnx

with extra("workstation"):
    import onnx
    from onnx import helper, numpy_helper
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

LARGEST, SMALLEST, SMALLEST_NORMAL = 65504.0, 5.96e-8, 2.0**-14
MARGIN = 4.0  # images that were not calibrated on may go so much further
LOST = 2.0**-7  # of a weight's norm; rounding of normal numbers loses less than 2^-11
FULL, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


def full_nodes(content: bytes, found: Mapping[str, Span]) -> dict[str, str]:
    """Nodes that must stay in FP32 -> why.

    A node stays if what it reads or makes goes beyond a quarter of FP16's range, or never reaches its normal numbers,
    or if rounding to FP16 loses 1/128 of a weight.

    Args:
        found: spans of the graph's tensors on calibration images.
    """
    graph = parse_onnx(content).graph
    wrong = {name: reason for name, span in found.items() if (reason := _out_of_range(name, span))}
    for tensor in graph.initializer:
        if tensor.data_type == FULL and (reason := _unfit(numpy_helper.to_array(tensor))):
            wrong[tensor.name] = f"the weight {tensor.name} {reason}"
    reasons = {
        node.name: next((wrong[name] for name in (*node.input, *node.output) if name in wrong), "")
        for node in graph.node
    }
    return {name: reason for name, reason in reasons.items() if reason}


def _out_of_range(name: str, span: Span) -> str:
    if span.largest > LARGEST / MARGIN:
        return f"{name} reaches {span.largest:.3g}, and FP16 ends at {LARGEST:.0f}"
    if 0 < span.largest < SMALLEST_NORMAL:
        return f"{name} stays below {span.largest:.3g}, and FP16 loses digits below {SMALLEST_NORMAL:.2g}"
    return ""


def _unfit(values: NDArray[np.float32]) -> str:
    if not np.isfinite(values).all():
        return ""  # masks hold infinities, which FP16 has too
    largest = float(np.abs(values).max(initial=0.0))
    if largest > LARGEST:
        return f"reaches {largest:.3g}, and FP16 ends at {LARGEST:.0f}"
    lost = float(np.linalg.norm(values - values.astype(np.float16).astype(np.float32)))
    share = lost / max(float(np.linalg.norm(values)), np.finfo(float).tiny)
    return f"loses {share:.1%} to FP16's subnormal numbers" if share > LOST else ""


def to_fp16(content: bytes, full: Collection[str] = ()) -> bytes:
    """The same graph with FP16 weights and arithmetic, FP32 input and output (a Cast at each end).

    Args:
        full: names of nodes that stay in FP32, with a Cast where FP16 begins and ends.

    Raises:
        ExportError: if a weight of another node is beyond FP16's range (the converter would clip it), or no FP16
            weight results.
    """
    model = parse_onnx(content)
    _require_range(model, full)
    del model.graph.value_info[:]  # the exporter names initialisers there, which the converter takes for activations
    model = convert_float_to_float16(model, min_positive_val=SMALLEST, keep_io_types=True, node_block_list=sorted(full))
    _join_full(model)
    OnnxModel(model).topological_sort()
    del model.graph.value_info[:]
    if not half_weights(model):
        raise ExportError("the graph holds no FP16 weight after conversion: export FP32 only")
    written: bytes = model.SerializeToString(deterministic=True)
    check_onnx(written)
    return written


def _require_range(model: onnx.ModelProto, full: Collection[str]) -> None:
    half = {name for node in model.graph.node if node.name not in full for name in node.input}
    for tensor in model.graph.initializer:
        if tensor.data_type != FULL or tensor.name not in half:
            continue
        values = numpy_helper.to_array(tensor)
        largest = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
        if largest > LARGEST:
            raise ExportError(
                f"the weight {tensor.name} reaches {largest:.3g}, and FP16 ends at {LARGEST:.0f}: leave its node in "
                "FP32, or export with --precision fp32"
            )


def _join_full(model: onnx.ModelProto) -> None:
    """Let FP32 nodes read what FP32 nodes make; the converter puts a Cast to FP16 and one back between them."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    outputs = {item.name for item in graph.output}
    direct = {}
    for node in graph.node:
        before = makers.get(node.input[0]) if node.op_type == "Cast" and _target(node) == FULL else None
        if before is not None and before.op_type == "Cast" and _target(before) == HALF:
            direct[node.output[0]] = before.input[0]
    for node in graph.node:
        node.input[:] = [direct.get(name, name) for name in node.input]
    for name in outputs & set(direct):
        source = direct[name]
        graph.node.remove(makers[name])
        graph.node.append(helper.make_node("Identity", [source], [name], name=f"{name}/identity"))
    _drop_unread(graph, outputs)


def _drop_unread(graph: onnx.GraphProto, outputs: set[str]) -> None:
    while True:
        read = outputs | {name for node in graph.node for name in node.input}
        unread = [node for node in graph.node if node.op_type == "Cast" and node.output[0] not in read]
        for node in unread:
            graph.node.remove(node)
        if not unread:
            return


def _target(node: onnx.NodeProto) -> int:
    return next((int(item.i) for item in node.attribute if item.name == "to"), 0)


def half_weights(model: onnx.ModelProto) -> int:
    """Initialisers of type FP16."""
    return sum(tensor.data_type == HALF for tensor in model.graph.initializer)


def emulated_fp16(content: bytes) -> bytes:
    """An FP16 graph, mixed or not, as FP32 with each FP16 tensor rounded: what FP16 arithmetic at best gives.

    ONNX Runtime's CPU provider computes FP16 nodes in FP32, which hides overflow; here an overflow becomes infinite.
    Accumulation stays in FP32, as on tensor cores. Nodes that compute in FP32 are not rounded.

    Raises:
        ExportError: if the graph holds no FP16.
    """
    model = onnx.shape_inference.infer_shapes(parse_onnx(content), strict_mode=True, data_prop=True)
    graph = model.graph
    half = {item.name for item in graph.value_info if item.type.tensor_type.elem_type == HALF}
    if not half:
        raise ExportError("the graph holds no FP16: emulate what to_fp16 gave")
    for tensor in graph.initializer:
        _widen(tensor)
    nodes = []
    for node in graph.node:
        for item in node.attribute:
            if item.HasField("t"):
                _widen(item.t)
            if node.op_type == "Cast" and item.name == "to" and item.i == HALF:
                item.i = FULL
        rounded = [name for name in node.output if name in half]
        node.output[:] = [f"{name}/exact" if name in rounded else name for name in node.output]
        nodes += [node, *(step for name in rounded for step in _round(f"{name}/exact", name))]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return bytes(model.SerializeToString(deterministic=True))


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == HALF:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))


def _round(source: str, target: str) -> list[onnx.NodeProto]:
    half = f"{target}/half"
    return [
        helper.make_node("Cast", [source], [half], to=HALF, name=f"{half}/down"),
        helper.make_node("Cast", [half], [target], to=FULL, name=f"{half}/up"),
    ]
