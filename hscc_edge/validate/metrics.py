"""Accuracy and its kin, with intervals; cases count as independent unless a function says otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hscc_edge.errors import extra
from hscc_edge.validate.compare import LEVEL

with extra("workstation"):
    from sklearn.metrics import confusion_matrix, f1_score
    from statsmodels.stats.proportion import proportion_confint


@dataclass(frozen=True, slots=True)
class Proportion:
    """A share `count / of` with its 95 % interval (Wilson 1927); all None where `of` is 0."""

    count: int
    of: int
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """One class against the rest."""

    label: str
    sensitivity: Proportion
    specificity: Proportion


@dataclass(frozen=True, slots=True)
class Figures:
    """One classifier on one cohort; `confusion` rows are true classes, columns decided ones, the last "no decision"."""

    accuracy: Proportion
    macro_f1: float
    confusion: tuple[tuple[int, ...], ...]
    classes: tuple[ClassFigures, ...]
    undecided: int


def proportion(count: int, of: int) -> Proportion:
    """The share with its Wilson interval (statsmodels)."""
    if of == 0:
        return Proportion(0, 0, None, None, None)
    low, high = proportion_confint(count, of, alpha=1 - LEVEL, method="wilson")
    share = count / of
    return Proportion(count, of, share, min(max(float(low), 0.0), share), max(min(float(high), 1.0), share))


def figures(labels: Sequence[str], decided: Sequence[str | None], classes: Sequence[str]) -> Figures:
    """Figures of decisions against labels; a case without a decision counts as wrong."""
    answers = [answer if answer is not None else "" for answer in decided]
    matrix = confusion_matrix(labels, answers, labels=[*classes, ""])[: len(classes)]
    hits = sum(label == answer for label, answer in zip(labels, answers, strict=True))
    macro = f1_score(labels, answers, labels=list(classes), average="macro", zero_division=0.0)
    return Figures(
        accuracy=proportion(hits, len(labels)),
        macro_f1=float(macro),
        confusion=tuple(tuple(int(n) for n in row) for row in matrix),
        classes=tuple(_class_figures(matrix, index, label) for index, label in enumerate(classes)),
        undecided=answers.count(""),
    )


def _class_figures(matrix: NDArray[np.int64], index: int, label: str) -> ClassFigures:
    positives = int(matrix[index].sum())
    hits = int(matrix[index, index])
    negatives = int(matrix.sum()) - positives
    false_alarms = int(matrix[:, index].sum()) - hits
    return ClassFigures(label, proportion(hits, positives), proportion(negatives - false_alarms, negatives))
