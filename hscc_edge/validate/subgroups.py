"""On whom is the candidate worse? The paired difference in every subgroup and every class, with Holm's correction.

Holm (1979), Scandinavian Journal of Statistics 6:65, by statsmodels: the chance that any subgroup is called worse or
non-inferior wrongly is at most 2.5 %. Groups of few patients are flagged and stay in the table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hscc_edge.data.subgroups import SMALL
from hscc_edge.errors import extra
from hscc_edge.validate.compare import check_paired, right
from hscc_edge.validate.intervals import Proportion, share_where, some
from hscc_edge.validate.noninferiority import INCONCLUSIVE, INFERIOR, NON_INFERIOR
from hscc_edge.validate.paired import Pairs, interval, p_above, p_below, pairs
from hscc_edge.validate.predict import Case
from hscc_edge.validate.resampling import LEVEL, Clusters, clusters

with extra("workstation"):
    from statsmodels.stats.multitest import multipletests

CLASS = "class"
ALPHA = (1 - LEVEL) / 2


@dataclass(frozen=True, slots=True)
class Group:
    """One value of one column; differences are candidate minus reference.

    Attributes:
        small: fewer patients than `data.subgroups.SMALL`.
        low, high: of the difference, two-sided 95 %, not corrected.
        p_value, p_holm: two-sided, of "no difference", as it is and corrected for all groups.
        word: against the margin, corrected for all groups: NON-INFERIOR, INFERIOR or INCONCLUSIVE; "" without margin.
        worst: the class that lost most cases, and how many of how many; "" if none lost one.
    """

    column: str
    value: str
    cases: int
    patients: int
    small: bool
    reference: Proportion
    candidate: Proportion
    difference: float
    low: float
    high: float
    p_value: float
    p_holm: float = 1.0
    word: str = ""
    worst: str = ""

    @property
    def name(self) -> str:
        """Such as `sex=F`."""
        return f"{self.column}={self.value}"


def groups(
    reference: Sequence[Case],
    candidate: Sequence[Case],
    columns: Mapping[str, Sequence[str]],
    margin: float | None = None,
) -> tuple[Group, ...]:
    """Every value of every column and every class, in order of their names; columns of a single value say nothing.

    Args:
        columns: name -> value of every case, as `data.subgroups.by_case` gives them.
        margin: a share; without one no group gets a word.
    """
    check_paired(reference, candidate)
    owners = clusters([case.patient for case in reference])
    first, second = right(reference), right(candidate)
    labels = [case.label for case in reference]
    found: list[Group] = []
    tables: list[Pairs] = []
    for column, values in {CLASS: labels, **columns}.items():
        each = np.asarray(values)
        for value in sorted(set(values)) if len(set(values)) > 1 else ():
            kept = each == value
            tables.append(pairs(first[kept], second[kept], some(owners, kept)))
            worst = "" if column == CLASS else _worst(labels, first, second, kept)
            found.append(_group(column, str(value), tables[-1], first, second, kept, owners, worst))
    return _corrected(found, tables, margin)


def _group(
    column: str,
    value: str,
    table: Pairs,
    first: NDArray[np.bool_],
    second: NDArray[np.bool_],
    kept: NDArray[np.bool_],
    owners: Clusters,
    worst: str,
) -> Group:
    low, high = interval(table)
    return Group(
        column=column,
        value=value,
        cases=table.cases,
        patients=table.patients,
        small=table.patients < SMALL,
        reference=share_where(first, kept, owners),
        candidate=share_where(second, kept, owners),
        difference=table.difference,
        low=low,
        high=high,
        p_value=min(2 * min(p_above(table, 0.0), p_below(table, 0.0)), 1.0),
        worst=worst,
    )


def _worst(labels: Sequence[str], first: NDArray[np.bool_], second: NDArray[np.bool_], kept: NDArray[np.bool_]) -> str:
    lost = Counter(label for label, a, b, k in zip(labels, first, second, kept, strict=True) if a and not b and k)
    if not lost:
        return ""
    label, count = lost.most_common(1)[0]
    had = sum(name == label and bool(k) for name, k in zip(labels, kept, strict=True))
    return f"{label}: {count} of {had} lost"


def _corrected(found: Sequence[Group], tables: Sequence[Pairs], margin: float | None) -> tuple[Group, ...]:
    if not found:
        return ()
    differs = _holm([group.p_value for group in found])
    words = [""] * len(found) if margin is None else _words(found, tables, margin)
    return tuple(replace(group, p_holm=p, word=word) for group, p, word in zip(found, differs, words, strict=True))


def _words(found: Sequence[Group], tables: Sequence[Pairs], margin: float) -> list[str]:
    holds = _holm([p_above(table, -margin) for table in tables])
    fails = _holm([p_below(table, -margin) for table in tables])
    return [
        INFERIOR if worse < ALPHA else NON_INFERIOR if good < ALPHA and not group.small else INCONCLUSIVE
        for group, good, worse in zip(found, holds, fails, strict=True)
    ]


def _holm(values: Sequence[float]) -> list[float]:
    return [float(value) for value in multipletests(values, method="holm")[1]]
