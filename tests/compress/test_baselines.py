"""The baselines: budgets kept when counted anew, factors that are what they say, plans that rebuild their networks."""

import copy

import pytest
import torch
from torch import nn

from hscc_edge.compress import alds, channel_pruning, cp, data_svd, global_svd, tucker
from hscc_edge.compress.allocate import parse_budget
from hscc_edge.compress.cost import layer_shapes
from hscc_edge.compress.problem import Problem, Settings
from hscc_edge.errors import BudgetError, ModelError
from hscc_edge.model.head import Head
from hscc_edge.model.load import apply_plan
from hscc_edge.model.plan import LayerPlan, parse_plan

METHODS = {
    "svd": global_svd.candidates,
    "data-svd": data_svd.candidates,
    "tucker": tucker.candidates,
    "alds": alds.candidates,
    "cp": cp.candidates,
    "pruning": channel_pruning.candidates,
}
HEAD = Head("softmax", ("a", "b", "c", "d"))
each_method = pytest.mark.parametrize("method", METHODS)


class Small(nn.Module):
    """Strided, dilated, bias-free, pointwise, grouped and depthwise convolutions, a norm, a skip and two Linears."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 24, 5, stride=2, padding=2)
        self.body = nn.Sequential(
            nn.Conv2d(24, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 24, 3, padding=2, dilation=2),
        )
        self.middle = nn.Conv2d(24, 48, 1)
        self.depthwise = nn.Conv2d(48, 48, 3, padding=1, groups=48)
        self.last = nn.Conv2d(48, 32, 3)
        self.grouped = nn.Conv2d(32, 32, 3, groups=4, padding=1)
        self.head = nn.Sequential(nn.Linear(288, 64), nn.ReLU(inplace=True), nn.Linear(64, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(x + self.body(x))
        x = torch.relu(self.last(torch.relu(self.depthwise(self.middle(x)))))
        return self.head(nn.functional.adaptive_avg_pool2d(self.grouped(x), 3).flatten(1))


class Line(nn.Module):
    """1-D convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv1d(2, 24, 5, padding="same")
        self.two = nn.Conv1d(24, 24, 3, stride=2, dilation=2)
        self.head = nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.two(torch.relu(self.one(x)))).mean(2))


class Volume(nn.Module):
    """3-D convolutions, one with circular padding."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv3d(2, 16, 3, stride=(1, 2, 2), padding=1)
        self.two = nn.Conv3d(16, 16, (1, 3, 3), padding_mode="circular", padding=(0, 1, 1))
        self.head = nn.Linear(16 * 8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.two(torch.relu(self.one(x))))
        return self.head(nn.functional.adaptive_avg_pool3d(x, 2).flatten(1))


class Split(nn.Module):
    """A reshape that takes channels apart."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv1d(2, 24, 3)
        self.two = nn.Conv2d(6, 16, 3)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.two(self.one(x).unflatten(1, (6, 4))).mean((2, 3)))


def smooth_images(count: int, seed: int, channels: int = 2) -> torch.Tensor:
    noise = torch.randn(count, channels, 6, 6, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(noise, size=(24, 24), mode="bicubic", align_corners=False)


def problem_of(network: nn.Module, images: torch.Tensor, **settings: object) -> Problem:
    return Problem(
        network,
        layer_shapes(network, lambda net: net(images[:1])),
        (HEAD,),
        lambda: [{"image": part} for part in images.split(32)],
        Settings(**{"alignment": 4, **settings}),
    )


def seeded(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    made = kind().eval()
    with torch.no_grad():
        for name, buffer in made.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
    return made


@pytest.fixture(scope="module")
def small() -> Problem:
    return problem_of(seeded(Small), smooth_images(64, 0))


@pytest.fixture(scope="module")
def proposals(small):
    return {name: candidates(small) for name, candidates in METHODS.items()}


def counted(problem: Problem, network: nn.Module) -> tuple[int, int]:
    example = {"image": next(iter(problem.batches()))["image"][:1]}
    shapes = layer_shapes(network, lambda net: problem.call(net, example))
    return sum(shape.flops for shape in shapes), sum(shape.params for shape in shapes)


def layer_of(name: str, structure: str, *ranks: int) -> LayerPlan:
    return LayerPlan(name, structure, ranks, (), "", 0, 0, 0, 0, 0.0)


@each_method
@pytest.mark.parametrize("budget", ["flops=1.7x", "params=1.5x", "bytes=1.5x", "flops=1x"])
def test_budgets_hold_when_counted_anew(small, proposals, method, budget):
    before = copy.deepcopy(small.network.state_dict())
    plan = proposals[method].plan(parse_budget(budget))
    made = proposals[method].build(plan)
    ratio = float(budget.partition("=")[2][:-1])
    flops, params = counted(small, made)
    assert (flops, params) == (plan.flops, plan.params)
    dense_flops, dense_params = counted(small, small.network)
    assert (dense_flops, dense_params) == (plan.dense_flops, plan.dense_params)
    assert (flops if budget.startswith("flops") else params) <= (
        dense_flops if budget.startswith("flops") else dense_params
    ) / ratio
    assert made(smooth_images(3, 1)).shape == (3, 4)
    assert all(torch.equal(value, before[name]) for name, value in small.network.state_dict().items())
    assert parse_plan(plan.to_json()) == plan
    assert (plan.method, plan.budget) == (method, budget)


@each_method
def test_a_plan_rebuilds_its_network(proposals, method):
    plan = proposals[method].plan(parse_budget("flops=2x"))
    made = proposals[method].build(plan)
    again = apply_plan(seeded(Small), parse_plan(plan.to_json())).eval()
    again.load_state_dict(made.state_dict())
    images = smooth_images(5, 2)
    assert torch.equal(again(images), made(images))


@each_method
def test_the_same_problem_gives_the_same_network(small, proposals, method):
    first = proposals[method].plan(parse_budget("flops=2x"))
    proposal = METHODS[method](small)
    assert proposal.plan(parse_budget("flops=2x")) == first
    values, others = proposal.build(first).state_dict(), proposals[method].build(first).state_dict()
    assert values.keys() == others.keys()
    assert all(torch.equal(value, others[name]) for name, value in values.items())


@each_method
def test_layers_with_a_reason_stay_dense(proposals, method):
    plan = proposals[method].plan(parse_budget("flops=2x"))
    layers = {layer.name: layer for layer in plan.layers}
    assert layers["grouped"].structure == "dense" and "grouped" in layers["grouped"].reason
    assert layers["depthwise"].structure == ("pruned" if method == "pruning" else "dense")


@each_method
def test_ranks_are_multiples_of_the_alignment(proposals, method):
    plan = proposals[method].plan(parse_budget("flops=2x"))
    sizes = {"24", "32", "48", "64", "288", "2", "4"}
    ranks = [rank for layer in plan.layers for rank in layer.ranks if str(rank) not in sizes]
    assert ranks and all(rank % 4 == 0 for rank in ranks)


@each_method
def test_budgets_out_of_reach_are_told(proposals, method):
    with pytest.raises(BudgetError, match=r"the most that this network and method can give is flops=[0-9.]+x"):
        proposals[method].plan(parse_budget("flops=500x"))


@each_method
def test_latency_needs_times(proposals, method):
    with pytest.raises(ModelError, match=r"latency=2x .*(time them first|give flops)"):
        proposals[method].plan(parse_budget("latency=2x"))


@each_method
@pytest.mark.parametrize(("kind", "size"), [(Line, (2, 18)), (Volume, (2, 4, 8, 8))])
def test_convolutions_of_one_and_three_dimensions(method, kind, size):
    images = torch.randn(24, *size, generator=torch.Generator().manual_seed(3))
    problem = problem_of(seeded(kind), images, alignment=2)
    proposal = METHODS[method](problem)
    plan = proposal.plan(parse_budget("flops=1.5x"))
    made = proposal.build(plan)
    assert counted(problem, made) == (plan.flops, plan.params)
    assert plan.flops <= plan.dense_flops / 1.5
    layers = {layer.name: layer for layer in plan.layers}
    assert layers["two"].structure != "dense"
    again = apply_plan(seeded(kind), plan).eval()
    again.load_state_dict(made.state_dict())
    assert torch.equal(again(images), made(images))


@each_method
def test_factorised_layers_end_in_an_expand_with_a_bias(proposals, method):
    plan = proposals[method].plan(parse_budget("flops=2x"))
    made = proposals[method].build(plan)
    for layer in plan.layers:
        module = made.get_submodule(layer.name)
        if layer.structure not in ("dense", "pruned"):
            assert isinstance(module, nn.Sequential) and module[-1].bias is not None, layer


@pytest.mark.parametrize("method", ["svd", "data-svd"])
@pytest.mark.parametrize("name", ["first", "body.0", "body.3", "middle", "last", "head.0", "head.2"])
def test_full_rank_reproduces_the_layer(small, proposals, method, name):
    dense = copy.deepcopy(small.network.get_submodule(name))
    weight = dense.weight.flatten(1)
    made = proposals[method].candidates[name].build(layer_of(name, "one-region", min(weight.shape)))
    x = torch.randn(3, weight.shape[1]) if isinstance(dense, nn.Linear) else torch.randn(3, dense.in_channels, 9, 9)
    with torch.no_grad():
        wanted, given = dense(x), made(x)
    if method == "svd" or name == "middle":  # what data teaches holds everywhere only where the data spans everything
        assert torch.allclose(given, wanted, atol=1e-4 * float(wanted.abs().max()))
    assert _relative_error(small, name, made) < 1e-8


def _relative_error(problem: Problem, name: str, made: nn.Module) -> float:
    """E||y - y'||^2 over the variance of y, on the calibration images."""
    seen: list[torch.Tensor] = []
    dense = problem.network.get_submodule(name)
    handle = dense.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    with torch.no_grad():
        for batch in problem.batches():
            problem.call(problem.network, batch)
        handle.remove()
        x = torch.cat(seen).double()
        y, z = (copy.deepcopy(module).double()(x) for module in (dense, made))
    y, z = (values.movedim(1, -1).flatten(0, -2) for values in (y, z))
    return float((y - z).square().sum() / (y - y.mean(0)).square().sum())


@pytest.mark.parametrize("name", ["first", "body.3", "middle", "head.0", "head.2"])
def test_data_svd_predicts_its_error(small, proposals, name):
    """For moments of outputs, for a dual (middle: fewer inputs than outputs), for a Linear: the loss is the error."""
    found = proposals["data-svd"].candidates[name]
    for option in found.options[1:4]:
        measured = _relative_error(small, name, found.build(layer_of(name, option.structure, *option.ranks)))
        assert measured == pytest.approx(option.loss, rel=1e-3, abs=1e-9)


def test_data_svd_of_kept_rows_predicts_its_error():
    """Wide layers on a flat vector keep their rows instead of m x m moments."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(1152, 1100), nn.ReLU(), nn.Linear(1100, 4)).eval()
    problem = problem_of(network, smooth_images(40, 4))
    found = data_svd.candidates(problem).candidates["1"]
    for option in (found.options[2], found.options[6]):
        measured = _relative_error(problem, "1", found.build(layer_of("1", "one-region", *option.ranks)))
        assert 0 < measured == pytest.approx(option.loss, rel=1e-3)


def test_data_svd_beats_weights_alone_on_the_outputs(small, proposals):
    for name in ("first", "body.0", "last", "head.0"):
        layer = layer_of(name, "one-region", 4)
        errors = [_relative_error(small, name, proposals[m].candidates[name].build(layer)) for m in ("data-svd", "svd")]
        assert errors[0] < errors[1]


def test_alds_with_one_group_is_svd(proposals):
    layer = layer_of("last", "one-region", 8)
    first, second = (proposals[name].candidates["last"].build(layer) for name in ("alds", "svd"))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_alds_bounds_the_relative_spectral_error(small, proposals):
    """The bound holds for every option, and is the error itself for one group."""
    dense = small.network.get_submodule("last").weight.detach().double().flatten(1)
    scale = float(torch.linalg.matrix_norm(dense, 2))
    found = proposals["alds"].candidates["last"]
    assert {len(option.ranks) for option in found.options[1:]} >= {1, 2, 3, 4}
    for option in found.options[1:]:
        reduce, expand = found.build(layer_of("last", option.structure, *option.ranks))
        rows = reduce.weight.detach().double().flatten(1).chunk(len(option.ranks))
        columns = expand.weight.detach().double().flatten(1).chunk(len(option.ranks), dim=1)
        product = torch.cat([column @ row for row, column in zip(rows, columns, strict=True)], dim=1)
        error = float(torch.linalg.matrix_norm(dense - product, 2)) / scale
        assert error <= option.loss + 1e-6
        assert len(option.ranks) > 1 or error == pytest.approx(option.loss, abs=1e-6)


def test_alds_has_the_least_largest_error(proposals):
    """With any smaller limit on the layers' errors even the cheapest options would be above the budget."""
    budget = parse_budget("flops=2x")
    plan = proposals["alds"].plan(budget)
    worst = max(layer.loss for layer in plan.layers)
    found = proposals["alds"].candidates
    fixed = sum(layer.flops for layer in plan.layers if layer.name not in found)
    tighter = sum(min(o.flops for o in entry.options if o.loss < worst) for entry in found.values())
    assert fixed + tighter > plan.dense_flops / 2


@pytest.mark.parametrize(("method", "structure"), [("tucker", "tucker-2"), ("cp", "cp")])
def test_tensor_methods_predict_the_error_of_the_weight(small, proposals, method, structure):
    """The weight that an option's layers make together, read off by impulses, misses what the option says."""
    dense = small.network.get_submodule("body.0")
    found = proposals[method].candidates["body.0"]
    impulses = torch.zeros(24, 24, 3, 3)
    impulses[torch.arange(24), torch.arange(24), 1, 1] = 1.0
    options = [option for option in found.options if option.structure == structure]
    assert len(options) >= 5
    for option in options:
        made = found.build(layer_of("body.0", structure, *option.ranks))
        with torch.no_grad():
            wanted, given = dense(impulses), made(impulses)
        error = float((wanted - given).square().sum() / wanted.square().sum())
        assert error <= option.loss + 1e-5
        if method == "cp":
            assert error == pytest.approx(option.loss, abs=1e-5)


def test_pruning_keeps_the_outputs_and_drops_the_least(small, proposals):
    plan = proposals["pruning"].plan(parse_budget("flops=3x"))
    layers = {layer.name: layer for layer in plan.layers}
    assert layers["head.2"].ranks[0] == 4
    assert layers["first"].ranks[0] == layers["body.3"].ranks[0] == layers["middle"].ranks[1]  # joined by the skip
    assert layers["middle"].ranks[0] == layers["depthwise"].ranks[0] == layers["last"].ranks[1]
    assert layers["body.1"].ranks == (layers["body.0"].ranks[0],)
    for coupling in proposals["pruning"].couplings:
        assert coupling.scores.min() >= 0 and coupling.scores.max() > 0


def test_pruning_beats_pruning_the_other_end(small, proposals):
    """Dropping the channels that score least changes the output less than dropping those that score most."""
    proposal = proposals["pruning"]
    flipped = channel_pruning.PruningProposal(
        proposal.problem,
        proposal.example,
        tuple(
            channel_pruning.Coupling(c.root, c.scores.max() - c.scores, c.outputs, c.inputs) for c in proposal.couplings
        ),
    )
    plan = proposal.plan(parse_budget("flops=1.3x"))
    images = smooth_images(32, 7)
    with torch.no_grad():
        wanted = small.network(images)
        errors = [float((made.build(plan)(images) - wanted).square().mean()) for made in (proposal, flipped)]
    assert errors[0] < errors[1]


class Written(Line):
    """Writes into a part of a map that it then reads in part."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.one(x).clone()
        x[:, :, 0] = 0
        return self.head(self.two(x[:, :, 1:]).mean(2))


@pytest.mark.parametrize(("kind", "reason"), [(Split, "reshapes 24 channels into 6"), (Written, "writes into slices")])
def test_pruning_refuses_what_it_cannot_follow(kind, reason):
    images = torch.randn(8, 2, 20, generator=torch.Generator().manual_seed(5))
    with pytest.raises(ModelError, match=reason):
        channel_pruning.candidates(problem_of(seeded(kind), images))
