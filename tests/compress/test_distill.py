"""Distillation lowers the KL on images it has not seen, for every head, and never leaves a network worse."""

import copy
import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from hscc_edge.compress.distill import Distillation, Report, distill, head_kl
from hscc_edge.compress.problem import Batches
from hscc_edge.errors import CohortError, ConfigError, ModelError
from hscc_edge.model.convolution import conv_like
from hscc_edge.model.head import Head, kl
from hscc_edge.model.plan import Box
from hscc_edge.model.regional import OwnFactors, SharedReduce, pointwise

SOFTMAX = Head("softmax", ("a", "b", "c", "d"))
SIGMOID = Head("sigmoid", ("a", "b", "c"))
SINGLE = Head("single_logit", ("absent", "present"))
WIDTH = {"softmax": 4, "sigmoid": 3, "single_logit": 1}
QUARTERS = tuple(Box((top, left), (top + 6, left + 6)) for top in (0, 6) for left in (0, 6))
QUICK = Distillation(steps=40, learning_rate=1e-2)


class Small(nn.Module):
    """Dropout, batch norm and an in-place ReLU; one Linear a head, two heads give a tuple."""

    def __init__(self, heads: tuple[Head, ...]) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 24, 5, stride=2, padding=2)
        self.norm = nn.BatchNorm2d(24)
        self.second = nn.Conv2d(24, 32, 3, padding=1)
        self.tail = nn.Sequential(nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Dropout(0.5))
        self.heads = nn.ModuleList(nn.Linear(288, WIDTH[head.kind]) for head in heads)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        z = self.tail(self.second(torch.relu(self.norm(self.first(x)))))
        found = tuple(head(z) for head in self.heads)
        return found if len(found) > 1 else found[0]


def one_region(dense: nn.Conv2d, rank: int) -> nn.Module:
    return nn.Sequential(conv_like(dense, dense.in_channels, rank), pointwise(dense, rank))


STRUCTURES: dict[str, Callable[[nn.Conv2d, int], nn.Module]] = {
    "one-region": one_region,
    "shared-reduce": lambda dense, rank: SharedReduce(dense, rank, QUARTERS),
    "own-factors": lambda dense, rank: OwnFactors(dense, (rank,) * 4, QUARTERS),
}


def truncated(network: Small, structure: str = "one-region", rank: int = 3) -> Small:
    """A copy whose second convolution is its truncated SVD, written into every region of `structure`."""
    made = copy.deepcopy(network)
    dense = made.second
    made.second = STRUCTURES[structure](dense, rank)
    u, s, v = torch.linalg.svd(dense.weight.detach().flatten(1), full_matrices=False)
    reduce, expand = s[:rank, None].sqrt() * v[:rank], u[:, :rank] * s[:rank].sqrt()
    with torch.no_grad():
        for module in made.second.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_((expand if module.kernel_size == (1, 1) else reduce).reshape(module.weight.shape))
                if module.bias is not None:
                    module.bias.copy_(dense.bias)
    return made


def smooth_images(count: int, seed: int) -> torch.Tensor:
    noise = torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(noise, size=(24, 24), mode="bicubic", align_corners=False)


def stream(count: int = 160, seed: int = 0) -> Batches:
    return lambda: [{"image": part} for part in smooth_images(count, seed).split(16)]


def network_of(*heads: Head) -> Small:
    torch.manual_seed(0)
    network = Small(heads)
    network(smooth_images(64, 3))
    with torch.no_grad():
        for layer in network.heads:
            layer.weight.mul_(8)
    return network.eval()


def unseen_kl(network: Small, other: Small, heads: tuple[Head, ...]) -> float:
    images = smooth_images(128, 9)
    with torch.no_grad():
        pairs = [out if isinstance(out, tuple) else (out,) for out in (network(images), other(images))]
    return sum(
        float(kl(head, first.numpy(), second.numpy()).mean()) for head, first, second in zip(heads, *pairs, strict=True)
    )


def weights_of(network: nn.Module) -> list[torch.Tensor]:
    return [value.clone() for value in network.state_dict().values()]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def run(network: Small, student: Small, heads: tuple[Head, ...], options: Distillation) -> Report:
    return distill(network, student, stream(), heads, options, layers=("second",))


@pytest.mark.parametrize("heads", [(SOFTMAX,), (SIGMOID,), (SINGLE,), (SOFTMAX, SIGMOID)], ids=str)
def test_kl_falls_on_unseen_images(heads):
    network = network_of(*heads)
    student = truncated(network)
    before = unseen_kl(network, student, heads)
    report = run(network, student, heads, QUICK)
    assert report.kept and report.steps == 40
    assert report.after < 0.6 * report.before and report.last < report.first
    assert unseen_kl(network, student, heads) < 0.6 * before


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_structure_learns_in_every_region(structure):
    network = network_of(SOFTMAX)
    student = truncated(network, structure)
    start = weights_of(student.second)
    assert run(network, student, (SOFTMAX,), QUICK).kept
    assert not any(torch.equal(a, b) for a, b in zip(start, weights_of(student.second), strict=True))


def test_the_original_and_the_statistics_stay_as_they_were():
    network = network_of(SOFTMAX).train()
    student = truncated(network).train().requires_grad_(False)
    before, running = weights_of(network), weights_of(student.norm)[2:]
    assert run(network, student, (SOFTMAX,), QUICK).kept
    assert same(before, weights_of(network)) and same(running, weights_of(student.norm)[2:])
    assert network.training and student.training and student.tail.training
    assert all(not weight.requires_grad and weight.grad is None for weight in student.parameters())
    assert all(weight.grad is None for weight in network.parameters())


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


def test_a_rounding_wrapper_teaches_what_it_wraps():
    """The seam for quantisation-aware distillation: the rounded network gets nearer to the original."""
    network = network_of(SOFTMAX)
    student = truncated(network)
    before = unseen_kl(network, Rounded(student), (SOFTMAX,))
    report = distill(network, Rounded(student), stream(), (SOFTMAX,), QUICK)
    assert report.kept and unseen_kl(network, Rounded(student), (SOFTMAX,)) < 0.8 * before


@pytest.mark.parametrize("rate", [3.0, 1e30], ids=["wild", "not finite"])
def test_a_rate_that_is_too_high_gives_the_start_back(rate):
    network = network_of(SOFTMAX)
    student = truncated(network)
    start = weights_of(student)
    report = run(network, student, (SOFTMAX,), dataclasses.replace(QUICK, learning_rate=rate))
    assert not report.kept and report.after == report.before
    assert same(start, weights_of(student))


def test_a_stream_that_breaks_gives_the_start_back():
    def broken():
        yield from list(stream()())[:6]
        raise OSError("the disk is gone")

    network = network_of(SOFTMAX)
    student = truncated(network)
    start = weights_of(student)
    with pytest.raises(OSError, match="disk"):
        distill(network, student, broken, (SOFTMAX,), QUICK)
    assert same(start, weights_of(student))


def test_the_same_seed_gives_the_same_network():
    network = network_of(SOFTMAX)
    students = [truncated(network) for _ in range(3)]
    for student, seed in zip(students, (1, 1, 2), strict=True):
        run(network, student, (SOFTMAX,), dataclasses.replace(QUICK, steps=6, seed=seed))
    first, second, third = map(weights_of, students)
    assert same(first, second) and not same(first, third)


def test_the_time_ends_it():
    network = network_of(SOFTMAX)
    report = run(network, truncated(network), (SOFTMAX,), Distillation(seconds=0.5))
    assert report.steps > 0 and report.seconds > 0


def test_features_are_matched():
    """With a weight on features, the matched layer comes nearer to the original's than without."""
    network = network_of(SOFTMAX)
    plain, matched = truncated(network), truncated(network)
    for student, weight in ((plain, 0.0), (matched, 10.0)):
        run(network, student, (SOFTMAX,), dataclasses.replace(QUICK, steps=20, feature_weight=weight))
    images = smooth_images(64, 5)
    with torch.no_grad():
        inner = torch.relu(network.norm(network.first(images)))
        gaps = [
            float((student.second(torch.relu(student.norm(student.first(images)))) - network.second(inner)).norm())
            for student in (plain, matched)
        ]
    assert gaps[1] < gaps[0]


def test_the_held_out_images_are_never_learnt():
    """Batches that are set aside reach the networks at the start and at the end alone, and in evaluation."""
    network = network_of(SOFTMAX)
    student = truncated(network)
    seen: list[tuple[float, bool]] = []
    student.register_forward_hook(lambda _m, args, y: seen.append((float(args[0].sum()), y.requires_grad)))
    run(network, student, (SOFTMAX,), dataclasses.replace(QUICK, steps=25, replay=1))
    aside = [float(batch["image"].sum()) for batch in list(stream()())[:2]]
    assert all(not learnt for total, learnt in seen if total in aside)
    assert [total for total, learnt in seen if not learnt] == aside * 2
    assert sum(learnt for _, learnt in seen) == 25


@pytest.mark.parametrize("head", [SOFTMAX, SIGMOID, SINGLE], ids=lambda head: head.kind)
def test_the_loss_is_the_kl_of_the_evidence(head):
    generator = torch.Generator().manual_seed(4)
    first, second = (6 * torch.randn(32, WIDTH[head.kind], generator=generator).double() for _ in range(2))
    expected = kl(head, first.numpy(), second.numpy()).mean()
    np.testing.assert_allclose(float(head_kl(head, first, second)), expected, rtol=1e-9)
    assert float(head_kl(head, first, first)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "value"),
    [("seconds", 0.0), ("steps", -1), ("learning_rate", 0.0), ("ema", 1.0), ("feature_weight", -1.0), ("replay", 0),
     ("precision", "fp8")],
)  # fmt: skip
def test_options_out_of_range(name, value):
    network = network_of(SOFTMAX)
    with pytest.raises(ConfigError, match=f"{name}={value!r}"):
        run(network, truncated(network), (SOFTMAX,), dataclasses.replace(QUICK, **{name: value}))


def test_what_does_not_fit():
    network = network_of(SOFTMAX)
    student = truncated(network)
    with pytest.raises(ModelError, match="2 heads are declared"):
        run(network, student, (SOFTMAX, SIGMOID), QUICK)
    with pytest.raises(CohortError, match="2 batches aside"):
        distill(network, student, stream(32), (SOFTMAX,), QUICK)
    with pytest.raises(CohortError, match="no held-out image"):
        distill(network, student, stream(), (SOFTMAX,), QUICK, held_out=list)
    student.second = nn.Sequential(student.second, nn.AvgPool2d(2))
    with pytest.raises(ModelError, match="the layer second gives"):
        run(network, student, (SOFTMAX,), QUICK)
