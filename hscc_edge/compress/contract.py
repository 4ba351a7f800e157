"""The accuracy contract: the strongest compression whose network still holds a limit on a validation split.

A prepared problem plans any budget without another pass of statistics, so that a try costs a refit and one pass over
the validation cases. The search bisects the budget's ratio and takes the limit to fail from some ratio on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hscc_edge.bundle import Bundle
from hscc_edge.compress.allocate import Budget
from hscc_edge.compress.compression import Compressed
from hscc_edge.data.case import firsts, whole
from hscc_edge.data.cohort import Cohort
from hscc_edge.data.preprocess import Preprocess
from hscc_edge.data.subset import choose
from hscc_edge.errors import BudgetError, GateError, InputError, extra
from hscc_edge.model.head import parse_head
from hscc_edge.validate import power
from hscc_edge.validate.compare import Comparison, compare
from hscc_edge.validate.noninferiority import NON_INFERIOR, word_of
from hscc_edge.validate.predict import predict
from hscc_edge.validate.uses import record

with extra("workstation"):
    import torch
    from torch import nn

LARGEST_RATIO = 256.0
CLOSE = 1.03
LARGEST_SPLIT = 1000

Judge = Callable[[nn.Module], Comparison]
Attempt = Callable[[Budget], Compressed]


@dataclass(frozen=True, slots=True)
class Contract:
    """What must hold on the validation split.

    Attributes:
        max_drop: accuracy may fall by so many points; None for no such limit.
        max_kl: mean KL from the original, nats an image; None for no such limit.
        confidence: per cent; the network must then be non-inferior at `max_drop` by the paired interval of that level,
            as `validate --margin` has it; else the point estimate counts.
    """

    max_drop: float | None = None
    max_kl: float | None = None
    confidence: float | None = None

    def holds(self, found: Comparison) -> bool:
        """Whether the limits hold."""
        return self._drop_holds(found) and (self.max_kl is None or found.kl <= self.max_kl)

    def _drop_holds(self, found: Comparison) -> bool:
        if self.max_drop is None or self.confidence is None:
            return self.max_drop is None or -100.0 * found.difference <= self.max_drop
        return word_of(found.low, found.high, self.max_drop / 100.0) == NON_INFERIOR

    def __str__(self) -> str:
        """As in a plan's budget."""
        limits = [("max-drop", self.max_drop), ("max-kl", self.max_kl), ("confidence", self.confidence)]
        return " ".join(f"{name}={value:g}" for name, value in limits if value is not None)


@dataclass(frozen=True, slots=True)
class Trial:
    """One budget that was tried: points are of accuracy, candidate minus original; low is the interval's end."""

    budget: str
    kl: float
    difference_points: float
    low_points: float
    cases: int
    holds: bool


def check_contract(contract: Contract) -> None:
    """Refuse limits that mean nothing.

    Raises:
        InputError: if no limit is given, or one is out of range.
    """
    if contract.max_drop is None and contract.max_kl is None:
        raise InputError("the contract has no limit: give --max-drop or --max-kl")
    for name, value in (("--max-drop", contract.max_drop), ("--max-kl", contract.max_kl)):
        if value is not None and not 0 <= value < math.inf:
            raise InputError(f"{name} is {value}: expected 0 or more")
    if contract.confidence is not None and not 50 <= contract.confidence < 100:
        raise InputError(f"--confidence is {contract.confidence}: expected per cent from 50 to below 100, such as 95")


def strongest(attempt: Attempt, contract: Contract, judge: Judge, cost: str = "flops") -> Compressed:
    """The largest ratio of `cost` that holds, within 3 %; its facts list every trial.

    Args:
        attempt: makes the network of a budget; raises BudgetError beyond what can be given.

    Raises:
        GateError: if not even the weakest compression holds.
    """
    trials: list[Trial] = []
    low, high, best = 1.0, LARGEST_RATIO, None
    ratio = 4.0
    while high / low > CLOSE:
        found = _try(attempt, contract, judge, Budget(cost, ratio), trials)
        if found is None:
            high = ratio
        else:
            low, best = ratio, found
        ratio = min(ratio * 2, math.sqrt(low * high)) if high == LARGEST_RATIO else math.sqrt(low * high)
    if best is None:
        raise GateError(_refusal(contract, trials))
    plan = dataclasses.replace(best.plan, budget=f"{contract}: {best.plan.budget}")
    facts = {**best.facts, "contract": dataclasses.asdict(contract), "trials": [dataclasses.asdict(t) for t in trials]}
    return Compressed(best.network, plan, facts)


def _try(attempt: Attempt, contract: Contract, judge: Judge, budget: Budget, trials: list[Trial]) -> Compressed | None:
    try:
        made = attempt(budget)
    except BudgetError:
        return None
    found = judge(made.network)
    holds = contract.holds(found)
    points = (100 * found.difference, 100 * found.low)
    trials.append(Trial(str(budget), found.kl, *points, found.cases, holds))
    return made if holds else None


def _refusal(contract: Contract, trials: Sequence[Trial]) -> str:
    if not trials:
        return f"the contract {contract} could not be tried: this network and method give no compression"
    nearest = min(trials, key=lambda trial: trial.kl)
    told = (
        f"no compression holds the contract {contract}: the nearest, {nearest.budget}, has KL {nearest.kl:.4f} and "
        f"{nearest.difference_points:+.2f} points (interval from {nearest.low_points:+.2f}) on {nearest.cases} cases"
    )
    return f"{told}; loosen the limit, recover by --distill, or keep the original"


def cases_needed(found: Comparison, max_drop: float, confidence: float) -> int:
    """Cases with which the lower bound would hold in one of two cohorts, were difference and discordance as seen.

    0 where the difference itself is beyond the limit, so that no number of cases would do.
    """
    return power.cases_needed(power.observed(found.pairs), max_drop / 100.0, 0.5, confidence / 100.0) or 0


@dataclass(frozen=True, slots=True)
class NetworkRuntime:
    """A torch network behind the Runtime protocol, so that it is judged by the function that serves."""

    network: nn.Module
    name: str = "torch"

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, C, H, W) -> logits (B, n)."""
        with torch.no_grad():
            return np.asarray(self.network(torch.from_numpy(images)).numpy())

    def close(self) -> None:
        """Nothing is held beyond memory."""


def judge_of(bundle: Bundle, original: nn.Module, cohort: Cohort, level: float = 0.95) -> Judge:
    """Compares networks with the original on a cohort, case by case; the original runs once.

    That the split was used is written down beside the cohort.

    Raises:
        InputError: if an image is of the test split.
    """
    if any(item.split == "test" for item in cohort.instances):
        raise InputError(
            f"the contract would be searched on the test split of {cohort.root}, which could then prove nothing: give "
            "a validation split"
        )
    record(cohort, (bundle.digest,), "compress")
    head = parse_head(bundle.spec.head)
    reference = predict(bundle, NetworkRuntime(original), cohort)

    def compared(network: nn.Module) -> Comparison:
        return compare(reference, predict(bundle, NetworkRuntime(network.eval()), cohort), head, level=level)

    return compared


def validation_of(cohort: Cohort, calibration: Cohort, preprocess: Preprocess, seed: int) -> tuple[Cohort, str]:
    """The split that decides, and its name: val, or else train images that did not calibrate (at most 1,000).

    The original has learned the latter, so that their accuracy is too good and a drop shows late. Never test: what
    chooses the network cannot prove it as well.
    """
    if any(item.split == "val" for item in cohort.instances):
        return cohort.select("val"), "val"
    used = {item.file for item in calibration.instances}
    left = tuple(item for item in cohort.select("train").instances if item.file not in used)
    if not left:
        raise InputError(
            "no image is left to hold the contract on: give a cohort with a val split, or fewer calibration --images"
        )
    rest = dataclasses.replace(cohort, instances=left)
    pool = firsts(rest, preprocess)
    chosen = choose(pool, min(len(pool.instances), LARGEST_SPLIT), seed)
    return whole(chosen, rest, preprocess), "train, without the calibration images"
