"""What changed between two versions of a cohort."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass

from hscc_edge.data.cohort import COLUMNS, Cohort, Instance

Name = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Difference:
    """From a cohort to another: images by SOP Instance UID and frame.

    Attributes:
        changed: column of the table -> images whose value there is another.
        moved: (split before, split after) -> images.
        relabelled: (label before, label after) -> images.
    """

    added: int
    removed: int
    unchanged: int
    changed: dict[str, int]
    moved: dict[Name, int]
    relabelled: dict[Name, int]

    @property
    def to_test(self) -> int:
        """Images that were trained on, or chosen by, and are test now: a network trained before must not be tested."""
        return sum(count for (before, after), count in self.moved.items() if after == "test" and before != "test")

    def to_json(self) -> dict[str, object]:
        """Plain JSON objects; pairs are written "before -> after"."""
        plain = dataclasses.asdict(self)
        for key in ("moved", "relabelled"):
            plain[key] = {f"{before} -> {after}": count for (before, after), count in plain[key].items()}
        return {**plain, "to_test": self.to_test}


def difference(before: Cohort, after: Cohort) -> Difference:
    """Compare two tables; memory grows with their rows. Columns that follow from the key (patient) are left out."""
    old, new = ({(item.sop, item.frame): item for item in cohort.instances} for cohort in (before, after))
    both = [(old[name], new[name]) for name in old.keys() & new.keys()]
    columns = [column for column in COLUMNS if column not in ("sop", "frame", "patient")]
    changed = Counter(column for pair in both for column in columns if _differs(pair, column))
    return Difference(
        added=len(new.keys() - old.keys()),
        removed=len(old.keys() - new.keys()),
        unchanged=sum(not any(_differs(pair, column) for column in columns) for pair in both),
        changed=dict(sorted(changed.items())),
        moved=_pairs(both, "split"),
        relabelled=_pairs(both, "label"),
    )


def _differs(pair: tuple[Instance, Instance], column: str) -> bool:
    return bool(getattr(pair[0], column) != getattr(pair[1], column))


def _pairs(both: list[tuple[Instance, Instance]], column: str) -> dict[Name, int]:
    names = ((getattr(old, column), getattr(new, column)) for old, new in both)
    return dict(sorted(Counter((old, new) for old, new in names if old != new).items()))
