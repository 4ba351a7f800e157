"""Fine-tuning: labels lower the loss of a compressed network, the same on every run, and a wild rate harms nothing."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional

from hscc_edge.compress.finetune import finetune
from hscc_edge.data.cohort import Cohort
from hscc_edge.data.pipeline import loader
from hscc_edge.data.preprocess import Preprocess, parse_preprocess
from hscc_edge.errors import ModelError
from hscc_edge.model.convolution import conv_like
from hscc_edge.model.head import Head
from hscc_edge.model.plan import Box
from hscc_edge.model.recipe import Schedule
from hscc_edge.model.regional import SharedReduce
from hscc_edge.model.train import label_loss

SCHEDULE = Schedule(epochs=6, batch_size=8, learning_rate=1e-2, augment=False)
HALVES = (Box((0, 0), (16, 8)), Box((0, 8), (16, 16)))


class Rounded(nn.Module):
    """Shares a network's parameters and runs it with weights rounded to a sixteenth; gradients pass through."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = {
            name: weight + ((16 * weight).round() / 16 - weight).detach()
            for name, weight in self.network.named_parameters()
        }
        return torch.func.functional_call(self.network, weights, (x,))


@pytest.fixture(scope="module")
def preprocess() -> Preprocess:
    return parse_preprocess(
        [
            {"name": "percentile", "lower": 1.0, "upper": 99.0},
            {"name": "resize", "height": 32, "width": 32},
            {"name": "channels", "count": 1},
            {"name": "normalise", "mean": [0.3], "std": [0.25]},
        ]
    )


def compressed_of(outputs: int) -> nn.Module:
    torch.manual_seed(0)
    dense = nn.Conv2d(8, 16, 3, padding=1)
    shared = SharedReduce(dense, 6, HALVES)
    first = nn.Sequential(conv_like(nn.Conv2d(1, 8, 5, stride=2, padding=2), 1, 8, bias=True), nn.ReLU())
    return nn.Sequential(first, shared, nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
                         nn.Dropout(0.1), nn.Linear(256, outputs)).eval()  # fmt: skip


def loss_on(network: nn.Module, cohort: Cohort, preprocess: Preprocess, head: Head) -> float:
    batches = loader(cohort.select("train"), preprocess, batch_size=32, shuffle=False, seed=0)
    with torch.no_grad():
        return sum(float(label_loss(head, network(batch["image"]), batch["label"])) for batch in batches)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_labels_lower_the_loss(phantom, preprocess, kind):
    head = Head(kind, phantom.classes)
    network = compressed_of(len(phantom.classes))
    before = loss_on(network, phantom, preprocess, head)
    steps: list[int] = []
    finetune(network, phantom, preprocess, head, SCHEDULE, lambda done, note: steps.append(done))
    assert loss_on(network, phantom, preprocess, head) < 0.95 * before
    assert not network.training and len(steps) == sum(steps) == 6 * -(-len(phantom.select("train").instances) // 8)


def test_the_same_seed_gives_the_same_weights(phantom, preprocess):
    head, short = Head("softmax", phantom.classes), dataclasses.replace(SCHEDULE, epochs=1, augment=True)
    networks = [compressed_of(len(phantom.classes)) for _ in range(3)]
    for network, seed in zip(networks, (1, 1, 2), strict=True):
        finetune(network, phantom, preprocess, head, dataclasses.replace(short, seed=seed))
    first, second, third = (torch.cat([value.flatten() for value in n.parameters()]) for n in networks)
    assert torch.equal(first, second) and not torch.equal(first, third)


def test_a_loss_that_is_not_finite_is_an_error_and_leaves_the_start(phantom, preprocess):
    network = compressed_of(len(phantom.classes))
    start = copy.deepcopy(network.state_dict())
    wild = dataclasses.replace(SCHEDULE, learning_rate=1e30)
    with pytest.raises(ModelError, match="not finite"):
        finetune(network, phantom, preprocess, Head("softmax", phantom.classes), wild)
    assert all(torch.equal(value, start[name]) for name, value in network.state_dict().items())
    assert not network.training


def test_a_rounding_wrapper_trains_what_it_wraps(phantom, preprocess):
    """The seam for quantisation-aware training: the rounded network gets better, through shared parameters."""
    head = Head("softmax", phantom.classes)
    network = compressed_of(len(phantom.classes))
    before = loss_on(Rounded(network).eval(), phantom, preprocess, head)
    finetune(Rounded(network), phantom, preprocess, head, SCHEDULE)
    assert loss_on(Rounded(network).eval(), phantom, preprocess, head) < 0.95 * before
    assert not network.training


def test_losses_of_heads_agree():
    """One logit z is the softmax of (0, z); a sigmoid head is the sum of its labels' binary losses."""
    logits = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12) % 2
    one = logits[:, :1]
    two = torch.cat([torch.zeros_like(one), one], dim=1)
    single, softmax = Head("single_logit", ("no", "yes")), Head("softmax", ("no", "yes"))
    for smoothing in (0.0, 0.2):
        first, second = label_loss(single, one, labels, smoothing), label_loss(softmax, two, labels, smoothing)
        assert float(first) == pytest.approx(float(second), rel=1e-5)
    columns = functional.binary_cross_entropy_with_logits(logits, functional.one_hot(labels, 3).float()) * 3
    assert float(label_loss(Head("sigmoid", ("a", "b", "c")), logits, labels)) == pytest.approx(
        float(columns), rel=1e-5
    )
