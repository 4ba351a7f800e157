"""An image classifier from an ONNX file, as a torch network whose layers can be replaced by others."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hscc_edge.errors import ModelError, extra
from hscc_edge.model.onnx_constants import (
    LARGE,
    Constant,
    Sizes,
    Value,
    attributes_of,
    fold,
    read_constant,
    read_tensor,
    work_sizes,
)  # fmt: skip
from hscc_edge.model.onnx_graph import Builder, Call, Shape, identifier
from hscc_edge.model.onnx_operators import OPERATORS

with extra("workstation"):
    import onnx
    import onnx.inliner
    import torch
    from onnx import helper, numpy_helper
    from torch import fx

OPSETS = (9, 24)
TOLERANCE = 1e-4
TAILS = {"Softmax": "softmax", "Sigmoid": "sigmoid"}
TAIL_PASSES = ("Identity", "Cast", "Flatten", "Reshape", "Squeeze")
HALVES = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
GUESSES = {3: 128, 4: 224, 5: 64}
Arrays = tuple[NDArray[Any], ...]


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output: an axis is a size, the name of a size that varies, or None; `dtype` is numpy's name."""

    name: str
    shape: tuple[int | str | None, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Imported:
    """A network as it was in an ONNX file, up to its logits.

    Attributes:
        network: takes the inputs in order and in the file's layout (float32 for float16), and gives the logits, or a
            tuple of them where there are several outputs. Its convolutions, linear layers and batch norms are modules.
        tail: by output the activation that was cut off to reach the logits: "softmax", "sigmoid" or "".
    """

    network: fx.GraphModule
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    tail: tuple[str, ...]
    opset: int


@dataclass(frozen=True, slots=True)
class _Source:
    """A graph in float32 that ends in its logits; `plain` if it is what the file holds."""

    path: Path
    model: onnx.ModelProto
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    tail: tuple[str, ...]
    opset: int
    plain: bool


def import_onnx(path: Path) -> Imported:
    """Read an ONNX file, and check the network on two random inputs against ONNX Runtime.

    Raises:
        ModelError: if the file is missing or no ONNX model, if it has an operator or another thing that is not known
            here, or if the network does not compute what ONNX Runtime does.
    """
    source = _read(path)
    network = _Translation(source).network()
    imported = Imported(network, source.inputs, source.outputs, source.tail, source.opset)
    _compare(source, imported, random_inputs(imported.inputs))
    return imported


def check_parity(imported: Imported, path: Path, inputs: Sequence[Arrays] | None = None) -> float:
    """The largest difference of any logit from ONNX Runtime's, relative to the largest logit.

    Args:
        inputs: by example one array for each input; two random examples if None.

    Raises:
        ModelError: if it is more than 1e-4, or an output is not finite.
    """
    return _compare(_read(path), imported, inputs if inputs is not None else random_inputs(imported.inputs))


def random_inputs(ports: Sequence[Port], count: int = 2) -> list[Arrays]:
    """Reproducible examples: normal for numbers, up to 255 for bytes; an axis that varies grows by one each time."""
    rng = np.random.default_rng(0)
    return [tuple(_random(port, batch, rng) for port in ports) for batch in range(1, count + 1)]


def _random(port: Port, batch: int, rng: np.random.Generator) -> NDArray[Any]:
    shape = example_shape(port, batch)
    dtype = np.dtype("float32" if port.dtype in ("float16", "bfloat16") else port.dtype)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 256 if dtype == np.uint8 else 2, shape).astype(dtype)


def example_shape(port: Port, batch: int) -> tuple[int, ...]:
    """A shape that fits the port: `batch` for a first axis that varies, a usual image for the others."""
    guess, rank = GUESSES.get(len(port.shape), 16), len(port.shape)
    shape = [size if isinstance(size, int) else guess for size in port.shape]
    if rank and not isinstance(port.shape[0], int):
        shape[0] = batch
    if rank >= 4 and not isinstance(port.shape[1], int) and port.shape[-1] not in (1, 3, 4):
        shape[1] = 3
    return tuple(shape)


def _read(path: Path) -> _Source:
    if not path.is_file():
        raise ModelError(f"{path} does not exist: give the path of an ONNX file")
    model = _parse(path)
    opset = _opset(path, model)
    _refuse_strange(path, model)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    held = {item.name for item in model.graph.initializer}
    inputs = tuple(_port(path, item) for item in model.graph.input if item.name not in held)
    outputs = tuple(_port(path, item) for item in model.graph.output)
    if not inputs or not outputs:
        raise ModelError(f"{path} has {len(inputs)} inputs and {len(outputs)} outputs: expected one or more of each")
    halves = _widen(model)
    tail = tuple(_cut_tail(model.graph, port, opset) for port in outputs)
    return _Source(path, model, inputs, outputs, tail, opset, not halves and not any(tail))


def _parse(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's and onnx's exceptions share no narrower class
        first = (str(error).strip().splitlines() or [""])[0][:160]
        raise ModelError(
            f"{path} cannot be read as an ONNX model ({type(error).__name__}: {first}): give an ONNX file, with its "
            "external data beside it"
        ) from error
    if not model.graph.node:
        raise ModelError(f"{path} holds no ONNX graph with nodes: give the file that the network was exported to")
    return model


def _opset(path: Path, model: onnx.ModelProto) -> int:
    versions = [item.version for item in model.opset_import if item.domain in ("", "ai.onnx")]
    opset = max(versions, default=0)
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise ModelError(
            f"{path} has opset {opset}: expected {OPSETS[0]} to {OPSETS[1]}; export the network with another opset"
        )
    return opset


def _refuse_strange(path: Path, model: onnx.ModelProto) -> None:
    own = {(function.domain, function.name) for function in model.functions}
    for node in model.graph.node:
        name = node.name or (node.output[0] if node.output else "without a name")
        if any(item.HasField("g") or item.graphs for item in node.attribute):
            raise ModelError(
                f"the node {name} of {path} ({node.op_type}) holds a graph of its own: expected a network without "
                "branches and loops; export it without them"
            )
        if node.domain not in ("", "ai.onnx") and (node.domain, node.op_type) not in own:
            raise ModelError(
                f"the node {name} of {path} has the operator {node.op_type} of the domain {node.domain}: expected "
                "ONNX's own operators; export the network without that runtime's optimisations"
            )


def _port(path: Path, item: onnx.ValueInfoProto) -> Port:
    if not item.type.HasField("tensor_type"):
        raise ModelError(f"{item.name} of {path} is no tensor: expected inputs and outputs that are tensors")
    kind = item.type.tensor_type
    shape = tuple(
        axis.dim_value if axis.HasField("dim_value") and axis.dim_value > 0 else axis.dim_param or None
        for axis in kind.shape.dim
    )
    return Port(item.name, shape, str(helper.tensor_dtype_to_np_dtype(kind.elem_type).name))


def _widen(model: onnx.ModelProto) -> bool:
    """Turn all that is half precision into float32; whether there was any."""
    found = False
    graph = model.graph
    tensors = [*graph.initializer]
    for node in graph.node:
        for item in node.attribute:
            tensors += [item.t] if item.HasField("t") else []
            if node.op_type in ("Cast", "RandomNormal") and item.name in ("to", "dtype") and item.i in HALVES:
                item.i, found = onnx.TensorProto.FLOAT, True
    for tensor in tensors:
        if tensor.data_type in HALVES:
            wide = numpy_helper.from_array(read_tensor(tensor).astype(np.float32), tensor.name)
            tensor.CopyFrom(wide)
            found = True
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in HALVES:
            value.type.tensor_type.elem_type, found = onnx.TensorProto.FLOAT, True
    return found


def _cut_tail(graph: onnx.GraphProto, port: Port, opset: int) -> str:
    """Let a last Softmax or Sigmoid pass its input on, through reshapings that leave a (B, n) output as it is."""
    makers = {name: node for node in graph.node for name in node.output}
    readers = _consumers(graph)
    name, moved = port.name, False
    while name in makers and len(readers.get(name, ())) == 1:
        node = makers[name]
        if node.op_type in TAILS:
            if node.op_type == "Softmax" and not _over_classes(node, port, opset, moved):
                return ""
            found = TAILS[node.op_type]
            node.op_type = "Identity"
            del node.attribute[:]
            return found
        if node.op_type not in TAIL_PASSES:
            return ""
        moved = moved or node.op_type not in ("Identity", "Cast")
        name = node.input[0]
    return ""


def _over_classes(node: onnx.NodeProto, port: Port, opset: int, moved: bool) -> bool:
    axis, rank = int(attributes_of(node).get("axis", 1 if opset < 13 else -1)), len(port.shape)
    if moved:  # (B, n, 1, 1) softmax, then flattened to (B, n)
        return rank == 2 and axis == 1
    return axis in (-1, rank - 1)


def _consumers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto | None]]:
    found: dict[str, list[onnx.NodeProto | None]] = {}
    for node in graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    for item in graph.output:
        found.setdefault(item.name, []).append(None)
    return found


def _shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """What ONNX's shape inference finds; large weights are left out, so that none is copied."""
    skeleton = onnx.ModelProto(ir_version=model.ir_version)
    skeleton.opset_import.extend(model.opset_import)
    skeleton.graph.name = "graph"
    graph, listed = model.graph, {item.name for item in model.graph.input}
    skeleton.graph.node.extend(graph.node)
    skeleton.graph.output.extend(onnx.ValueInfoProto(name=item.name) for item in graph.output)
    skeleton.graph.input.extend(graph.input)
    for tensor in graph.initializer:
        if np.prod(tensor.dims, dtype=np.int64) <= LARGE:
            skeleton.graph.initializer.append(tensor)
        elif tensor.name not in listed:
            info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            skeleton.graph.input.append(info)
    try:
        skeleton = onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
    except Exception:  # no narrower class; a graph of which less is known may still be translated
        return {item.name: _shape_of(item) for item in graph.input}
    graph = skeleton.graph
    known = [
        item for item in (*graph.input, *graph.value_info, *graph.output) if item.type.tensor_type.HasField("shape")
    ]
    return {item.name: _shape_of(item) for item in known} | {item.name: tuple(item.dims) for item in graph.initializer}


def _shape_of(item: onnx.ValueInfoProto) -> Shape:
    axes = item.type.tensor_type.shape.dim
    return tuple(axis.dim_value if axis.HasField("dim_value") else None for axis in axes)


class _Translation:
    """One pass over a graph's nodes, from constants and inputs to the fx graph's output."""

    def __init__(self, source: _Source) -> None:
        self.source, self.graph = source, source.model.graph
        constants = {item.name: Constant(item.name, read_tensor(item)) for item in self.graph.initializer}
        for node in self.graph.node:
            if node.op_type == "Constant":
                constants[node.output[0]] = Constant(node.output[0], read_constant(node))
        first = source.inputs[0].shape[:1]
        batch = first[0] if first and isinstance(first[0], int) else None
        self.builder = Builder(source.opset, _shapes(source.model), _consumers(self.graph), constants, batch)
        self.values: dict[str, Value] = dict(constants)

    def network(self) -> fx.GraphModule:
        """The network in evaluation mode."""
        for port in self.source.inputs:
            self.values[port.name] = self.builder.graph.placeholder(identifier(port.name))
        for node in self._needed():
            if node.op_type != "Constant":
                self._take(node)
        found = tuple(self._output(port) for port in self.source.outputs)
        self.builder.graph.output(found if len(found) > 1 else found[0])
        self.builder.graph.eliminate_dead_code()
        self.builder.graph.lint()
        return fx.GraphModule(self.builder.root, self.builder.graph).eval()

    def _needed(self) -> Iterator[onnx.NodeProto]:
        wanted, nodes = {port.name for port in self.source.outputs}, []
        for node in reversed(self.graph.node):
            if wanted.intersection(node.output):
                wanted.update(node.input)
                nodes.append(node)
        return reversed(nodes)

    def _output(self, port: Port) -> fx.Node:
        value = self.values.get(port.name)
        if value is None:
            raise ModelError(f"no node of {self.source.path} gives the output {port.name}: export the network again")
        identity = onnx.NodeProto(op_type="Identity", input=[port.name], output=[port.name])
        return Call(identity, (value,), {}, self.builder).tensor(0)

    def _take(self, node: onnx.NodeProto) -> None:
        merged = self.builder.merged.get(node.output[0])
        found = (merged,) if merged is not None else self._translate(node)
        self.values.update(zip((name for name in node.output), found, strict=False))

    def _translate(self, node: onnx.NodeProto) -> Sequence[Value]:
        missing = [name for name in node.input if name and name not in self.values]
        call = Call(node, tuple(self.values.get(name) for name in node.input), attributes_of(node), self.builder)
        if missing:
            call.fail(f"the input {missing[0]}, which nothing gives", "an output that its node has")
        try:
            return self._fold(node, call.values) or self._emit(call)
        except ModelError:
            raise
        except Exception as error:  # whatever a malformed node makes numpy, torch or onnx raise
            reason = (str(error).strip().splitlines() or [""])[0][:160]
            raise ModelError(
                f"the node {call.name} ({node.op_type}, opset {self.source.opset}) cannot be translated "
                f"({type(error).__name__}: {reason}): export the network in another way"
            ) from error

    def _fold(self, node: onnx.NodeProto, values: Sequence[Value | None]) -> Sequence[Value] | None:
        """The outputs, if they come from constants and sizes alone."""
        fixed = [value for value in values if not isinstance(value, fx.Node)]
        if len(fixed) < len(values) or not values:
            return None
        if node.op_type in ("Identity", "Dropout") and values[0] is not None:
            return [values[0]]
        constants = [value for value in fixed if not isinstance(value, Sizes)]
        if len(constants) == len(values):
            arrays = fold(node, constants, self.source.opset)
            return [Constant(name, array) for name, array in zip(filter(None, node.output), arrays, strict=True)]
        found = work_sizes(self.builder.emit, node, [value for value in fixed if value is not None])
        return None if found is None else [found]

    def _emit(self, call: Call) -> Sequence[Value]:
        if call.node.op_type not in OPERATORS:
            raise ModelError(
                f"the node {call.name} has the operator {call.node.op_type} of opset {self.source.opset}, which is not "
                "known here: expected an image classifier's operators; export the network without it"
            )
        found = OPERATORS[call.node.op_type](call)
        return found if isinstance(found, tuple) else (found,)


def _session(source: _Source) -> Any:
    with extra("workstation"):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    content = str(source.path) if source.plain else source.model.SerializeToString()
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes with no narrower common base
        raise ModelError(
            f"{source.path} cannot be opened by ONNX Runtime ({_first_line(error)}): export the network again"
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"


def _compare(source: _Source, imported: Imported, examples: Sequence[Arrays]) -> float:
    session, largest = _session(source), 0.0
    names = [port.name for port in source.outputs]
    for arrays in examples:
        feed: Mapping[str, Any] = {port.name: array for port, array in zip(source.inputs, arrays, strict=True)}
        try:
            expected = session.run(names, feed)
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = imported.network(*(torch.from_numpy(array) for array in arrays))
        except Exception as error:  # whatever torch or onnxruntime raise on a network that does not run
            shapes = ", ".join(str(array.shape) for array in arrays)
            raise ModelError(
                f"{source.path} does not run on an input {shapes} ({_first_line(error)}): export the network again"
            ) from error
        for name, first, second in zip(names, expected, found if len(names) > 1 else (found,), strict=True):
            largest = max(largest, _difference(source.path, name, first, second.numpy()))
    return largest


def _difference(path: Path, name: str, expected: NDArray[Any], found: NDArray[Any]) -> float:
    if expected.shape != found.shape:
        raise ModelError(
            f"the output {name} of {path} has the shape {found.shape}: expected {expected.shape}, ONNX Runtime's; "
            "export the network in another way"
        )
    wide = expected.astype(np.float64)
    scale = float(np.abs(wide).max(initial=0.0))
    difference = float(np.abs(wide - found).max(initial=0.0)) / max(scale, np.finfo(np.float32).tiny)
    if not difference <= TOLERANCE:
        raise ModelError(
            f"the output {name} of {path} differs from ONNX Runtime's by {difference:.2g} of the largest: expected at "
            f"most {TOLERANCE:g}; export the network in another way"
        )
    return difference
