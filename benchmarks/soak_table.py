"""The figures of docs/soak.md from a summary.json: python benchmarks/soak_table.py DIR/summary.json"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent.parent / "docs" / "soak.md"
BEGIN, END = "<!-- figures: ", "<!-- end of figures -->"
KINDS = {
    "crash": "killed at a named step", "instant": "killed at some instant", "single": "one process killed",
    "power": "power cut", "switch": "killed while a model is installed or switched",
    "promise": "killed while a sender is promised to keep", "disk": "failing disk at work",
    "disk-at-start": "failing disk at the start", "mood": "archive in a bad mood",
    "sweep-start": "each call of a start fails", "sweep-load": "each call of a study's life fails",
    "full": "volume filled",
}  # fmt: skip


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The page's part, line by line."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    machine = found["machine"]
    yield (
        f"{found['date']}, {machine['cores']} cores ({machine['cpu']}), Linux {machine['kernel']}, {versions}; seed "
        f"{found['seed']}, {found['seconds'] // 60} minutes."
    )
    yield ""
    yield "| points | acknowledged | lost | results | duplicated results | superseded reports | conflicts kept apart |"
    yield "|---|---|---|---|---|---|---|"
    names = ("points", "acknowledged", "lost", "results", "duplicated_results", "superseded", "conflicts")
    yield "| " + " | ".join(f"{found[name]:,}" for name in names) + " |"
    yield ""
    if found["failed_campaigns"]:
        broken = ", ".join(f"{name} {count}" for name, count in found["other_problems"].items()) or "see summary.json"
        yield f"**{len(found['failed_campaigns'])} of {found['campaigns']} campaigns broke a rule**: {broken}."
        yield ""
    yield (
        f"{found['daemon_starts']:,} starts, {found['refused_starts']} of which were refused as the disk failed; "
        f"{found['disk_faults']:,} calls failed at {len(found['disk_places'])} places; "
        f"{found['power_cuts_examined']:,} further power cuts examined; small volume: {found['small_volume']}."
    )
    yield ""
    yield "| kind | times | of which |"
    yield "|---|---|---|"
    yield from _kinds(found["kinds"])
    if found["untried"]:
        yield ""
        yield f"Named steps that were not tried: {', '.join(found['untried'])}."
    if found["unreached"]:
        yield ""
        yield "Not reached, killed at rest: " + _listed(found["unreached"]) + "."


def _kinds(counts: Mapping[str, int]) -> Iterator[str]:
    total: Counter[str] = Counter()
    details: dict[str, dict[str, int]] = {}
    for name, count in counts.items():
        kind, _, detail = name.partition(":")
        total[kind] += count
        if detail:
            details.setdefault(kind, {})[detail] = count
    for kind, words in KINDS.items():
        if total[kind]:
            yield f"| {words} | {total[kind]} | {_listed(dict(sorted(details.get(kind, {}).items())))} |"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def main() -> None:
    """Put them into the page."""
    found = json.loads(Path(sys.argv[1]).read_text())
    before, _, rest = PAGE.read_text().partition(BEGIN)
    marker, _, rest = rest.partition("\n")
    after = rest.partition(END)[2]
    PAGE.write_text(before + BEGIN + marker + "\n" + "\n".join(lines(found)) + "\n" + END + after)


if __name__ == "__main__":
    main()
