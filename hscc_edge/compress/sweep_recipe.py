"""A sweep's recipe: TOML -> frozen dataclasses; an unknown key is an error."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hscc_edge.compress import AS_PUBLISHED, METHODS
from hscc_edge.compress.allocate import parse_budget
from hscc_edge.compress.compression import check_method
from hscc_edge.compress.problem import Settings
from hscc_edge.compress.structures import STRUCTURES
from hscc_edge.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OBJECTIVES = ("kl", "accuracy", "flops", "params", "bytes", "latency")
SAMPLERS = ("tpe", "nsga2")
Value = bool | int | float | str
Table = TypeVar("Table")


@dataclass(frozen=True, slots=True)
class Range:
    """Every number from low to high; integers if both ends are. `log`: evenly in the logarithm."""

    low: float
    high: float
    log: bool = False


Space = Mapping[str, "tuple[Value, ...] | Range"]


@dataclass(frozen=True, slots=True)
class Search:
    """Hyper-parameters that a sampler draws, for one method.

    Trial number i takes budget i mod B and, as often as all budgets were seen, the next seed: every budget gets as
    many trials as any other.

    Attributes:
        sampler: tpe (multi-objective tree-structured Parzen estimator, Ozaki et al. 2020) or nsga2 (Deb et al. 2002).
        seed: of the sampler.
    """

    method: str
    trials: int
    space: Space
    sampler: str = "tpe"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class SweepRecipe:
    """Everything that `hscc-edge sweep` needs but bundle and cohort.

    Attributes:
        objectives: some of OBJECTIVES, all to be made small: kl in nats an image, accuracy as points lost, the others
            as shares of the dense network's. Latency is measured only if it is one of them.
        settings: hyper-parameters other than by default, for every trial that does not draw them.
        threads: of the runtime that is timed.
    """

    name: str
    methods: tuple[str, ...]
    budgets: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    objectives: tuple[str, ...] = ("kl", "flops")
    settings: Mapping[str, Value] = field(default_factory=dict)
    search: Search | None = None
    threads: int = 1

    @property
    def key(self) -> str:
        """A digest of all that decides what a trial means; more trials of the search keep it."""
        facts = dataclasses.asdict(self)
        if facts["search"] is not None:
            del facts["search"]["trials"]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Point:
    """One compression: what decides its network, given bundle and cohort."""

    method: str
    budget: str
    settings: Settings
    images: int
    refit: bool

    @property
    def group(self) -> str:
        """Points of one group share what a method finds out; budget and refit come after it."""
        return repr((self.method, self.settings, self.images))


def read_sweep(path: Path) -> SweepRecipe:
    """Read a recipe.

    Raises:
        ConfigError: if the file is missing, is no TOML, or holds an unknown key or a bad value.
        BudgetError: if a budget is not understood.
        InputError: if a method is unknown.
    """
    raw = _read_toml(path)
    found = _table(path, "", SweepRecipe, raw)
    search = None if found.search is None else _search(path, found.search)
    methods = tuple(METHODS) if raw["methods"] == ["all"] else _list(path, "methods", raw["methods"], str)
    recipe = dataclasses.replace(
        found,
        methods=methods,
        budgets=_list(path, "budgets", found.budgets, str),
        seeds=_list(path, "seeds", found.seeds, int),
        objectives=_list(path, "objectives", found.objectives, str),
        search=search,
    )
    _check(path, recipe)
    return recipe


def point_of(method: str, budget: str, seed: int, values: Mapping[str, Any]) -> Point:
    """A point of hyper-parameters by name, the rest by default.

    Raises:
        ConfigError: if one is unknown or out of range.
    """
    parsed = {name: PARSERS[name](value) for name, value in completed(method, values).items()}
    images, refit = parsed.pop("images"), parsed.pop("refit")
    return Point(method, budget, Settings(seed=seed, **parsed), images, refit)


def completed(method: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Every hyper-parameter by name, those that are not given by default; what is run as published is not refitted.

    Raises:
        ConfigError: if one is unknown.
    """
    if unknown := sorted(values.keys() - PARSERS.keys()):
        raise ConfigError(
            f"the recipe has the unknown hyper-parameter '{unknown[0]}': expected one of {', '.join(PARSERS)}"
        )
    return {**DEFAULTS, "refit": method not in AS_PUBLISHED, **values}


def _check(path: Path, recipe: SweepRecipe) -> None:
    searched = [] if recipe.search is None else [recipe.search.method]
    for method in [*recipe.methods, *searched]:
        check_method(method)
    for budget in recipe.budgets:
        parse_budget(budget)
    if unknown := [name for name in recipe.objectives if name not in OBJECTIVES]:
        raise ConfigError(f"{path} has the objective {unknown[0]!r}: expected some of {', '.join(OBJECTIVES)}")
    if len(recipe.objectives) < 2:
        raise ConfigError(f"{path} has one objective: expected two or more of {', '.join(OBJECTIVES)}")
    if isinstance(recipe.threads, bool) or not isinstance(recipe.threads, int) or recipe.threads < 1:
        raise ConfigError(f"{path} has threads = {recipe.threads!r}: expected 1 or more")
    point_of("", "", 0, recipe.settings)


def _search(path: Path, raw: object) -> Search:
    found = _table(path, "search", Search, raw)
    if not isinstance(found.trials, int) or found.trials < 0:
        raise ConfigError(f"{path} has search.trials = {found.trials!r}: expected 0 or more")
    if found.sampler not in SAMPLERS:
        raise ConfigError(f"{path} has search.sampler = {found.sampler!r}: expected one of {', '.join(SAMPLERS)}")
    if not isinstance(found.space, dict) or not found.space:
        raise ConfigError(f"{path} has no [search.space]: expected a table of hyper-parameters")
    return dataclasses.replace(found, space={name: _choices(path, name, item) for name, item in found.space.items()})


def _choices(path: Path, name: str, raw: object) -> tuple[Value, ...] | Range:
    """A list of values, or a table with low and high; each value must be one that the hyper-parameter takes."""
    found: Range | None = None
    if isinstance(raw, dict):
        found = _table(path, f"search.space.{name}", Range, raw)
        ends = (found.low, found.high)
        if any(isinstance(end, bool) or not isinstance(end, (int, float)) for end in ends) or not ends[0] < ends[1]:
            raise ConfigError(f"{path} has {name} from {ends[0]!r} to {ends[1]!r}: expected two numbers, low first")
        if name not in ("regions", "clusters", "alignment", "damping", "images"):
            raise ConfigError(f"{path} has a range for {name}: expected a list of values")
        if found.log and ends[0] <= 0:
            raise ConfigError(f"{path} has {name} from {ends[0]!r} with log: expected more than 0")
        values: tuple[Any, ...] = ends
    else:
        values = _list(path, f"search.space.{name}", raw, (bool, int, float, str))
    for value in values:
        point_of("", "", 0, {name: value})
    return tuple(values) if found is None else found


def _read_toml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"the recipe {path} does not exist: give a TOML file like calibration/recipes/sweep-*.toml")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the recipe {path} is not TOML ({error}): mend that line") from error


def _table(path: Path, name: str, kind: type[Table], raw: object) -> Table:
    where = f" in [{name}]" if name else ""
    fields = {item.name: item for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} has {raw!r} for {name}: expected a table")
    if unknown := sorted(raw.keys() - fields.keys()):
        raise ConfigError(
            f"{path} has the unknown key '{unknown[0]}'{where}: expected one of {', '.join(sorted(fields))}"
        )
    needed = {
        key
        for key, item in fields.items()
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    }
    if missing := sorted(needed - raw.keys()):
        raise ConfigError(f"{path} lacks the key '{missing[0]}'{where}: see calibration/recipes for an example")
    return kind(**raw)


def _list(path: Path, name: str, raw: object, kind: type | tuple[type, ...]) -> tuple[Any, ...]:
    values = raw if isinstance(raw, (list, tuple)) else ()
    if not values or not all(isinstance(value, kind) for value in values) or len(set(values)) < len(values):
        raise ConfigError(f"{path} has {name} = {raw!r}: expected a list of different values, at least one")
    return tuple(values)


def _refused(name: str, value: object, expected: str) -> ConfigError:
    return ConfigError(f"the recipe has {name} = {value!r}: expected {expected}")


def _cells(value: object) -> tuple[int, ...]:
    sizes = value.split("x") if isinstance(value, str) else [""]
    if not all(size.isdigit() and int(size) > 0 for size in sizes):
        raise _refused("cells", value, "rows x columns, such as '6x6'")
    return tuple(int(size) for size in sizes)


def _structures(value: object) -> tuple[str, ...]:
    names = tuple(STRUCTURES) if value == "all" else tuple(value.split(",")) if isinstance(value, str) else ("",)
    if any(name not in STRUCTURES for name in names):
        raise _refused("structures", value, f"'all' or some of {', '.join(STRUCTURES)} with commas between")
    return names


def _count(name: str) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise _refused(name, value, "1 or more")
        return value

    return parse


def _damping(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise _refused("damping", value, "more than 0 and at most 1, such as 0.001")
    return float(value)


def _refit(value: object) -> bool:
    if not isinstance(value, bool):
        raise _refused("refit", value, "true or false")
    return value


PARSERS: dict[str, Callable[[Any], Any]] = {
    "cells": _cells,
    "regions": _count("regions"),
    "clusters": _count("clusters"),
    "structures": _structures,
    "alignment": _count("alignment"),
    "damping": _damping,
    "images": _count("images"),
    "refit": _refit,
}
DEFAULTS: dict[str, Value] = {
    "cells": "x".join(str(size) for size in Settings().cells),
    "regions": Settings().regions,
    "clusters": Settings().clusters,
    "structures": ",".join(Settings().structures),
    "alignment": Settings().alignment,
    "damping": Settings().damping,
    "images": 512,
}
