"""Balanced factor pairs: the same function, and less noise."""

import numpy as np
import pytest
from graphs import REGIONAL, graph, noise, regional, run
from onnx import helper

from hscc_edge.export.balance import balance, balancing, hartley, pairs, transformed
from hscc_edge.export.calibrate import second_moments, spans, thresholds
from hscc_edge.export.onnx import check_onnx
from hscc_edge.export.precision import emulated_fp16, full_nodes, to_fp16
from hscc_edge.export.quantise import quantisable, quantised

IMAGES = noise(8, REGIONAL)


def images() -> list[np.ndarray]:
    return IMAGES


def int8(content: bytes) -> bytes:
    origins = quantisable(content)
    limits = thresholds(content, images, spans(content, images), "min-max", set(origins.values()))
    return quantised(content, limits, origins)


def test_pairs_of_every_structure_are_found():
    found = pairs(check_onnx(regional()))
    assert [len(pair.expands) for pair in found] == [3, 1, 1, 1, 1]


def test_what_is_no_pair_is_left_alone():
    """An activation, groups, a residual sum or a shared weight between them takes the freedom away."""

    square, grouped = np.ones((2, 2, 1, 1), np.float32), np.ones((2, 1, 1, 1), np.float32)
    first = helper.make_node("Conv", ["image", "first"], ["z"])
    second = helper.make_node("Conv", ["z", "second"], ["maps"])
    middles = {
        "activation": [first, helper.make_node("Relu", ["z"], ["a"]), helper.make_node("Conv", ["a", "second"], ["y"])],
        "groups": [first, helper.make_node("Conv", ["z", "grouped"], ["y"], group=2)],
        "residual": [first, second, helper.make_node("Add", ["z", "maps"], ["y"])],
        "shared": [first, helper.make_node("Conv", ["z", "first"], ["y"])],
        "channels": [first, helper.make_node("Slice", ["z", "0", "1", "1"], ["part"]),
                     helper.make_node("Conv", ["part", "half"], ["y"])],
    }  # fmt: skip
    weights = {"first": square, "second": square, "grouped": grouped, "half": square[:, :1]}
    weights |= {"0": np.array([0]), "1": np.array([1])}
    for nodes in middles.values():
        content = graph((2, 1, 1), [*nodes, helper.make_node("Flatten", ["y"], ["logits"])], weights, 2)
        assert pairs(check_onnx(content)) == []
        assert balance(content, list) == content
    content = graph((2, 1, 1), [first, second, helper.make_node("Flatten", ["maps"], ["logits"])], weights, 2)
    assert len(pairs(check_onnx(content))) == 1


@pytest.mark.parametrize("rotate", [True, False])
def test_a_balanced_graph_computes_the_same(rotate):
    full = regional()
    assert np.allclose(run(balance(full, images, rotate=rotate), IMAGES), run(full, IMAGES), atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 24])
def test_balancing_makes_both_matrices_one_with_a_constant_diagonal(size):
    generator = np.random.default_rng(size)
    first, second = (generator.normal(size=(size, 3 * size)) * 10 ** generator.uniform(-3, 3, (size, 1)) for _ in "ab")
    moment, gram = first @ first.T, second @ second.T
    assert np.allclose(hartley(size) @ hartley(size).T, np.eye(size))
    change = balancing(moment, gram)
    inverse = np.linalg.inv(change)
    one, other = change @ moment @ change.T, inverse.T @ gram @ inverse
    assert np.allclose(np.trace(one), np.trace(other), rtol=0.05)
    assert np.diag(one).max() < 3 * np.diag(one).mean() and np.diag(other).max() < 3 * np.diag(other).mean()


def test_balance_mends_uneven_factors():
    """Ranks scaled by up to 1e7 either way: FP16 must keep such nodes in FP32, INT8 loses them; balanced, neither."""
    full, generator = regional(), np.random.default_rng(3)
    middles = {pair.middle: 1 for pair in pairs(check_onnx(full))}
    sizes = {name: len(moment) for name, moment in second_moments(full, images, middles).items()}
    scales = {name: np.diag(10.0 ** generator.uniform(-7, 7, size)) for name, size in sizes.items()}
    uneven = transformed(full, scales)
    balanced, exact = balance(uneven, images), run(full, IMAGES)
    assert np.allclose(run(uneven, IMAGES), exact, atol=1e-5)
    graphs = {"uneven": uneven, "balanced": balanced, "given": full}
    errors = {name: float(np.abs(run(int8(content), IMAGES) - exact).max()) for name, content in graphs.items()}
    assert errors["uneven"] > 20 * errors["balanced"] and errors["balanced"] < 2 * errors["given"]
    assert len(full_nodes(uneven, spans(uneven, images))) > 5
    assert full_nodes(balanced, spans(balanced, images)) == {}
    assert np.abs(run(emulated_fp16(to_fp16(balanced)), IMAGES) - exact).max() < 1e-3


def test_rotation_lowers_the_noise_of_a_steep_spectrum():
    """16 ranks whose singular values fall by 0.7 each, sorted, as a truncated SVD gives them."""
    generator = np.random.default_rng(4)
    values = 0.7 ** np.arange(16)
    left, right = (np.linalg.qr(generator.normal(size=(48, 16)))[0] * np.sqrt(values) for _ in "ab")
    kernels = {"v": right.T[:, :, None, None], "u": left[:, :, None, None]}
    nodes = [
        helper.make_node("Conv", ["image", "v"], ["z"]),
        helper.make_node("Conv", ["z", "u"], ["y"]),
        helper.make_node("Flatten", ["y"], ["logits"]),
    ]
    content = graph((48, 1, 4), nodes, {name: value.astype(np.float32) for name, value in kernels.items()}, 192)
    given = noise(32, (48, 1, 4))
    exact = run(content, given)
    errors = []
    for graph_ in (content, balance(content, lambda: given, rotate=False), balance(content, lambda: given)):
        limits = thresholds(graph_, lambda: given, spans(graph_, lambda: given), "min-max", ["image", "z"])
        errors.append(float(np.square(run(quantised(graph_, limits, ["node_z", "node_y"]), given) - exact).mean()))
    assert errors[2] < 0.75 * min(errors[:2])
