"""Cases that a classifier turns away: how many, why, and how many its limit of free energy calls unfamiliar."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hscc_edge.model.decision import Rule
from hscc_edge.model.head import Head
from hscc_edge.validate.familiarity import alarms
from hscc_edge.validate.intervals import Proportion, share
from hscc_edge.validate.predict import Case
from hscc_edge.validate.resampling import clusters


@dataclass(frozen=True, slots=True)
class Refusals:
    """What got no decision.

    Attributes:
        share: of all cases.
        reasons: in words -> cases, the most frequent first.
        alarms: cases beyond the limit of free energy, which are false alarms where the cases are like those that it was
            fitted on; None without a limit.
    """

    share: Proportion
    reasons: Mapping[str, int]
    alarms: Proportion | None


def refusals(cases: Sequence[Case], head: Head, rule: Rule) -> Refusals:
    """Of one classifier, with intervals over patients."""
    refused = np.array([case.decision.label is None for case in cases])
    reasons = Counter(case.decision.reason or "not said" for case in cases if case.decision.label is None)
    with np.errstate(invalid="ignore"):
        beyond = None if rule.energy_limit is None else alarms(cases, head, rule.energy_limit)
    return Refusals(share(refused, clusters([case.patient for case in cases])), dict(reasons.most_common()), beyond)
