"""What a pack is made of: the bundle, the recorded results about it, and what the site says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hscc_edge.bundle import Bundle, read_bundle
from hscc_edge.errors import InputError
from hscc_edge.validate.pack.packages import inventory
from hscc_edge.validate.pack.recording import KINDS, Recording, read_recording, reports_of, tie
from hscc_edge.validate.pack.site import Site, read_site

ONE = ("validation", "gate", "flips", "robustness", "calibration", "export", "packages", "doctor")


@dataclass(frozen=True, slots=True)
class Contents:
    """Everything that a pack renders; two equal contents give equal packs.

    Attributes:
        recordings: by kind in the order of KINDS, then by digest.
        unread: reports inside the bundle that are of no known kind.
        approved: the last approved bundle, None if none was given.
        packages: the inventory for the device's SBOM.
        timestamp: ISO 8601, UTC: the only thing that may differ between two packs of the same inputs.
    """

    bundle: Bundle
    recordings: tuple[Recording, ...]
    unread: tuple[str, ...]
    approved: Bundle | None
    site: Site
    packages: Mapping[str, Any]
    timestamp: str

    def of(self, kind: str) -> list[Recording]:
        """The recordings of a kind."""
        return [item for item in self.recordings if item.kind == kind]

    def one(self, kind: str) -> Any:
        """The content of the only recording of a kind; None if there is none."""
        found = self.of(kind)
        return found[0].content if found else None

    @property
    def gate(self) -> tuple[str, Mapping[str, Any]] | None:
        """The gate's result and where it stands: its own record, or a part of the validation."""
        for item, place in ((item, "gate" if item.kind == "validation" else "") for item in self.recordings):
            found = item.content.get(place) if place else item.content if item.kind == "gate" else None
            if found:
                return f"{item.name} /{place}", found
        return None

    @property
    def uses(self) -> tuple[str, list[Any]]:
        """Looks at the test set and where they stand: uses.jsonl, else what the validation knew of them."""
        for item in (*self.of("uses"), *self.of("validation")):
            found = item.content if item.kind == "uses" else item.content.get("uses")
            if found:
                return item.name, list(found)
        return "", []

    @property
    def missing(self) -> list[str]:
        """Kinds of which nothing was recorded."""
        inside = {"gate": bool(self.gate), "uses": bool(self.uses[1])}
        return [kind for kind in KINDS if not self.of(kind) and not inside.get(kind)]

    @property
    def on_device(self) -> bool:
        """Whether the packages were recorded there."""
        return bool(self.of("packages"))


def gather(
    bundle: Path, records: Sequence[Path], timestamp: str, *, approved: Path | None = None, site: Path | None = None
) -> Contents:
    """Read everything; every digest of both bundles is checked, and nothing is run.

    Raises:
        BundleError: if a bundle is altered.
        InputError: if a record is of an unknown kind, about another bundle, or one of two of a kind that stands alone.
    """
    found = read_bundle(bundle)
    inside, unread = reports_of(found)
    given = [read_recording(path) for path in records]
    kept = _distinct([*given, *inside])
    tied = tuple(replace(item, remark=tie(item, found)) for item in kept)
    _check_ones(tied)
    packages = next((item.content for item in tied if item.kind == "packages"), None)
    return Contents(
        bundle=found,
        recordings=tied,
        unread=tuple(unread),
        approved=None if approved is None else read_bundle(approved),
        site=read_site(site),
        packages=inventory() if packages is None else packages,
        timestamp=timestamp,
    )


def _distinct(recordings: Sequence[Recording]) -> list[Recording]:
    """Each content once, in an order that does not depend on how they were given; the bundle's own before others."""
    order = list(KINDS)
    chosen: dict[str, Recording] = {}
    for item in sorted(recordings, key=lambda item: item.origin == "given"):
        chosen.setdefault(item.name, item)
    return sorted(chosen.values(), key=lambda item: (order.index(item.kind), item.sha256))


def _check_ones(recordings: Sequence[Recording]) -> None:
    for kind in ONE:
        if (count := sum(item.kind == kind for item in recordings)) > 1:
            raise InputError(
                f"{count} records are of kind '{kind}', where one is expected: give the one that this pack is about"
            )
