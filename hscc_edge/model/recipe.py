"""A recipe for training or import: TOML -> frozen dataclasses; an unknown key is an error."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hscc_edge.bundle import Code
from hscc_edge.data.preprocess import Preprocess, parse_preprocess
from hscc_edge.errors import ConfigError
from hscc_edge.model.decision import Rule, parse_rule

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRECISIONS = ("fp32", "bf16")
Table = TypeVar("Table")


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast: AdamW with one cycle of the learning rate (Smith 2018, arXiv 1803.09820).

    Attributes:
        precision: fp32, or bf16 for autocast (measured about twice as fast on CPUs that have it, a third
            as fast on those that emulate it).
        augment: flips, small shifts and noise through the MONAI pipeline.
    """

    epochs: int
    batch_size: int = 64
    learning_rate: float = 3e-4
    weight_decay: float = 1e-2
    label_smoothing: float = 0.0
    precision: str = "fp32"
    augment: bool = True
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that `hscc-edge train` needs but the cohort, and `hscc-edge import` but the model.

    Attributes:
        network: name and args of a network to train; of one to import, the args of its factory.
        train: how to train; None in a recipe for import.
        labels: of an imported network, in the order of its logits; when training, the cohort has them.
    """

    name: str
    network: Mapping[str, Any]
    preprocess: Preprocess
    decision: Rule
    train: Schedule | None
    site: Code
    procedure: Code
    head: str = "softmax"
    findings: Mapping[str, Code] = field(default_factory=dict)
    labels: tuple[str, ...] = ()

    @property
    def schedule(self) -> Schedule:
        """How to train.

        Raises:
            ConfigError: if the recipe has no [train].
        """
        if self.train is None:
            raise ConfigError(f"the recipe {self.name} has no table [train]: add one to train, see calibration/recipes")
        return self.train


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        ConfigError: if the file is missing, is no TOML, or holds an unknown key or a bad value.
    """
    raw = _read_toml(path)
    known = {item.name for item in dataclasses.fields(Recipe)}
    if unknown := sorted(raw.keys() - known):
        raise ConfigError(f"{path} has the unknown key '{unknown[0]}': expected one of {', '.join(sorted(known))}")
    if missing := sorted({"name", "preprocess", "decision", "site", "procedure"} - raw.keys()):
        raise ConfigError(f"{path} lacks the key '{missing[0]}': see calibration/recipes for an example")
    train = raw.get("train")
    return Recipe(
        name=str(raw["name"]),
        network=_network(path, raw.get("network", {}), trained=train is not None),
        preprocess=parse_preprocess(raw["preprocess"]),
        decision=parse_rule(raw["decision"]),
        train=None if train is None else _check_schedule(_table(path, "train", Schedule, train)),
        site=_table(path, "site", Code, raw["site"]),
        procedure=_table(path, "procedure", Code, raw["procedure"]),
        head=str(raw.get("head", "softmax")),
        findings={label: _table(path, "findings", Code, code) for label, code in raw.get("findings", {}).items()},
        labels=_labels(path, raw.get("labels", [])),
    )


def _network(path: Path, raw: object, trained: bool) -> dict[str, Any]:
    table = raw if isinstance(raw, dict) else {}
    if trained and not isinstance(table.get("name"), str):
        raise ConfigError(f'{path} has no network.name: expected a table like [network] name = "alexnet"')
    if not isinstance(table.get("args", {}), dict):
        raise ConfigError(f"{path} has network.args = {table['args']!r}: expected a table, such as {{ depth = 18 }}")
    return {"name": str(table.get("name", "")), "args": table.get("args", {})}


def _labels(path: Path, raw: object) -> tuple[str, ...]:
    if not isinstance(raw, list) or not all(isinstance(label, str) and label for label in raw):
        raise ConfigError(f'{path} has labels = {raw!r}: expected names, such as labels = ["none", "tumour"]')
    if len(set(raw)) != len(raw):
        raise ConfigError(f"{path} has labels = {raw!r}, one of them twice: name every logit once")
    return tuple(raw)


def _read_toml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"the recipe {path} does not exist: give a TOML file like those in calibration/recipes")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the recipe {path} is not TOML ({error}): mend that line") from error


def _table(path: Path, name: str, kind: type[Table], raw: object) -> Table:
    try:
        return kind(**raw)  # type: ignore[arg-type]
    except TypeError as error:
        reason = str(error).partition(") ")[2] or str(error)
        raise ConfigError(f"{path} has a bad table [{name}]: {reason}") from error


def _check_schedule(schedule: Schedule) -> Schedule:
    if schedule.epochs < 1 or schedule.batch_size < 1 or schedule.learning_rate <= 0:
        raise ConfigError(
            f"[train] has epochs={schedule.epochs}, batch_size={schedule.batch_size}, "
            f"learning_rate={schedule.learning_rate}: all must be positive"
        )
    if schedule.precision not in PRECISIONS:
        raise ConfigError(f"[train] has precision {schedule.precision!r}: expected one of {', '.join(PRECISIONS)}")
    return schedule
