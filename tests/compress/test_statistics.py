"""Statistics: exact merging, agreement with a plain computation, the true Fisher's scale, a cache to be trusted."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hscc_edge.compress.cost import layer_shapes
from hscc_edge.compress.moments import empty_moments, merge, moments_of
from hscc_edge.compress.problem import Problem, Settings
from hscc_edge.compress.statistics import collect, fisher_probe
from hscc_edge.errors import CohortError, ModelError
from hscc_edge.model.head import Head
from hscc_edge.model.plan import Box

HEAD = Head("softmax", ("a", "b", "c"))


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), seed=st.integers(0, 1000), shuffle=st.randoms())
@settings(max_examples=30, deadline=None)
def test_shards_in_any_order_agree(sizes, seed, shuffle):
    """To 1e-10 of the scatter's scale, though the mean is ten thousand times the spread."""
    generator = torch.Generator().manual_seed(seed)
    shards = [1e4 + torch.randn(size, 5, generator=generator, dtype=torch.float64) for size in sizes]
    everything = torch.cat(shards)
    shuffle.shuffle(shards)
    total, parts = empty_moments(5), []
    for shard in shards:
        part = moments_of(shard)
        part.gradients = torch.eye(5, dtype=torch.float64)
        parts.append(part)
        total = merge(total, part)
    at_once = merge(empty_moments(5), *parts)
    assert at_once.count == total.count and torch.equal(at_once.gradients, total.gradients)
    assert torch.allclose(at_once.mean, total.mean, rtol=1e-12)
    assert torch.allclose(at_once.scatter, total.scatter, rtol=1e-10, atol=1e-8)
    centred = everything - everything.mean(0)
    assert total.count == len(everything)
    assert torch.allclose(total.mean, everything.mean(0), rtol=1e-12)
    assert torch.allclose(total.scatter, centred.T @ centred, rtol=1e-10, atol=1e-8)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 16, 3)
    ).eval()


def problem_of(network: nn.Module, batches: list[torch.Tensor], seed: int = 0, **more: object) -> Problem:
    shapes = layer_shapes(network, lambda net: net(torch.zeros(1, 1, 8, 8)))
    stream = [{"image": batch} for batch in batches]
    return Problem(network, shapes, (HEAD,), lambda: stream, Settings(seed=seed), **more)


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(count))


def test_moments_are_those_of_the_outputs_and_gradients():
    network, x = small_network(), images(20)
    whole = collect(problem_of(network, [x], 3), (1, 1))
    batched = collect(problem_of(network, list(x.split(7)), 3), (1, 1))
    outputs = network[0](x).detach().permute(0, 2, 3, 1).reshape(-1, 6).double()
    conv = whole["0"].cells[0]
    assert torch.allclose(conv.mean, outputs.mean(0), atol=1e-5)
    assert torch.allclose(conv.covariance, torch.cov(outputs.T, correction=0), atol=1e-5)
    assert torch.allclose(conv.covariance, batched["0"].cells[0].covariance, atol=1e-6)
    # the Fisher of a softmax has (1, ..., 1) in its null space, and so has every factor of it
    assert float(whole["4"].cells[0].gradients.sum().abs()) < 1e-4
    assert float(whole["4"].cells[0].gradients.diagonal().sum()) > 0
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "single_logit"])
def test_a_probe_is_a_factor_of_the_fisher(kind):
    labels = ("a", "b") if kind == "single_logit" else ("a", "b", "c")
    row = torch.tensor([[4.0, 1.0, -2.0]])[:, : 1 if kind == "single_logit" else 3].double()
    logits = row.repeat(200_000, 1).requires_grad_()
    fisher_probe(logits, Head(kind, labels), torch.Generator().manual_seed(0)).backward()
    p = row.softmax(1)[0] if kind == "softmax" else row.sigmoid()[0]
    fisher = p.diag() - torch.outer(p, p) if kind == "softmax" else (p * (1 - p)).diag()
    found = logits.grad.T @ logits.grad / len(logits)
    assert torch.allclose(found, fisher, atol=0.02 * float(fisher.max()))


def test_an_image_that_the_network_is_sure_of_still_counts():
    """A label drawn at p = 0.99 has no gradient worth the name 99 times in 100; a probe's length hardly varies."""
    logits = torch.tensor([[4.6, 0.0]]).repeat(1000, 1).requires_grad_()
    fisher_probe(logits, Head("softmax", ("a", "b")), torch.Generator().manual_seed(0)).backward()
    squares = logits.grad.square().sum(1)
    assert float(squares.std() / squares.mean()) < 1.0
    assert float((squares > 0.1 * squares.mean()).double().mean()) > 0.99


def test_cells_add_up_to_the_map():
    network, x = small_network(), images(10)
    whole = collect(problem_of(network, [x]), (1, 1))["0"].cells[0]
    parts = collect(problem_of(network, [x]), (3, 2))["0"]
    assert parts.boxes[0] == Box((0, 0), (3, 4))
    total = parts.cells[0]
    for cell in parts.cells[1:]:
        total = merge(total, cell)
    assert torch.allclose(total.covariance, whole.covariance, atol=1e-6)
    assert torch.allclose(total.gradients, whole.gradients, rtol=1e-4)


def test_a_pass_that_was_cut_off_goes_on_from_its_file(tmp_path):
    """Half the batches, then all of them from the file: as if nothing had happened."""
    network, x = small_network(), images(24)
    batches, cache = list(x.split(8)), tmp_path / "statistics.safetensors"
    collect(problem_of(network, batches[:2], cache=cache), (2, 2))
    resumed = collect(problem_of(network, batches, cache=cache), (2, 2))
    whole = collect(problem_of(network, batches), (2, 2))
    for name in whole:
        assert resumed[name].images == whole[name].images == 24
        for first, second in zip(resumed[name].cells, whole[name].cells, strict=True):
            assert first.count == second.count
            assert torch.allclose(first.scatter, second.scatter, rtol=1e-9)
            assert torch.allclose(first.gradients, second.gradients, rtol=1e-9)


@pytest.mark.parametrize("spoil", ["other cells", "damaged"])
def test_a_file_that_does_not_fit_is_not_used(tmp_path, spoil):
    network, batches, cache = small_network(), list(images(16).split(8)), tmp_path / "statistics.safetensors"
    collect(problem_of(network, batches, cache=cache), (2, 2))
    if spoil == "damaged":
        cache.write_bytes(cache.read_bytes()[:-7])
    cells = (1, 1) if spoil == "other cells" else (2, 2)
    found = collect(problem_of(network, batches, cache=cache), cells)["0"]
    plain = collect(problem_of(network, batches), cells)["0"]
    assert torch.allclose(found.cells[0].scatter, plain.cells[0].scatter)
    assert len(found.cells) == len(plain.cells) and found.images == 16


def test_no_image_and_bad_logits_are_told():
    network = small_network()
    with pytest.raises(CohortError, match="no image"):
        collect(problem_of(network, []), (1, 1))
    bad = small_network()
    with torch.no_grad():
        bad[4].bias.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        collect(problem_of(bad, [images(9)]), (1, 1))
    with pytest.raises(ModelError, match="heads"):
        collect(dataclasses.replace(problem_of(network, [images(9)]), heads=(HEAD, HEAD)), (1, 1))
