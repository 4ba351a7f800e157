"""What only the site can say, in TOML: card, checklist answers, its requirements' numbers, its plan of changes."""

from __future__ import annotations

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

CARD = (
    "owner", "contact", "licence", "intended_use", "users", "out_of_scope", "limitations", "risks", "training_data",
    "citation",
)  # fmt: skip
CHANGE = ("document", "allowed", "protocol")
TABLES = ("card", "answers", "requirements", "change")
TO_FILL = "for the site to fill"


@dataclass(frozen=True, slots=True)
class Site:
    """What the site says.

    Attributes:
        card: keys of CARD -> text.
        answers: checklist -> item number -> text.
        requirements: id of a row of the verification record -> the site's own number of that requirement.
        document: name and version of the predetermined change control plan; "" if there is none.
        allowed: names of what that plan lets change, such as "plan", "weights", "calibration".
        protocol: ids of rows of the verification record that must have passed for a change to be allowed.
    """

    card: Mapping[str, str] = field(default_factory=dict)
    answers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    requirements: Mapping[str, str] = field(default_factory=dict)
    document: str = ""
    allowed: tuple[str, ...] = ()
    protocol: tuple[str, ...] = ()

    def say(self, key: str) -> str:
        """What the card says under a key, or that it is for the site to fill."""
        return self.card.get(key, TO_FILL)


def read_site(path: Path | None) -> Site:
    """The site's file; without one, nothing is said.

    Raises:
        ConfigError: if it is missing, no TOML, or has an unknown key.
    """
    if path is None:
        return Site()
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--site {path} cannot be read ({error.strerror}): give a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--site {path} is not TOML ({error}): mend that line") from error
    _check_keys(path, "", raw, TABLES)
    card, change = _texts(path, "card", raw), raw.get("change", {})
    _check_keys(path, "card.", card, CARD)
    _check_keys(path, "change.", change, CHANGE)
    answers = raw.get("answers", {})
    return Site(
        card=card,
        answers={name: _texts(path, name, answers) for name in answers},
        requirements=_texts(path, "requirements", raw),
        document=str(change.get("document", "")),
        allowed=tuple(change.get("allowed", ())),
        protocol=tuple(change.get("protocol", ())),
    )


def _check_keys(path: Path, table: str, raw: Mapping[str, Any], known: tuple[str, ...]) -> None:
    if unknown := sorted(raw.keys() - set(known)):
        raise ConfigError(f"{path} has the unknown key '{table}{unknown[0]}': expected one of {', '.join(known)}")


def _texts(path: Path, name: str, raw: Mapping[str, Any]) -> dict[str, str]:
    found = raw.get(name, {})
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ConfigError(f'{path} has a bad table [{name}]: expected lines such as key = "text"')
    return found
