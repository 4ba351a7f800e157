"""A cohort's lock: the digest of all that figures depend on, and who overrode what. Another table no longer fits it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hscc_edge
from hscc_edge import durable
from hscc_edge.errors import CohortError, GateError

if TYPE_CHECKING:
    from hscc_edge.data.cohort import Cohort

LOCK = "cohort.lock"


@dataclass(frozen=True, slots=True)
class Lock:
    """What `cohort.lock` says.

    Attributes:
        digest: of the cohort (classes, and every file's digest, label and split).
        table: sha256 of instances.csv, which also holds what subgroups are made from.
        check: what `cohort check` found when it was locked.
        overridden: faults that somebody took responsibility for, with the reason; empty if the check found none.
        created: ISO 8601 date and time, UTC.
    """

    digest: str
    table: str
    images: int
    check: Mapping[str, Any]
    overridden: tuple[str, ...]
    reason: str
    created: str
    version: str


def lock_cohort(cohort: Cohort, check: Mapping[str, Any], faults: Sequence[str], reason: str, created: str) -> Lock:
    """Write the cohort's lock.

    Args:
        check: plain JSON of the check.
        faults: what it found that spoils figures, a sentence each.
        reason: why it is locked all the same; "" where there are no faults.

    Raises:
        GateError: if there are faults and no reason.
        CohortError: if there is a reason and no fault, or a file has no digest.
    """
    if faults and not reason.strip():
        raise GateError(
            f"the cohort {cohort.root} has faults ({'; '.join(faults)}): mend them, or say with --override why figures "
            "may be taken on it"
        )
    if reason and not faults:
        raise CohortError(f"the cohort {cohort.root} has no faults: lock it without --override")
    if any(not item.digest for item in cohort.instances):
        raise CohortError(f"files of the cohort {cohort.root} have no digest: import it again")
    lock = Lock(
        digest=cohort.digest,
        table=table_digest(cohort.root),
        images=len(cohort.instances),
        check=check,
        overridden=tuple(faults),
        reason=reason,
        created=created,
        version=hscc_edge.__version__,
    )
    durable.write_json(cohort.root / LOCK, asdict(lock))
    return lock


def faults_of(check: Mapping[str, Any]) -> list[str]:
    """What a check found that spoils figures, a sentence each."""
    copies = check["duplicates"]
    counted = {
        "files that cannot be read": len(check["unreadable"]),
        "files that have changed": len(check["altered"]),
        "classes missing in a split": len(check["missing"]),
        "patients in two splits": check["patients_in_two_splits"],
        "groups of equal pictures across splits": copies["exact"]["across_splits"],
        "groups of near duplicates across splits": copies.get("near", {}).get("across_splits") or 0,
    }
    return [f"{count} {what}" for what, count in counted.items() if count]


def read_lock(root: Path) -> Lock | None:
    """The lock of a cohort; None if it is not locked.

    Raises:
        CohortError: if it is malformed.
    """
    path = root / LOCK
    if not path.is_file():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return Lock(**{**raw, "overridden": tuple(raw["overridden"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CohortError(f"the lock {path} is malformed ({type(error).__name__}): lock the cohort again") from error


def verify_lock(cohort: Cohort) -> Lock | None:
    """The lock if it still fits; None if the cohort is not locked. No file of the cohort is opened.

    Raises:
        CohortError: if the table, labels, splits or classes have changed since it was locked.
    """
    lock = read_lock(cohort.root)
    if lock and (lock.digest != cohort.digest or lock.table != table_digest(cohort.root)):
        raise CohortError(
            f"the cohort {cohort.root} has changed since it was locked on {lock.created}: put the tables back, or "
            "check it and lock it again"
        )
    return lock


def table_digest(root: Path) -> str:
    """sha256 of instances.csv."""
    return hashlib.sha256((root / "instances.csv").read_bytes()).hexdigest()
