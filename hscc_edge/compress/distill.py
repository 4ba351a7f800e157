"""Label-free distillation: the compressed network learns, on images without labels, to give what the original gives.

Both see the same image (function matching: Beyer et al. 2022, arXiv 2106.05237), in evaluation mode: no dropout, and
batch norm as it was. The loss is the KL of the outputs (Hinton et al. 2015, arXiv 1503.02531, at temperature 1) and
the share of the variance that the compressed layers' outputs miss (after Romero et al. 2015, arXiv 1412.6550).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice

from hscc_edge.compress.problem import Batch, Batches, Call, Progress, call_image
from hscc_edge.compress.spectral_step import move, mover
from hscc_edge.errors import CohortError, ConfigError, ModelError, extra
from hscc_edge.model.head import Head
from hscc_edge.model.recipe import PRECISIONS

with extra("workstation"):
    import torch
    from torch import nn
    from torch.nn import functional

HELD_OUT = 2
WARM_UP = 0.1
MEMORY_BYTES = 512 << 20
FLAT = 1e-3


@dataclass(frozen=True, slots=True)
class Distillation:
    """How long and how fast.

    Attributes:
        seconds: wall time of everything, the checks included; at most a step more.
        steps: if not 0, end after so many optimiser steps instead: the same on every run.
        learning_rate: the largest step, as a share of each weight's size at the start (see `spectral_step.py`); it
            rises over the first tenth of the run and falls to 0 as a cosine.
        ema: horizon of the moving average of the weights, as a share of the run; the average is what remains.
        feature_weight: of the missed variance, averaged over the layers, beside the KL in nats.
        replay: steps for each batch that the original answers; recent answers are kept, up to MEMORY_BYTES.
        precision: of the original's answers: fp32, or bf16 for autocast. The compressed network trains in fp32.
        seed: of the choice among the kept answers.
    """

    seconds: float = 90.0
    steps: int = 0
    learning_rate: float = 1e-3
    ema: float = 0.05
    feature_weight: float = 1.0
    replay: int = 2
    precision: str = "fp32"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What distillation did; KL in nats an image.

    Attributes:
        first: KL of the first batch of the stream; `before` if its loss was not finite.
        last: KL of the last one.
        before: KL of the held-out images at the start.
        after: the same at the end; equal to `before` if the start was restored.
        kept: whether the new weights are better on the held-out images.
    """

    steps: int
    seconds: float
    first: float
    last: float
    before: float
    after: float
    kept: bool


@dataclass(frozen=True, slots=True)
class Pair:
    """The two networks, and how they are run and compared."""

    original: nn.Module
    compressed: nn.Module
    heads: tuple[Head, ...]
    layers: tuple[str, ...]
    call: Call


@dataclass(frozen=True, slots=True)
class Lesson:
    """A batch, the original's logits (B, n) for each head, and its outputs at the matched layers."""

    batch: Batch
    logits: tuple[torch.Tensor, ...]
    features: Mapping[str, torch.Tensor]

    @property
    def size(self) -> int:
        """Bytes."""
        tensors = (*self.batch.values(), *self.logits, *self.features.values())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass
class Course:
    """What the steps so far led to; `average` are the weights that remain."""

    average: list[torch.Tensor]
    steps: int = 0
    losses: list[float] = field(default_factory=list)


def distill(
    original: nn.Module,
    compressed: nn.Module,
    batches: Batches,
    heads: tuple[Head, ...],
    options: Distillation,
    *,
    layers: Sequence[str] = (),
    call: Call = call_image,
    held_out: Batches | None = None,
    progress: Progress | None = None,
) -> Report:
    """Train `compressed` in place; its start comes back unless the end is better on held-out images.

    A step costs one pass forward and backward of the compressed network, and 1 / replay of a forward pass of the
    original. Memory: the activations of a batch and up to MEMORY_BYTES of answers.

    A module that shares the compressed network's parameters and rounds them in its forward pass may stand in its place,
    with no `layers`: that is quantisation-aware distillation.

    Args:
        batches: starts a new pass; passes follow each other until the time is over.
        layers: modules that have the same name and the same outputs in both networks, to be matched.
        held_out: the images that decide (see `stream.py`); if None, the first HELD_OUT batches of each pass.
        progress: called with (images, note) after each step.

    Raises:
        ConfigError: if an option is out of range.
        ModelError: if the networks' outputs do not fit the heads or each other.
        CohortError: if a pass has too few batches.
    """
    check_options(options)
    began = time.monotonic()
    pair = Pair(original, compressed, heads, tuple(layers), call)
    skipped = HELD_OUT if held_out is None else 0
    with _evaluating(original, compressed), _trainable(compressed) as weights:
        aside = list(islice(batches(), HELD_OUT)) if held_out is None else list(held_out())
        before = mean_kl(pair, aside)
        clock = Clock(options, time.monotonic(), began + options.seconds - (time.monotonic() - began))
        start = [weight.detach().clone() for weight in weights]
        kept = False
        try:
            course = _learn(
                pair, weights, _lessons(pair, _endless(batches, skipped), options), options, clock, progress
            )
            _write(weights, course.average)
            after = mean_kl(pair, aside)
            kept = after < before
        finally:
            if not kept:
                _write(weights, start)
    first, last = (course.losses[0], course.losses[-1]) if course.losses else (before, before)
    seconds = time.monotonic() - began
    return Report(course.steps, seconds, first, last, before, after if kept else before, kept)


def check_options(options: Distillation) -> None:
    """Raise ConfigError if an option is out of range."""
    rules = (
        ("seconds", options.seconds > 0, "a positive number"),
        ("steps", options.steps >= 0, "0 or more"),
        ("learning_rate", options.learning_rate > 0, "a positive number"),
        ("ema", 0 <= options.ema < 1, "at least 0 and below 1"),
        ("feature_weight", options.feature_weight >= 0, "0 or more"),
        ("replay", options.replay >= 1, "1 or more"),
        ("precision", options.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
    )
    for name, holds, expected in rules:
        if not holds:
            raise ConfigError(f"distillation has {name}={getattr(options, name)!r}: expected {expected}")


def head_kl(head: Head, reference: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Mean over images of the KL, in nats, from the reference's distribution; differentiable form of `head.kl`."""
    if head.kind == "softmax":
        first, second = functional.log_softmax(reference, 1), functional.log_softmax(logits, 1)
        return functional.kl_div(second, first, log_target=True, reduction="batchmean")
    positive = functional.logsigmoid(reference) - functional.logsigmoid(logits)
    negative = functional.logsigmoid(-reference) - functional.logsigmoid(-logits)
    share = reference.sigmoid()
    return (share * positive + (1 - share) * negative).sum(1).mean()


def mean_kl(pair: Pair, batches: Sequence[Batch]) -> float:
    """KL in nats an image, summed over the heads, in fp32.

    Raises:
        CohortError: if there is no image.
    """
    total, images = 0.0, 0
    with torch.no_grad():
        for batch in map(_dense, batches):
            reference = pair.call(pair.original, batch)
            count = len(reference[0])
            total += count * float(_outputs_kl(pair, reference, pair.call(pair.compressed, batch)))
            images += count
    if images == 0:
        raise CohortError("there is no held-out image for distillation: give a cohort with more images")
    return total / images


@dataclass(frozen=True, slots=True)
class Clock:
    """How much of the budget is used up in the middle of the next step: by steps, or by time."""

    options: Distillation
    start: float
    end: float

    def share(self, done: int) -> float:
        """0..1 while there is another step, more when there is none; the first step is always there."""
        if self.options.steps:
            return (done + 0.5) / self.options.steps
        elapsed = time.monotonic() - self.start
        left = max(self.end - self.start, 1e-9)
        return elapsed * (1 + 0.5 / done) / left if done else min(elapsed / left, 0.5)


def _learn(
    pair: Pair,
    weights: list[nn.Parameter],
    lessons: Iterator[Lesson],
    options: Distillation,
    clock: Clock,
    progress: Progress | None,
) -> Course:
    """Steps until the clock says so, or until the loss is not finite."""
    state = mover(weights)
    course = Course([weight.detach().clone() for weight in weights])
    used = 0.0
    while (share := clock.share(course.steps)) < 1:
        lesson = next(lessons)
        found, loss = _losses(pair, lesson, options.feature_weight)
        if not bool(torch.isfinite(loss)):
            break
        for weight in weights:
            weight.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        move(state, options.learning_rate * min(share / WARM_UP, 1.0) * 0.5 * (1 + math.cos(math.pi * share)))
        keep = math.exp((used - share) / options.ema) if options.ema else 0.0
        torch._foreach_lerp_(course.average, [weight.detach() for weight in weights], 1 - keep)
        used = share
        course.steps += 1
        course.losses.append(found.item())
        if progress is not None:
            progress(len(lesson.logits[0]), f"distillation, KL {course.losses[-1]:.4f}")
    return course


def _losses(pair: Pair, lesson: Lesson, feature_weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(KL, KL and features)."""
    missed: list[torch.Tensor] = []
    wanted = pair.layers if feature_weight else ()
    with _watching(pair.compressed, wanted, lambda name, y: missed.append(_missed(name, lesson.features[name], y))):
        logits = pair.call(pair.compressed, lesson.batch)
    found = _outputs_kl(pair, lesson.logits, logits)
    return found, found + feature_weight * torch.stack(missed).mean() if missed else found


def _missed(name: str, reference: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Share of the variance of the original's outputs, about their mean for each channel (axis 1), that `y` misses."""
    if reference.shape != y.shape:
        raise ModelError(
            f"the layer {name} gives {tuple(y.shape[1:])} and the original {tuple(reference.shape[1:])}: "
            "match only layers whose outputs have the same shape"
        )
    mean = reference.mean([axis for axis in range(y.dim()) if axis != 1], keepdim=True)
    least = FLAT * reference.square().sum() + 1e-30
    return (y - reference).square().sum() / torch.maximum((reference - mean).square().sum(), least)


def _outputs_kl(pair: Pair, reference: Sequence[torch.Tensor], logits: Sequence[torch.Tensor]) -> torch.Tensor:
    if not len(pair.heads) == len(reference) == len(logits):
        raise ModelError(
            f"the networks give {len(reference)} and {len(logits)} outputs and {len(pair.heads)} heads are declared: "
            "mend the heads"
        )
    triples = zip(pair.heads, reference, logits, strict=True)
    return torch.stack([head_kl(head, first, second.float()) for head, first, second in triples]).sum()


def _lessons(pair: Pair, stream: Iterator[Batch], options: Distillation) -> Iterator[Lesson]:
    """New answers of the original, and kept ones drawn at random between them: `replay` lessons an answer."""
    chance = random.Random(options.seed)
    kept: list[Lesson] = []
    for batch in stream:
        kept.append(_answer(pair, _dense(batch), options))
        yield kept[-1]
        room = max(MEMORY_BYTES // max(kept[-1].size, 1), 1)
        del kept[:-room]
        for _ in range(options.replay - 1):
            yield chance.choice(kept)


def _answer(pair: Pair, batch: Batch, options: Distillation) -> Lesson:
    features: dict[str, torch.Tensor] = {}
    wanted = pair.layers if options.feature_weight else ()
    bf16 = torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16")
    with torch.no_grad(), bf16, _watching(pair.original, wanted, lambda name, y: features.update({name: y.clone()})):
        logits = pair.call(pair.original, batch)
    return Lesson(batch, tuple(entry.float() for entry in logits), features)


@contextmanager
def _watching(network: nn.Module, names: Sequence[str], see: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    """Call `see` with the outputs of the modules `names`, before anything in place can change them."""
    with ExitStack() as stack:
        for name in names:
            handle = network.get_submodule(name).register_forward_hook(lambda _m, _a, y, name=name: see(name, y))
            stack.callback(handle.remove)
        yield


def _endless(batches: Batches, skipped: int) -> Iterator[Batch]:
    """Pass after pass, each without its first `skipped` batches."""
    while True:
        empty = True
        for batch in islice(batches(), skipped, None):
            empty = False
            yield batch
        if empty:
            raise CohortError(
                f"distillation sets {skipped} batches aside and a pass has no more: give more images or smaller batches"
            )


def _dense(batch: Batch) -> Batch:
    """Images (B, C, H, W) channels last, which the CPU's convolutions like best."""
    return {
        name: value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
        for name, value in batch.items()
    }


@contextmanager
def _evaluating(*networks: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for network in networks for module in network.modules()]
    try:
        for network in networks:
            network.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _trainable(network: nn.Module) -> Iterator[list[nn.Parameter]]:
    weights = [weight for weight in network.parameters() if weight.is_floating_point()]
    tracked = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        yield weights
    finally:
        for weight, wanted in zip(weights, tracked, strict=True):
            weight.requires_grad_(wanted)
            weight.grad = None


def _write(weights: Sequence[nn.Parameter], values: Sequence[torch.Tensor]) -> None:
    with torch.no_grad():
        for weight, value in zip(weights, values, strict=True):
            weight.copy_(value)
