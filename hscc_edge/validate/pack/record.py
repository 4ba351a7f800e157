"""The verification record: requirement, test, criterion, result, verdict, and where the figure stands.

In the shape that a file by IEC 62304 5.7 asks for (what was tested against which criterion, with what result and which
anomalies, how to repeat it, by whom) and that IEC 81001-5-1 5.7 takes up; whether it satisfies them is for the site.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import hscc_edge
from hscc_edge.data.lock import faults_of
from hscc_edge.validate.pack.contents import Contents
from hscc_edge.validate.pack.recording import KINDS, Recording

SCHEMA = 1
UNDECLARED = "none declared here: see the gate"
WORDS = {"NON-INFERIOR": "pass", "INFERIOR": "fail", "INCONCLUSIVE": "inconclusive"}
FULL = "no overflow; export refuses an FP32 graph that differs"
VERDICTS = ("pass", "fail", "inconclusive", "reported", "not run")


@dataclass(frozen=True, slots=True)
class Row:
    """One requirement and what became of it.

    Attributes:
        verdict: one of VERDICTS; "reported" is a result that no criterion was declared for.
        figure: file in the pack and place in it.
        site_number: the site's own number of the requirement, "" if it gave none.
    """

    id: str
    requirement: str
    test: str
    criterion: str
    result: str
    verdict: str
    figure: str
    site_number: str = ""


def rows(contents: Contents) -> list[Row]:
    """Every requirement that the tool knows of, those that nothing was recorded for as "not run"."""
    made = [*_integrity(contents), *_data(contents), *_gate(contents)]
    for kind, draw in BY_KIND.items():
        found = [row for item in contents.of(kind) for row in draw(item)]
        made += found or [_absent(kind)]
    numbers = contents.site.requirements
    return [Row(**{**asdict(row), "site_number": numbers.get(row.id, "")}) for row in made]


def to_json(contents: Contents, signatures: list[dict[str, Any]]) -> dict[str, Any]:
    """The record with what a reader needs to repeat it."""
    found, spec = rows(contents), contents.bundle.spec
    return {
        "schema": SCHEMA,
        "item": {"name": spec.name, "version": spec.version, "digest": contents.bundle.digest},
        "tool": {"name": "hscc-edge", "version": hscc_edge.__version__},
        "rows": [asdict(row) for row in found],
        "anomalies": [row.id for row in found if row.verdict in ("fail", "inconclusive")],
        "not_run": [row.id for row in found if row.verdict == "not run"],
        "repeat": [
            {"record": item.name, "sha256": item.sha256, "command": KINDS[item.kind].command,
             "conditions": conditions(item)}
            for item in contents.recordings
        ],
        "signatures": signatures,
    }  # fmt: skip


def to_csv(found: list[Row]) -> str:
    """The rows as CSV, for a requirements tool."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Row.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in found)
    return text.getvalue()


def conditions(recording: Recording) -> Mapping[str, Any]:
    """Date, machine and versions that stand in a record; empty if it says none."""
    content = recording.content if isinstance(recording.content, dict) else {}
    found = content.get("conditions", {})
    return found if isinstance(found, dict) else {}


def _integrity(contents: Contents) -> Iterator[Row]:
    count = len(contents.bundle.files)
    yield Row(
        "integrity.files", "The bundle is what was made", "sha256 of every file, when the pack was made",
        "each as in the manifest", f"{count} of {count} files", "pass", "bundle/manifest.json",
    )  # fmt: skip


def _data(contents: Contents) -> Iterator[Row]:
    locks, (place, uses) = contents.of("lock"), contents.uses
    requirement = "Figures are taken on a checked and locked cohort"
    for item in locks:
        faults, lock = faults_of(_counted(item.content["check"])), item.content
        overridden = f"; overridden: {lock['reason']}" if lock["overridden"] else ""
        yield Row(
            "data.lock", requirement, "hscc-edge cohort lock", "no fault that spoils figures",
            f"locked on {lock['created']}, {'; '.join(faults) or 'no fault'}{overridden}", "fail" if faults else "pass",
            item.name,
        )  # fmt: skip
    if not locks:
        yield _absent("lock")
    if uses:
        yield Row(
            "data.uses", "How often the test set was looked at is known", "hscc-edge validate", "none declared",
            f"{len(uses)} uses", "reported", place,
        )  # fmt: skip
    else:
        yield _absent("uses")


def _counted(check: Mapping[str, Any]) -> Mapping[str, Any]:
    """A lock's check with lists again where the pack's copy has counts."""
    lists = {name: range(check[name]) for name in ("unreadable", "altered") if isinstance(check.get(name), int)}
    return {**check, **lists}


def _export(item: Recording) -> Iterator[Row]:
    for precision, found in item.content.items():
        full, agreement = precision == "fp32", found["top1_agreement"]
        result = (
            f"top-1 agreement {agreement:.4f} on {found['images']} images, largest difference of a logit "
            f"{found['largest_logit_difference']:.2e}, {found['overflowed']} overflowed"
            + ("; emulated on the CPU" if found.get("emulated") else "")
        )
        failed = found["overflowed"] > 0
        yield Row(
            f"export.{precision}", f"The ONNX graph in {precision.upper()} computes what the network does",
            "hscc-edge export", FULL if full else "no overflow",
            result, "fail" if failed else "pass", f"{item.name} /{precision}",
        )  # fmt: skip


def _validation(item: Recording) -> Iterator[Row]:
    found = item.content
    paired, race, test = found["comparison"], found.get("race"), KINDS["validation"].command
    judged = found.get("verdict") or {}
    criterion = f"non-inferior at a margin of {100 * judged['margin']:g} points" if judged else UNDECLARED
    yield Row(
        "validation.difference", "The compressed classifier decides as well as its original", test, criterion,
        _interval("points", 100, paired["difference"], paired["low"], paired["high"]),
        WORDS.get(judged.get("word", ""), "reported"), f"{item.name} /comparison",
    )  # fmt: skip
    if race:
        invalid, told = found.get("invalid"), _interval("x", 1, race["speedup"], race["low"], race["high"], sign=False)
        yield Row(
            "validation.latency", "It is faster than its original on the same runtime", test, UNDECLARED,
            f"{told}; {invalid}" if invalid else told, "inconclusive" if invalid else "reported", f"{item.name} /race",
        )  # fmt: skip


def _interval(unit: str, scale: float, value: float, low: float, high: float, sign: bool = True) -> str:
    form = "+.2f" if sign else ".2f"
    return f"{scale * value:{form}} {unit} (95 % interval {scale * low:{form}} to {scale * high:{form}})"


def _gate(contents: Contents) -> Iterator[Row]:
    """A row a line of the gate, whose figures name the limit."""
    if contents.gate is None:
        yield _absent("gate")
        return
    place, found = contents.gate
    for index, line in enumerate(found["lines"]):
        yield Row(
            f"gate.{line['name']}", f"Gate: {line['name']}", KINDS["gate"].command, "as in gate.toml",
            line["figures"], line["state"].lower(), f"{place}/lines/{index}".replace("//", "/"),
        )  # fmt: skip


def _doctor(item: Recording) -> Iterator[Row]:
    found = item.content
    faults = [str(one.get("name")) for one in found["findings"] if one.get("state") == "fault"]
    yield Row(
        "doctor.result", "Nothing keeps the device from its work", KINDS["doctor"].command, "no fault",
        f"{found['device']}: {', '.join(faults) or 'no fault'}", "fail" if faults else "pass", item.name,
    )  # fmt: skip


def _reported(item: Recording) -> Iterator[Row]:
    kind = KINDS[item.kind]
    yield Row(
        f"{item.kind}.result",
        kind.title,
        kind.command,
        UNDECLARED,
        "recorded",
        "reported",
        item.name,
    )


BY_KIND = {
    "validation": _validation, "flips": _reported, "robustness": _reported, "calibration": _reported,
    "bench": _reported, "export": _export, "build": _reported, "doctor": _doctor, "packages": _reported,
}  # fmt: skip


def _absent(kind: str) -> Row:
    found = KINDS[kind]
    return Row(f"{kind}.result", found.title, found.command, "", "nothing was recorded", "not run", "")
