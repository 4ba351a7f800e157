"""Graphs in the style of tf2onnx, Keras and Paddle, as torch networks that compute what ONNX Runtime computes."""

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, parser
from torch import nn

from hscc_edge.errors import ModelError
from hscc_edge.model import onnx_import
from hscc_edge.model.onnx_import import import_onnx
from hscc_edge.model.onnx_parity import random_inputs, widened

RNG = np.random.default_rng(0)


def weight(*shape: int, kind: type = np.float32) -> np.ndarray:
    """Values that keep activations near one."""
    return (RNG.standard_normal(shape) / max(np.prod(shape[1:]), 1) ** 0.5).astype(kind)


def integers(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def write(path: Path, nodes: str, inputs, outputs, weights=None, opset=13, kind=TensorProto.FLOAT) -> Path:
    """One node a line, as onnx.parser reads it; a line may begin with the node's name and a bar."""
    made = []
    for line in filter(None, map(str.strip, nodes.splitlines())):
        name, _, text = line.rpartition("|")
        made.append(parser.parse_node(text))
        made[-1].name = name.strip()
    graph = helper.make_graph(
        made, "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)
    return path


def norm(name: str, size: int) -> dict[str, np.ndarray]:
    return {
        f"{name}_scale": weight(size) + 1, f"{name}_bias": weight(size), f"{name}_mean": weight(size),
        f"{name}_var": np.abs(weight(size)) + 0.5,
    }  # fmt: skip


def run(path: Path, arrays) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    return session.run(None, dict(zip(names, arrays, strict=True)))[0]


def logits(imported, arrays) -> torch.Tensor:
    with torch.no_grad():
        return imported.network(*map(torch.from_numpy, widened(arrays)))


def kinds(imported) -> list[str]:
    return [type(module).__name__ for module in imported.network.children()]


@pytest.fixture(scope="module")
def tensorflow(tmp_path_factory) -> Path:
    """tf2onnx's way: NHWC, SAME at a stride of two, sizes by Shape and Slice, MatMul and Add."""
    nodes = """
    t0 = Transpose <perm=[0,3,1,2]> (image)
    model/conv1/Conv2D | c1 = Conv <auto_pad="SAME_UPPER", strides=[2,2], kernel_shape=[3,3]> (t0, w1, b1)
    r1 = Relu(c1)
    p1 = MaxPool <auto_pad="SAME_UPPER", strides=[2,2], kernel_shape=[3,3]> (r1)
    model/conv2/Conv2D | c2 = Conv <auto_pad="SAME_LOWER", strides=[1,1], kernel_shape=[4,4]> (p1, w2)
    t1 = Transpose <perm=[0,2,3,1]> (c2)
    a1 = Add(t1, b2)
    t2 = Transpose <perm=[0,3,1,2]> (a1)
    model/bn/FusedBatchNormV3 | n2 = BatchNormalization <epsilon=0.001> (t2, bn_scale, bn_bias, bn_mean, bn_var)
    k2 = Clip(n2, zero, six)
    t3 = Transpose <perm=[0,2,3,1]> (k2)
    s = Shape(t3)
    s32 = Cast <to=6> (s)
    batch = Slice(s32, i0, i1, i0)
    both = Concat <axis=0> (batch, rest)
    shape = Cast <to=7> (both)
    flat = Reshape(t3, shape)
    model/dense/MatMul | m1 = MatMul(flat, w3)
    d1 = Add(m1, b3)
    e1 = Elu <alpha=1.0> (d1)
    model/dense_1/MatMul | m2 = MatMul(e1, w4)
    d2 = Add(b4, m2)
    probability = Softmax <axis=-1> (d2)
    """
    weights = {
        "w1": weight(8, 3, 3, 3), "b1": weight(8), "w2": weight(6, 8, 4, 4), "b2": weight(6), **norm("bn", 6),
        "zero": np.float32(0), "six": np.float32(6), "i0": integers(0), "i1": integers(1),
        "rest": np.array([5 * 6 * 6], dtype=np.int32), "w3": weight(180, 16), "b3": weight(16), "w4": weight(16, 4),
        "b4": weight(4),
    }  # fmt: skip
    path = tmp_path_factory.mktemp("tensorflow") / "model.onnx"
    return write(path, nodes, {"image": ["unk__1", 20, 21, 3]}, {"probability": ["unk__1", 4]}, weights)


def test_a_tensorflow_graph_becomes_modules_and_gives_its_logits(tensorflow):
    imported = import_onnx(tensorflow)
    assert kinds(imported) == ["Conv2d", "Conv2d", "BatchNorm2d", "Linear", "Linear"]
    names = [name for name, _ in imported.network.named_children()]
    assert names == [
        "model_conv1_Conv2D", "model_conv2_Conv2D", "model_bn_FusedBatchNormV3", "model_dense_MatMul",
        "model_dense_1_MatMul",
    ]  # fmt: skip
    assert all(layer.bias is not None for layer in imported.network.children() if isinstance(layer, nn.Linear))
    assert imported.tail == ("softmax",)
    assert imported.inputs[0].shape == ("unk__1", 20, 21, 3) and imported.outputs[0].name == "probability"
    image = RNG.standard_normal((5, 20, 21, 3)).astype(np.float32)
    found = torch.softmax(logits(imported, (image,)), -1).numpy()
    assert np.allclose(found, run(tensorflow, (image,)), atol=1e-6)


def test_a_network_can_be_copied_and_differentiated(tensorflow):
    network = import_onnx(tensorflow).network
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.model_conv1_Conv2D.weight.zero_()
    image = torch.randn(2, 20, 21, 3, requires_grad=True)
    network(image).logsumexp(-1).sum().backward()
    assert image.grad is not None and image.grad.abs().max() > 0
    assert all(item.grad is not None and item.grad.abs().max() > 0 for item in network.parameters())
    assert not torch.equal(network(image), other(image))


def test_a_keras_graph_with_padding_depthwise_and_squeeze(tmp_path):
    nodes = """
    t0 = Transpose <perm=[0,3,1,2]> (image)
    pad = Pad <mode="constant"> (t0, pads, zero)
    stem | c1 = Conv <strides=[2,2], kernel_shape=[3,3]> (pad, w1)
    n1 = BatchNormalization <epsilon=0.001> (c1, bn_scale, bn_bias, bn_mean, bn_var)
    h1 = HardSwish(n1)
    depthwise | c2 = Conv <auto_pad="SAME_UPPER", group=8, kernel_shape=[3,3]> (h1, w2)
    t1 = Transpose <perm=[0,2,3,1]> (c2)
    mean = ReduceMean <keepdims=1> (t1, axes)
    t2 = Transpose <perm=[0,3,1,2]> (mean)
    gate | c3 = Conv <kernel_shape=[1,1]> (t2, w3, b3)
    s3 = HardSigmoid <alpha=0.16666667, beta=0.5> (c3)
    scaled = Mul(c2, s3)
    t3 = Transpose <perm=[0,2,3,1]> (scaled)
    pooled = ReduceMean <keepdims=0> (t3, axes)
    head | m = MatMul(pooled, w4)
    d = Add(m, b4)
    y = Sigmoid(d)
    """
    weights = {
        "pads": integers(0, 0, 0, 0, 0, 0, 1, 1), "zero": np.float32(0), "w1": weight(8, 1, 3, 3), **norm("bn", 8),
        "w2": weight(8, 1, 3, 3), "axes": integers(1, 2), "w3": weight(8, 8, 1, 1), "b3": weight(8),
        "w4": weight(8, 3), "b4": weight(3),
    }  # fmt: skip
    path = write(tmp_path / "k.onnx", nodes, {"image": [None, None, None, 1]}, {"y": [None, 3]}, weights, opset=18)
    imported = import_onnx(path, [tuple([RNG.standard_normal((2, 32, 32, 1)).astype(np.float32)])])
    assert imported.tail == ("sigmoid",)
    assert imported.inputs[0].shape == (None, None, None, 1)
    assert imported.network.depthwise.groups == 8
    for height in (17, 24):
        image = RNG.standard_normal((3, height, 19, 1)).astype(np.float32)
        assert np.allclose(torch.sigmoid(logits(imported, (image,))), run(path, (image,)), atol=1e-6)


def test_a_paddle_graph_of_an_old_opset(tmp_path):
    constants = {"w1": weight(8, 3, 3, 3), "b1": weight(8), "shape": integers(1, -1, 1, 1)}
    nodes = """
    p2o.Conv.0 | c1 = Conv <pads=[1,1,1,1], strides=[2,2], kernel_shape=[3,3]> (x, w1)
    br = Reshape(b1, shape)
    p2o.Add.0 | a1 = Add(c1, br)
    p2o.Add.2 | plus = Add(a1, three)
    clip = Clip <min=0.0, max=6.0> (plus)
    mul = Mul(a1, clip)
    swish = Div(mul, six)
    p2o.Conv.2 | c2 = Conv <pads=[0,0,0,0], strides=[2,2], kernel_shape=[2,2]> (swish, w2)
    sizes = Shape(swish)
    space = Slice <axes=[0], starts=[2], ends=[4]> (sizes)
    one = Shape(c2)
    lead = Slice <axes=[0], starts=[2], ends=[4]> (one)
    f0 = Cast <to=1> (space)
    f1 = Cast <to=1> (lead)
    ratio = Div(f0, f1)
    scales = Concat <axis=0> (ones, ratio)
    up = Upsample <mode="nearest"> (c2, scales)
    join = Concat <axis=1> (swish, up)
    pooled = GlobalAveragePool(join)
    flat = Flatten <axis=1> (pooled)
    p2o.MatMul.0 | m = MatMul(flat, w3)
    logits = Add(m, b3)
    probability = Softmax <axis=1> (logits)
    y = Identity(probability)
    """
    weights = {
        "three": np.float32([3]), "six": np.float32([6]), "w2": weight(8, 8, 2, 2), "ones": np.ones(2, np.float32),
        "w3": weight(16, 5), "b3": weight(5),
    }  # fmt: skip
    path = write(tmp_path / "p.onnx", nodes, {"x": [None, 3, 16, 16]}, {"y": [None, 5]}, weights, opset=9)
    model = onnx.load(path)
    made = [helper.make_node("Constant", [], [name], value=numpy_helper.from_array(a)) for name, a in constants.items()]
    nodes_after = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*made, *nodes_after])
    onnx.save(model, path)
    imported = import_onnx(path)
    assert kinds(imported) == ["Conv2d", "Conv2d", "Linear"]
    assert np.array_equal(imported.network.p2o_Conv_0.bias.detach(), constants["b1"])
    assert imported.tail == ("softmax",)
    image = random_inputs(imported.inputs)[1]
    assert np.allclose(torch.softmax(logits(imported, image), -1), run(path, image), atol=1e-6)


def test_float16_with_external_data_becomes_float32(tmp_path):
    half = {
        "w1": weight(4, 3, 3, 3, kind=np.float16),
        "w2": weight(4, 2, kind=np.float16),
        "b2": weight(2, kind=np.float16),
    }
    nodes = """
    c = Conv <kernel_shape=[3,3]> (x, w1)
    r = Relu(c)
    f = Cast <to=10> (r)
    p = GlobalAveragePool(f)
    q = Flatten(p)
    m = MatMul(q, w2)
    y = Add(m, b2)
    """
    path = write(
        tmp_path / "h.onnx", nodes, {"x": ["n", 3, 9, 9]}, {"y": ["n", 2]}, half, opset=13, kind=TensorProto.FLOAT16
    )
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    imported = import_onnx(path)
    assert imported.inputs[0].dtype == imported.outputs[0].dtype == "float16"
    assert {item.dtype for item in imported.network.parameters()} == {torch.float32}
    image = random_inputs(imported.inputs)[1]
    assert image[0].dtype == np.float16
    assert np.allclose(logits(imported, image), run(path, image), atol=1e-2)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match="external data"):
        import_onnx(path)


@pytest.mark.parametrize("opset", [9, 10, 11, 12, 13, 15, 18, 20, 21, 24])
def test_a_plain_network_of_any_opset(tmp_path, opset):
    nodes = """
    c = Conv <pads=[1,1,1,1]> (x, w)
    r = Relu(c)
    p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (r)
    f = Flatten(p)
    g = Gemm <transB=1> (f, v, b)
    y = Softmax <axis=1> (g)
    """
    weights = {"w": weight(4, 1, 3, 3), "v": weight(3, 64), "b": weight(3)}
    path = write(tmp_path / "o.onnx", nodes, {"x": ["n", 1, 8, 8]}, {"y": ["n", 3]}, weights, opset)
    model = onnx.load(path)
    # Old exporters list the weights among the inputs.
    listed = [helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in weights.items()]
    model.graph.input.extend(listed)
    onnx.save(model, path)
    imported = import_onnx(path)
    assert [port.name for port in imported.inputs] == ["x"]
    assert imported.opset == opset and imported.tail == ("softmax",) and kinds(imported) == ["Conv2d", "Linear"]


def test_functions_of_the_file_are_opened(tmp_path):
    path = write(tmp_path / "f.onnx", "y = Relu(x)", {"x": ["n", 4]}, {"y": ["n", 2]}, {"w": weight(4, 2)}, opset=18)
    model = onnx.load(path)
    body = [parser.parse_node("m = MatMul(a, b)"), parser.parse_node("c = Relu(m)")]
    opsets = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("own", "Block", ["a", "b"], ["c"], body, opsets))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node[0].CopyFrom(parser.parse_node("y = own.Block(x, w)"))
    onnx.save(model, path)
    assert kinds(import_onnx(path)) == ["Linear"]


def test_layers_are_shared_where_all_weights_are_and_only_there(tmp_path):
    nodes = """
    t1 = Transpose <perm=[1,0]> (w)
    first | a = MatMul(x, t1)
    t2 = Transpose <perm=[1,0]> (w)
    second | b = MatMul(a, t2)
    third | c = Gemm <transB=1> (b, w, zeros)
    fourth | y = Gemm <transB=1> (c, v, zeros)
    """
    weights = {"w": weight(4, 4), "v": weight(4, 4), "zeros": np.zeros(4, np.float32)}
    network = import_onnx(write(tmp_path / "s.onnx", nodes, {"x": [None, 4]}, {"y": [None, 4]}, weights)).network
    assert [name for name, _ in network.named_children()] == ["first", "third", "fourth"]
    assert len({item.data_ptr() for item in network.parameters()}) == len(list(network.parameters())) == 5


def test_a_fixed_batch_may_be_any_batch_in_torch(tmp_path):
    nodes = """
    c = Conv <kernel_shape=[3,3]> (x, w)
    r = Reshape(c, one)
    y = MatMul(r, v)
    """
    weights = {"w": weight(4, 1, 3, 3), "one": integers(1, 4 * 36), "v": weight(4 * 36, 3)}
    path = write(tmp_path / "f.onnx", nodes, {"x": [1, 1, 8, 8]}, {"y": [1, 3]}, weights)
    images = RNG.standard_normal((6, 1, 8, 8)).astype(np.float32)
    apart = np.concatenate([run(path, (image[None],)) for image in images])
    assert np.allclose(logits(import_onnx(path), (images,)), apart, atol=1e-5)


def test_images_that_depend_on_each_other_are_refused(tmp_path):
    nodes = "m = ReduceMean <axes=[0], keepdims=1> (x)\ny = Sub(x, m)"
    path = write(tmp_path / "b.onnx", nodes, {"x": ["n", 4]}, {"y": ["n", 4]})
    with pytest.raises(ModelError, match="same images in other batches"):
        import_onnx(path)


@pytest.mark.parametrize(
    "nodes, shape, tail",
    [
        ("y = Softmax <axis=1> (x)", [None, 5], "softmax"),
        ("y = Softmax <axis=2> (x)", [None, 5, 4], "softmax"),
        ("y = Softmax <axis=1> (x)", [None, 5, 4], ""),
        ("p = Softmax <axis=1> (x)\nq = Sigmoid(p)\ny = Identity(q)", [None, 5], "sigmoid"),
        ("p = Sigmoid(x)\ny = Mul(p, p)", [None, 5], ""),
        ("y = LogSoftmax <axis=1> (x)", [None, 5], ""),
    ],
)
def test_which_tails_are_cut_off(tmp_path, nodes, shape, tail):
    assert import_onnx(write(tmp_path / "t.onnx", nodes, {"x": shape}, {"y": shape})).tail == (tail,)


def test_a_softmax_over_channels_before_a_flatten_is_a_tail(tmp_path):
    nodes = "p = Softmax <axis=1> (x)\ny = Flatten(p)"
    imported = import_onnx(write(tmp_path / "t.onnx", nodes, {"x": ["n", 5, 1, 1]}, {"y": ["n", 5]}))
    assert imported.tail == ("softmax",)
    assert logits(imported, (np.ones((2, 5, 1, 1), np.float32),)).shape == (2, 5)


def refused(path: Path, *words: str) -> None:
    with pytest.raises(ModelError) as caught:
        import_onnx(path)
    assert all(word in str(caught.value) for word in words), caught.value


def test_what_cannot_be_read_is_said(tmp_path):
    refused(tmp_path / "none.onnx", "does not exist")
    (tmp_path / "text.onnx").write_text("these are no weights")
    refused(tmp_path / "text.onnx", "text.onnx")
    ends = {"x": ["n", 4]}, {"y": ["n", 4]}
    refused(write(tmp_path / "old.onnx", "y = Relu(x)", *ends, opset=8), "opset 8", "9 to 24")
    refused(write(tmp_path / "a.onnx", "odd | y = Hardmax(x)", *ends), "node odd", "Hardmax")
    refused(write(tmp_path / "m.onnx", "odd | y = com.microsoft.Gelu(x)", *ends), "node odd", "com.microsoft")
    refused(write(tmp_path / "d.onnx", "odd | y = Add(x, lost)", *ends), "node odd", "lost")
    weights = {"w": weight(4, 3, 3, 3)}
    wrong = write(tmp_path / "c.onnx", "odd | y = Conv(x, w)", {"x": ["n", 5, 8, 8]}, {"y": ["n", 4, 6, 6]}, weights)
    refused(wrong, "node odd")


def test_a_wrong_translation_does_not_pass(tmp_path, monkeypatch):
    monkeypatch.setitem(onnx_import.OPERATORS, "Relu", onnx_import.OPERATORS["Abs"])
    path = write(tmp_path / "r.onnx", "y = Relu(x)", {"x": ["n", 4]}, {"y": ["n", 4]})
    refused(path, "differs from ONNX Runtime's", "0.0001")
