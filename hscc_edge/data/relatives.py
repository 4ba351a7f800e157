"""Near duplicates of calibration images: which of a pool show the same picture, and which one of the test split."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hscc_edge.data.cohort import Cohort
from hscc_edge.data.near import DUPLICATE, groups, near_pairs
from hscc_edge.data.subset import Place, Relatives, place
from hscc_edge.data.thumbnail import signatures, thumbnail

Progress = Callable[[int, str], None]


def relatives(pool: Cohort, whole: Cohort, progress: Progress | None = None) -> Relatives:
    """The near duplicates among `pool` and the test split of `whole`.

    Every file is decoded once; time and memory grow as `near.near_pairs` says.

    Raises:
        DicomError: if a file cannot be decoded.
    """
    known = {place(item) for item in pool.instances}
    items = [*pool.instances, *(item for item in whole.instances if item.split == "test" and place(item) not in known)]
    kept, thumbs = [], []
    for item in items:
        small = thumbnail(whole.read(item).pixels)
        if small is not None:
            kept.append(item)
            thumbs.append(small)
        if progress is not None:
            progress(1, "near duplicates")
    if len(kept) < 2:
        return Relatives({}, frozenset())
    names = [item.patient or item.file for item in kept]
    patients = np.unique(np.asarray(names), return_inverse=True)[1].astype(np.int64)
    pairs = near_pairs(np.stack(thumbs), np.stack([signatures(thumb) for thumb in thumbs]), patients)
    alike = groups([pair for pair in pairs if pair.similarity >= DUPLICATE], len(kept))
    found: dict[Place, str] = {}
    tested: set[Place] = set()
    for number, members in enumerate(alike):
        group = [kept[int(index)] for index in members]
        found |= {place(item): f"group {number}" for item in group}
        if any(item.split == "test" for item in group):
            tested |= {place(item) for item in group if item.split != "test"}
    return Relatives(found, frozenset(tested))
