"""FP16 written into the graph, and its accuracy on a CPU by emulation."""

from __future__ import annotations

import numpy as np

from hscc_edge.errors import ExportError, extra
from hscc_edge.export.onnx import check_onnx

with extra("workstation"):
    import onnx
    from onnx import helper, numpy_helper
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

LARGEST, SMALLEST = 65504.0, 5.96e-8


def to_fp16(content: bytes) -> bytes:
    """The same graph with FP16 weights and arithmetic, FP32 input and output (a Cast at each end).

    Raises:
        ExportError: if a weight is beyond FP16's range (the converter would clip it), or no FP16 weight results.
    """
    full = check_onnx(content)
    _require_range(full)
    model = convert_float_to_float16(full, min_positive_val=SMALLEST, keep_io_types=True)
    OnnxModel(model).topological_sort()
    del model.graph.value_info[:]
    if not half_weights(model):
        raise ExportError("the graph holds no FP16 weight after conversion: export FP32 only")
    written: bytes = model.SerializeToString(deterministic=True)
    check_onnx(written)
    return written


def _require_range(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        largest = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
        if largest > LARGEST:
            raise ExportError(
                f"the weight {tensor.name} reaches {largest:.3g}, and FP16 ends at {LARGEST:.0f}: export with "
                "--precision fp32"
            )


def half_weights(model: onnx.ModelProto) -> int:
    """Initialisers of type FP16."""
    return sum(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)


def emulated_fp16(content: bytes) -> bytes:
    """The FP32 graph with every weight and every node's output rounded to FP16: what FP16 arithmetic at best gives.

    ONNX Runtime's CPU provider computes FP16 nodes in FP32, which hides overflow; here an overflow becomes infinite.
    Accumulation stays in FP32, as on tensor cores. Integers (shapes, indices) are left alone.
    """
    model = onnx.shape_inference.infer_shapes(check_onnx(content), strict_mode=True, data_prop=True)
    graph = model.graph
    real = {
        item.name
        for item in (*graph.value_info, *graph.output)
        if item.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    weights = [tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    inputs = [item.name for item in graph.input]
    renamed = {name: f"{name}/fp16" for name in (*weights, *inputs)}
    nodes = [node for name in renamed for node in _round(name, renamed[name])]
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        rounded = [name for name in node.output if name in real]
        node.output[:] = [f"{name}/exact" if name in rounded else name for name in node.output]
        nodes += [node, *(step for name in rounded for step in _round(f"{name}/exact", name))]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return bytes(model.SerializeToString(deterministic=True))


def _round(source: str, target: str) -> list[onnx.NodeProto]:
    half = f"{target}/half"
    return [
        helper.make_node("Cast", [source], [half], to=onnx.TensorProto.FLOAT16, name=f"{half}/down"),
        helper.make_node("Cast", [half], [target], to=onnx.TensorProto.FLOAT, name=f"{half}/up"),
    ]
