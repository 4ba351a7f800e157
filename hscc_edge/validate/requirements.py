"""What a candidate must hold: `gate.toml` -> requirements; every mistake in it is told with its line."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hscc_edge.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXAMPLE = "deploy/gate.example.toml"
# table -> key -> lowest and highest number allowed (both excluded), or None for a text or a list of texts
KEYS: dict[str, dict[str, tuple[float, float] | None]] = {
    "accuracy": {"margin_points": (0, 100)},
    "subgroups": {"margin_points": (0, 100), "accuracy": (0, 100), "columns": None},
    "latency": {"p99_ms": (0, math.inf), "speedup": (0, math.inf), "runtime": None},
    "memory": {"peak_mib": (0, math.inf)},
    "parity": {"onnx": (0, math.inf), "engine": (0, math.inf)},
}
SENSITIVITY = "sensitivity"
HEADER = re.compile(r"\s*\[\s*([\w-]+)\s*\]")
ENTRY = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([\w-]+))\s*=""")


@dataclass(frozen=True, slots=True)
class Requirements:
    """What is asked for; None and empty for what is not.

    Attributes:
        margin: accuracy may be worse than the reference's by less than this share.
        sensitivity: class -> least share, at its operating point if the bundle has one, else as decided.
        group_margin, group_accuracy: in every subgroup of `group_columns`, or of all columns where those are empty.
        p99_ms, speedup: of one call, batch 1; on `runtime`, if that is given.
        peak_mib: resident memory of a process that holds the candidate.
        parity: "onnx" (against torch) and "engine" (against ONNX) -> largest difference of a logit, as a share of the
            largest logit.
        lines: "table.key" -> its line in the file.
    """

    margin: float | None = None
    sensitivity: Mapping[str, float] = field(default_factory=dict)
    group_margin: float | None = None
    group_accuracy: float | None = None
    group_columns: tuple[str, ...] = ()
    p99_ms: float | None = None
    speedup: float | None = None
    runtime: str | None = None
    peak_mib: float | None = None
    parity: Mapping[str, float] = field(default_factory=dict)
    lines: Mapping[str, int] = field(default_factory=dict)


def read_requirements(path: Path) -> Requirements:
    """Read a gate.

    Raises:
        ConfigError: if the file is missing, is no TOML, has an unknown key, a value out of range, or asks for nothing.
    """
    if not path.is_file():
        raise ConfigError(f"the gate {path} does not exist: copy {EXAMPLE} and edit it")
    try:
        text = path.read_text(encoding="utf-8")
        raw = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the gate {path} is not TOML ({error}): mend that line") from error
    lines = lines_of(text)
    for table, values in raw.items():
        _check_table(path, table, values, lines)
    if not any(raw.values()):
        raise ConfigError(f"the gate {path} asks for nothing, and would pass anything: see {EXAMPLE}")
    return _requirements(raw, lines)


def lines_of(text: str) -> dict[str, int]:
    """`table` and `table.key` -> line, from 1; later ones win."""
    found: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := HEADER.match(line):
            table = header[1]
            found[table] = number
        elif entry := ENTRY.match(line):
            key = entry[1] or entry[2] or entry[3] or ""
            found[f"{table}.{key}" if table else key] = number
    return found


def _check_table(path: Path, table: str, values: object, lines: Mapping[str, int]) -> None:
    place = f"line {lines.get(table, 1)} of {path}"
    if table not in KEYS and table != SENSITIVITY:
        raise ConfigError(f"{place} has the unknown key '{table}': expected one of {', '.join((*KEYS, SENSITIVITY))}")
    if not isinstance(values, Mapping):
        raise ConfigError(f"{place}: '{table}' is no table: write [{table}], see {EXAMPLE}")
    for key, value in values.items():
        place = f"line {lines.get(f'{table}.{key}', lines.get(table, 1))} of {path}"
        if table != SENSITIVITY and key not in KEYS[table]:
            raise ConfigError(f"{place} has the unknown key '{key}' in [{table}]: expected one of "
                              f"{', '.join(KEYS[table])}")  # fmt: skip
        _check_value(f"{place}: {key} in [{table}]", key, value, (0, 100) if table == SENSITIVITY else KEYS[table][key])


def _check_value(place: str, key: str, value: object, span: tuple[float, float] | None) -> None:
    if span is not None:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not span[0] < float(value) < span[1]:  # type: ignore[arg-type]
            expected = f"above {span[0]:g}" + ("" if span[1] == math.inf else f" and below {span[1]:g}")
            raise ConfigError(f"{place} is {value!r}: expected a number {expected}")
    elif key == "columns":
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ConfigError(f'{place} is {value!r}: expected a list of texts, such as ["site"]')
    elif not isinstance(value, str):
        raise ConfigError(f"{place} is {value!r}: expected a text")


def _requirements(raw: Mapping[str, Mapping[str, Any]], lines: Mapping[str, int]) -> Requirements:
    def given(table: str, key: str, scale: float = 1.0) -> float | None:
        value = raw.get(table, {}).get(key)
        return None if value is None else float(value) / scale

    return Requirements(
        margin=given("accuracy", "margin_points", 100),
        sensitivity={label: float(value) / 100 for label, value in raw.get(SENSITIVITY, {}).items()},
        group_margin=given("subgroups", "margin_points", 100),
        group_accuracy=given("subgroups", "accuracy", 100),
        group_columns=tuple(raw.get("subgroups", {}).get("columns", ())),
        p99_ms=given("latency", "p99_ms"),
        speedup=given("latency", "speedup"),
        runtime=raw.get("latency", {}).get("runtime"),
        peak_mib=given("memory", "peak_mib"),
        parity={key: float(value) for key, value in raw.get("parity", {}).items()},
        lines=dict(lines),
    )
