"""Near duplicates of calibration images: which of a pool show the same picture, and which one of the test split."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from hscc_edge.data.cohort import Cohort
from hscc_edge.data.leakage import Findings, check_cohort
from hscc_edge.data.subset import Place, Relatives, place

Progress = Callable[[int, str], None]


def relatives(pool: Cohort, whole: Cohort, progress: Progress | None = None) -> Relatives:
    """The equal and nearly equal pictures among `pool` and the test split of `whole`; cost as `leakage.check_cohort`.

    Copies within one patient are not looked for.
    """
    known = {place(item) for item in pool.instances}
    tested = (item for item in whole.instances if item.split == "test" and place(item) not in known)
    both = dataclasses.replace(whole, instances=(*pool.instances, *tested))
    return related(check_cohort(both, progress, shortcuts=False))


def related(findings: Findings) -> Relatives:
    """What a check's groups forbid; the near ones come first, since they hold the equal ones that they join."""
    found: dict[Place, str] = {}
    barred: set[Place] = set()
    for number, group in enumerate((*findings.near, *findings.duplicates)):
        names = [place(item) for item in group]
        known = next((found[name] for name in names if name in found), f"group {number}")
        found |= dict.fromkeys(names, known)
        if any(item.split == "test" for item in group):
            barred |= {name for name, item in zip(names, group, strict=True) if item.split != "test"}
    return Relatives(found, frozenset(barred))
