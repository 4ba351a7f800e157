"""The daemon's configuration: TOML -> `config.Config`; an unknown key is an error, and each error names its line."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from hscc_edge.errors import ConfigError
from hscc_edge.serve.config import Config
from hscc_edge.serve.config_rules import RULES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXAMPLE = "see deploy/serve.example.toml"
WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", Path: "the path of a file"}
T = TypeVar("T")


def read_config(path: Path) -> Config:
    """Read a configuration; relative paths in it are relative to its directory.

    Raises:
        ConfigError: if the file is missing, is no TOML, has an unknown key, lacks one, or a value is out of range.
    """
    if not path.is_file():
        raise ConfigError(f"the configuration {path} does not exist: copy deploy/serve.example.toml and edit it")
    try:
        text = path.read_text(encoding="utf-8")
        raw = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration {path} is not TOML ({error}): mend that line") from error
    source = _Source(path, text)
    config = source.table(Config, raw, ())
    for keys, sentence in (found for rule in RULES for found in rule(config)):
        source.fail(keys, sentence)
    return config


@dataclass(frozen=True, slots=True)
class _Source:
    """The file that values come from, so that an error can say where."""

    path: Path
    text: str

    def fail(self, keys: tuple[str | int, ...], sentence: str) -> NoReturn:
        raise ConfigError(f"{self.path}, line {line_of(self.text, keys)}: {sentence}")

    def table(self, kind: type[T], raw: object, keys: tuple[str | int, ...]) -> T:
        """A dataclass from a table."""
        if not isinstance(raw, Mapping):
            self.fail(keys, f"{_name(keys)} is no table: {EXAMPLE}")
        hints = typing.get_type_hints(kind)
        fields = {item.name: item for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
        if unknown := sorted(raw.keys() - fields.keys()):
            self.fail((*keys, unknown[0]), f"unknown key '{unknown[0]}': expected one of {', '.join(fields)}")
        for key, item in fields.items():
            needed = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
            if needed and key not in raw:
                self.fail(keys, f"'{key}' is missing in {_name(keys)}: {EXAMPLE}")
        return kind(**{key: self.value(hints[key], value, (*keys, key)) for key, value in raw.items()})

    def value(self, kind: Any, raw: object, keys: tuple[str | int, ...]) -> Any:
        """A value of the annotated type."""
        if isinstance(kind, types.UnionType):
            kind = next(part for part in typing.get_args(kind) if part is not type(None))
        origin, inner = typing.get_origin(kind), typing.get_args(kind)
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            return self.table(kind, raw, keys)
        if origin is tuple:
            items = raw if isinstance(raw, list) else self.fail(keys, f"{keys[-1]} is {raw!r}: expected a list")
            return tuple(self.value(inner[0], item, (*keys, number)) for number, item in enumerate(items))
        if origin is not None:
            pairs = raw if isinstance(raw, Mapping) else self.fail(keys, f"{keys[-1]} is {raw!r}: expected a table")
            return {key: self.value(inner[1], item, (*keys, key)) for key, item in pairs.items()}
        return self.plain(kind, raw, keys)

    def plain(self, kind: type, raw: object, keys: tuple[str | int, ...]) -> Any:
        """A text, number, truth value or path."""
        wanted = {float: (int, float), Path: (str,)}.get(kind, (kind,))
        right = isinstance(raw, wanted) and (kind is bool or not isinstance(raw, bool))
        if not right or (isinstance(raw, float) and not math.isfinite(raw)) or (kind is Path and not raw):
            self.fail(keys, f"{keys[-1]} is {raw!r}: expected {WORDS[kind]}")
        return self.path.parent / str(raw) if kind is Path else raw


def line_of(text: str, keys: tuple[str | int, ...]) -> int:
    """The line, from 1, on which a key stands, or else its table's head; 1 if neither is found."""
    tables, best = [key for key in keys if isinstance(key, str)], 1
    position = next((key for key in keys if isinstance(key, int)), 0)
    current: tuple[str, ...] = ()
    seen: dict[tuple[str, ...], int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if head := re.match(r"\s*\[\[?\s*([\w.\-\"' ]+?)\s*\]\]?\s*(#.*)?$", line):
            current = tuple(part.strip(" \"'") for part in head[1].split("."))
            seen[current] = seen.get(current, -1) + line.lstrip().startswith("[[")
            if current == tuple(tables[: len(current)]) and seen[current] in (-1, position):
                best = number
        elif key := re.match(r"\s*([\w\-]+|\"[^\"]*\"|'[^']*')\s*[.=]", line):
            own = (*current, key[1].strip("\"'"))
            if own == tuple(tables[: len(own)]) and seen.get(current, -1) in (-1, position):
                best = number
    return best


def _name(keys: tuple[str | int, ...]) -> str:
    return f"[{'.'.join(str(key) for key in keys if isinstance(key, str))}]" if keys else "the top level"
