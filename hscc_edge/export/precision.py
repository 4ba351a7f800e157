"""FP16 written into the graph, and its accuracy on a CPU by emulation."""

from __future__ import annotations

import warnings

from hscc_edge.errors import ExportError, extra
from hscc_edge.export.onnx import check_onnx

with extra("workstation"):
    import onnx
    from onnx import helper
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

UNROUNDED = {"Shape", "Cast", "Constant", "ConstantOfShape", "Gather", "Range"}


def to_fp16(content: bytes) -> bytes:
    """The same graph with FP16 weights and arithmetic, FP32 input and output (a Cast at each end).

    Raises:
        ExportError: if the converter fails or no FP16 weight results.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = convert_float_to_float16(check_onnx(content), keep_io_types=True)
    OnnxModel(model).topological_sort()
    del model.graph.value_info[:]
    if not half_weights(model):
        raise ExportError("the graph holds no FP16 weight after conversion: export FP32 only")
    written: bytes = model.SerializeToString(deterministic=True)
    check_onnx(written)
    return written


def half_weights(model: onnx.ModelProto) -> int:
    """Initialisers of type FP16."""
    return sum(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)


def emulated_fp16(content: bytes) -> bytes:
    """The FP32 graph with every weight and every node's output rounded to FP16: what FP16 arithmetic at best gives.

    ONNX Runtime's CPU provider computes FP16 nodes in FP32, which hides overflow; here an overflow becomes infinite.
    Accumulation stays in FP32, as on tensor cores.
    """
    model = check_onnx(content)
    graph = model.graph
    weights = [tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    inputs = [item.name for item in graph.input]
    renamed = {name: f"{name}/fp16" for name in (*weights, *inputs)}
    nodes = [node for name in renamed for node in _round(name, renamed[name])]
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        if node.op_type in UNROUNDED:
            nodes.append(node)
            continue
        exact = [f"{name}/exact" for name in node.output]
        pairs = list(zip(exact, node.output, strict=True))
        node.output[:] = exact
        nodes += [node, *(step for source, target in pairs for step in _round(source, target))]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return bytes(model.SerializeToString(deterministic=True))


def _round(source: str, target: str) -> list[onnx.NodeProto]:
    half = f"{target}/half"
    return [
        helper.make_node("Cast", [source], [half], to=onnx.TensorProto.FLOAT16, name=f"{half}/down"),
        helper.make_node("Cast", [half], [target], to=onnx.TensorProto.FLOAT, name=f"{half}/up"),
    ]
