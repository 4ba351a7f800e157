"""A recorded result: a JSON file that a verb wrote, of a known kind, about a bundle that it names by its digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from hscc_edge.bundle import Bundle
from hscc_edge.errors import InputError
from hscc_edge.validate.pack.verify import canonical

REPORTS = "reports/"
MOST_REPORTS = 10
FILE_LISTS = ("unreadable", "altered")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of recorded result.

    Attributes:
        command: what records it.
        keys: how a file without a "kind" is known: it has all of these.
    """

    title: str
    command: str
    keys: frozenset[str] = frozenset()


KINDS: dict[str, Kind] = {
    "validation": Kind(
        "Validation against the original",
        "hscc-edge validate BUNDLE --reference ORIGINAL --cohort COHORT --report report.html",
        frozenset({"candidate", "reference", "comparison", "cohort"}),
    ),
    "gate": Kind("Gate", "hscc-edge validate ... --gate gate.toml --report report.html", frozenset({"state", "lines"})),
    "flips": Kind(
        "Cases that the two decide differently",
        "hscc-edge flips BUNDLE --reference ORIGINAL --cohort COHORT --out flips.html",
    ),
    "robustness": Kind(
        "Robustness", "hscc-edge robustness BUNDLE --reference ORIGINAL --cohort COHORT --out robustness.json"
    ),
    "calibration": Kind(
        "Temperature and limit of familiarity",
        "hscc-edge calibrate BUNDLE --cohort COHORT --split val --false-alarms 1",
    ),
    "bench": Kind("Timing on the device", "hscc-edge bench BUNDLE --reference ORIGINAL --out bench.json"),
    "export": Kind("Export and parity of the ONNX graphs", "hscc-edge export BUNDLE --cohort COHORT"),
    "build": Kind("Engine", "hscc-edge build BUNDLE --json", frozenset({"builder", "executed", "precision"})),
    "doctor": Kind("State of the device", "hscc-edge doctor --json", frozenset({"device", "findings"})),
    "packages": Kind("Packages on the device", "hscc-edge packages --out packages.json"),
    "lock": Kind(
        "Lock of the cohort", "hscc-edge cohort lock COHORT", frozenset({"digest", "table", "check", "images"})
    ),
    "uses": Kind("Uses of the test set", "hscc-edge validate ..., which appends to uses.jsonl"),
}


@dataclass(frozen=True, slots=True)
class Recording:
    """A recorded result as it goes into the pack.

    Attributes:
        content: the parsed JSON; of JSON lines, a list.
        raw: its bytes in the pack: those of the file, but for a lock, whose lists of file names become counts.
        origin: "given", or the file of the bundle that it is.
        remark: what ties it to the bundle, in words.
    """

    kind: str
    content: Any
    raw: bytes = field(repr=False)
    origin: str = "given"
    remark: str = ""

    @property
    def sha256(self) -> str:
        """Of its bytes in the pack."""
        return hashlib.sha256(self.raw).hexdigest()

    @property
    def name(self) -> str:
        """Its file in the pack; the name it came under is not kept, since it may name somebody."""
        return f"records/{self.kind}-{self.sha256[:12]}.{'jsonl' if self.kind == 'uses' else 'json'}"


def read_recording(path: Path) -> Recording:
    """A recorded result from its file.

    Raises:
        InputError: if it is missing, no JSON, or of an unknown kind.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"the record {path} cannot be read ({error.strerror}): give a JSON file") from error
    return parse_recording(raw, str(path), path.suffix == ".jsonl")


def parse_recording(raw: bytes, name: str, lines: bool = False, origin: str = "given") -> Recording:
    """A recorded result from bytes; `name` is for messages.

    Raises:
        InputError: if it is no JSON, or of an unknown kind.
    """
    try:
        content = [json.loads(line) for line in raw.splitlines() if line.strip()] if lines else json.loads(raw)
    except ValueError as error:
        raise InputError(f"the record {name} is not JSON ({error}): give what a verb wrote") from error
    kind = "uses" if lines else kind_of(content)
    if kind is None:
        raise InputError(f"the record {name} is of an unknown kind: expected one of {', '.join(KINDS)}")
    if kind == "lock" and isinstance(content, dict):
        content = _without_names(content)
        raw = (json.dumps(content, indent=2) + "\n").encode()
    return Recording(kind, content, raw, origin)


def kind_of(content: Any) -> str | None:
    """Its kind, by what it says or by its keys; None if neither is known."""
    if not isinstance(content, dict):
        return None
    if content.get("kind") in KINDS:
        return str(content["kind"])
    known = (name for name, kind in KINDS.items() if kind.keys and kind.keys <= content.keys())
    return next(known, "export" if _is_export(content) else None)


def reports_of(bundle: Bundle) -> tuple[list[Recording], list[str]]:
    """The reports inside a bundle that are of a known kind, and the names of its other ones."""
    found, other = [], []
    for name in sorted(name for name in bundle.files if name.startswith(REPORTS)):
        try:
            if not name.endswith((".json", ".jsonl")):
                raise InputError("a report, and no record")
            raw = bundle.path(name).read_bytes()
            found.append(parse_recording(raw, name, name.endswith(".jsonl"), origin=name))
        except InputError:
            other.append(name)
    return found, other


def tie(recording: Recording, bundle: Bundle) -> str:
    """What ties a recorded result to the bundle, in words.

    Raises:
        InputError: if it says that it is about another bundle.
    """
    digest = digest_in(recording.content)
    if digest is None and recording.origin != "given":
        return f"inside the bundle: {recording.origin}"
    if digest is None:
        return "names no bundle: nothing but whoever gave it says that it is about this one"
    if digest == bundle.digest:
        return "names this bundle by its digest"
    for left_out in _subsets([name for name in bundle.files if name.startswith(REPORTS)]):
        files = {name: value for name, value in bundle.files.items() if name not in left_out}
        if hashlib.sha256(canonical(files)).hexdigest() == digest:
            return f"names this bundle as it was before {', '.join(left_out)} came into it"
    raise InputError(
        f"the record of kind '{recording.kind}' was taken on the bundle {digest[:12]}..., and {bundle.root} is "
        f"{bundle.digest[:12]}...: give records of this bundle, or take them anew"
    )


def digest_in(content: Any) -> str | None:
    """The digest of the bundle that a record says it is about."""
    if not isinstance(content, dict):
        return None
    for name in ("candidate", "bundle"):
        about = content.get(name)
        if isinstance(about, dict) and isinstance(about.get("digest"), str):
            return str(about["digest"])
        if isinstance(about, str) and len(about) == 64:
            return about
    return None


def _subsets(names: list[str]) -> Iterator[tuple[str, ...]]:
    ordered = sorted(names)[:MOST_REPORTS]
    for size in range(1, len(ordered) + 1):
        yield from combinations(ordered, size)


def _is_export(content: Mapping[str, Any]) -> bool:
    return bool(content) and all(isinstance(item, dict) and "top1_agreement" in item for item in content.values())


def _without_names(lock: Mapping[str, Any]) -> dict[str, Any]:
    """Files may be named after patients: a lock in a pack counts them."""
    check = dict(lock["check"])
    for name in FILE_LISTS:
        if isinstance(check.get(name), list):
            check[name] = len(check[name])
    return {**lock, "check": check}
