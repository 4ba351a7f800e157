"""Statistics: exact merging, agreement with a plain computation, and the true Fisher's scale."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hscc_edge.compress.cost import layer_shapes
from hscc_edge.compress.statistics import Box, collect, empty_moments, grid, merge, moments_of
from hscc_edge.errors import CohortError, ModelError
from hscc_edge.model.head import Head

HEAD = Head("softmax", ("a", "b", "c"))


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), seed=st.integers(0, 1000), shuffle=st.randoms())
@settings(max_examples=30, deadline=None)
def test_shards_in_any_order_agree(sizes, seed, shuffle):
    generator = torch.Generator().manual_seed(seed)
    shards = [1e4 + torch.randn(size, 5, generator=generator, dtype=torch.float64) for size in sizes]
    everything = torch.cat(shards)
    shuffle.shuffle(shards)
    total = empty_moments(5)
    for shard in shards:
        part = moments_of(shard)
        part.gradients = torch.zeros(5, 5, dtype=torch.float64)
        total = merge(total, part)
    centred = everything - everything.mean(0)
    assert total.count == len(everything)
    assert torch.allclose(total.mean, everything.mean(0), rtol=1e-12)
    assert torch.allclose(total.scatter, centred.T @ centred, rtol=1e-9, atol=1e-9 * len(everything))


@given(height=st.integers(1, 30), width=st.integers(1, 30), rows=st.integers(1, 8), columns=st.integers(1, 8))
def test_a_grid_tiles_the_map(height, width, rows, columns):
    cover = torch.zeros(height, width)
    for box in grid((height, width), (rows, columns)):
        assert box.area > 0
        cover[box.top : box.bottom, box.left : box.right] += 1
    assert bool((cover == 1).all())


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 16, 3)
    ).eval()


def test_moments_are_those_of_the_outputs_and_gradients():
    network = small_network()
    images = torch.randn(20, 1, 8, 8)
    shapes = layer_shapes(network, (1, 8, 8))
    whole = collect(network, shapes, [{"image": images}], HEAD, (1, 1), seed=3)
    batched = collect(network, shapes, [{"image": part} for part in images.split(7)], HEAD, (1, 1), seed=3)
    outputs = network[0](images).detach().permute(0, 2, 3, 1).reshape(-1, 6).double()
    conv = whole["0"].cells[0]
    assert torch.allclose(conv.mean, outputs.mean(0), atol=1e-5)
    assert torch.allclose(conv.covariance, torch.cov(outputs.T, correction=0), atol=1e-5)
    assert torch.allclose(conv.covariance, batched["0"].cells[0].covariance, atol=1e-6)
    # g of a softmax layer is p - onehot(label): each row sums to zero, and so does G
    assert float(whole["4"].cells[0].gradients.sum().abs()) < 1e-4
    assert float(whole["4"].cells[0].gradients.diagonal().sum()) > 0
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_cells_add_up_to_the_map():
    network, images = small_network(), torch.randn(10, 1, 8, 8)
    shapes = layer_shapes(network, (1, 8, 8))
    whole = collect(network, shapes, [{"image": images}], HEAD, (1, 1), seed=0)["0"].cells[0]
    parts = collect(network, shapes, [{"image": images}], HEAD, (3, 2), seed=0)["0"]
    assert parts.boxes[0] == Box(0, 3, 0, 4)
    total = parts.cells[0]
    for cell in parts.cells[1:]:
        total = merge(total, cell)
    assert torch.allclose(total.covariance, whole.covariance, atol=1e-6)
    assert torch.allclose(total.gradients, whole.gradients, rtol=1e-4)


def test_no_image_and_bad_logits_are_told():
    network = small_network()
    shapes = layer_shapes(network, (1, 8, 8))
    with pytest.raises(CohortError, match="no image"):
        collect(network, shapes, [], HEAD, (1, 1), seed=0)
    with torch.no_grad():
        network[4].bias.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        collect(network, shapes, [{"image": torch.zeros(1, 1, 8, 8)}], HEAD, (1, 1), seed=0)
