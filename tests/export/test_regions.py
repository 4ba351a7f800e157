"""Layers with regions in few kernels: the same function, found whatever the regions' shapes, and far fewer nodes."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from hscc_edge.export.onnx import check_onnx, export_onnx
from hscc_edge.export.precision import to_fp16
from hscc_edge.export.regions import by_position, kernels
from hscc_edge.model.plan import Box
from hscc_edge.model.regional import OwnFactors, SharedReduce

UNEVEN = (Box((0, 0), (4, 5)), Box((0, 5), (4, 9)), Box((4, 0), (9, 9)))
GRID = tuple(Box((y, x), (y + 3, x + 3)) for y in (0, 3, 6) for x in (0, 3, 6))
STRIPS = (Box((0, 0), (2, 9)), Box((2, 0), (9, 9)))
RELU, POOLED = [nn.ReLU()], [nn.ReLU(), nn.MaxPool2d(3, 2)]
FORMS = {
    "uneven, dilated": (nn.Conv2d(16, 8, 3, padding=2, dilation=2), 3, UNEVEN, []),
    "grid, thick": (nn.Conv2d(16, 8, 3, padding=1), 8, GRID, POOLED),
    "grid, thin": (nn.Conv2d(16, 8, 3, padding=1), 2, GRID, RELU),
    "strips, one tap": (nn.Conv2d(16, 8, 1), 3, STRIPS, RELU),
}


def randomly(module: nn.Module) -> nn.Module:
    """Weights of order one, so that a wrong row shows."""
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_()
    return module.eval()


def infer(content: bytes, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": images})[0]


def network(dense: nn.Conv2d, rank: int, boxes: tuple[Box, ...], after: list[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return randomly(nn.Sequential(SharedReduce(dense, rank, boxes), *after, nn.Flatten()))


@pytest.mark.parametrize("name", FORMS)
def test_the_function_stays_and_slices_go(name):
    dense, rank, boxes, after = FORMS[name]
    made = network(dense, rank, boxes, after)
    full = export_onnx(made, (16, 9, 9))
    content = by_position(full)
    for batch in (1, 3):
        images = np.random.default_rng(batch).normal(size=(batch, 16, 9, 9)).astype(np.float32)
        with torch.no_grad():
            expected = made(torch.from_numpy(images)).numpy()
        assert np.allclose(infer(content, images), expected, rtol=1e-4, atol=1e-4)
    found = kernels(content)
    assert found["Slice"] == 0 and found["Conv"] == (name == "grid, thick")
    assert sum(found.values()) < sum(kernels(full).values()) or len(boxes) < 9
    assert content == by_position(full) and by_position(content) == content


def test_volumes_have_regions_too():
    boxes = (Box((0, 0, 0), (2, 4, 4)), Box((2, 0, 0), (4, 4, 4)))
    made = randomly(nn.Sequential(SharedReduce(nn.Conv3d(2, 4, 3, padding=1), 3, boxes), nn.ReLU(), nn.Flatten()))
    full, images = export_onnx(made, (2, 4, 4, 4)), np.random.default_rng(0).normal(size=(2, 2, 4, 4, 4))
    images = images.astype(np.float32)
    assert kernels(by_position(full))["MatMul"] == 1
    assert np.allclose(infer(by_position(full), images), infer(full, images), rtol=1e-4, atol=1e-4)


def test_what_is_no_layer_with_regions_stays():
    torch.manual_seed(0)
    own = randomly(nn.Sequential(OwnFactors(nn.Conv2d(2, 4, 3, padding=1), (2, 2, 3), UNEVEN), nn.Flatten()))
    for made in (own, randomly(nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten()))):
        full = export_onnx(made, (2, 9, 9))
        assert by_position(full) == full


def test_half_precision_stays_half():
    torch.manual_seed(0)
    made = nn.Sequential(SharedReduce(nn.Conv2d(16, 8, 3, padding=1), 2, GRID), nn.ReLU(), nn.Flatten()).eval()
    half = to_fp16(export_onnx(made, (16, 9, 9)))
    content = by_position(half)
    types = {item.data_type for item in check_onnx(content).graph.initializer}
    assert kernels(content)["MatMul"] == 2 and types == {item.data_type for item in check_onnx(half).graph.initializer}
    images = np.random.default_rng(0).normal(size=(2, 16, 9, 9)).astype(np.float32)
    assert np.allclose(infer(content, images), infer(half, images), atol=5e-3)
