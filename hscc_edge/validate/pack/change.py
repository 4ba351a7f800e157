"""The change note: what differs from the last approved bundle, and whether the plan of allowed changes covers it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hscc_edge.bundle import WEIGHTS, Bundle
from hscc_edge.errors import BundleError
from hscc_edge.model.plan import changes
from hscc_edge.validate.pack.site import Site
from hscc_edge.validate.pack.words import plan_of

FIELDS = (
    "name", "version", "network", "preprocess", "decision", "head", "findings", "site", "procedure", "training",
    "calibration", "parent",
)  # fmt: skip
FREE = ("version",)
LONGEST = 160


@dataclass(frozen=True, slots=True)
class Change:
    """One difference; `allowed` is None where no plan says what may change."""

    name: str
    before: str
    after: str
    allowed: bool | None


@dataclass(frozen=True, slots=True)
class Note:
    """What changed, and what follows.

    Attributes:
        approved: digest of the last approved bundle; None if none was given.
        protocol: requirement id -> verdict, of those that the plan of changes asks for.
        conclusion: in words; never that a change is permitted by law, which is not for a program to say.
    """

    approved: str | None
    changes: tuple[Change, ...]
    document: str
    protocol: Mapping[str, str]
    conclusion: str


def note(bundle: Bundle, approved: Bundle | None, site: Site, verdicts: Mapping[str, str]) -> Note:
    """Compare a bundle with the last approved one.

    Args:
        verdicts: requirement id -> verdict of the verification record.
    """
    if approved is None:
        return Note(None, (), site.document, {}, "No approved bundle was given: this pack says nothing of a change.")
    found = tuple(_changes(bundle, approved, site))
    protocol = {name: verdicts.get(name, "not run") for name in site.protocol}
    return Note(approved.digest, found, site.document, protocol, _conclusion(found, site, protocol))


def _changes(bundle: Bundle, approved: Bundle, site: Site) -> list[Change]:
    def change(name: str, before: str, after: str) -> Change:
        allowed = name in site.allowed or name in FREE if site.document else None
        return Change(name, _short(before), _short(after), allowed)

    found = [
        change(name, _text(getattr(approved.spec, name)), _text(getattr(bundle.spec, name)))
        for name in FIELDS
        if getattr(approved.spec, name) != getattr(bundle.spec, name)
    ]
    if approved.spec.plan != bundle.spec.plan:
        found.append(change("plan", _plan(approved), _plan_change(approved, bundle)))
    if approved.files.get(WEIGHTS) != bundle.files.get(WEIGHTS):
        found.append(change("weights", approved.files.get(WEIGHTS, "")[:12], bundle.files.get(WEIGHTS, "")[:12]))
    return found


def _plan(bundle: Bundle) -> str:
    plan = plan_of(bundle)
    return "not compressed" if plan is None else f"{plan.method}, {plan.budget}"


def _plan_change(approved: Bundle, bundle: Bundle) -> str:
    first, second = plan_of(approved), plan_of(bundle)
    if first is None or second is None:
        return _plan(bundle)
    try:
        return f"{_plan(bundle)}: {'; '.join(changes(first, second)) or 'the same structures'}"
    except BundleError:
        return f"{_plan(bundle)}, of another network"


def _conclusion(found: tuple[Change, ...], site: Site, protocol: Mapping[str, str]) -> str:
    if not found:
        return "Nothing that a bundle declares has changed."
    if not site.document:
        return (
            f"{len(found)} differences, and no predetermined plan of changes was given: whether they need a new "
            "assessment is for the site to decide."
        )
    outside = [item.name for item in found if not item.allowed]
    unmet = [name for name, verdict in protocol.items() if verdict != "pass"]
    if outside:
        return f"Outside {site.document}: {', '.join(outside)}. The site has to assess the change anew."
    if unmet:
        return f"Within {site.document} by what changed, but its protocol is not met: {', '.join(unmet)}."
    return f"Within {site.document}: everything that changed is named there, and its protocol has passed."


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_text(item)}" for key, item in value.items())
    return "none" if value is None else str(value)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
