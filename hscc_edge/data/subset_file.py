"""A calibration subset as a file: digests of images, of the cohort and of what chose them; no identifier."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from hscc_edge import durable
from hscc_edge.data.cohort import Cohort, Instance
from hscc_edge.data.subset import refuse_overlap
from hscc_edge.errors import CohortError, ConfigError, InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

IMAGE = re.compile(r"[0-9a-f]{64}(#\d+)?")


@dataclass(frozen=True, slots=True)
class Choice:
    """How a subset was chosen.

    Attributes:
        cohort: digest of the whole cohort.
        bundle: digest of the bundle whose features were read, "" for none.
    """

    cohort: str
    split: str
    method: str
    seed: int
    stratified: bool = True
    bundle: str = ""


def write_subset(
    path: Path, chosen: Cohort, choice: Choice, report: Mapping[str, Any], *, replace: bool = False
) -> None:
    """Write `chosen`, in the order of choice.

    Raises:
        CohortError: if a file of `chosen` has no digest.
        InputError: if something stands at `path`, unless `replace`.
    """
    if path.exists() and not replace:
        raise InputError(f"{path} exists: choose another place, or give --overwrite")
    missing = sum(not item.digest for item in chosen.instances)
    if missing:
        raise CohortError(f"{missing} chosen images have no digest in {chosen.root}: make the cohort with digests")
    images = [_name(item) for item in chosen.instances]
    durable.write_text(path, tomli_w.dumps({**dataclasses.asdict(choice), "images": images, "report": dict(report)}))


def read_subset(path: Path, cohort: Cohort) -> Cohort:
    """The images of a subset file out of the cohort that they were chosen from, in the order of choice.

    Raises:
        ConfigError: if the file is no subset file.
        CohortError: if the cohort is another or was changed, or the images overlap its test split.
    """
    found, images = _parse(path)
    if found.cohort != cohort.digest:
        raise CohortError(
            f"{path} was chosen from a cohort of digest {found.cohort[:12]}, and that of {cohort.root} is "
            f"{cohort.digest[:12]}: give that cohort, or choose again with hscc-edge cohort subset"
        )
    named: dict[str, Instance] = {}
    for item in cohort.select(found.split).instances:
        named.setdefault(_name(item), item)
    unknown = sum(name not in named for name in images)
    if unknown or len(set(images)) < len(images):
        raise CohortError(
            f"{path} names {unknown} images that the cohort's {found.split} split lacks and "
            f"{len(images) - len(set(images))} twice: choose again with hscc-edge cohort subset"
        )
    chosen = dataclasses.replace(cohort, instances=tuple(named[name] for name in images))
    refuse_overlap(chosen, cohort)
    return chosen


def read_choice(path: Path) -> Choice:
    """How the images of a subset file were chosen.

    Raises:
        ConfigError: if the file is no subset file.
    """
    return _parse(path)[0]


def _parse(path: Path) -> tuple[Choice, list[str]]:
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as TOML ({error}): give a file of hscc-edge cohort subset") from error
    images = raw.pop("images", None)
    raw.pop("report", None)
    kinds = {"cohort": str, "split": str, "method": str, "seed": int, "stratified": bool, "bundle": str}
    wrong = sorted(name for name in kinds.keys() | raw.keys() if type(raw.get(name)) is not kinds.get(name))
    if not (isinstance(images, list) and images and all(isinstance(n, str) and IMAGE.fullmatch(n) for n in images)):
        wrong.append("images")
    if wrong:
        raise ConfigError(
            f"{path} has a missing, unknown or malformed {wrong[0]!r}: give a file of hscc-edge cohort subset"
        )
    return Choice(**raw), images


def _name(instance: Instance) -> str:
    return f"{instance.digest}#{instance.frame}" if instance.frame else instance.digest
