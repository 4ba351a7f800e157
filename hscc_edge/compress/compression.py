"""From a dense network and calibration images to compressed networks: prepared once, then one for each budget."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hscc_edge.bundle import WEIGHTS, Bundle, carried, write_bundle
from hscc_edge.compress import METHODS
from hscc_edge.compress.allocate import Budget
from hscc_edge.compress.calibration import check_classes, features_of, select
from hscc_edge.compress.cost import layer_shapes
from hscc_edge.compress.problem import Batches, Call, Problem, Progress, Proposal, Settings, call_image
from hscc_edge.compress.refit import refit as refit_layers
from hscc_edge.data.case import firsts, whole
from hscc_edge.data.cohort import Cohort
from hscc_edge.data.pipeline import loader
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.data.subset import BLIND, check_choice, distinct
from hscc_edge.errors import CohortError, InputError, ModelError, extra
from hscc_edge.model.decision import question
from hscc_edge.model.fold import Pair, find_pairs, fold
from hscc_edge.model.head import Head, parse_head
from hscc_edge.model.load import load_network, weights_of
from hscc_edge.model.plan import Plan

with extra("workstation"):
    import torch
    from torch import nn

BATCH_SIZE = 32


@dataclass(frozen=True, slots=True)
class Compressed:
    """A compressed network and the plan that made it; `facts` are what recovery and contract report."""

    network: nn.Module
    plan: Plan
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A problem that a method has looked at: any budget from here costs no further pass of statistics.

    Attributes:
        folded: batch norms that were folded into the convolution before them.
    """

    method: str
    problem: Problem
    proposal: Proposal
    folded: tuple[Pair, ...]

    def plan(self, budget: Budget) -> Plan:
        """The plan of least predicted loss.

        Raises:
            BudgetError: if the budget cannot be met.
        """
        return dataclasses.replace(self.proposal.plan(budget), folded=self.folded)

    def build(self, plan: Plan, *, refit: bool = True) -> nn.Module:
        """The network of a plan; `refit` takes a forward pass a layer over the calibration images."""
        network = self.proposal.build(plan)
        if refit:
            changed = [layer.name for layer in plan.layers if layer.structure != "dense"]
            refit_layers(self.problem, network, changed, getattr(self.proposal, "metric", None))
        return network

    def compress(self, budget: Budget, *, refit: bool = True) -> Compressed:
        """Plan and build."""
        plan = self.plan(budget)
        return Compressed(self.build(plan, refit=refit), plan)


def check_method(method: str) -> None:
    """Raise InputError if METHODS has no such method."""
    if method not in METHODS:
        raise InputError(f"the method {method!r} is unknown: expected one of {', '.join(METHODS)}")


def prepare(
    method: str,
    network: nn.Module,
    heads: tuple[Head, ...],
    batches: Batches,
    settings: Settings | None = None,
    *,
    call: Call = call_image,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> Prepared:
    """Fold batch norms and let a method look at a network and its calibration images.

    Time grows with images x (one pass forward and backward); memory with cells x m^2 for each layer, and one batch.

    Args:
        network: in evaluation mode; it is left as it is.
        cache: a file for the statistics; the caller keys it by network, images and options.

    Raises:
        InputError: if the method is unknown.
        ModelError: if the network cannot take the images.
        CohortError: if there is no image.
    """
    check_method(method)
    network = copy.deepcopy(network).eval()
    example = first_image(batches)

    def run(candidate: nn.Module) -> torch.Tensor:
        return torch.cat([logits.flatten(1) for logits in call(candidate, example)], dim=1)

    layer_shapes(network, run)  # tells first of an example that does not fit
    folded = find_pairs(network, run)
    fold(network, folded)
    problem = Problem(
        network, layer_shapes(network, run), heads, batches, settings or Settings(), progress, call, cache
    )
    return Prepared(method, problem, METHODS[method](problem), folded)


def first_image(batches: Batches) -> dict[str, torch.Tensor]:
    """The first image of a stream, as a batch of one.

    Raises:
        CohortError: if there is none.
    """
    for batch in batches():
        return {name: values[:1] for name, values in batch.items() if isinstance(values, torch.Tensor)}
    raise CohortError("the calibration cohort has no image: give a cohort with a train split")


def prepare_bundle(
    bundle: Bundle,
    calibration: Cohort,
    method: str,
    settings: Settings,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> Prepared:
    """Prepare a dense bundle's network on calibration images, all of `calibration`.

    Raises:
        ModelError: if the bundle is compressed already.
        CohortError: if the cohort's classes are not the bundle's.
    """
    check_method(method)
    if bundle.spec.plan is not None:
        raise ModelError(f"the bundle {bundle.root} is compressed already: give the dense bundle it was made from")
    check_classes(bundle, calibration)
    heads = (parse_head(bundle.spec.head),)
    batches = batches_of(bundle, calibration)
    return prepare(method, load_network(bundle), heads, batches, settings, progress=progress, cache=cache)


def calibration_of(
    cohort: Cohort,
    images: int,
    seed: int,
    *,
    method: str = "random",
    bundle: Bundle | None = None,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> Cohort:
    """So many inputs of the train split, or all that differ if it has fewer; see `calibration.select`.

    Args:
        bundle: says what an input is, and by whose features to choose; without one, an input is an image.
        cache: directory that keeps those features.

    Raises:
        CohortError: if one of them, its patient or its content is in the test split too.
    """
    train, features = cohort.select("train"), None
    if bundle is None:
        return select(cohort, min(images, distinct(train)), seed, method=method)
    if method not in BLIND:
        check_choice(method)
        features = features_of(bundle, train, progress, cache)
    preprocess = parse_preprocess(bundle.spec.preprocess)
    pool = firsts(cohort, preprocess)
    chosen = select(pool, min(images, distinct(pool.select("train"))), seed, method=method, features=features)
    return whole(chosen, train, preprocess)


def cache_key(bundle: Bundle, calibration: Cohort, settings: Settings) -> str:
    """Names the statistics of a bundle's network on calibration images under these settings.

    The order counts: a pass that was cut off goes on after so many images.
    """
    order = [item.digest for item in calibration.instances]
    facts = (bundle.digest, calibration.digest, order, settings.cells, settings.seed, "fisher_probe")
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:24]


def batches_of(bundle: Bundle, cohort: Cohort) -> Batches:
    """Streams a cohort's images, preprocessed as the bundle says, in the order of its table."""
    preprocess = parse_preprocess(bundle.spec.preprocess)

    def batches() -> Iterable[Mapping[str, torch.Tensor]]:
        return loader(cohort, preprocess, batch_size=BATCH_SIZE, shuffle=False, seed=0, cache=True)

    stream = batches()
    return lambda: stream


def write_compressed(
    out: Path,
    bundle: Bundle,
    compressed: Compressed,
    calibration: Cohort,
    settings: Settings,
    *,
    replace: bool = False,
) -> Bundle:
    """Write the compressed network as a new bundle whose parent is `bundle`."""
    spec = dataclasses.replace(
        bundle.spec,
        name=f"{bundle.spec.name}-{compressed.plan.method}",
        decision=question(bundle.spec.decision),
        plan=compressed.plan.to_json(),
        calibration={"cohort": calibration.digest, "images": len(calibration.instances)},
        parent=bundle.digest,
        provenance={
            "settings": dataclasses.asdict(settings), "facts": dict(compressed.facts), "torch": torch.__version__
        },
    )  # fmt: skip
    files = {**carried(bundle), WEIGHTS: weights_of(compressed.network)}
    return write_bundle(out, spec, files, replace=replace)
