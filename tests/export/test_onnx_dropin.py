"""An imported network, its layers replaced, written back in the place of the file that it came from."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, parser
from torch import nn

from hscc_edge.errors import ExportError
from hscc_edge.export.onnx_dropin import export_dropin
from hscc_edge.model.layers import factorised, replace
from hscc_edge.model.onnx_import import import_onnx
from hscc_edge.model.plan import Box, LayerPlan

RNG = np.random.default_rng(2)
NODES = """
cast = Cast <to=1> (image)
turned = Transpose <perm=[0,3,1,2]> (cast)
conv2d = Conv <auto_pad="SAME_UPPER", strides=[2,2], kernel_shape=[3,3]> (turned, w1, b1)
relu_1 = Relu(conv2d)
features = Conv <pads=[1,1,1,1], kernel_shape=[3,3]> (relu_1, w2, b2)
back = Transpose <perm=[0,2,3,1]> (features)
mean = ReduceMean <axes=[1,2], keepdims=0> (back)
product = MatMul(mean, w3)
sum = Add(product, b3)
hidden = Relu(sum)
last = MatMul(hidden, w4)
logits = Add(last, b4)
probability = Softmax <axis=-1> (logits)
relu = Cast <to=1> (probability)
"""
BOXES = (Box((0, 0), (4, 3)), Box((0, 3), (4, 6)), Box((4, 0), (6, 6)))


def weight(*shape, kind=np.float32):
    return (RNG.standard_normal(shape) / max(np.prod(shape[1:]), 1) ** 0.5).astype(kind)


def write(path: Path, shape, batch, kind=TensorProto.FLOAT, end=None) -> Path:
    """An NHWC classifier; its output has the name that torch would give to an inner value."""
    wide = np.float16 if kind == TensorProto.FLOAT16 else np.float32
    nodes = NODES.replace("<to=1>", "<to=10>") if kind == TensorProto.FLOAT16 else NODES
    sizes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (10, 8, 3, 3), "b2": (10,), "w3": (10, 12), "b3": (12,)}
    sizes |= {"w4": (12, 4), "b4": (4,)}
    graph = helper.make_graph(
        [parser.parse_node(line) for line in nodes.strip().splitlines()], "graph",
        [helper.make_tensor_value_info("image", kind, [batch, *shape])],
        [helper.make_tensor_value_info("relu", end or kind, [batch, 4])],
        [numpy_helper.from_array(weight(*size, kind=wide), name) for name, size in sizes.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(model, {"classes": "a,b,c,d"})
    onnx.save(model, path)
    return path


def run(content, *arrays):
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip([item.name for item in session.get_inputs()], arrays, strict=True)))


def ends(content):
    graph = onnx.load_model_from_string(content).graph
    return [
        (item.name, item.type.tensor_type.elem_type, [axis.dim_param or axis.dim_value for axis in kind.shape.dim])
        for item in (*graph.input, *graph.output)
        for kind in [item.type.tensor_type]
    ]


def images(count, kind=np.float32, size=(12, 12)):
    return RNG.standard_normal((count, *size, 3)).astype(kind)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("dropin") / "model.onnx", (12, 12, 3), "N")


def test_an_untouched_network_is_its_own_drop_in(path):
    content = export_dropin(import_onnx(path))
    assert ends(content) == ends(path.read_bytes())
    assert [(item.key, item.value) for item in onnx.load_model_from_string(content).metadata_props] == [
        ("classes", "a,b,c,d")
    ]
    for batch in (1, 2, 7):
        given = images(batch)
        (found,), (expected,) = run(content, given), run(str(path), given)
        assert np.allclose(found.sum(1), 1) and np.allclose(found, expected, atol=1e-6)
    assert content == export_dropin(import_onnx(path))


def plan(name, structure, ranks, regions=(), clusters=()):
    return LayerPlan(name, structure, ranks, regions, "", 0, 0, 0, 0, 0.0, clusters=clusters)


@pytest.mark.parametrize(
    "plans",
    [
        (plan("conv2d", "one-region", (2,)), plan("features", "shared-reduce", (3,), BOXES),
         plan("product", "one-region", (3,))),
        (plan("conv2d", "tucker-2", (4, 3)), plan("features", "own-factors", (2, 3, 4), BOXES)),
        (plan("conv2d", "separable", (3,)),
         plan("features", "clustered", (2, 3), (), (((0, 2, 4, 6), (1, 3, 5, 7)),)), plan("last", "one-region", (2,))),
    ],
    ids=lambda plans: "-".join(item.structure for item in plans),
)  # fmt: skip
def test_a_network_with_replaced_layers_is_a_drop_in(path, plans):
    imported = import_onnx(path)
    (dense,) = run(str(path), images(3))
    torch.manual_seed(1)
    for item in plans:
        replace(imported.network, item.name, factorised(imported.network.get_submodule(item.name), item))
    content = export_dropin(imported)
    assert ends(content) == ends(path.read_bytes())
    for batch in (1, 5):
        given = images(batch)
        with torch.no_grad():
            expected = imported.network(torch.from_numpy(given)).softmax(-1)
        (found,) = run(content, given)
        assert np.allclose(found, expected, atol=1e-5)
    assert not np.allclose(run(content, images(3))[0], dense, atol=1e-3)


def test_float16_ports_stay_float16(tmp_path):
    path = write(tmp_path / "half.onnx", (12, 12, 3), "N", TensorProto.FLOAT16)
    content = export_dropin(import_onnx(path))
    assert ends(content) == ends(path.read_bytes())
    assert {item.data_type for item in onnx.load_model_from_string(content).graph.initializer} <= {
        TensorProto.FLOAT, TensorProto.INT64,
    }  # fmt: skip
    given = images(3, np.float16)
    (found,), (expected,) = run(content, given), run(str(path), given)
    assert found.dtype == np.float16 and np.allclose(found, expected, atol=1e-2)


def test_bytes_in_and_a_fixed_batch_stay(tmp_path):
    path = write(tmp_path / "bytes.onnx", (12, 12, 3), 2, TensorProto.UINT8, TensorProto.FLOAT)
    content = export_dropin(import_onnx(path))
    assert ends(content) == ends(path.read_bytes())
    given = RNG.integers(0, 256, (2, 12, 12, 3)).astype(np.uint8)
    assert np.allclose(run(content, given)[0], run(str(path), given)[0], atol=1e-5)


def test_sizes_that_vary_stay_so_until_a_layer_has_regions(tmp_path):
    path = write(tmp_path / "sizes.onnx", ("height", "width", 3), None)
    examples = [(images(2),)]
    imported = import_onnx(path, examples)
    content = export_dropin(imported, examples)
    assert ends(content) == ends(path.read_bytes())
    given = images(3, size=(17, 22))
    assert np.allclose(run(content, given)[0], run(str(path), given)[0], atol=1e-5)
    replace(
        imported.network,
        "features",
        factorised(imported.network.features, plan("features", "shared-reduce", (3,), BOXES)),
    )
    assert ends(export_dropin(imported, examples))[0][2] == [0, 12, 12, 3]


class Stubborn(nn.Module):
    """A layer that takes two images, no more and no fewer."""

    def forward(self, x):
        return x.reshape(2, *x.shape[1:])


def test_a_batch_that_stops_varying_is_refused(path):
    imported = import_onnx(path)
    replace(imported.network, "features", nn.Sequential(imported.network.features, Stubborn()))
    with pytest.raises(ExportError, match=r"cannot export .*conflicts"):
        export_dropin(imported)


def test_what_torch_cannot_export_is_said(path):
    class Inward(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    imported = import_onnx(path)
    replace(imported.network, "features", nn.Sequential(imported.network.features, Inward()))
    with pytest.raises(ExportError, match=r"cannot export .*data-dependent"):
        export_dropin(imported)


def test_an_image_size_that_a_flatten_fixes_is_written_as_in_the_file(tmp_path):
    graph = helper.make_graph(
        [parser.parse_node(line) for line in ("c = Conv(x, w)", "f = Flatten(c)", "y = MatMul(f, v)")], "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(weight(4, 3, 3, 3), "w"), numpy_helper.from_array(weight(4 * 36, 5), "v")],
    )  # fmt: skip
    path = tmp_path / "flat.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    examples = [(RNG.standard_normal((2, 3, 8, 8)).astype(np.float32),)]
    content = export_dropin(import_onnx(path, examples), examples)
    assert ends(content) == ends(path.read_bytes())
    assert np.allclose(run(content, *examples[0])[0], run(str(path), *examples[0])[0], atol=1e-5)


def test_two_inputs_and_two_outputs_keep_their_order(tmp_path):
    nodes = "a = MatMul(second, w)\nb = MatMul(first, w)\nlate = Sigmoid(a)\nearly = Softmax(b)"
    graph = helper.make_graph(
        [parser.parse_node(line) for line in nodes.splitlines()], "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 3]) for name in ("first", "second")],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 5]) for name in ("early", "late")],
        [numpy_helper.from_array(weight(3, 5), "w")],
    )  # fmt: skip
    path = tmp_path / "two.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    content = export_dropin(import_onnx(path))
    assert ends(content) == ends(path.read_bytes())
    given = [RNG.standard_normal((4, 3)).astype(np.float32) for _ in range(2)]
    for found, expected in zip(run(content, *given), run(str(path), *given), strict=True):
        assert np.allclose(found, expected, atol=1e-6)
