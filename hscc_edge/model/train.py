"""Training from a recipe, through the MONAI pipeline; deterministic from its seed on one machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hscc_edge.bundle import WEIGHTS, Bundle, Code, Spec, write_bundle
from hscc_edge.data.case import inputs_of
from hscc_edge.data.cohort import Cohort
from hscc_edge.data.pipeline import loader
from hscc_edge.data.preprocess import Preprocess
from hscc_edge.errors import CohortError, ModelError, extra
from hscc_edge.model.head import Head, parse_head
from hscc_edge.model.load import fresh_network, weights_of
from hscc_edge.model.recipe import Recipe, Schedule

with extra("workstation"):
    import torch
    from monai.utils.misc import set_determinism
    from torch import nn
    from torch.nn import functional

Progress = Callable[[int, str], None]


def spec_of(recipe: Recipe, cohort: Cohort) -> Spec:
    """The spec of the bundle that training `recipe` on `cohort` makes.

    A finding's code comes from the recipe, else from the cohort.

    Raises:
        CohortError: if a class has no code in either, or the cohort has a single class.
    """
    if len(cohort.classes) < 2:
        raise CohortError(f"the cohort {cohort.root} has {len(cohort.classes)} class: a classifier needs at least two")
    if recipe.labels and recipe.labels != cohort.classes:
        raise CohortError(f"the recipe's labels {recipe.labels} are not the cohort's {cohort.classes}: leave them out")
    findings = {label: _finding(recipe, cohort, label) for label in cohort.classes}
    return Spec(
        name=recipe.name,
        version=1,
        network=dict(recipe.network),
        preprocess=recipe.preprocess.to_json(),
        decision=recipe.decision.to_json(),
        head={"kind": recipe.head, "labels": list(cohort.classes)},
        findings=findings,
        site=recipe.site,
        procedure=recipe.procedure,
    )


def _finding(recipe: Recipe, cohort: Cohort, label: str) -> Code:
    if label in recipe.findings:
        return recipe.findings[label]
    if label in cohort.codes:
        return Code(**cohort.codes[label])
    raise CohortError(f"the class '{label}' has no coded finding: add [findings.{label}] to the recipe")


def train(
    recipe: Recipe, cohort: Cohort, out: Path, *, replace: bool = False, progress: Progress | None = None
) -> Bundle:
    """Train on the cohort's train split and write a bundle.

    Memory grows with the network and, up to the pipeline's bound, with the cached images; time with epochs x images.

    Args:
        progress: called with (optimiser steps done, note) after each step.

    Raises:
        ModelError: if the loss stops being finite.
    """
    spec = spec_of(recipe, cohort)
    train_split = cohort.select("train")
    with deterministic(recipe.schedule.seed):
        network = fresh_network(spec)
        loss = fit(network, train_split, recipe.preprocess, parse_head(spec.head), recipe.schedule, progress)
    trained = {
        "schedule": asdict(recipe.schedule),
        "final_loss": loss,
        "images": len(train_split.instances),
        "cohort": cohort.digest,
        "torch": torch.__version__,
    }
    files = {WEIGHTS: weights_of(network)}
    return write_bundle(out, dataclasses.replace(spec, training=trained), files, replace=replace)


def steps_of(schedule: Schedule, images: int) -> int:
    """Optimiser steps of a schedule on so many images."""
    return schedule.epochs * -(-images // schedule.batch_size)


def slow_bf16(schedule: Schedule) -> bool:
    """Whether bf16 was asked for on an x86 CPU that only emulates it (torch 2.10 and later can tell)."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    native = [value for name, value in capabilities.items() if name in ("avx512_bf16", "amx_bf16")]
    return schedule.precision == "bf16" and bool(native) and not any(native)


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Seed torch, numpy, Python and MONAI; let go of MONAI's seed afterwards."""
    set_determinism(seed)
    try:
        yield
    finally:
        set_determinism(None)


def fit(
    network: nn.Module,
    cohort: Cohort,
    preprocess: Preprocess,
    head: Head,
    schedule: Schedule,
    progress: Progress | None = None,
) -> float:
    """Train a network with one head in place on all of a cohort; the smoothed loss at the end.

    It is left in training mode.

    Raises:
        ModelError: if the loss stops being finite.
    """
    optimiser = torch.optim.AdamW(
        network.parameters(), schedule.learning_rate, weight_decay=schedule.weight_decay, fused=True
    )
    steps = steps_of(schedule, len(inputs_of(cohort, preprocess)))
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, schedule.learning_rate, total_steps=steps)
    batches = loader(
        cohort,
        preprocess,
        batch_size=schedule.batch_size,
        shuffle=True,
        seed=schedule.seed,
        augment=schedule.augment,
        cache=True,
    )
    layout = torch.channels_last_3d if preprocess.volume else torch.channels_last
    network.to(memory_format=layout)  # type: ignore[call-overload]
    network.train()
    smooth = 0.0
    for epoch in range(schedule.epochs):
        for batch in batches:
            loss = _step(network, head, optimiser, batch, schedule)
            cycle.step()
            smooth = loss if smooth == 0.0 else 0.95 * smooth + 0.05 * loss
            if progress is not None:
                progress(1, f"epoch {epoch + 1}/{schedule.epochs} loss {smooth:.3f}")
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return smooth


def _step(
    network: nn.Module, head: Head, optimiser: torch.optim.Optimizer, batch: dict[str, Any], schedule: Schedule
) -> float:
    images = torch.as_tensor(batch["image"])
    images = images.to(memory_format=torch.channels_last_3d if images.dim() == 5 else torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=schedule.precision == "bf16"):
        logits = network(images)
    loss = label_loss(head, logits.float(), torch.as_tensor(batch["label"]), schedule.label_smoothing)
    if not bool(torch.isfinite(loss)):
        raise ModelError("the training loss is not finite: lower learning_rate in the recipe")
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return loss.item()


def label_loss(head: Head, logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """Mean negative log-likelihood of labels (B,), indices into the head's labels; smoothed towards even chances."""
    if head.kind == "softmax":
        return functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    hot = functional.one_hot(labels, len(head.labels)).to(logits.dtype)
    targets = hot[:, 1:] if head.kind == "single_logit" else hot
    even = targets * (1 - smoothing) + smoothing / 2
    return functional.binary_cross_entropy_with_logits(logits, even, reduction="none").sum(1).mean()
