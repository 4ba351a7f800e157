"""An image classifier from an ONNX file, as a torch network whose layers can be replaced by others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hscc_edge.errors import ModelError, extra
from hscc_edge.model.onnx_constants import (
    Constant,
    Sizes,
    Value,
    attributes_of,
    fold,
    read_constant,
    read_tensor,
    work_sizes,
)  # fmt: skip
from hscc_edge.model.onnx_graph import Builder, Call
from hscc_edge.model.onnx_operators import OPERATORS
from hscc_edge.model.onnx_parity import Arrays, check_source, random_inputs, widened
from hscc_edge.model.onnx_source import Port, Source, consumers, first_line, read_source

with extra("workstation"):
    import onnx
    import torch
    from torch import fx


@dataclass(frozen=True, slots=True)
class Imported:
    """A network as it was in an ONNX file, up to its logits.

    Attributes:
        network: takes the inputs in order and in the file's layout (float32 for float16), and gives the logits, or a
            tuple of them where there are several outputs. Its convolutions, linear layers and norms are modules named
            after the ONNX nodes. It takes any batch, also where the file fixes one.
        tail: by output the activation that was cut off to reach the logits: "softmax", "sigmoid" or "".
        metadata: the file's own keys and values.
    """

    network: fx.GraphModule
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    tail: tuple[str, ...]
    opset: int
    metadata: tuple[tuple[str, str], ...]


def import_onnx(path: Path, examples: Sequence[Arrays] | None = None) -> Imported:
    """Read an ONNX file, and check the network against ONNX Runtime.

    Args:
        examples: one array an input, each example of one size; two random ones if None.

    Raises:
        ModelError: if the file is missing or no ONNX model, if it has an operator or another thing that is not known
            here, or if the network does not compute what ONNX Runtime does.
    """
    source = read_source(path)
    examples = random_inputs(source.inputs) if examples is None else examples
    imported = translate(source, examples[-1])
    check_source(source, imported.network, examples)
    return imported


def translate(source: Source, example: Arrays) -> Imported:
    """The network of a source, not checked against ONNX Runtime.

    Args:
        example: one array an input, of the size to run on.

    Raises:
        ModelError: if it has an operator or another thing that is not known here.
    """
    network = _Translation(source).network(widened(example))
    metadata = tuple((item.key, item.value) for item in source.model.metadata_props)
    return Imported(network, source.inputs, source.outputs, source.tail, source.opset, metadata)


class _Translation:
    """One pass over a graph's nodes, from constants and inputs to the fx graph's output."""

    def __init__(self, source: Source) -> None:
        self.source, self.nodes = source, _needed(source)
        constants = _constants(source, self.nodes)
        first = source.inputs[0].shape[:1]
        batch = first[0] if first and isinstance(first[0], int) else None
        self.builder = Builder(source.opset, source.shapes, consumers(source.model.graph), constants, batch)
        self.values: dict[str, Value] = dict(constants)

    def network(self, example: Arrays) -> fx.GraphModule:
        """The network in evaluation mode."""
        for port, array in zip(self.source.inputs, example, strict=True):
            self.values[port.name] = self.builder.input(port.name, torch.from_numpy(array))
        for node in self.nodes:
            if not set(filter(None, node.output)) <= self.values.keys():
                self.values.update(zip(node.output, self._translate(node), strict=False))
        found = tuple(self._output(port) for port in self.source.outputs)
        self.builder.graph.output(found if len(found) > 1 else found[0])
        network = fx.GraphModule(self.builder.root, self.builder.graph)
        network.graph.eliminate_dead_code()
        network.delete_all_unused_submodules()
        network.recompile()
        return network.eval()

    def _output(self, port: Port) -> fx.Node:
        value = self.values.get(port.name)
        if value is None:
            raise ModelError(f"no node of {self.source.path} gives the output {port.name}: export the network again")
        identity = onnx.NodeProto(op_type="Identity", input=[port.name], output=[port.name])
        return Call(identity, (value,), {}, self.builder).tensor(0)

    def _translate(self, node: onnx.NodeProto) -> Sequence[Value]:
        merged = self.builder.merged.get(node.output[0])
        if merged is not None:
            return (merged,)
        call = Call(node, tuple(self.values.get(name) for name in node.input), attributes_of(node), self.builder)
        missing = [name for name in node.input if name and name not in self.values]
        if missing:
            call.fail(f"the input {missing[0]}, which nothing gives", "an output that its node has")
        try:
            return self._work(node, call.values) or self._emit(call)
        except ModelError:
            raise
        except Exception as error:  # whatever a malformed node makes numpy, torch or onnx raise
            raise _untranslated(node, self.source.opset, error) from error

    def _work(self, node: onnx.NodeProto, values: Sequence[Value | None]) -> Sequence[Value] | None:
        """The outputs, if they come from constants and sizes alone."""
        fixed = [value for value in values if isinstance(value, (Constant, Sizes))]
        if not fixed or any(isinstance(value, fx.Node) for value in values):
            return None
        if node.op_type == "Identity":
            return fixed
        constants = [value for value in values if value is None or isinstance(value, Constant)]
        if len(constants) == len(values):  # constant because a shape turned out to be
            return _folded(node, constants, self.source.opset)
        sizes = work_sizes(self.builder.emit, node, fixed)
        return None if sizes is None else [sizes]

    def _emit(self, call: Call) -> Sequence[Value]:
        if call.node.op_type not in OPERATORS:
            raise ModelError(
                f"the node {call.name} has the operator {call.node.op_type} of opset {self.source.opset}, which is not "
                "known here: expected an image classifier's operators; export the network without it"
            )
        found = OPERATORS[call.node.op_type](call)
        return found if isinstance(found, tuple) else (found,)


def _needed(source: Source) -> list[onnx.NodeProto]:
    """The nodes that an output depends on, in order."""
    wanted: set[str] = {port.name for port in source.outputs}
    nodes = []
    for node in reversed(source.model.graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            nodes.append(node)
    return nodes[::-1]


def _constants(source: Source, nodes: Sequence[onnx.NodeProto]) -> Mapping[str, Constant]:
    """Initialisers, Constant nodes, and what follows from these alone."""
    known = {item.name: Constant(item.name, read_tensor(item)) for item in source.model.graph.initializer}
    done: dict[object, list[Constant]] = {}
    for node in nodes:
        names = list(filter(None, node.input))
        if node.op_type == "Constant":
            known[node.output[0]] = Constant(node.output[0], read_constant(node))
        elif node.op_type == "Identity" and names[0] in known:
            known[node.output[0]] = known[names[0]]
        elif names and all(name in known for name in names):
            values = [known.get(name) for name in node.input]
            key = (node.op_type, *(value and value.name for value in values), *map(str, node.attribute))
            if key not in done:  # a weight that is turned twice stays one weight
                done[key] = _folded(node, values, source.opset)
            known.update(zip(filter(None, node.output), done[key], strict=True))
    return known


def _folded(node: onnx.NodeProto, values: Sequence[Constant | None], opset: int) -> list[Constant]:
    try:
        arrays = fold(node, values, opset)
    except Exception as error:  # whatever a malformed node makes onnx's reference raise
        raise _untranslated(node, opset, error) from error
    return [Constant(name, array) for name, array in zip(filter(None, node.output), arrays, strict=True)]


def _untranslated(node: onnx.NodeProto, opset: int, error: Exception) -> ModelError:
    return ModelError(
        f"the node {node.name or node.output[0]} ({node.op_type}, opset {opset}) cannot be translated "
        f"({first_line(error)}): export the network in another way"
    )
