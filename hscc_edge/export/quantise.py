"""INT8 written into the graph: explicit Q/DQ pairs as TensorRT takes them, by ONNX Runtime's quantiser.

Symmetric signed 8 bits with zero point 0, one step per output channel of a weight and one per activation tensor, pairs
only in front of what multiplies, biases in floating point. Pairs in front of slices of one tensor have that tensor's
step, so that TensorRT can move them to where the tensor is made.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from hscc_edge.errors import ExportError, extra
from hscc_edge.export.calibrate import Images, watched
from hscc_edge.export.onnx import check_onnx, parse_onnx

with extra("workstation"):
    import onnx
    from onnx import helper, numpy_helper
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.transformers.onnx_model import OnnxModel

MULTIPLYING = ("Conv", "Gemm", "MatMul")
MOVING = ("Slice", "Pad", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")
OPSET = 19  # the first whose QuantizeLinear takes FP16; every operator of 18 means the same in it
PAIR = ("QuantizeLinear", "DequantizeLinear")


def quantisable(content: bytes) -> dict[str, str]:
    """Nodes that multiply by constants -> the tensor whose range their input has, in the graph's order."""
    graph = parse_onnx(content).graph
    constant = {tensor.name for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    return {
        node.name: _origin(node.input[0], makers)
        for node in graph.node
        if node.op_type in MULTIPLYING and node.input[1] in constant and node.input[0] not in constant
    }


def quantised(content: bytes, limits: Mapping[str, float], names: Collection[str]) -> bytes:
    """The FP32 graph with Q/DQ pairs in front of the named nodes.

    Args:
        limits: the magnitude that 127 stands for, of every tensor that `quantisable` names for these nodes.

    Raises:
        ExportError: if a weight is not finite.
    """
    origins = quantisable(content)
    model = parse_onnx(content)
    _check_weights(model, names)
    _raise_opset(model)
    inputs = {node.input[0]: limits[origins[node.name]] for node in model.graph.node if node.name in names}
    ranges = {name: (np.float32(-limit), np.float32(limit)) for name, limit in inputs.items()}
    options = {
        "ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False, "AddQDQPairToWeight": True,
        "DedicatedQDQPair": True, "OpTypesToExcludeOutputQuantization": list(MULTIPLYING),
        "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1},
    }  # fmt: skip
    with _quiet():
        quantiser = QDQQuantizer(
            model, True, False, QuantType.QInt8, QuantType.QInt8, TensorsData(CalibrationMethod.MinMax, ranges),
            sorted(names), [], list(MULTIPLYING), options,
        )  # fmt: skip
        quantiser.quantize_model()
    found = quantiser.model.model
    _clean(found, names)
    written: bytes = found.SerializeToString(deterministic=True)
    check_onnx(written)
    return written


def corrected(content: bytes, pairs: bytes, images: Images) -> bytes:
    """The Q/DQ graph with biases that take away the mean error of each quantised node (Nagel et al. 2019, section 4.2).

    The error is that of a node on its exact input, so that one pass over the images corrects all of them, and no
    node's correction counts the error of those before it.
    """
    twin, names = _twin(content, pairs)
    if not names:
        return pairs
    shift: dict[str, NDArray[np.float64]] = {}
    count = 0
    for tensors in watched(twin, names.values(), images):
        count += 1
        for name, tensor in names.items():
            shift[name] = shift.get(name, np.zeros(())) + tensors[tensor].reshape(-1)
    model = parse_onnx(pairs)
    for node in model.graph.node:
        if node.name in shift:
            _add_bias(model.graph, node, (shift[node.name] / count).astype(np.float32))
    read = {name for node in model.graph.node for name in node.input}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in read]:
        model.graph.initializer.remove(tensor)
    written: bytes = model.SerializeToString(deterministic=True)
    check_onnx(written)
    return written


def pair_nodes(content: bytes) -> dict[str, set[str]]:
    """Quantised nodes -> the names of the Q and DQ nodes in front of them."""
    graph = parse_onnx(content).graph
    makers = {name: node for node in graph.node for name in node.output}
    found: dict[str, set[str]] = {}
    for node in graph.node:
        ends = [makers[name] for name in node.input if name in makers and makers[name].op_type == PAIR[1]]
        if node.op_type in MULTIPLYING and ends:
            found[node.name] = {end.name for end in ends} | {makers[end.input[0]].name for end in ends}
    return found


def _origin(name: str, makers: Mapping[str, onnx.NodeProto]) -> str:
    while name in makers and makers[name].op_type in MOVING:
        name = makers[name].input[0]
    return name


def _check_weights(model: onnx.ModelProto, names: Collection[str]) -> None:
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.name in names and not np.isfinite(numpy_helper.to_array(tensors[node.input[1]])).all():
            raise ExportError(f"the weight {node.input[1]} holds a value that is not finite: train the network anew")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what ONNX Runtime's quantiser writes to the root logger about tensors that stay as they are."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)


def _clean(model: onnx.ModelProto, names: Collection[str]) -> None:
    """Drop what the quantiser wrote down about itself; nodes that are not to be quantised read what they read before.

    ONNX Runtime puts a pair in front of all readers of a tensor if one of them is quantised: a residual sum too.
    """
    del model.metadata_props[:], model.graph.value_info[:]
    model.producer_name = model.producer_version = ""
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.name in names or node.op_type in PAIR:
            continue
        for index, name in enumerate(node.input):
            if name in makers and makers[name].op_type == PAIR[1]:
                node.input[index] = makers[makers[name].input[0]].input[0]
    read = {name for node in model.graph.node for name in node.input}
    read |= {item.name for item in model.graph.output}
    for kind in reversed(PAIR):
        for node in [node for node in model.graph.node if node.op_type == kind and node.output[0] not in read]:
            model.graph.node.remove(node)
            read = {name for node in model.graph.node for name in node.input}
    OnnxModel(model).topological_sort(is_deterministic=True)


def _raise_opset(model: onnx.ModelProto) -> None:
    for item in model.opset_import:
        item.version = max(item.version, OPSET) if item.domain in ("", "ai.onnx") else item.version


def _twin(content: bytes, pairs: bytes) -> tuple[bytes, dict[str, str]]:
    """A graph that runs every quantised node beside its original, both on the original's input.

    Returns:
        The graph, and per node the name of an output with the mean difference of its channels.
    """
    model, other = parse_onnx(content), parse_onnx(pairs)
    _raise_opset(model)
    chosen = {node.name for node in other.graph.node if node.op_type in ("Conv", "Gemm")} & set(pair_nodes(pairs))
    ranks = {item.name: len(item.dims) for item in other.graph.initializer}
    known = {tensor.name for tensor in model.graph.initializer}
    model.graph.initializer.extend(tensor for tensor in other.graph.initializer if tensor.name not in known)
    model.graph.node.extend(node for node in other.graph.node if node.op_type in PAIR)
    weights = {node.name: node.input[1] for node in model.graph.node if len(node.input) > 1}
    names = {}
    for node in (node for node in other.graph.node if node.name in chosen):
        mean = names[node.name] = f"{node.name}/shift"
        axes = [axis for axis in range(ranks[weights[node.name]]) if axis != 1]
        model.graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), f"{mean}/axes"))
        exact, node.output[0], node.name = node.output[0], f"{mean}/quantised", f"{mean}/quantised"
        model.graph.node.extend(
            [
                node,
                helper.make_node("Sub", [exact, node.output[0]], [f"{mean}/by"], name=f"{mean}/by"),
                helper.make_node("ReduceMean", [f"{mean}/by", f"{mean}/axes"], [mean], name=mean, keepdims=0),
            ]
        )
    del model.graph.value_info[:]
    OnnxModel(model).topological_sort(is_deterministic=True)
    return model.SerializeToString(), names


def _add_bias(graph: onnx.GraphProto, node: onnx.NodeProto, shift: NDArray[np.float32]) -> None:
    """Add to the bias of a Conv or Gemm, in a tensor of its own."""
    values = {tensor.name: tensor for tensor in graph.initializer}
    old = numpy_helper.to_array(values[node.input[2]]) if len(node.input) > 2 and node.input[2] else np.float32(0.0)
    name = f"{node.name}/bias"
    graph.initializer.append(numpy_helper.from_array((old + shift).astype(np.float32), name))
    node.input[:] = [*node.input[:2], name]
