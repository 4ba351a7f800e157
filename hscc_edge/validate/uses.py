"""Every look at a split, beside the cohort's tables: a test set that was looked at ten times is not a test set.

One line of JSON a use in `uses.jsonl`: when, which part, for what, which bundles. No picture, no identifier.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hscc_edge
from hscc_edge import durable
from hscc_edge.data.cohort import Cohort
from hscc_edge.errors import CohortError

USES = "uses.jsonl"
MANY = 3


@dataclass(frozen=True, slots=True)
class Use:
    """One look.

    Attributes:
        date: ISO 8601 date and time, UTC.
        splits: of the images that were looked at.
        digest: of the part of the cohort that was looked at.
        bundles: digests of the bundles, the candidate first.
        purpose: what for, such as "validate".
        version: of this package.
    """

    date: str
    splits: tuple[str, ...]
    digest: str
    bundles: tuple[str, ...]
    purpose: str
    version: str


def record(part: Cohort, bundles: Sequence[str], purpose: str) -> tuple[Use, ...]:
    """Write down a use of a part of a cohort, before its results are known; returns all uses of its splits so far.

    Raises:
        StorageError: if the cohort's directory cannot be written.
        CohortError: if the record that is there is malformed.
    """
    use = Use(
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        splits=tuple(sorted({item.split for item in part.instances})),
        digest=part.digest,
        bundles=tuple(bundles),
        purpose=purpose,
        version=hscc_edge.__version__,
    )
    durable.append_line(part.root / USES, json.dumps(asdict(use)))
    return uses_of(part.root, use.splits)


def uses_of(root: Path, splits: Sequence[str]) -> tuple[Use, ...]:
    """The uses of any of these splits, the oldest first."""
    return tuple(use for use in read_uses(root) if set(use.splits) & set(splits))


def read_uses(root: Path) -> tuple[Use, ...]:
    """All recorded uses, the oldest first; none if there is no record.

    Raises:
        CohortError: if a line is malformed; an unfinished last one is left out.
    """
    path = root / USES
    if not path.is_file():
        return ()
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    return tuple(_parse(path, number, line) for number, line in enumerate(lines, start=1))


def _parse(path: Path, number: int, line: str) -> Use:
    try:
        return read_use(json.loads(line))
    except (ValueError, TypeError, KeyError) as error:
        raise CohortError(
            f"line {number} of {path} is malformed ({type(error).__name__}): put back the file as it was, since it is "
            "the record of who has looked at the test set"
        ) from error


def read_use(raw: Mapping[str, Any]) -> Use:
    """A use from its JSON; lists become tuples again."""
    return Use(**{**raw, "splits": tuple(raw["splits"]), "bundles": tuple(raw["bundles"])})


def sentence(uses: Sequence[Use]) -> str:
    """How often the splits were looked at, and what that means."""
    if not uses:
        return "uses of the split: not recorded"
    splits = ", ".join(sorted({split for use in uses for split in use.splits}))
    candidates = len({use.bundles[0] for use in uses if use.bundles})
    told = f"this is use {len(uses)} of the split {splits}; candidates so far: {candidates}"
    if "test" in splits and candidates > MANY:
        return f"{told}: a test set that many candidates were held against has become a validation set; take new cases"
    return told
