"""INT8 graphs in TensorRT's scheme, the contract that they keep, and a real builder that takes them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import REGIONAL, chain, convolution, graph, noise, regional, run
from onnx import helper, numpy_helper

from hscc_edge.errors import EngineError, ExportError, GateError
from hscc_edge.export.calibrate import spans, thresholds
from hscc_edge.export.engine import build_engine
from hscc_edge.export.onnx import check_onnx
from hscc_edge.export.precision import emulated_fp16, to_fp16
from hscc_edge.export.quantise import corrected, pair_nodes, quantisable, quantised
from hscc_edge.export.sensitivity import Verdict, alone, mixed, to_int8
from hscc_edge.model.head import Head, kl
from hscc_edge.runtime.ort import OrtRuntime

IMAGES = noise(8, REGIONAL)
HEAD = Head("softmax", ("a", "b", "c", "d"))


def images() -> list[np.ndarray]:
    return IMAGES


def limits(content: bytes, given: list[np.ndarray] = IMAGES) -> dict[str, float]:
    names = set(quantisable(content).values())
    return thresholds(content, lambda: given, spans(content, lambda: given), "min-max", names)


@pytest.fixture(scope="module")
def pairs() -> bytes:
    return quantised(regional(), limits(regional()), quantisable(regional()))


def weights(content: bytes) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in check_onnx(content).graph.initializer}


def test_pairs_are_symmetric_signed_and_per_channel_and_biases_are_real(pairs):
    model, values = check_onnx(pairs), weights(pairs)
    assert model.opset_import[0].version == 19 and not model.metadata_props
    nodes = {node.output[0]: node for node in model.graph.node}
    multiplying = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(multiplying) == len(quantisable(regional())) == 12
    for node in multiplying:
        for position, name in enumerate(node.input[:2]):
            back = nodes[name]
            there = nodes[back.input[0]]
            assert (there.op_type, back.op_type) == ("QuantizeLinear", "DequantizeLinear")
            assert list(there.input[1:]) == list(back.input[1:])
            scale, zero = values[back.input[1]], values[back.input[2]]
            assert zero.dtype == np.int8 and not zero.any()
            channels = len(values[there.input[0]]) if position else 1
            assert scale.size == channels and (scale > 0).all()
        assert all(values[name].dtype == np.float32 for name in node.input[2:])


def test_slices_of_one_tensor_have_its_step(pairs):
    values = weights(pairs)
    scales = {name: float(value) for name, value in values.items() if name.startswith("slice_") and value.size == 1}
    steps = {round(scale, 9) for name, scale in scales.items() if name.endswith("_scale")}
    assert len(steps) == 2


def test_weights_are_rounded_to_nearest_within_half_a_step(pairs):
    images_ = IMAGES
    exact, rounded = run(regional(), images_), run(pairs, images_)
    assert 0 < np.abs(exact - rounded).max() < 0.02 * np.abs(exact).max()


def residual() -> bytes:
    """A tensor that a quantised node and a sum read."""
    generator = np.random.default_rng(1)
    kernels = {name: generator.normal(size=(2, 2, 1, 1)).astype(np.float32) for name in ("first", "second")}
    nodes = [
        helper.make_node("Conv", ["image", "first"], ["z"]),
        helper.make_node("Conv", ["z", "second"], ["maps"]),
        helper.make_node("Add", ["z", "maps"], ["sum"]),
        helper.make_node("Flatten", ["sum"], ["logits"]),
    ]
    return graph((2, 1, 2), nodes, kernels, 4)


def test_what_is_not_quantised_reads_what_it_read():
    given = noise(4, (2, 1, 2))
    content = quantised(residual(), limits(residual(), given), ["node_maps"])
    nodes = {node.name: node for node in check_onnx(content).graph.node}
    assert list(nodes["node_sum"].input) == ["z", "maps"] and list(nodes["node_z"].input) == ["image", "first"]
    assert set(pair_nodes(content)) == {"node_maps"}
    both = quantised(residual(), limits(residual(), given), ["node_maps", "node_z"])
    assert {node.op_type for node in check_onnx(both).graph.node} == {
        "Conv", "Add", "Flatten", "QuantizeLinear", "DequantizeLinear",
    }  # fmt: skip


def test_products_of_activations_are_not_quantised():
    nodes = [
        helper.make_node("MatMul", ["image", "image"], ["square"]),
        helper.make_node("MatMul", ["square", "weight"], ["rows"]),
        helper.make_node("Flatten", ["rows"], ["logits"]),
    ]
    content = graph((2, 2), nodes, {"weight": np.eye(2, dtype=np.float32)}, 4)
    assert quantisable(content) == {"node_rows": "square"}


def test_corrected_biases_take_the_mean_error_away(pairs):
    better = corrected(regional(), pairs, images)
    exact = run(regional(), IMAGES)
    before, after = (np.abs((run(content, IMAGES) - exact).mean(axis=0)).max() for content in (pairs, better))
    assert after < 0.7 * before
    first = next(node for node in check_onnx(better).graph.node if node.op_type == "Conv")
    assert first.input[2] == f"{first.name}/bias"


def test_a_correction_is_the_mean_difference_of_the_node_alone():
    given, content = noise(6, (1, 6, 6)), convolution()
    pairs = quantised(content, limits(content, given), ["node_logits"])
    better = corrected(content, pairs, lambda: given)
    assert np.allclose(run(better, given).mean(axis=0), run(content, given).mean(axis=0), atol=1e-5)
    assert corrected(content, content, lambda: given) == content


def test_a_weight_that_is_not_finite_is_told():
    model = check_onnx(convolution())
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((3, 1, 3, 3), np.nan, np.float32), "kernel"))
    with pytest.raises(ExportError, match="the weight kernel holds a value that is not finite"):
        quantised(model.SerializeToString(), dict.fromkeys(("image", "active"), 1.0), ["node_maps"])


def judge_by(limit: float, seen: list[bytes]):
    """Says that a point is lost where KL is above the limit."""
    reference = run(regional(), IMAGES)

    def judge(content: bytes) -> Verdict:
        seen.append(content)
        found = float(kl(HEAD, reference, run(content, IMAGES)).mean())
        return Verdict(drop=float(found > limit), kl=found)

    return judge


def test_all_nodes_are_quantised_where_the_contract_holds():
    seen: list[bytes] = []
    found = to_int8(regional(), images, HEAD, judge_by(1.0, seen))
    assert (found.quantised, found.nodes, found.left, found.full) == (12, 12, {}, {}) and len(seen) == 1
    assert seen[0] == emulated_fp16(found.content)
    kinds = {tensor.data_type for tensor in check_onnx(found.content).graph.initializer}
    assert kinds == {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8, onnx.TensorProto.INT64}
    assert found.to_json()["trials"] == ({"left": 0, "drop": 0.0, "kl": found.kl},)


def test_the_most_sensitive_nodes_are_left_in_fp16_with_the_reason():
    """The limit is what remains once the worst node is gone, as measured."""
    ranked = alone(regional(), images, HEAD, limits(regional()))
    assert list(ranked.values()) == sorted(ranked.values(), reverse=True)
    seen: list[bytes] = []
    loose = to_int8(regional(), images, HEAD, judge_by(1.0, seen), method="min-max")
    found = to_int8(regional(), images, HEAD, judge_by(0.8 * loose.kl, seen), method="min-max")
    count = len(found.left)
    assert 1 <= count <= 6 and list(found.left) == list(ranked)[:count] and found.quantised == 12 - count
    worst = next(iter(ranked))
    assert found.left[worst] == f"alone in INT8 it causes a KL of {ranked[worst]:.3g}"
    assert not set(found.left) & set(pair_nodes(found.content)) and len(pair_nodes(found.content)) == 12 - count
    assert found.kl <= 0.8 * loose.kl and found.drop == 0


def test_a_contract_that_cannot_hold_is_a_failed_gate():
    with pytest.raises(GateError, match=r"INT8 loses 1.00 points with \d+ of 12 nodes in INT8, and at most 0.5 were"):
        to_int8(regional(), images, HEAD, judge_by(-1.0, []))
    with pytest.raises(ExportError, match="a logit that is not finite"):
        to_int8(regional(), images, HEAD, lambda _: Verdict(float("nan"), 0.0))


def test_a_quantised_node_in_fp32_has_its_pairs_in_fp32():
    """The first node's output overflows FP16, so that it and the second compute in FP32; no Cast parts them from DQ."""
    content, given = chain(3e4, 1e-5, 0.25, 0.25), [np.ones((1, 2, 2), np.float32)]
    found = spans(content, lambda: given)
    graph_, full = mixed(content, lambda: given, found, limits(content, given), list(quantisable(content)))
    nodes = {name: node for node in check_onnx(graph_).graph.node for name in node.output}
    values = weights(graph_)
    types = {}
    for node in (node for node in nodes.values() if node.op_type == "Gemm"):
        ends = [nodes[name] for name in node.input[:2]]
        assert {end.op_type for end in ends} == {"DequantizeLinear"}
        (types[node.name],) = {values[end.input[1]].dtype.name for end in ends}
    assert list(types.values()) == ["float32", "float32", "float16", "float16"]
    assert {name for name in full if name.startswith("node_")} >= {"node_layer1", "node_layer2"}
    assert np.allclose(run(emulated_fp16(graph_), given), run(content, given), rtol=1e-2)


def test_a_bias_outlives_scales_whose_product_is_zero_in_fp16(tmp_path: Path):
    """ONNX Runtime by default makes it an INT32 of such a scale, which loses it."""
    weights = {"small": np.full((4, 4), 1e-3), "bias": np.array([0.01, -0.02, 0.03, 0.04]), "weight": np.eye(4)}
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "small", "bias"], ["layer"], transB=1),
        helper.make_node("Gemm", ["layer", "weight"], ["logits"], transB=1),
    ]
    content = graph((1, 2, 2), nodes, {name: value.astype(np.float32) for name, value in weights.items()}, 4)
    given = [1e-2 * image for image in noise(8, (1, 2, 2))]
    found, _ = mixed(
        content, lambda: given, spans(content, lambda: given), limits(content, given), list(quantisable(content))
    )
    (tmp_path / "model.onnx").write_bytes(found)
    for logits in (run(found, given), OrtRuntime(tmp_path / "model.onnx").infer(np.stack(given))):
        assert np.allclose(logits, run(content, given), atol=1e-3)


def test_the_builder_takes_int8_beside_fp16_and_counts_it(tmp_path: Path):
    found = to_int8(regional(), images, HEAD, judge_by(1.0, []))
    facts = build_engine(found.content, precision="int8", shape=REGIONAL, max_batch=2, cache=tmp_path)
    assert facts.quantised_layers == 12 and facts.half_layers > 12 and facts.full_layers == ()
    with pytest.raises(EngineError, match="int8 was asked for, and 0 of the 12 layers that compute are FP32"):
        build_engine(to_fp16(regional()), precision="int8", shape=REGIONAL, max_batch=2, cache=tmp_path)
    with pytest.raises(EngineError, match="fp32 was asked for"):
        build_engine(found.content, precision="fp32", shape=REGIONAL, max_batch=2, cache=tmp_path)
