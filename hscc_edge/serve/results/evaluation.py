"""The project's own codes: how sure a result is, and why there is none. Each value has one meaning for ever."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import pydicom

from hscc_edge.bundle import Code

SCHEME = "99HSCC"
LONGEST_VALUE, LONGEST_MEANING = 16, 64
STATUS = Code("status", SCHEME, "Result status")
REASON = Code("reason", SCHEME, "Reason for no result")
CERTAINTY = Code("certainty", SCHEME, "Probability of the finding against the limit")
LIKENESS = Code("likeness", SCHEME, "Likeness to the calibration cohort")

DECIDED = Code("decided", SCHEME, "Decided by the classifier, not verified")
NO_RESULT = Code("no-result", SCHEME, "No result")
NO_LIMIT = Code("no-limit", SCHEME, "The classifier has no limit for this")
ENOUGH = Code("enough", SCHEME, "At or above the limit")
LIKE = Code("like", SCHEME, "Like what the classifier was calibrated on")
UNLIKE = Code("unlike", SCHEME, "Unlike what the classifier was calibrated on")
IMPROBABLE = Code("improbable", SCHEME, "No finding is probable enough")
RECALLED = Code("recalled", SCHEME, "The classifier was recalled")

RECALL = "the model was recalled"
# The beginning of a reason -> its code; any other reason is a code of its own.
REASONS = {
    "unlike what the model was calibrated on": UNLIKE,
    "the most probable finding has less than": IMPROBABLE,
    RECALL: RECALLED,
}


def why(reason: str) -> Code:
    """The code of a reason for no result."""
    known = next((code for start, code in REASONS.items() if reason.startswith(start)), None)
    value = f"r-{hashlib.sha256(reason.encode()).hexdigest()[:12]}"
    return known or Code(value, SCHEME, reason[:LONGEST_MEANING] or "not stated")


def evaluations(decision: Mapping[str, Any] | None, reason: Code | None) -> list[tuple[Code, Code]]:
    """(question, answer) of a case: decided within the limits of its bundle's decision rule, or no result and why.

    Args:
        decision: the rule as JSON; needed only where there is no reason.
    """
    if reason is not None or decision is None:
        return [(STATUS, NO_RESULT), *([(REASON, reason)] if reason else [])]
    return [
        (STATUS, DECIDED),
        (CERTAINTY, ENOUGH if decision.get("least_probability") else NO_LIMIT),
        (LIKENESS, NO_LIMIT if decision.get("energy_limit") is None else LIKE),
    ]


def probability_of(finding: Code) -> Code:
    """What the probability of a finding is called: the same for every bundle."""
    value = f"P-{finding.value}"
    if len(value) > LONGEST_VALUE:
        value = f"P-{hashlib.sha256(finding.value.encode()).hexdigest()[: LONGEST_VALUE - 2]}"
    return Code(value, SCHEME, f"Probability of {finding.meaning}"[:LONGEST_MEANING])


def coding_scheme() -> pydicom.Dataset:
    """Who answers for the private codes (PS3.3 C.12.1.1.5)."""
    item = pydicom.Dataset()
    item.CodingSchemeDesignator = SCHEME
    item.CodingSchemeName = "Codes of hscc_edge"
    item.CodingSchemeResponsibleOrganization = "hscc_edge"
    return item


CODING_SCHEME = coding_scheme()
