"""The contract of every method in METHODS, and what HSCC promises beyond it."""

import copy

import pytest
import torch
from torch import nn

from hscc_edge.compress import METHODS
from hscc_edge.compress.allocate import Budget, allocate
from hscc_edge.compress.compression import _layer_plan, _rebuild
from hscc_edge.compress.cost import layer_shapes
from hscc_edge.compress.problem import Problem, Settings
from hscc_edge.compress.refit import refit
from hscc_edge.model.head import Head, kl
from hscc_edge.model.plan import Plan, parse_plan

HEAD = Head("softmax", ("a", "b", "c", "d"))
SHAPE = (2, 24, 24)


class Small(nn.Module):
    """Strided, dilated, bias-free, pointwise and grouped convolutions, an in-place ReLU, and two Linears."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(2, 16, 5, stride=2, padding=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 32, 3, padding=2, dilation=2),
            nn.ReLU(),
            nn.Conv2d(32, 32, 1),
            nn.Conv2d(32, 32, 3, groups=4, padding=1),
            nn.AdaptiveAvgPool2d(3),
        )
        self.head = nn.Sequential(nn.Linear(288, 64), nn.ReLU(inplace=True), nn.Linear(64, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).flatten(1))


def smooth_images(count: int, seed: int) -> torch.Tensor:
    """Images with the strong correlations of real ones: white noise teaches nothing about low rank."""
    noise = torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(noise, size=SHAPE[1:], mode="bicubic", align_corners=False)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    small = Small().eval()
    with torch.no_grad():
        small.head[2].weight.mul_(20)
    return small


def problem_of(network: nn.Module, **settings: object) -> Problem:
    images = smooth_images(96, 0)
    return Problem(
        network,
        layer_shapes(network, SHAPE),
        HEAD,
        lambda: [{"image": part} for part in images.split(32)],
        Settings(**{"alignment": 4, "refit": False, **settings}),
    )


def plan_and_network(problem: Problem, method: str, ratio: float) -> tuple[Plan, nn.Module]:
    found = METHODS[method](problem)
    names = [shape.name for shape in problem.shapes if shape.name in found]
    fixed = sum(shape.flops for shape in problem.shapes if shape.name not in found)
    chosen = dict(zip(names, allocate([found[n].options for n in names], fixed, Budget("flops", ratio)), strict=True))
    plan = Plan(
        method, f"flops={ratio}x", tuple(_layer_plan(shape, chosen.get(shape.name)) for shape in problem.shapes)
    )
    return plan, _rebuild(problem.network, plan, found)


def mean_kl(network: nn.Module, other: nn.Module) -> float:
    images = smooth_images(128, 9)
    with torch.no_grad():
        return float(kl(HEAD, network(images).numpy(), other(images).numpy()).mean())


@pytest.mark.parametrize("method", METHODS)
def test_contract(network, method):
    """Outputs' shape, FLOPs as planned when counted anew, original untouched, grouped layer dense with a reason."""
    problem = problem_of(network)
    before = copy.deepcopy(network.state_dict())
    plan, small = plan_and_network(problem, method, 1.7)
    assert small(smooth_images(3, 1)).shape == (3, 4)
    assert plan.flops <= plan.dense_flops / 1.7
    counted = sum(shape.flops for shape in layer_shapes(small, SHAPE))
    assert counted == plan.flops
    assert sum(p.numel() for n, p in small.named_parameters() if "features.3" not in n) == plan.params
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    grouped = next(layer for layer in plan.layers if layer.name == "features.8")
    assert grouped.structure == "dense" and "grouped" in grouped.reason
    assert parse_plan(plan.to_json()) == plan


@pytest.mark.parametrize("structure", ["one-region", "shared-reduce", "own-factors"])
def test_every_structure_is_emitted_as_counted(network, structure):
    problem = problem_of(network, structures=(structure,), parts=(2, 3))
    plan, small = plan_and_network(problem, "hscc", 2.0)
    used = {layer.structure for layer in plan.layers if layer.name.startswith("features.")}
    assert structure in used
    counted = sum(shape.flops for shape in layer_shapes(small, SHAPE))
    if structure == "one-region":
        assert counted == plan.flops
    assert mean_kl(network, small) < mean_kl(network, plan_and_network(problem, "svd", 2.0)[1])


@pytest.mark.parametrize("structure", ["one-region", "shared-reduce", "own-factors"])
def test_full_rank_reproduces_the_layer(network, structure):
    """With every rank kept the factorised layer is the layer itself, whatever the regions."""
    from hscc_edge.compress import hscc
    from hscc_edge.compress.statistics import collect
    from hscc_edge.model.plan import LayerPlan

    problem = problem_of(network, parts=(2, 2))
    statistics = collect(network, problem.shapes, problem.batches(), HEAD, (2, 2), 0)
    solved = hscc._solve(statistics["features.5"])
    ranks = {"one-region": (32,), "shared-reduce": (32,), "own-factors": (32,) * 4}[structure]
    boxes = () if structure == "one-region" else solved.statistics.boxes
    plan = LayerPlan("features.5", structure, ranks, boxes, "", 0, 0, 0, 0, 0.0)
    dense = copy.deepcopy(network.features[5]).requires_grad_(False)
    x = network.features[:5](smooth_images(8, 2)).detach()
    assert torch.allclose(
        hscc._build(dense, solved, plan)(x).detach(), dense(x), atol=2e-3 * float(dense(x).abs().max())
    )


def test_hscc_beats_weight_only_svd_and_refit_helps(network):
    problem = problem_of(network)
    plan, hscc = plan_and_network(problem, "hscc", 2.0)
    _, svd = plan_and_network(problem, "svd", 2.0)
    plain = mean_kl(network, hscc)
    refit(network, hscc, [layer.name for layer in plan.layers if layer.structure != "dense"], problem.batches)
    assert mean_kl(network, hscc) < plain < mean_kl(network, svd)


def test_predicted_loss_falls_with_rank(network):
    for candidates in METHODS["hscc"](problem_of(network, structures=("one-region",))).values():
        losses = [option.loss for option in candidates.options if option.structure != "dense"]
        assert losses == sorted(losses, reverse=True)


def test_predicted_loss_is_the_measured_quadratic_form():
    """For one Linear, dropping ranks costs 1/2 E[(y - y')^T G (y - y')], exactly what the spectrum says."""
    from hscc_edge.compress.spectrum import root_of, spectrum

    generator = torch.Generator().manual_seed(1)
    w = torch.randn(12, 20, generator=generator, dtype=torch.float64)
    x = torch.randn(400, 20, generator=generator, dtype=torch.float64) @ torch.randn(20, 20, dtype=torch.float64)
    g = torch.randn(400, 12, generator=generator, dtype=torch.float64) * torch.arange(1, 13)
    y = (x - x.mean(0)) @ w.T
    gradients = g.T @ g / 400
    found = spectrum(y.T @ y / 400, root_of(gradients, damping=1e-12), torch.zeros(12), 1.0)
    for rank in (1, 5, 11):
        gap = y - y @ (found.expand[:, :rank] @ found.reduce[:rank]).T
        measured = 0.5 * float(((gap @ gradients) * gap).sum()) / 400
        assert measured == pytest.approx(found.loss(rank), rel=1e-6)


def test_sampled_and_dense_spectra_agree():
    from hscc_edge.compress.spectrum import root_of, sample_spectrum, spectrum
    from hscc_edge.compress.statistics import Samples

    generator = torch.Generator().manual_seed(2)
    y = torch.randn(30, 50, generator=generator) @ torch.randn(50, 50, generator=generator) + 3
    g = torch.randn(30, 50, generator=generator)
    thin = sample_spectrum(Samples([y[:11], y[11:]], [g]))
    wide, steep = y.double(), g.double()
    covariance = torch.cov(wide.T, correction=0)
    full = spectrum(covariance, root_of(steep.T @ steep / 30), wide.mean(0), 1.0)
    assert torch.allclose(thin.losses[:25], full.losses[:25], rtol=1e-5)
    for rank in (3, 20):
        first = thin.expand[:, :rank] @ thin.reduce[:rank]
        second = full.expand[:, :rank] @ full.reduce[:rank]
        assert torch.allclose(first, second, atol=1e-5)
