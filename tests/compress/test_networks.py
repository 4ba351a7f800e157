"""The compressor's contract over families of networks, kinds of layers, and inputs that cannot be used.

Nothing is trained. `networks.settle` gives fresh weights the falling spectra of trained ones, sets batch norms by one
pass over smooth images, and scales each head so that its logits have a deviation of 1 from image to image: only then
does a compressed network have answers to lose.
"""

import copy
import math

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import CASES, SOFTMAX, Case, counted
from torch import nn

from hscc_edge.compress.allocate import parse_budget
from hscc_edge.compress.compression import Prepared, prepare
from hscc_edge.compress.cost import LayerShape
from hscc_edge.compress.problem import Settings
from hscc_edge.compress.statistics import FEWEST_IMAGES, LARGEST_LAYER_BYTES, affordable_cells, empty_statistics
from hscc_edge.errors import CohortError, ModelError
from hscc_edge.export.onnx import OPSET, quiet_exporter
from hscc_edge.model.load import apply_plan

TWICE = parse_budget("flops=2x")
IMAGES = 48


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small maps gain nothing from a second thread, and on a busy machine each of them waits for the other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def prepared(case: Case, network: nn.Module, method: str = "hscc", images: int = IMAGES) -> Prepared:
    batch = case.batch(images, 2)
    halves = [{name: values.chunk(2)[half] for name, values in batch.items()} for half in (0, 1)]
    settings = Settings(cells=(2, 2), regions=4, alignment=4, structures=case.structures)
    return prepare(method, network, case.heads, lambda: halves, settings, call=case.call)


def onnx_logits(case: Case, network: nn.Module, batch: dict[str, torch.Tensor]) -> list[np.ndarray]:
    with quiet_exporter():
        program = torch.onnx.export(
            network, tuple(batch.values()), input_names=list(batch), opset_version=OPSET, dynamo=True, verbose=False,
            external_data=False,
        )  # fmt: skip
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {name: values.numpy() for name, values in batch.items()})


@pytest.mark.parametrize("name", CASES)
def test_contract(name):
    """At 2x: FLOPs as planned and in no layer more, a smaller KL than weight-only SVD's, and the same under ONNX."""
    case = CASES[name]
    network = case.network()
    made = prepared(case, network).compress(TWICE)
    assert made.plan.flops <= made.plan.dense_flops / 2
    assert all(layer.flops <= layer.dense_flops for layer in made.plan.layers)
    assert all(layer.reason for layer in made.plan.layers if layer.structure == "dense")
    with torch.no_grad():
        assert counted(made.network, case) == made.plan.flops
        assert counted(network, case) == made.plan.dense_flops
    plain = prepared(case, network, "svd").compress(TWICE, refit=False)
    assert case.kl(network, made.network) < case.kl(network, plain.network)
    batch = case.batch(2, 5)
    for wanted, found in zip(case.logits(made.network, batch), onnx_logits(case, made.network, batch), strict=True):
        assert np.abs(found - wanted.numpy()).max() <= 1e-4 * max(float(wanted.abs().max()), 1.0)


class Odd(nn.Module):
    """Layers that are left dense, each for its own reason, around two that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.padded = nn.Conv2d(16, 24, 1, padding=1)
        self.first, self.second = nn.Conv2d(24, 24, 3, padding=1, bias=False), nn.Conv2d(24, 24, 3, padding=1)
        self.second.weight = self.first.weight
        self.norms = nn.ModuleList(nn.BatchNorm2d(24) for _ in range(2))
        self.up = nn.ConvTranspose2d(24, 32, 2, stride=2)
        self.sized = nn.Conv2d(32, 32, 3, padding=1)
        self.dilated = nn.Conv2d(32, 32, 3, padding="same", dilation=2, bias=False)
        self.head = nn.Linear(32, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.padded(self.grouped(self.depthwise(self.stem(image)).relu()).relu())
        for conv, norm in zip((self.first, self.second), self.norms, strict=True):
            x = norm(conv(x)).relu()
        x = self.sized(self.up(x)).relu()
        x = self.sized(nn.functional.max_pool2d(x, 2)).relu()
        return self.head(self.dilated(x).relu().mean(dim=(2, 3)))


REASONS = {
    "depthwise": "depthwise",
    "grouped": r"grouped \(4\)",
    "padded": "padded 1 x 1",
    "first": "shares its weight with second",
    "second": "shares its weight with first",
    "up": "transposed",
    "sized": "maps of several sizes",
}


def test_what_is_left_dense_says_why():
    """And nothing of it is folded or changed: tied weights stay tied."""
    case = Case(Odd, (1, 24, 24))
    network = case.network()
    made = prepared(case, network).compress(parse_budget("flops=1.05x"))
    reasons = {layer.name: layer.reason for layer in made.plan.layers}
    for name, reason in REASONS.items():
        assert reason in reasons[name].replace("(", r"\(").replace(")", r"\)"), name
    changed = {layer.name for layer in made.plan.layers if layer.structure != "dense"}
    assert "dilated" in changed and not changed & set(REASONS)
    assert made.network.first.weight is made.network.second.weight
    assert not made.plan.folded
    assert counted(made.network, case) == made.plan.flops
    assert counted(network, case) == made.plan.dense_flops


class Again(nn.Module):
    """One module under two names, called three times, and tokens before the batch as torch's transformer has them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, 32, 5, stride=2, dilation=2, padding=4, bias=False)
        self.step = nn.Conv1d(32, 32, 3, padding=1)
        self.alias = self.step
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem(image)
        x = x + self.alias(self.step(self.step(x).relu()).relu())
        return self.head(self.encoder(x.permute(2, 0, 1)).mean(dim=0))


def test_a_layer_that_is_called_again_is_handled_once():
    """Its cost is that of all calls; all its names get the one factorised layer, also when the plan is applied anew."""
    case = Case(Again, (1, 64))
    network = case.network()
    made = prepared(case, network).compress(TWICE)
    plans = {layer.name: layer for layer in made.plan.layers}
    assert plans["step"].dense_flops == 3 * 2 * 32 * 32 * 32 * 3
    assert plans["step"].structure != "dense" and "alias" not in plans
    assert made.network.alias is made.network.step
    assert counted(made.network, case) == made.plan.flops
    assert plans["encoder.layers.0.linear1"].structure != "dense"
    again = apply_plan(copy.deepcopy(network), made.plan)
    again.load_state_dict(made.network.state_dict())
    batch = case.batch(3, 4)
    assert torch.allclose(case.logits(again.eval(), batch)[0], case.logits(made.network, batch)[0], atol=1e-5)
    plain = prepared(case, network, "svd").compress(TWICE, refit=False)
    assert case.kl(network, made.network) < case.kl(network, plain.network)


def small() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 5),
    ).eval()  # fmt: skip


SMALL = Case(small, (1, 16, 16))


class Tokens(nn.Module):
    """torch's transformer with the batch first, whose fused path would read the weight of a layer that is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 4, stride=4)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2)
        self.head = nn.Linear(32, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.stem(image).flatten(2).transpose(1, 2)).mean(dim=1))


def test_a_fused_transformer_runs_when_its_layers_are_replaced():
    case = Case(Tokens, (1, 32, 32))
    network = case.network()
    made = prepared(case, network).compress(TWICE)
    assert {layer.structure for layer in made.plan.layers if "linear" in layer.name} == {"one-region"}
    batch = case.batch(3, 4)
    with torch.inference_mode():
        found = case.call(made.network, batch)[0]
    assert np.allclose(found.numpy(), onnx_logits(case, made.network, batch)[0], atol=1e-4)


@pytest.mark.parametrize("dead", ["weights", "rectified", "images"])
def test_dead_layers_are_compressed_without_harm(dead):
    """Constant outputs: zero weights, a ReLU that never opens, or images that are all zero."""
    network, case = small(), SMALL
    batches = [case.batch(16, seed) for seed in (2, 3)]
    with torch.no_grad():
        if dead == "weights":
            network[2].weight.zero_()
        elif dead == "rectified":
            network[2].bias.fill_(-1e3)
        else:
            batches = [{"image": torch.zeros(16, *case.shape)}] * 2
    for method in ("hscc", "svd"):
        made = prepare(method, network, case.heads, lambda: batches, Settings(cells=(2, 2), alignment=4))
        compressed = made.compress(TWICE)
        assert compressed.plan.flops <= compressed.plan.dense_flops / 2
        assert all(bool(torch.isfinite(value).all()) for value in compressed.network.state_dict().values())
        wanted, found = (case.logits(net, batches[0])[0] for net in (network, compressed.network))
        assert float((wanted - found).abs().max()) < 0.2


def refused(network: nn.Module, batches: list[dict[str, torch.Tensor]]) -> Prepared:
    return prepare("hscc", network, (SOFTMAX,), lambda: batches, Settings(cells=(2, 2)))


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 16), (1, 2, 16, 16)])
def test_images_that_the_network_refuses(shape):
    with pytest.raises(ModelError, match=r"refuses an image of the declared shape \(.+\): mend preprocess"):
        refused(small(), [{"image": torch.zeros(16, *shape)}])
    with pytest.raises(ModelError, match="refuses an image"):
        refused(small(), [{"picture": torch.zeros(16, 1, 16, 16)}])


def test_images_of_several_shapes_or_not_finite():
    batch, other = SMALL.batch(16, 0), Case(small, (1, 24, 16)).batch(16, 0)
    with pytest.raises(CohortError, match=r"\(1, 24, 16\) where the first has \(1, 16, 16\)"):
        refused(small(), [batch, other])
    batch["image"][3, 0, 2, 2] = math.inf
    with pytest.raises(CohortError, match="'image' is not finite"):
        refused(small(), [batch])


@pytest.mark.parametrize("count", [0, 1, FEWEST_IMAGES - 1, FEWEST_IMAGES])
def test_too_few_images_are_told(count):
    batches = [SMALL.batch(count, 0)] if count else []
    if count == FEWEST_IMAGES:
        assert refused(small(), batches).plan(TWICE).flops > 0
        return
    with pytest.raises(CohortError, match=rf"no image|images is {count}: .* at least {FEWEST_IMAGES}"):
        refused(small(), batches)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_activations_that_are_not_finite_name_the_layer(value):
    network = small()
    with torch.no_grad():
        network[2].weight[3, 0, 0, 0] = value
    with pytest.raises(ModelError, match="the layer 2 meets values that are not finite"):
        refused(network, [SMALL.batch(16, 0)])


def test_a_network_without_layers_and_heads_that_do_not_fit():
    batch = SMALL.batch(16, 0)
    with pytest.raises(ModelError, match="nothing can be compressed"):
        refused(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), [batch])
    with pytest.raises(ModelError, match=r"\(16, 7\) where its softmax head needs 5"):
        refused(nn.Sequential(*small()[:-1], nn.Linear(128, 7)), [batch])
    with pytest.raises(ModelError, match="1 outputs and 2 heads"):
        prepare("hscc", small(), (SOFTMAX, SOFTMAX), lambda: [batch])


@given(
    outputs=st.integers(1, 5000),
    positions=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    cells=st.lists(st.integers(1, 12), min_size=1, max_size=3),
)
def test_cells_fit_their_memory(outputs, positions, cells):
    """16 c m^2 bytes are at most 192 MiB or there is one cell; the grid that was asked for where it fits."""
    found = affordable_cells(outputs, tuple(positions), tuple(cells))
    asked = [min(size, part) for size, part in zip(positions, [*cells, *[cells[-1]] * 3], strict=False)]
    fits = [16 * math.prod(parts) * outputs**2 <= LARGEST_LAYER_BYTES for parts in (found, asked)]
    assert fits[0] or math.prod(found) == 1
    assert all(1 <= part <= most for part, most in zip(found, asked, strict=True))
    assert list(found) == asked or not fits[1]


def test_a_wide_layer_gets_fewer_cells():
    shape = LayerShape("wide", 2048, 2048, (3, 3), (12, 12), (12, 12), 1, True, 1, "", "")
    entry = empty_statistics(shape, (6, 6))
    held = sum(8 * (cell.scatter.numel() + cell.gradients.numel()) for cell in entry.cells)
    assert 1 < len(entry.cells) < 36 and held <= LARGEST_LAYER_BYTES
    assert sum(box.area for box in entry.boxes) == 144
