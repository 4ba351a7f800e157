"""Every operator of the table, over the opsets that change it, against ONNX Runtime on the file."""

from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, parser

from hscc_edge.errors import ModelError
from hscc_edge.model.onnx_import import import_onnx
from hscc_edge.model.onnx_operators import OPERATORS

RNG = np.random.default_rng(1)
SEEN: set[str] = set()


@dataclass(frozen=True)
class Case:
    """A graph from `x` to `y` (float32 both), one node a line."""

    nodes: str
    shape: tuple = ("n", 4, 6, 6)
    rank: int = 4
    weights: dict = field(default_factory=dict)
    opset: int = 13


def weight(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def integers(*values):
    return np.array(values, dtype=np.int64)


def number(value):
    return np.array(value, dtype=np.float32)


def unary(*names, opset=13):
    return [Case(f"y = {name}(x)", opset=opset) for name in names]


ACTIVATIONS = [
    *unary("Relu", "Sigmoid", "Softplus", "Tanh", "Erf", "Exp", "Neg", "Abs", "Floor", "Ceil", "Reciprocal", "Elu"),
    *unary("HardSigmoid", "LeakyRelu", "Selu", "Identity", "Dropout", "HardSwish", opset=14),
    *unary("Mish", opset=18), *unary("Gelu", opset=20), Case('y = Gelu <approximate="tanh"> (x)', opset=20),
    Case("y = LeakyRelu <alpha=0.3> (x)"), Case("y = Elu <alpha=0.7> (x)"),
    Case("y = HardSigmoid <alpha=0.1, beta=0.4> (x)"),
    Case("a = Abs(x)\nb = Sqrt(a)\nc = Add(b, one)\ny = Log(c)", weights={"one": number(1)}),
    Case("y = PRelu(x, s)", weights={"s": weight(4, 1, 1)}),
    Case("y = Clip <min=-0.5, max=0.5> (x)", opset=9), Case("y = Clip(x, , high)", weights={"high": number(0.3)}),
    Case("y = Clip(x, low)", weights={"low": number(0.1)}), Case("y = Clip(x)"),
    Case("a = Softmax <axis=1> (x)\ny = Add(a, a)", opset=11), Case("a = Softmax <axis=1> (x)\ny = Add(a, a)"),
    Case("y = LogSoftmax <axis=1> (x)", opset=9), Case("y = LogSoftmax(x)"),
]  # fmt: skip

ARITHMETIC = [
    Case("y = Add(x, w)", weights={"w": weight(4, 1, 1)}), Case("y = Sub(w, x)", weights={"w": number(2)}),
    Case("y = Mul(x, w)", weights={"w": weight(1)}), Case("y = Div(w, x)", weights={"w": number(2)}),
    Case("a = Abs(x)\ny = Pow(a, w)", weights={"w": number(1.5)}), Case("y = Min(x, w)", weights={"w": number(0)}),
    Case("a = Relu(x)\ny = Max(x, w, a)", weights={"w": weight(6)}), Case("a = Relu(x)\ny = Sum(x, a, x)"),
    Case("g = Greater(x, w)\nl = Less(x, v)\na = And(g, l)\ny = Where(a, x, w)",
         weights={"w": number(-0.5), "v": number(0.5)}),
    Case("g = GreaterOrEqual(x, w)\nl = LessOrEqual(x, v)\na = Or(g, l)\nb = Not(a)\ny = Where(b, w, x)",
         weights={"w": number(0.5), "v": number(-0.5)}),
    Case("r = Relu(x)\ne = Equal(r, x)\nn = IsNaN(x)\no = Or(e, n)\ny = Cast <to=1> (o)"),
    Case("i = Cast <to=7> (x)\nd = Div(i, two)\ny = Cast <to=1> (d)", weights={"two": integers(2)}),
    Case("a = ArgMax <axis=1, keepdims=0> (x)\ny = Cast <to=1> (a)", rank=3),
]  # fmt: skip

LAYERS = [
    Case("y = Conv <pads=[0,1,2,1], dilations=[2,1], group=2> (x, w)", weights={"w": weight(6, 2, 3, 3)}),
    Case('y = Conv <auto_pad="VALID", strides=[2,2]> (x, w, b)', weights={"w": weight(5, 4, 3, 3), "b": weight(5)}),
    Case('y = Conv <auto_pad="SAME_LOWER", strides=[3,2]> (x, w)', weights={"w": weight(5, 4, 4, 3)}),
    Case('y = Conv <auto_pad="SAME_UPPER", strides=[2,2]> (x, w)',
         ("n", 4, "h", "w"), weights={"w": weight(2, 4, 3, 3)}),
    Case("y = Conv <pads=[1,1]> (x, w)", ("n", 4, 9), 3, {"w": weight(5, 4, 3)}),
    Case("y = Conv <pads=[1,0,1,1,0,1]> (x, w)", ("n", 2, 5, 6, 7), 5, {"w": weight(3, 2, 3, 3, 3)}),
    Case("k = GlobalAveragePool(x)\nv = Mul(w, k)\nm = ReduceMean <axes=[0]> (v)\ny = Conv(x, m)", (1, 4, 6, 6),
         weights={"w": weight(4, 4, 1, 1)}),
    Case("c = Conv(x, w)\na = Add(c, b)\ny = Relu(a)", weights={"w": weight(5, 4, 3, 3), "b": weight(1, 5, 1, 1)}),
    Case("c = Conv(x, w)\na = Add(b, c)\ny = Mul(a, c)", weights={"w": weight(5, 4, 3, 3), "b": weight(5, 1, 1)}),
    Case("c = Conv(x, w)\ny = Add(c, b)", weights={"w": weight(4, 4, 3, 3), "b": weight(4)}),
    Case("y = ConvTranspose <strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]> (x, w, b)",
         weights={"w": weight(4, 3, 3, 3), "b": weight(3)}),
    Case("y = ConvTranspose <strides=[2,2], pads=[0,1,1,0], group=2> (x, w)", weights={"w": weight(4, 3, 3, 3)}),
    Case("y = BatchNormalization <epsilon=0.01> (x, s, b, m, v)",
         weights={"s": weight(4), "b": weight(4), "m": weight(4), "v": np.abs(weight(4)) + 0.1}),
    Case("y = BatchNormalization(x, s, b, m, v)", ("n", 4), 2,
         {"s": weight(4), "b": weight(4), "m": weight(4), "v": np.abs(weight(4)) + 0.1}, 9),
    Case("y = LayerNormalization <axis=-2> (x, s, b)", weights={"s": weight(6, 6), "b": weight(6, 6)}, opset=17),
    Case("y = LayerNormalization(x, s)", weights={"s": weight(6)}, opset=17),
    Case("y = InstanceNormalization(x, s, b)", weights={"s": weight(4), "b": weight(4)}),
    Case("y = GroupNormalization <num_groups=2> (x, s, b)", weights={"s": weight(4), "b": weight(4)}, opset=21),
    Case("y = LRN <size=3, alpha=0.1, beta=0.6, bias=2.0> (x)"),
    Case("y = MatMul(x, w)", weights={"w": weight(6, 5)}), Case("y = MatMul(x, x)"),
    Case("m = MatMul(x, w)\ny = Add(m, b)", weights={"w": weight(6, 5), "b": weight(1, 1, 5)}),
    Case("m = MatMul(x, w)\ny = Add(m, b)", ("n", 6), 2, {"w": weight(6, 5), "b": weight(5)}),
    Case("y = Gemm <alpha=0.5, beta=2.0, transB=1> (x, w, b)", ("n", 6), 2, {"w": weight(5, 6), "b": weight(1, 5)}),
    Case("y = Gemm(x, w, b)", ("n", 6), 2, {"w": weight(6, 5), "b": weight(1)}),
    Case("y = Gemm(x, w)", ("n", 6), 2, {"w": weight(6, 5)}, 11),
    Case('y = Einsum <equation="bchw,cd->bdhw"> (x, w)', weights={"w": weight(4, 3)}),
]  # fmt: skip

POOLS = [
    Case("y = MaxPool <kernel_shape=[3,2], strides=[2,2], pads=[1,0,1,1], dilations=[1,2]> (x)"),
    Case('y = MaxPool <kernel_shape=[3,3], strides=[2,2], auto_pad="SAME_UPPER"> (x)', ("n", 4, None, None)),
    Case("y = MaxPool <kernel_shape=[3,3], strides=[2,2], ceil_mode=1> (x)"),
    Case("y = MaxPool <kernel_shape=[2], strides=[2]> (x)", ("n", 4, 9), 3),
    Case("y = AveragePool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> (x)"),
    Case("y = AveragePool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], count_include_pad=1> (x)"),
    Case('y = AveragePool <kernel_shape=[3,3], strides=[2,2], auto_pad="SAME_UPPER"> (x)'),
    Case("y = AveragePool <kernel_shape=[2,2], strides=[1,1], pads=[0,0,1,1], count_include_pad=1> (x)"),
    Case("y = AveragePool <kernel_shape=[2,2,2], strides=[2,2,2]> (x)", ("n", 2, 4, 6, 6), 5),
    Case("y = GlobalAveragePool(x)"), Case("y = GlobalMaxPool(x)"),
    Case("y = Pad <pads=[0,0,1,2,0,0,3,4]> (x)", opset=9),
    Case("y = Pad <pads=[0,0,1,2,0,0,3,4], value=2.0> (x)", opset=9),
    Case('y = Pad <mode="reflect"> (x, p)', weights={"p": integers(0, 2, 1, 0, 0, 1, 0, 0)}),
    Case('y = Pad <mode="edge"> (x, p)', weights={"p": integers(0, 0, 1, 2, 0, 0, 2, 1)}),
    Case("y = Pad(x, p, v, a)", weights={"p": integers(1, 2), "v": number(-1), "a": integers(-1)}, opset=18),
    Case("y = Upsample <mode=\"nearest\"> (x, s)", weights={"s": np.float32([1, 1, 2, 3])}, opset=9),
    Case('y = Resize <mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"> (x, , s)',
         weights={"s": np.float32([1, 1, 1.5, 3])}),
    Case('y = Resize <mode="nearest"> (x, , s)', weights={"s": np.float32([1, 1, 2, 2])}),
    Case('y = Resize <mode="linear", axes=[2,3]> (x, , , z)', weights={"z": integers(9, 4)}, opset=18),
    Case('y = Resize <mode="linear", axes=[-1,2]> (x, , , z)', weights={"z": integers(3, 4)}, opset=18),
    Case('y = Resize <mode="linear"> (x, , s)', ("n", 2, 3, 4, 5), 5, {"s": np.float32([1, 1, 2, 2, 2])}),
    Case('y = Resize <mode="linear", coordinate_transformation_mode="align_corners"> (x, , s)',
         weights={"s": np.float32([1, 1, 2, 2])}),
    Case('y = Resize <mode="cubic"> (x, , s)', weights={"s": np.float32([1, 1, 2, 2])}),
]  # fmt: skip

SHAPES = [
    Case("y = Flatten(x)", rank=2), Case("y = Flatten <axis=2> (x)", rank=2), Case("y = Flatten <axis=-1> (x)", rank=2),
    Case("y = Reshape(x, s)", rank=3, weights={"s": integers(0, -1, 6)}),
    Case("s = Shape(x)\nb = Gather(s, i)\nu = Unsqueeze(b, i1)\nt = Concat <axis=0> (u, m)\ny = Reshape(x, t)",
         rank=2, weights={"i": integers(0)[0], "i1": integers(0), "m": integers(-1)}),
    Case("a = ReduceMean <axes=[2,3]> (x)\ny = Squeeze(a, i)", rank=2, weights={"i": integers(2, 3)}),
    Case("a = ReduceMean <axes=[2,3]> (x)\nb = Squeeze <axes=[-1]> (a)\ny = Unsqueeze <axes=[1,4]> (b)",
         rank=5, opset=11),
    Case("y = Unsqueeze(x, a)", rank=6, weights={"a": integers(-1, 2)}), Case("y = Transpose <perm=[0,3,1,2]> (x)"),
    Case("a, b = Split <axis=1> (x)\ny = Mul(a, b)"),
    Case("a, b = Split <axis=-1> (x, s)\ny = Concat <axis=-1> (b, a)", weights={"s": integers(2, 4)}),
    Case("a, b, c = Split <axis=3, num_outputs=3> (x)\nd = Add(a, b)\ny = Sub(d, c)", opset=18),
    Case("y = Slice <axes=[2,3], starts=[1,-4], ends=[5,9223372036854775807]> (x)", opset=9),
    Case("y = Slice(x, s, e, a, t)",
         weights={"s": integers(0, -1), "e": integers(6, -2**63), "a": integers(2, -1), "t": integers(2, -1)}),
    Case("y = Gather <axis=2> (x, i)", rank=5, weights={"i": np.int64([[0, -1], [2, 3]])}),
    Case("y = Gather <axis=-1> (x, i)", rank=3, weights={"i": np.int64(-1)}),
    Case("y = GatherElements <axis=3> (x, i)", (2, 2, 2, 3), weights={"i": RNG.integers(0, 3, (2, 2, 2, 2))}),
    Case("t = Transpose <perm=[2,3,0,1]> (x)\ng = GatherND(t, i)\ny = Transpose <perm=[1,2,0]> (g)", rank=3,
         weights={"i": np.int64([[0, 1], [3, 2], [5, 5]])}),
    Case("a = ReduceMean <axes=[2]> (x)\ns = Shape(x)\ny = Expand(a, s)"),
    Case("y = Tile(x, r)", weights={"r": integers(1, 2, 1, 3)}),
    Case("s = Shape(x)\nz = ConstantOfShape(s)\ny = Add(x, z)"),
    Case("s = Shape(x)\nw = Gather(s, three)\nr = Range(zero, w, one)\nf = Cast <to=1> (r)\ny = Mul(x, f)",
         ("n", 4, 6, None),
         weights={"three": np.int64(3), "zero": np.int64(0), "one": np.int64(1)}),
    Case("s = Shape <start=2> (x)\np = ReduceProd <keepdims=0> (s)\nf = Cast <to=1> (p)\ny = Div(x, f)",
         ("n", 4, None, 6), opset=15),
    Case("s = Shape(x)\nh = Slice(s, two, four)\ng = Cast <to=1> (h)\nk = Mul(g, half)\nf = Floor(k)\n"
         "i = Cast <to=7> (f)\n"
         "b = Slice(s, zero, two)\nt = Concat <axis=0> (b, i)\ny = Slice(x, none, t)", ("n", 4, None, None),
         weights={"two": integers(2), "four": integers(4), "zero": integers(0), "half": np.float32([0.5]),
                  "none": integers(0, 0, 0, 0)}),
    *[Case(f"y = {name} <axes=[1,-1], keepdims=0> (x)", rank=2, opset=11)
      for name in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare")],
    Case("y = ReduceSum(x, a)", weights={"a": integers(1)}),
    Case("y = ReduceMean(x, a)", weights={"a": integers(-1)}, opset=18),
]  # fmt: skip


def write(case, path):
    graph = helper.make_graph(
        [parser.parse_node(line) for line in case.nodes.splitlines()], "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, case.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * case.rank)],
        [numpy_helper.from_array(array, name) for name, array in case.weights.items()],
    )  # fmt: skip
    SEEN.update(node.op_type for node in graph.node)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=8), path)
    return path


@pytest.mark.parametrize(
    "case", [*ACTIVATIONS, *ARITHMETIC, *LAYERS, *POOLS, *SHAPES], ids=lambda case: f"{case.nodes[:60]}@{case.opset}"
)
def test_an_operator_computes_what_onnx_runtime_does(case, tmp_path):
    path = write(case, tmp_path / "case.onnx")
    sizes = [size if isinstance(size, int) else 7 for size in case.shape]
    images = [RNG.standard_normal((size if case.shape[0] == "n" else sizes[0], *sizes[1:])) for size in (1, 3)]
    examples = [(image.astype(np.float32),) for image in images]
    imported = import_onnx(path, examples if case.shape[0] == "n" else examples[:1])
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for (image,) in examples:
        (expected,) = session.run(None, {"x": image})
        x = torch.from_numpy(image).requires_grad_()
        found = imported.network(x)
        found = {"": lambda y: y, "softmax": lambda y: y.softmax(-1), "sigmoid": torch.sigmoid}[imported.tail[0]](found)
        assert np.allclose(found.detach(), expected, atol=1e-5, rtol=1e-4)


def test_every_operator_was_run():
    assert set(OPERATORS) - SEEN == set()


@pytest.mark.parametrize(
    "case, words",
    [
        (Case('y = Resize <mode="linear", coordinate_transformation_mode="asymmetric"> (x, , s)',
              weights={"s": np.float32([1, 1, 2, 2])}), "asymmetric"),
        (Case('y = Resize <mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="ceil"> (x, , s)',
              weights={"s": np.float32([1, 1, 1.5, 1.5])}), "ceil"),
        (Case("y = AveragePool <kernel_shape=[2,2], dilations=[2,2]> (x)", opset=19), "dilations"),
        (Case('y = ConvTranspose <auto_pad="SAME_UPPER", strides=[2,2]> (x, w)', weights={"w": weight(4, 3, 3, 3)}),
         "padding"),
        (Case("y = Slice(x, s, e, a, t)", weights={"s": integers(4), "e": integers(1), "a": integers(2),
              "t": integers(-2)}), "step"),
    ],
)  # fmt: skip
def test_what_an_operator_cannot_do_names_the_node(case, words, tmp_path):
    with pytest.raises(ModelError, match=r"the node y \(") as caught:
        import_onnx(write(case, tmp_path / "case.onnx"))
    assert words in str(caught.value)
