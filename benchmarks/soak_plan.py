"""Which faults are tried, in which order, and on which configurations of the daemon."""

from __future__ import annotations

import random
from collections.abc import Sequence

from soak_archive import MOODS
from soak_campaign import Point
from soak_points import ERRORS, SINGLE, count_of

from hscc_edge.serve.crash import POINTS

EACH = 25  # points on one state directory
# Of a hundred kills. What kills nothing comes on top: one failure of the disk or the archive to so many kills.
SHARES = {"crash": 40, "instant": 25, "single": 20, "power": 15}
BESIDES = {"disk": 8, "disk-at-start": 24, "mood": 12}
DETAILS = {"single": SINGLE, "mood": MOODS, "disk": (*ERRORS,), "disk-at-start": (*ERRORS,)}
FILLED = tuple(Point("full", "", number) for number in range(12))
SWEEPS = tuple((kind, error) for kind in ("sweep-start", "sweep-load") for error in ERRORS)
COMMITMENT = "commitment = true\ncommitment_s = 1.0\n"
RETENTION = "[retention]\nmax_gib = 0.0002\n"
# What campaigns are configured with in turn, and the crash points that are passed only with it.
VARIANTS = ("", COMMITMENT, COMMITMENT, COMMITMENT + RETENTION)
ONLY_WITH = {
    "commitment-asked": COMMITMENT, "commitment-answered": COMMITMENT, "removal-": RETENTION, "files-": RETENTION,
}  # fmt: skip
WITH_RETENTION_NONE = ("commitment-reported",)  # nothing is promised where files are removed
OF_THEIR_OWN = {"model-": "switch", "commitment-reported": "promise"}


def plan(kills: int, seed: int, each: int = EACH) -> list[tuple[str, list[Point]]]:
    """(configuration, points) of each campaign: so many kills in their shares, and on top what kills nothing."""
    choice = random.Random(seed)
    kinds = choice.choices([*SHARES], [*SHARES.values()], k=kills)
    kinds += [kind for kind, every in BESIDES.items() for _ in range(kills // every)]
    choice.shuffle(kinds)
    parts = [kinds[start : start + each] for start in range(0, len(kinds), each)]
    return [
        (more, [_point(kind, number, more, choice) for number, kind in enumerate(part)])
        for part, more in zip(parts, VARIANTS * (len(parts) // len(VARIANTS) + 1), strict=False)
    ]


def _point(kind: str, number: int, more: str, choice: random.Random) -> Point:
    detail, seed = "", choice.getrandbits(48)
    if kind == "crash" or (kind == "power" and number % 2):
        name = choice.choice(passed_with(more, by_itself=kind == "power"))
        kind = next((other for start, other in OF_THEIR_OWN.items() if name.startswith(start)), kind)
        detail = count_of(name, choice)
    elif kind in DETAILS:
        detail = choice.choice(DETAILS[kind])
    return Point(kind, detail, seed)


def passed_with(more: str, *, by_itself: bool = True) -> list[str]:
    """The daemon's named steps that it passes with this configuration; not `by_itself`: if it is asked to, too."""
    return [
        name
        for name in POINTS
        if all(wanted in more for start, wanted in ONLY_WITH.items() if name.startswith(start))
        and not (RETENTION in more and name in WITH_RETENTION_NONE)
        and not (by_itself and name.startswith((*OF_THEIR_OWN,)))
    ]


def ten_points(seed: int) -> Sequence[Point]:
    """Ten kills of every kind: what a test has time for."""
    choice = random.Random(seed)
    named = [count_of(name, choice) for name in choice.sample(passed_with(""), 5)]
    kinds = [("crash", name) for name in named[:4]] + [("power", named[4]), ("power", ""), ("instant", "")]
    kinds += [("single", name) for name in choice.sample(SINGLE, 3)]
    choice.shuffle(kinds)
    return [Point(*kind, choice.getrandbits(48)) for kind in kinds]
