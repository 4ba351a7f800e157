"""From a dense bundle, a calibration cohort and a budget to a compressed network and its plan."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hscc_edge.bundle import WEIGHTS, Bundle, write_bundle
from hscc_edge.compress import METHODS
from hscc_edge.compress.allocate import Budget, Option, allocate
from hscc_edge.compress.cost import LayerShape, layer_shapes
from hscc_edge.compress.problem import Candidates, Problem, Progress, Settings
from hscc_edge.compress.refit import refit
from hscc_edge.data.cohort import Cohort
from hscc_edge.data.pipeline import loader
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.data.subset import choose
from hscc_edge.errors import CohortError, InputError, ModelError, extra
from hscc_edge.model.head import parse_head
from hscc_edge.model.layers import replace
from hscc_edge.model.load import load_network, weights_of
from hscc_edge.model.plan import LayerPlan, Plan

with extra("workstation"):
    import torch
    from torch import nn

BATCH_SIZE = 32


@dataclass(frozen=True, slots=True)
class Compressed:
    """A compressed network and the plan that made it."""

    network: nn.Module
    plan: Plan


def compress(
    bundle: Bundle, cohort: Cohort, method: str, budget: Budget, settings: Settings, progress: Progress | None = None
) -> Compressed:
    """Compress a dense bundle's network; the calibration images are `cohort`, all of it.

    Time grows with images x network (one pass forward and backward, and for the refit a forward pass a layer); memory
    with m^2 x regions for each layer, and one batch.

    Raises:
        InputError: if the method is unknown.
        ModelError: if the bundle is compressed already.
        CohortError: if the cohort's classes are not the bundle's.
        BudgetError: if the budget cannot be met.
    """
    check_method(method)
    if bundle.spec.plan is not None:
        raise ModelError(f"the bundle {bundle.root} is compressed already: give the dense bundle it was made from")
    if cohort.classes != bundle.spec.labels:
        raise CohortError(
            f"the cohort's classes {cohort.classes} are not the bundle's {bundle.spec.labels}: give its own cohort"
        )
    network = load_network(bundle)
    shapes = layer_shapes(network, bundle.spec.input_shape)
    problem = Problem(network, shapes, parse_head(bundle.spec.head), _Batches(bundle, cohort), settings, progress)
    found = METHODS[method](problem)
    names = [shape.name for shape in shapes if shape.name in found]
    chosen = allocate([found[name].options for name in names], _fixed(shapes, found, budget), budget)
    plan = _plan(method, budget, shapes, dict(zip(names, chosen, strict=True)))
    compressed = _rebuild(network, plan, found)
    changed = [layer.name for layer in plan.layers if layer.structure != "dense"]
    if settings.refit and method == "hscc":
        refit(network, compressed, changed, problem.batches, progress)
    return Compressed(compressed, plan)


def check_method(method: str) -> None:
    """Raise InputError if METHODS has no such method."""
    if method not in METHODS:
        raise InputError(f"the method {method!r} is unknown: expected one of {', '.join(METHODS)}")


def calibration_of(cohort: Cohort, images: int, seed: int) -> Cohort:
    """So many images of the train split, stratified by class."""
    train = cohort.select("train")
    return choose(train, min(images, len(train.instances)), seed)


def write_compressed(
    out: Path, bundle: Bundle, compressed: Compressed, calibration: Cohort, settings: Settings, *, replace: bool = False
) -> Bundle:
    """Write the compressed network as a new bundle whose parent is `bundle`."""
    spec = dataclasses.replace(
        bundle.spec,
        name=f"{bundle.spec.name}-{compressed.plan.method}",
        plan=compressed.plan.to_json(),
        calibration={"cohort": calibration.digest, "images": len(calibration.instances)},
        parent=bundle.digest,
        provenance={"settings": dataclasses.asdict(settings), "torch": torch.__version__},
    )
    return write_bundle(out, spec, {WEIGHTS: weights_of(compressed.network)}, replace=replace)


@dataclass(frozen=True, slots=True)
class _Batches:
    bundle: Bundle
    cohort: Cohort

    def __call__(self) -> Iterable[Mapping[str, torch.Tensor]]:
        preprocess = parse_preprocess(self.bundle.spec.preprocess)
        batches: Iterable[Mapping[str, torch.Tensor]] = loader(
            self.cohort, preprocess, batch_size=BATCH_SIZE, shuffle=False, seed=0
        )
        return batches


def _fixed(shapes: Iterable[LayerShape], found: Mapping[str, Candidates], budget: Budget) -> int:
    kept = [shape for shape in shapes if shape.name not in found]
    return sum(shape.flops if budget.cost == "flops" else shape.params for shape in kept)


def _plan(method: str, budget: Budget, shapes: Iterable[LayerShape], chosen: Mapping[str, Option]) -> Plan:
    return Plan(method, str(budget), tuple(_layer_plan(shape, chosen.get(shape.name)) for shape in shapes))


def _layer_plan(shape: LayerShape, option: Option | None) -> LayerPlan:
    option = option or Option("dense", (), (), shape.flops, shape.params, 0.0)
    reason = shape.reason or ("cheaper or safer dense" if option.structure == "dense" else "")
    return LayerPlan(
        name=shape.name,
        structure=option.structure,
        ranks=option.ranks,
        regions=option.regions,
        shape=shape.text,
        flops=option.flops,
        dense_flops=shape.flops,
        params=option.params,
        dense_params=shape.params,
        loss=option.loss,
        reason=reason,
    )


def _rebuild(network: nn.Module, plan: Plan, found: Mapping[str, Candidates]) -> nn.Module:
    compressed = copy.deepcopy(network)
    for layer in plan.layers:
        if layer.structure != "dense":
            replace(compressed, layer.name, found[layer.name].build(layer))
    return compressed.eval()
