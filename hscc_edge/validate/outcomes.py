"""Cases as arrays: what is true, what was decided, and how probable each finding was held to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hscc_edge.errors import InputError
from hscc_edge.validate.predict import Case
from hscc_edge.validate.resampling import Array, Clusters, clusters


@dataclass(frozen=True, slots=True)
class Outcomes:
    """One classifier's answers on the cases of a cohort, at its unit of decision.

    Attributes:
        labels: names of the K columns.
        truth: (cases, K) bool; one True a case unless the cohort has several findings a case.
        decided: (cases, K) bool; the label that the daemon would send, none where there is no decision.
        scores: (cases, K) probabilities; NaN where there is no decision.
        cases: patients, in strata of those with the same labels.
    """

    labels: tuple[str, ...]
    truth: NDArray[np.bool_]
    decided: NDArray[np.bool_]
    scores: Array
    cases: Clusters

    @property
    def scored(self) -> NDArray[np.bool_]:
        """(cases,): whether there are probabilities."""
        return np.asarray(np.isfinite(self.scores).all(axis=1))


def outcomes(cases: Sequence[Case], labels: Sequence[str], truth: NDArray[np.bool_] | None = None) -> Outcomes:
    """The arrays of cases.

    Args:
        labels: the head's, in the order of its probabilities.
        truth: (cases, K), for cases with several findings; without it a case has the one that its label names.

    Raises:
        InputError: if there is no case, or `truth` has another shape.
    """
    names = tuple(labels)
    found = outcomes_of([case.label for case in cases], [case.decision.label for case in cases], names,
                        [case.patient for case in cases], truth)  # fmt: skip
    empty = (float("nan"),) * len(names)
    scores = np.array([case.decision.probabilities or empty for case in cases], dtype=np.float64)
    return Outcomes(names, found.truth, found.decided, scores, found.cases)


def outcomes_of(
    true: Sequence[str],
    decided: Sequence[str | None],
    labels: Sequence[str],
    patients: Sequence[str],
    truth: NDArray[np.bool_] | None = None,
) -> Outcomes:
    """The arrays of labels and decisions alone, without probabilities; for arguments and errors see `outcomes`."""
    names = tuple(labels)
    known = one_hot(true, names) if truth is None else truth
    if known.shape != (len(true), len(names)):
        raise InputError(f"the truth has shape {known.shape}: expected {(len(true), len(names))}, cases by labels")
    groups = ["".join("01"[int(value)] for value in row) for row in known]
    blank = np.full(known.shape, np.nan)
    return Outcomes(names, known, one_hot(decided, names), blank, clusters(patients, groups))


def one_hot(answers: Sequence[str | None], labels: Sequence[str]) -> NDArray[np.bool_]:
    """(cases, K): which label each answer is; none for an answer that is no label."""
    place = {label: index for index, label in enumerate(labels)}
    chosen = np.array([place.get(answer, -1) if answer is not None else -1 for answer in answers], dtype=np.int64)
    return np.asarray(chosen[:, None] == np.arange(len(labels)))
