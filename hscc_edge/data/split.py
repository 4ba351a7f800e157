"""Who goes to train, val and test: by patient, stratified, and the same for those who were there before."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hscc_edge.errors import CohortError

if TYPE_CHECKING:
    from hscc_edge.data.cohort import Cohort, Instance

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class SplitRule:
    """How a cohort is split.

    Attributes:
        fractions: share of the patients of every stratum in val and in test; the rest is train.
        seed: another seed, another order of the patients' hashes.
        stratify: columns of the table whose values make the strata.
        test_sites: sites that are wholly test, for external validation.
        groups: patient -> group, of those who must stay together; others are a group of their own.
    """

    fractions: Mapping[str, float]
    seed: int = 0
    stratify: tuple[str, ...] = ("label", "site")
    test_sites: tuple[str, ...] = ()
    groups: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)


def assign(
    strata: Mapping[str, str],
    fractions: Mapping[str, float],
    seed: int,
    earlier: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """A split for every group, whatever order they come in.

    Groups that have a split keep it; the others go, in the order of their hashes, to the split that lacks most of its
    share in their stratum. So every stratum is within one group of its shares when a cohort is split anew, and nobody
    moves when data is added. Cost grows with n log n.

    Args:
        strata: group -> stratum.
        fractions: of val and test.
        earlier: group -> split it has already.

    Raises:
        CohortError: if the fractions are not shares that leave something to train.
    """
    if any(not 0 <= share < 1 for share in fractions.values()) or sum(fractions.values()) >= 1:
        raise CohortError(f"the split's shares are {dict(fractions)}: expected numbers from 0 whose sum is below 1")
    shares = {"train": 1 - sum(fractions.values()), **fractions}
    found = {group: split for group, split in (earlier or {}).items() if group in strata}
    sizes = Counter(strata.values())
    counts = Counter((strata[group], split) for group, split in found.items())
    for group in sorted(strata.keys() - found.keys(), key=lambda name: _hash(name, seed)):
        stratum = strata[group]
        lacks = {split: share * sizes[stratum] - counts[stratum, split] for split, share in shares.items()}
        found[group] = max(lacks, key=lambda split: lacks[split])
        counts[stratum, found[group]] += 1
    return found


def _hash(group: str, seed: int) -> bytes:
    return hashlib.blake2b(group.encode(), key=str(seed).encode(), digest_size=16).digest()


def split_cohort(cohort: Cohort, rule: SplitRule, *, afresh: bool = False) -> Cohort:
    """The cohort with its instances in the rule's splits; patients that have one keep it unless `afresh`.

    Raises:
        CohortError: if a column or site is unknown, or one patient or group stands in two splits already.
    """
    _check(cohort, rule)
    members: dict[str, list[Instance]] = {}
    for item in cohort.instances:
        members.setdefault(rule.groups.get(item.patient, item.patient), []).append(item)
    strata = {group: _stratum(items, rule.stratify) for group, items in members.items()}
    earlier = {} if afresh else _earlier(members)
    fixed = {group: "test" for group, items in members.items() if any(item.site in rule.test_sites for item in items)}
    found = assign(strata, rule.fractions, rule.seed, {**earlier, **fixed})
    parts = (
        dataclasses.replace(item, split=found[rule.groups.get(item.patient, item.patient)]) for item in cohort.instances
    )
    return dataclasses.replace(cohort, instances=tuple(parts))


def read_groups(path: Path) -> dict[str, str]:
    """Patient -> group from a CSV with the columns patient and group.

    Raises:
        CohortError: if it cannot be read, or gives a patient two groups.
    """
    found: dict[str, str] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                if found.setdefault(row["patient"], row["group"]) != row["group"]:
                    raise CohortError(f"{path} gives one patient two groups: name each patient once")
    except (OSError, UnicodeDecodeError, KeyError, csv.Error) as error:
        raise CohortError(
            f"the groups {path} cannot be read ({type(error).__name__}): expected a CSV with the columns patient, group"
        ) from error
    return found


def _check(cohort: Cohort, rule: SplitRule) -> None:
    known = {item.name for item in dataclasses.fields(cohort.instances[0])}
    for column in rule.stratify:
        if column not in known:
            raise CohortError(f"the table has no column {column!r} to stratify by: expected one of {sorted(known)}")
    sites = {item.site for item in cohort.instances}
    for site in rule.test_sites:
        if site not in sites:
            raise CohortError(f"no file of the cohort {cohort.root} is of the test site {site!r}: mend its name")


def _stratum(items: Sequence[Instance], columns: Sequence[str]) -> str:
    """The commonest combination of a group's values; of two equally common ones the first in order."""
    counts = Counter("\x1f".join(getattr(item, column) for column in columns) for item in items)
    return min(counts, key=lambda key: (-counts[key], key))


def _earlier(members: Mapping[str, Sequence[Instance]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for group, items in members.items():
        splits = {item.split for item in items if item.split}
        if len(splits) > 1:
            raise CohortError(
                f"a patient or group stands in {' and '.join(sorted(splits))} already: split the cohort with --afresh"
            )
        if splits:
            found[group] = splits.pop()
    return found
