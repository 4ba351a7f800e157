"""A classifier against its reference on the same cases: paired difference, McNemar, divergence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from hscc_edge.model.head import Head, kl
from hscc_edge.validate.predict import Case

LEVEL = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Comparison:
    """Candidate minus reference.

    Attributes:
        difference, low, high: of accuracy, with the percentile interval (95 % unless said otherwise) of a bootstrap
            over patients, so that several cases of one patient do not count as independent.
        only_reference, only_candidate: cases that just one of them decides rightly.
        p_value: exact McNemar test of equal accuracy (binomial on those cases).
        agreement: share of cases with the same decision.
        kl, kl_se: mean divergence, in nats an image, from the reference's distribution; its bootstrap standard error.
    """

    difference: float
    low: float
    high: float
    cases: int
    patients: int
    only_reference: int
    only_candidate: int
    p_value: float
    agreement: float
    kl: float
    kl_se: float


def compare(
    reference: Sequence[Case], candidate: Sequence[Case], head: Head, seed: int = 0, level: float = LEVEL
) -> Comparison:
    """Compare the decisions of two classifiers on the same cases, in the same order; intervals at `level`."""
    first, second = (
        np.array([case.decision.label == case.label for case in cases]) for cases in (reference, candidate)
    )
    gain = second.astype(float) - first.astype(float)
    patients = [case.patient for case in reference]
    divergence = [kl(head, a.logits, b.logits) for a, b in zip(reference, candidate, strict=True)]
    images = np.array([len(part) for part in divergence], dtype=float)
    draws = _resampled(patients, np.stack([gain, np.ones_like(gain), [d.sum() for d in divergence], images]), seed)
    differences, mean_kl = draws[0] / draws[1], draws[2] / draws[3]
    low, high = np.percentile(differences, (50 - 50 * level, 50 + 50 * level))
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    same = [a.decision.label == b.decision.label for a, b in zip(reference, candidate, strict=True)]
    return Comparison(
        difference=float(gain.mean()),
        low=float(low),
        high=float(high),
        cases=len(reference),
        patients=len(set(patients)),
        only_reference=only_first,
        only_candidate=only_second,
        p_value=_mcnemar(only_first, only_second),
        agreement=float(np.mean(same)),
        kl=float(np.concatenate(divergence).mean()),
        kl_se=float(mean_kl.std(ddof=1)),
    )


def _mcnemar(only_first: int, only_second: int) -> float:
    discordant = only_first + only_second
    return 1.0 if discordant == 0 else float(binomtest(only_first, discordant, 0.5).pvalue)


def _resampled(patients: Sequence[str], values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Sums of `values` (k, cases) over bootstrap samples of patients: (k, RESAMPLES)."""
    _, owner = np.unique(np.asarray(patients), return_inverse=True)
    count = int(owner.max()) + 1
    sums = np.stack([np.bincount(owner, weights=row, minlength=count) for row in values])  # (k, patients)
    generator = np.random.default_rng(seed)
    draws = [
        sums @ generator.multinomial(count, np.full(count, 1 / count), size=500).T for _ in range(RESAMPLES // 500)
    ]
    return np.concatenate(draws, axis=1)
