"""Which models look at an instance, and how urgently: rules on its headers, of which the first that matches counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import pydicom
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.multival import MultiValue

from hscc_edge.data.dicom import FAULTS
from hscc_edge.serve.config import Route
from hscc_edge.serve.studies import PRIORITIES

UNMATCHED = "out of scope: no route matches"
BINARY = {"OB", "OD", "OF", "OL", "OV", "OW", "UN", "SQ"}


@dataclass(frozen=True, slots=True)
class Scope:
    """What the routes say of one instance.

    Attributes:
        models: names of those that look at it; None for all.
        aside: why none does; "" where one does. Never holds a value of a header.
        priority: 0 for routine, 1 for high, 2 for stat.
    """

    models: frozenset[str] | None = None
    aside: str = ""
    priority: int = 0


EVERYTHING = Scope()


def scope(routes: Sequence[Route], dataset: pydicom.Dataset) -> Scope:
    """What the first matching route says; without any route everything is looked at by all models."""
    if not routes:
        return EVERYTHING
    found = next((route for route in routes if matches(route.when, dataset)), None)
    if found is None:
        return Scope(aside=UNMATCHED)
    return Scope(
        models=frozenset(found.models) or None,
        aside=f"out of scope: {found.aside}" if found.aside else "",
        priority=PRIORITIES[found.priority],
    )


def priority(routes: Sequence[Route], dataset: pydicom.Dataset) -> int:
    """0 for routine, 1 for high, 2 for stat: what an intake records of an instance."""
    return scope(routes, dataset).priority


def matches(when: Mapping[str, Sequence[str]], dataset: pydicom.Dataset) -> bool:
    """Whether for each keyword a value fits one of its patterns; capitals count, and an absent attribute is ""."""
    return all(
        any(fnmatchcase(value, pattern) for value in values(dataset, keyword) for pattern in patterns)
        for keyword, patterns in when.items()
    )


def values(dataset: pydicom.Dataset, keyword: str) -> list[str]:
    """The values of an element as texts without padding; [""] where it is absent, empty or malformed."""
    try:
        found: Any = dataset.get(keyword)
        several = found if isinstance(found, (list, MultiValue)) else [found]
        return [str(value).strip() for value in several if value is not None] or [""]
    except FAULTS:
        return [""]


def fault_of(keyword: str) -> str | None:
    """What is wrong with a keyword in a route's `when`, None if nothing is."""
    tag = tag_for_keyword(keyword)
    if tag is None:
        return f"the route names {keyword!r}: expected a keyword of PS3.6, such as BodyPartExamined"
    if BINARY & set(dictionary_VR(tag).split(" or ")):
        return f"the route names {keyword}, which holds no text or number: choose another keyword"
    return None
