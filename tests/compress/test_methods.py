"""The contract of every method in METHODS, and what HSCC promises beyond it."""

import copy

import pytest
import torch
from small import HEAD, mean_kl, prepared, small_network, smooth_images
from torch import nn

from hscc_edge.compress import METHODS
from hscc_edge.compress.allocate import Budget, parse_budget
from hscc_edge.compress.cost import layer_shapes
from hscc_edge.compress.structures import STRUCTURES
from hscc_edge.errors import BudgetError, InputError, ModelError
from hscc_edge.model.load import apply_plan
from hscc_edge.model.plan import LayerPlan, parse_plan


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return small_network()


def counted(network: nn.Module) -> int:
    with torch.no_grad():
        return sum(shape.flops for shape in layer_shapes(network, lambda net: net(smooth_images(1, 1))))


@pytest.mark.parametrize("method", METHODS)
def test_contract(network, method):
    """Outputs' shape, FLOPs as planned when counted anew, original untouched, the plan rebuilds the network."""
    before = copy.deepcopy(network.state_dict())
    made = prepared(network, method).compress(Budget("flops", 1.7), refit=False)
    plan = made.plan
    assert made.network(smooth_images(3, 1)).shape == (3, 4)
    assert plan.flops <= plan.dense_flops / 1.7
    assert counted(made.network) == plan.flops
    assert sum(p.numel() for p in made.network.parameters()) == plan.params
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert parse_plan(plan.to_json()) == plan
    again = apply_plan(copy.deepcopy(network), plan)
    again.load_state_dict(made.network.state_dict())
    assert torch.equal(again.eval()(smooth_images(3, 1)), made.network(smooth_images(3, 1)))
    if method != "pruning":
        grouped = next(layer for layer in plan.layers if layer.name == "features.8")
        assert grouped.structure == "dense" and "grouped" in grouped.reason


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", ["params=2x", "bytes=75KB"])
def test_other_currencies(network, method, budget):
    limit = parse_budget(budget)
    plan = prepared(network, method).plan(limit)
    spent = {"params": plan.params, "bytes": 4 * plan.params}[limit.cost]
    dense = {"params": plan.dense_params, "bytes": 4 * plan.dense_params}[limit.cost]
    assert spent <= limit.ceiling(dense)


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_out_of_reach_names_the_largest(network, method):
    with pytest.raises(BudgetError, match=r"flops=[0-9.]+x"):
        prepared(network, method).plan(Budget("flops", 5000.0))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_structure_is_emitted_as_counted(network, structure):
    found = prepared(network, structures=(structure,), clusters=2)
    made = found.compress(Budget("flops", 1.6), refit=False)
    used = {layer.structure for layer in made.plan.layers if layer.name.startswith("features.")}
    assert structure in used
    assert counted_with_regions(made.network) == made.plan.flops
    assert mean_kl(network, made.network) < mean_kl(
        network, prepared(network, "svd").compress(Budget("flops", 1.6), refit=False).network
    )


def counted_with_regions(network: nn.Module) -> int:
    """Every convolution and Linear, each region's by the positions that it computes."""
    total = 0

    def hook(module: nn.Module, args: object, output: torch.Tensor) -> None:
        nonlocal total
        positions = output[0].numel() // len(module.weight)
        total += 2 * positions * module.weight.numel()

    handles = [
        module.register_forward_hook(hook) for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    network(smooth_images(1, 1))
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize("structure", ["one-region", "shared-reduce", "own-factors"])
def test_full_rank_reproduces_the_layer(network, structure):
    """With every rank kept the factorised layer is the layer itself, whatever the regions."""
    found = prepared(network, structures=("one-region", "shared-reduce", "own-factors"))
    build = found.proposal.candidates["features.5"].build
    boxes = next(
        option.regions
        for option in found.proposal.candidates["features.5"].options
        if option.structure == "own-factors" and len(option.regions) == 4
    )
    ranks = {"one-region": (32,), "shared-reduce": (32,), "own-factors": (32,) * 4}[structure]
    regions = () if structure == "one-region" else boxes
    plan = LayerPlan("features.5", structure, ranks, regions, "", 0, 0, 0, 0, 0.0)
    folded = found.problem.network
    x = folded.features[:5](smooth_images(8, 2)).detach()
    dense = folded.features[5](x).detach()
    assert torch.allclose(build(plan)(x).detach(), dense, atol=2e-3 * float(dense.abs().max()))


def test_one_region_and_one_cluster_is_data_aware_svd(network):
    """With G the identity, one region's best V is the truncated SVD of W A^(1/2), mapped back."""
    from hscc_edge.compress.spectrum import Root, spectrum

    generator = torch.Generator().manual_seed(4)
    w = torch.randn(10, 30, generator=generator, dtype=torch.float64)
    x = torch.randn(500, 30, generator=generator, dtype=torch.float64) @ torch.diag(torch.linspace(3, 0.1, 30).double())
    covariance = torch.cov(x.T, correction=0)
    eye = torch.eye(10, dtype=torch.float64)
    found = spectrum(w @ covariance @ w.T, Root(eye, eye), torch.zeros(10), 2.0)
    values, vectors = torch.linalg.eigh(covariance)
    root, inverse = (vectors * values.sqrt()) @ vectors.T, (vectors / values.sqrt()) @ vectors.T
    u, s, v = torch.linalg.svd(w @ root, full_matrices=False)
    for rank in (1, 4, 9):
        best = (u[:, :rank] * s[:rank]) @ v[:rank] @ inverse
        assert torch.allclose(found.expand[:, :rank] @ found.reduce[:rank] @ w, best, atol=1e-8)
        assert found.loss(rank) == pytest.approx(float(s[rank:].square().sum()), rel=1e-8)


@pytest.mark.parametrize(
    "structures", [("one-region",), ("shared-reduce",), ("own-factors",), ("separable", "tucker-2")]
)
def test_refit_helps_and_hscc_beats_weight_only_svd(network, structures):
    found = prepared(network, structures=structures)
    plan = found.plan(Budget("flops", 3.0))
    plain, refitted = (mean_kl(network, found.build(plan, refit=refit)) for refit in (False, True))
    svd = prepared(network, "svd").compress(Budget("flops", 3.0), refit=False)
    assert refitted < plain < mean_kl(network, svd.network)


def test_more_structures_never_predict_a_larger_loss(network):
    budget = Budget("flops", 2.5)
    alone = prepared(network, structures=("one-region",)).plan(budget).loss
    every = prepared(network, structures=tuple(STRUCTURES)).plan(budget).loss
    assert every <= alone * (1 + 1e-9)


def test_predicted_loss_falls_with_rank(network):
    for candidates in prepared(network, structures=("one-region",)).proposal.candidates.values():
        losses = [option.loss for option in candidates.options if option.structure != "dense"]
        assert losses == sorted(losses, reverse=True)


def test_the_same_seed_gives_the_same_network(network):
    first, second = (prepared(copy.deepcopy(network)).compress(Budget("flops", 2.0)) for _ in range(2))
    assert first.plan == second.plan
    assert torch.equal(first.network(smooth_images(4, 3)), second.network(smooth_images(4, 3)))


def test_unknown_names_are_refused(network):
    with pytest.raises(InputError, match="unknown"):
        prepared(network, "magic")
    with pytest.raises(InputError, match="structure"):
        prepared(network, structures=("magic",))


def test_a_latency_needs_times(network):
    with pytest.raises(ModelError, match="timed"):
        prepared(network, structures=("one-region",)).plan(Budget("latency", 2.0))


def test_batch_norms_are_folded_first(network):
    found = prepared(network)
    assert found.folded == (("features.2", "features.3"),)
    images = smooth_images(4, 5)
    assert torch.allclose(found.problem.network(images), network(images), atol=1e-4)
    assert HEAD.labels == ("a", "b", "c", "d")
