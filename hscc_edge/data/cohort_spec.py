"""What a cohort is to be made of: a TOML that says unit, labels, rules, split and codes.

name = "brain"
unit = "study"                  # image | series | study: what one label is about
patient = "patient"             # or "study", where files have lost their PatientID
one_series = true               # of each study exactly one series is expected to fit [include]
frames = "each"                 # each frame of a multi-frame file is an image, or "together"
classes = ["none", "tumour"]    # order of the classifier's outputs; absent: sorted
[labels]                        # see LabelRule
source = "labels.xlsx"
match = "accession"
key = "Accession"
column = "Diagnosis"
[labels.classes]
"Glioblastoma" = "tumour"
[include]                       # see SeriesRules
modality = "MR"
[split]                         # see SplitRule
val = 0.1
test = 0.25
[codes.tumour]
value = "108369006"
scheme = "SCT"
meaning = "Neoplasm"
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hscc_edge.data.cohort import UNITS
from hscc_edge.data.labels import FOLDERS, REPORTS, LabelRule
from hscc_edge.data.series import SeriesRules, parse_series_rules
from hscc_edge.data.split import SplitRule
from hscc_edge.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CHOICES = {"unit": UNITS, "patient": ("patient", "study"), "frames": ("each", "together")}
SPLIT_KEYS = {"val", "test", "seed", "stratify", "test_sites"}
DEFAULT_SPLIT = SplitRule({"val": 0.1, "test": 0.2})


@dataclass(frozen=True, slots=True)
class Spec:
    """See the module; `classes` empty means all that the labels name, sorted."""

    labels: LabelRule = field(default_factory=LabelRule)
    include: SeriesRules = field(default_factory=SeriesRules)
    split: SplitRule = DEFAULT_SPLIT
    codes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    name: str = ""
    unit: str = "study"
    patient: str = "patient"
    frames: str = "each"
    one_series: bool = False
    classes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values, as cohort.toml keeps them; empty ones are left out."""
        found = dataclasses.asdict(self)
        found["split"] = {**found["split"].pop("fractions"), **found["split"]}
        found["split"].pop("groups")
        return {key: kept for key, value in found.items() if (kept := _plain(value)) not in ("", [], {}, None)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: kept for key, item in value.items() if (kept := _plain(item)) is not None}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def read_spec(path: Path) -> Spec:
    """Read a spec; a relative path of its label table starts from the spec's folder.

    Raises:
        ConfigError: if it is no TOML, has an unknown key or a value of the wrong kind.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"the spec {path} cannot be read ({error}): expected a TOML file") from error
    spec = parse_spec(raw)
    source = spec.labels.source
    if source not in (FOLDERS, REPORTS):
        labels = dataclasses.replace(spec.labels, source=str(path.parent / source))
        spec = dataclasses.replace(spec, labels=labels)
    return spec


def parse_spec(raw: Mapping[str, Any]) -> Spec:
    """A spec from TOML's tables; raises as `read_spec` does."""
    values: dict[str, Any] = {key: raw[key] for key in raw.keys() - {"labels", "include", "split", "codes"}}
    defaults = {item.name: item.default for item in dataclasses.fields(Spec) if item.name not in TABLES}
    _known(values, defaults, "the spec")
    if "classes" in values:
        values["classes"] = tuple(map(str, values["classes"]))
    for key, choices in CHOICES.items():
        if values.get(key, choices[0]) not in choices:
            raise ConfigError(f"the spec has {key} = {values[key]!r}: expected one of {', '.join(choices)}")
    tables = {key: parse(raw[key]) for key, parse in TABLES.items() if key in raw}
    return Spec(**values, **tables)


def _labels(raw: Mapping[str, Any]) -> LabelRule:
    _known(raw, {item.name: item.default for item in dataclasses.fields(LabelRule)}, "[labels]")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
    return LabelRule(**values)


def _split(raw: Mapping[str, Any]) -> SplitRule:
    _known(raw, dict.fromkeys(SPLIT_KEYS), "[split]")
    lists: dict[str, Any] = {key: tuple(map(str, raw[key])) for key in ("stratify", "test_sites") if key in raw}
    fractions = {key: float(raw[key]) for key in ("val", "test") if key in raw} or DEFAULT_SPLIT.fractions
    return SplitRule(fractions, seed=int(raw.get("seed", 0)), **lists)


def _codes(raw: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    for label, code in raw.items():
        if not isinstance(code, Mapping) or set(code) != {"value", "scheme", "meaning"}:
            raise ConfigError(f"[codes.{label}] is {code!r}: expected value, scheme and meaning")
    return {label: {key: str(value) for key, value in code.items()} for label, code in raw.items()}


def _known(raw: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> None:
    for key, value in raw.items():
        if key not in defaults:
            raise ConfigError(f"{where} has the unknown key {key!r}: expected one of {', '.join(sorted(defaults))}")
        kind = type(defaults[key])
        if kind in (str, bool) and not isinstance(value, kind):
            raise ConfigError(f"{where} has {key} = {value!r}: expected a {kind.__name__}")


TABLES: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "labels": _labels,
    "include": parse_series_rules,
    "split": _split,
    "codes": _codes,
}
