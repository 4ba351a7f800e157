"""Near duplicates: pictures that show the same after a change of size, window, coding, orientation or border.

Candidates are nearest neighbours by signature (`thumbnail.py`); a pair is confirmed by its details once one picture is
laid over the other (`alignment.py`). Pairs of one patient are left out: a split by patient keeps them together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from hscc_edge.data.alignment import similarity

Progress = Callable[[int, str], None]
NEIGHBOURS = 10  # candidates a picture and view
CLOSE = 0.95  # signatures' cosine from which two pictures are candidates
DUPLICATE = 0.87
NEIGHBOURING = 0.75
VIEWS = ((0, 0), (0, 1), (0, 2), (3, 3))  # whole against whole, against inner parts; foreground against foreground
BLOCK = 512


@dataclass(frozen=True, slots=True)
class Pair:
    """Two pictures by number and how alike their details are, at most 1."""

    one: int
    other: int
    similarity: float


def near_pairs(
    thumbs: NDArray[np.uint8],
    signatures: NDArray[np.float16],
    patients: NDArray[np.int64],
    progress: Progress | None = None,
) -> list[Pair]:
    """Pairs of pictures of different patients whose similarity is at least `NEIGHBOURING`.

    Args:
        thumbs: (N, SIDE, SIDE).
        signatures: (N, views, LENGTH).
        patients: (N,), equal where two pictures are one patient's.

    Time grows with N^2 for the signatures (blocked products, 4 x 10^-8 s a pair of pictures) and with N for the at most
    40 N confirmations of about 1 ms; memory with N, 3.2 kB a picture, and one block of BLOCK x N cosines.
    """
    found = []
    pairs = candidates(signatures, patients, progress)
    for start in range(0, len(pairs), BLOCK):
        part = pairs[start : start + BLOCK]
        alike = similarity(*(thumbs[part[:, side]].astype(np.float32) for side in (0, 1)))
        found += [
            Pair(int(one), int(other), float(value))
            for (one, other), value in zip(part, alike, strict=True)
            if value >= NEIGHBOURING
        ]
        if progress is not None:
            progress(0, f"near duplicates: {start + len(part)} of {len(pairs)} pairs compared")
    return found


def candidates(
    signatures: NDArray[np.float16], patients: NDArray[np.int64], progress: Progress | None = None
) -> NDArray[np.int64]:
    """Pairs (P, 2) of different patients that are among each other's nearest by a view's signature, each once."""
    count = np.int64(len(signatures))
    keys: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)]
    for one, other in VIEWS:
        base = signatures[:, other].astype(np.float32)
        for start in range(0, len(base), BLOCK):
            rows, columns = _nearest(
                signatures[start : start + BLOCK, one].astype(np.float32) @ base.T, patients, start
            )
            keys.append(np.minimum(rows, columns) * count + np.maximum(rows, columns))
            if progress is not None:
                progress(0, f"near duplicates: {start + BLOCK} of {count} pictures searched")
    found = np.unique(np.concatenate(keys))
    return np.stack([found // count, found % count], axis=1)


def _nearest(
    cosines: NDArray[np.float32], patients: NDArray[np.int64], start: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each row the columns of the NEIGHBOURS largest cosines from CLOSE on, of other patients."""
    rows, columns = np.nonzero(cosines >= CLOSE)
    other = patients[rows + start] != patients[columns]
    rows, columns = rows[other], columns[other]
    order = np.lexsort((-cosines[rows, columns], rows))
    rows, columns = rows[order], columns[order]
    first = np.searchsorted(rows, rows)  # where the row's own entries begin
    kept = np.arange(len(rows)) - first < NEIGHBOURS
    return rows[kept] + start, columns[kept]


def groups(pairs: Sequence[Pair], count: int) -> Iterator[NDArray[np.int64]]:
    """The pictures, of `count`, that pairs join, directly or through others."""
    links = np.array([(pair.one, pair.other) for pair in pairs], dtype=np.int64).reshape(-1, 2)
    graph = coo_matrix((np.ones(len(links)), (links[:, 0], links[:, 1])), shape=(count, count))
    _, owner = connected_components(graph, directed=False)
    order = np.argsort(owner, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(owner[order])) + 1):
        if len(members) > 1:
            yield members
