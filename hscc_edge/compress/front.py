"""What a sweep found: every trial, which of them nothing beats, and which hyper-parameters matter."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from hscc_edge import durable
from hscc_edge.compress.sweep_recipe import completed
from hscc_edge.compress.sweep_study import GRID, Studies
from hscc_edge.errors import extra
from hscc_edge.validate.machine import machine_facts

with extra("workstation"):
    import optuna
    from optuna.trial import FrozenTrial, TrialState

VERSION = 1
LEAST_KL = 1e-9
LEAST_TRIALS = 4


@dataclass(frozen=True, slots=True)
class Entry:
    """One trial.

    Attributes:
        stage: grid or search.
        params: every hyper-parameter by name, drawn, set or by default.
        outcome: see `Outcome`; None if it was refused.
        pareto: no other trial is as good in every objective and better in one.
        refused: why the method could not do it; empty if it could.
    """

    name: str
    stage: str
    method: str
    budget: str
    seed: int
    params: Mapping[str, Any]
    outcome: Mapping[str, Any] | None
    pareto: bool
    refused: str


@dataclass(frozen=True, slots=True)
class Effect:
    """How one value (or third of a range) of a hyper-parameter did in the search.

    `ratio` is the geometric mean of KL over that of all search trials of the same budget: below 1 is better.
    """

    name: str
    value: str
    trials: int
    ratio: float


@dataclass(frozen=True, slots=True)
class Average:
    """A method at a budget, over the seeds of the grid: means, and standard errors where there are two seeds or more.

    `kl` in nats an image, `accuracy` in points lost, flops, bytes and latency as shares of the dense network's.
    """

    method: str
    budget: str
    seeds: int
    kl: float
    kl_se: float | None
    accuracy: float
    accuracy_se: float | None
    flops: float
    bytes: float
    latency: float | None


@dataclass(frozen=True, slots=True)
class Front:
    """A sweep's findings so far.

    Attributes:
        importances: target -> hyper-parameter -> share of the variance that it explains among the search's trials
            (fANOVA, Hutter et al. 2014); the targets are logarithms, less their mean at the same budget.
        left: trials that are yet to be done.
        facts: bundle, cohort, judged part, machine, date, versions.
    """

    name: str
    objectives: tuple[str, ...]
    entries: tuple[Entry, ...]
    averages: tuple[Average, ...]
    importances: Mapping[str, Mapping[str, float]]
    effects: tuple[Effect, ...]
    left: int
    facts: Mapping[str, Any]


def front_of(studies: Studies, facts: Mapping[str, Any]) -> Front:
    """Findings of all trials that are done."""
    recipe = studies.recipe
    found = [_entry(studies, trial, study.study_name) for study in (studies.grid, studies.search)
             for trial in study.get_trials(deepcopy=False) if _told(trial)]  # fmt: skip
    measured = [entry for entry in found if entry.outcome is not None]
    values = [[float(entry.outcome[name]) for name in recipe.objectives] for entry in measured if entry.outcome]
    best = {entry.name for entry, good in zip(measured, pareto(values), strict=True) if good}
    entries = tuple(dataclasses.replace(entry, pareto=entry.name in best) for entry in found)
    searched = studies.search.get_trials(states=(TrialState.COMPLETE,))
    targets = ["kl", *(["latency"] if "latency" in recipe.objectives else [])]
    importances = {name: shares for name in targets if (shares := _importance(searched, name))}
    versions = {name: version(name) for name in ("optuna", "torch", "scikit-learn")}
    machine = machine_facts()
    machine["versions"] = {**machine["versions"], **versions}
    return Front(
        recipe.name, recipe.objectives, entries, averages_of(entries), importances, _effects(searched), studies.left(),
        {**facts, **machine, "recipe": recipe.key},
    )  # fmt: skip


def _told(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE or "refused" in trial.user_attrs


def _entry(studies: Studies, trial: FrozenTrial, stage: str) -> Entry:
    recipe, search = studies.recipe, studies.recipe.search
    drawn, attrs = dict(trial.params), trial.user_attrs
    budget, seed = drawn.pop("budget"), drawn.pop("seed")
    method = drawn.pop("method", "") if stage == GRID or search is None else search.method
    params = completed(method, {**recipe.settings, **drawn})
    return Entry(attrs["wanted"], stage, method, budget, seed, params, attrs.get("outcome"), False,
                 attrs.get("refused", ""))  # fmt: skip


def pareto(values: Sequence[Sequence[float]]) -> list[bool]:
    """Whether each row is on the front: all columns are to be small; equal rows do not beat each other. O(n^2)."""
    rows = np.asarray(values, dtype=float)
    return [not bool(np.any((rows <= row).all(1) & (rows < row).any(1))) for row in rows]


def averages_of(entries: Sequence[Entry]) -> tuple[Average, ...]:
    """Of the grid, in its order."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in entries:
        if entry.stage == GRID and entry.outcome is not None:
            groups.setdefault((entry.method, entry.budget), []).append(entry.outcome)
    return tuple(_average(*key, outcomes) for key, outcomes in groups.items())


def _average(method: str, budget: str, outcomes: Sequence[Mapping[str, Any]]) -> Average:
    def mean(name: str) -> float:
        return float(np.mean([outcome[name] for outcome in outcomes]))

    def error(name: str) -> float | None:
        values = [outcome[name] for outcome in outcomes]
        return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None

    latency = mean("latency") if all(outcome["latency"] is not None for outcome in outcomes) else None
    return Average(method, budget, len(outcomes), mean("kl"), error("kl"), mean("accuracy"), error("accuracy"),
                   mean("flops"), mean("bytes"), latency)  # fmt: skip


def _centred(trials: Sequence[FrozenTrial], name: str) -> dict[int, float]:
    """Logarithm of an outcome less its mean over the trials of the same budget, by trial number."""
    logs = {trial.number: math.log(max(trial.user_attrs["outcome"][name], LEAST_KL)) for trial in trials}
    groups: dict[str, list[float]] = {}
    for trial in trials:
        groups.setdefault(trial.params["budget"], []).append(logs[trial.number])
    return {trial.number: logs[trial.number] - float(np.mean(groups[trial.params["budget"]])) for trial in trials}


def _importance(trials: Sequence[FrozenTrial], name: str) -> dict[str, float]:
    """Empty where there are too few trials, or nothing varies."""
    targets = _centred(trials, name) if len(trials) >= LEAST_TRIALS else {}
    if not targets or np.ptp(list(targets.values())) == 0.0:
        return {}
    study = optuna.create_study(directions=["minimize"] * len(trials[0].values))
    study.add_trials(trials)
    numbers = {new.number: old.number for new, old in zip(study.get_trials(deepcopy=False), trials, strict=True)}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(
        study, evaluator=evaluator, target=lambda trial: targets[numbers[trial.number]]
    )


def _effects(trials: Sequence[FrozenTrial]) -> tuple[Effect, ...]:
    targets = _centred(trials, "kl")
    found = []
    for name in trials[0].params if trials else ():
        if name == "budget":
            continue
        groups: dict[str, list[float]] = {}
        rising = sorted(trials, key=lambda trial: trial.params[name])
        for label, trial in zip(_labels([trial.params[name] for trial in rising]), rising, strict=True):
            groups.setdefault(label, []).append(targets[trial.number])
        if len(groups) > 1:
            found += [Effect(name, label, len(logs), math.exp(np.mean(logs))) for label, logs in groups.items()]
    return tuple(found)


def _labels(values: Sequence[Any]) -> list[str]:
    """The values as text; numbers of more than six kinds in thirds."""
    if len(set(values)) <= 6 or isinstance(values[0], str):
        return [str(value) for value in values]
    first, second = np.quantile(values, (1 / 3, 2 / 3))
    names = (f"up to {first:.3g}", f"{first:.3g} to {second:.3g}", f"above {second:.3g}")
    return [names[int(value > first) + int(value > second)] for value in values]


def write_front(out: Path, front: Front) -> None:
    """front.json and front.html in `out`."""
    from hscc_edge.compress.front_page import render

    durable.write_json(out / "front.json", {"version": VERSION, **dataclasses.asdict(front)})
    durable.write_text(out / "front.html", render(front))
