"""Which series of an archive belong to a cohort, by rules on what their headers say."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hscc_edge.data.index import Row
from hscc_edge.data.series import SeriesRules

LOCALISER = "localiser"
SEVERAL = "several series of the study fit the rules"


@dataclass(slots=True)
class SeriesSummary:
    """What the rules ask of a series."""

    study: str = field(repr=False)
    modality: str
    description: str = field(repr=False)
    planes: Counter[str] = field(default_factory=Counter)
    contrast: bool = False
    slices: int = 0


FITS: dict[str, Callable[[SeriesSummary, Any], bool]] = {
    "modality": lambda series, wanted: series.modality == wanted,
    "description": lambda series, wanted: bool(re.search(wanted, series.description, re.IGNORECASE)),
    "exclude": lambda series, wanted: not re.search(wanted, series.description, re.IGNORECASE),
    "plane": lambda series, wanted: 2 * series.planes[wanted] > series.planes.total(),
    "contrast": lambda series, wanted: series.contrast == wanted,
    "minimum_slices": lambda series, wanted: series.slices >= wanted,
}


@dataclass(frozen=True, slots=True)
class Selection:
    """Series that are left out, with the rule that did it."""

    refused: Mapping[str, str] = field(repr=False)

    def reason(self, row: Row) -> str:
        """Why an image is left out; "" if it is not."""
        return LOCALISER if is_localiser(row) else self.refused.get(row.series, "")


def is_localiser(row: Row) -> bool:
    """Whether ImageType says so (PS3.3 C.7.6.1.1.2, value 3)."""
    return row.facts is not None and "LOCALIZER" in row.facts.image_type


def select_series(rows: Iterable[Row], rules: SeriesRules, *, one: bool) -> Selection:
    """Apply the rules to every series; memory grows with the number of series.

    Args:
        one: of each study one series is expected; where several fit, all are left out.
    """
    series = _summaries(rows)
    refused = {uid: reason for uid, summary in series.items() if (reason := _refusal(summary, rules))}
    if one:
        left = Counter(summary.study for uid, summary in series.items() if uid not in refused)
        refused |= {uid: SEVERAL for uid, item in series.items() if uid not in refused and left[item.study] > 1}
    return Selection(refused)


def _summaries(rows: Iterable[Row]) -> dict[str, SeriesSummary]:
    found: dict[str, SeriesSummary] = {}
    for row in rows:
        if row.facts is None or is_localiser(row):
            continue
        facts = row.facts
        series = found.setdefault(row.series, SeriesSummary(row.study, facts.modality, facts.series_description))
        series.planes[facts.orientation] += 1
        series.contrast |= facts.contrast
        series.slices += facts.frames or 1
    return found


def _refusal(series: SeriesSummary, rules: SeriesRules) -> str:
    for name, fits in FITS.items():
        wanted = getattr(rules, name)
        if wanted not in ("", None) and not fits(series, wanted):
            return f"rule {name}"
    return ""
