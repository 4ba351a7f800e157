"""The Python packages that are installed, as JSON: recorded on the device, so that its SBOM is of what runs there."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import Distribution, distributions
from typing import Any

SCHEMA = 1
OWN = "hscc-edge"
REQUIREMENT = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^\]]*)\])?([^;]*)(?:;(.*))?$")
EXTRA = re.compile(r"""extra\s*==\s*["']([^"']+)["']""")
PLACEHOLDERS = {"", "unknown", "none", "license"}


def inventory() -> dict[str, Any]:
    """Every distribution that this Python sees, those of the system's Python included if it sees them."""
    return {
        "kind": "packages",
        "schema": SCHEMA,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "packages": list(_installed()),
    }


@cache
def _installed() -> tuple[Mapping[str, Any], ...]:
    """The first of each name on the path, as imports take it."""
    found = {_name(_field(item, "Name")): item for item in reversed(list(distributions())) if _field(item, "Name")}
    return tuple(_facts(found[name]) for name in sorted(found))


def needed(packages: Mapping[str, Any], extra: str) -> list[str]:
    """Names of what `pip install 'hscc-edge[extra]'` needs, of what the inventory holds; itself first.

    Environment markers are taken as met where the package is there, since the inventory is of one machine.
    """
    by_name = {str(item["name"]): item for item in packages["packages"]}
    chosen: dict[str, None] = {}
    queue = [(OWN, frozenset({extra}))]
    seen = set()
    while queue:
        name, extras = queue.pop(0)
        if (name, extras) in seen or name not in by_name:
            continue
        seen.add((name, extras))
        chosen[name] = None
        for wanted, own_extras, condition in (_requirement(line) for line in by_name[name]["requires"]):
            if condition is None or condition in extras:
                queue.append((wanted, own_extras))
    return list(chosen)


def dependencies(item: Mapping[str, Any], known: set[str]) -> list[str]:
    """What a package asks for, of the names that are known; extras that nobody asked for are left out."""
    asked = (_requirement(line) for line in item["requires"])
    return sorted({name for name, _, condition in asked if condition is None and name in known})


def _requirement(line: str) -> tuple[str, frozenset[str], str | None]:
    """(name, its extras, the extra under which it is asked for) of a Requires-Dist line (PEP 508)."""
    found = REQUIREMENT.match(line)
    if found is None:
        return "", frozenset(), None
    name, extras, _, marker = found.groups()
    condition = EXTRA.search(marker or "")
    own = frozenset(part.strip() for part in (extras or "").split(",") if part.strip())
    return _name(name), own, condition.group(1) if condition else None


def _facts(item: Distribution) -> dict[str, Any]:
    record, origin = item.read_text("RECORD"), item.read_text("direct_url.json")
    return {
        "name": _name(_field(item, "Name")),
        "version": item.version,
        "licence": _licence(item),
        "requires": sorted(item.requires or ()),
        "record_sha256": None if record is None else hashlib.sha256(record.encode()).hexdigest(),
        "archive_sha256": None if origin is None else _archive(origin),
    }


def _name(name: str) -> str:
    """The name as PyPI compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _licence(item: Distribution) -> str:
    """An SPDX expression where the package gives one (PEP 639), else what its classifiers or its field say."""
    if expression := _field(item, "License-Expression"):
        return str(expression)
    said = [
        line.split(" :: ")[-1] for line in item.metadata.get_all("Classifier") or () if line.startswith("License ::")
    ]
    if said:
        return "; ".join(sorted(set(said)))
    first = _field(item, "License").strip().partition("\n")[0].strip()
    return "" if first.lower() in PLACEHOLDERS else first[:100]


def _field(item: Distribution, name: str) -> str:
    return str((item.metadata.get_all(name) or [""])[0])


def _archive(origin: str) -> str | None:
    try:
        hashes = json.loads(origin).get("archive_info", {}).get("hashes", {})
    except ValueError:
        return None
    found = hashes.get("sha256")
    return None if found is None else str(found)
