"""Which options of PS3.15 Annex E are taken, and what the table says is to be done with an attribute under them."""

from __future__ import annotations

import csv
import dataclasses
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from hscc_edge.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EDITION = "2026d"
DATES = ("remove", "shift", "keep")
TEMPORAL = ("DA", "DT", "TM")
# PS3.16 CID 7050, with the columns of Table E.1-1
CODES = {
    "basic": ("113100", "Basic Application Confidentiality Profile"),
    "clean_graphics": ("113103", "Clean Graphics Option"),
    "clean_structured_content": ("113104", "Clean Structured Content Option"),
    "clean_descriptors": ("113105", "Clean Descriptors Option"),
    "retain_longitudinal_full_dates": ("113106", "Retain Longitudinal Temporal Information Full Dates Option"),
    "retain_longitudinal_modified_dates": ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    "retain_patient_characteristics": ("113108", "Retain Patient Characteristics Option"),
    "retain_device_identity": ("113109", "Retain Device Identity Option"),
    "retain_uids": ("113110", "Retain UIDs Option"),
    "retain_safe_private": ("113111", "Retain Safe Private Option"),
    "retain_institution_identity": ("113112", "Retain Institution Identity Option"),
}
NOT_DONE = {
    "113101": "Clean Pixel Data Option: burnt-in text is neither found reliably nor removed",
    "113102": "Clean Recognizable Visual Features Option: faces can be rebuilt from volumes of the head",
}
SAFE_PRIVATE = re.compile(r"(?P<creator>.+) \((?P<group>[0-9A-F]{3}[13579BDF]),xx(?P<element>[0-9A-F]{2})\)")


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of Table E.1-1 or E.3.4-1: the action of the basic profile and those under options."""

    basic: str
    options: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Profile:
    """The Basic Application Level Confidentiality Profile (PS3.15 E.2) with the options (E.3) that are true.

    Attributes:
        dates: "remove", "shift" (by whole days, a number of days for each patient), or "keep".
        max_shift_days: patients' dates move back by 1 to so many days.
        safe_private: private attributes to keep, as "CREATOR (0019,xx0C)" (PS3.15 E.3.10).
        descriptor_words: words that cleaned descriptions may hold beside the built-in ones.
    """

    dates: str = "remove"
    max_shift_days: int = 1825
    retain_uids: bool = False
    retain_patient_characteristics: bool = False
    retain_device_identity: bool = False
    retain_institution_identity: bool = False
    clean_descriptors: bool = False
    clean_structured_content: bool = False
    clean_graphics: bool = False
    safe_private: tuple[str, ...] = ()
    descriptor_words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.dates not in DATES:
            raise ConfigError(f"dates is {self.dates!r}: expected one of {', '.join(DATES)}")
        if not 1 <= self.max_shift_days <= 36500:
            raise ConfigError(f"max_shift_days is {self.max_shift_days}: expected 1 to 36500")
        for text in self.safe_private:
            if not SAFE_PRIVATE.fullmatch(text):
                raise ConfigError(
                    f"safe_private holds {text!r}: expected a creator and a tag such as SIEMENS MR HEADER (0019,xx0C)"
                )

    @property
    def options(self) -> tuple[str, ...]:
        """The columns of Table E.1-1 that hold, in the order of CID 7050."""
        chosen = {
            "retain_longitudinal_full_dates": self.dates == "keep",
            "retain_longitudinal_modified_dates": self.dates == "shift",
            "retain_safe_private": bool(self.safe_private),
        }
        return tuple(name for name in CODES if chosen.get(name, getattr(self, name, False)))

    @property
    def codes(self) -> tuple[tuple[str, str], ...]:
        """(code value, meaning) of CID 7050 for the profile and each option."""
        return tuple(CODES[name] for name in ("basic", *self.options))

    def is_safe_private(self, creator: str, tag: int) -> bool:
        """Whether a private attribute is on the list."""
        return f"{creator} ({tag >> 16:04X},xx{tag & 0xFF:02X})" in self.safe_private

    def action(self, rule: Rule, vr: str) -> str:
        """D, Z, X, U, K, C, shift or one of the compound codes for an attribute of value representation `vr`.

        Shifted dates win over options that would keep the same date: one true date would betray the shift.
        """
        found = {option: rule.options[option] for option in self.options if option in rule.options}
        if "retain_longitudinal_modified_dates" in self.options and vr in TEMPORAL and found:
            return "shift"
        for action in ("K", "C"):
            if action in found.values():
                return action
        return rule.basic


@cache
def attribute_rules() -> Mapping[str, Rule]:
    """Table E.1-1: eight hexadecimal digits of the tag, "50xxxxxx", "60xx3000", "60xx4000" or "PRIVATE" -> rule."""
    return {row["tag"]: _rule(row) for row in _table(f"attributes_{EDITION}.csv")}


@cache
def content_rules() -> Mapping[tuple[str, str, str], Rule]:
    """Table E.3.4-1: coding scheme, code value and value type of a content item -> rule."""
    rows = _table(f"content_{EDITION}.csv")
    return {(row["scheme"].partition(" ")[0], row["code"], row["value_type"]): _rule(row) for row in rows}


def _table(name: str) -> list[dict[str, str]]:
    text = files("hscc_edge.data.deidentify").joinpath(name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _rule(row: Mapping[str, str]) -> Rule:
    return Rule(row["basic"], {name: row[name] for name in CODES if name != "basic" and row[name]})


def rule_of(tag: int) -> Rule | None:
    """The rule of a standard attribute; None if the table does not name it. Curves and overlays are not looked up."""
    return attribute_rules().get(f"{tag:08X}")


def read_profile(path: Path) -> Profile:
    """Read a profile from TOML; every key is an attribute of `Profile`.

    Raises:
        ConfigError: if it cannot be read, a key is unknown, or a value is of the wrong kind.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is no readable TOML ({error}): give a profile as in docs/deidentify.md") from error
    kinds = {item.name: type(item.default) for item in dataclasses.fields(Profile)}
    for name, value in content.items():
        if name not in kinds:
            raise ConfigError(f"{path} has the key {name!r}: expected some of {', '.join(kinds)}")
        if not _fits(value, kinds[name]):
            raise ConfigError(f"{path} has {name} = {value!r}: expected a {kinds[name].__name__} of text or number")
    chosen: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in content.items()}
    return Profile(**chosen)


def _fits(value: Any, kind: type) -> bool:
    if kind is tuple:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return type(value) is kind
