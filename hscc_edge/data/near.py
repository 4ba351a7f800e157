"""Near duplicates: pictures that show the same after a change of size, window, coding, orientation or border.

Candidates are nearest neighbours by signature (`thumbnail.py`); a pair is confirmed by its details once one picture is
laid over the other (`alignment.py`). Pairs of one patient are left out: a split by patient keeps them together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from hscc_edge.data.alignment import similarity

Progress = Callable[[int, str], None]
Compare = Callable[[Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]]], Iterator[NDArray[np.float32]]]
NEIGHBOURS = 8  # candidates a picture and view
CLOSE = 0.955  # signatures' cosine from which two pictures are candidates
DUPLICATE = 0.86  # similarity from which two pictures are one
NEIGHBOURING = 0.7  # from which they are as alike as neighbouring slices of one head
VIEWS = ((0, 0), (0, 1), (0, 2), (3, 3))  # whole against whole, against inner parts; foreground against foreground
ROWS, PAIRS = 128, 256  # pictures, pairs at once


@dataclass(frozen=True, slots=True)
class Pair:
    """Two pictures by number and how alike their details are, at most 1."""

    one: int
    other: int
    similarity: float

    @property
    def duplicate(self) -> bool:
        """Whether both are one picture; else they are neighbouring."""
        return self.similarity >= DUPLICATE


def compare(parts: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Similarity (B,) of thumbnails (B, SIDE, SIDE) of each of two parts."""
    return similarity(*(part.astype(np.float32) for part in parts))


def near_pairs(
    thumbs: NDArray[np.uint8],
    signatures: NDArray[np.float16],
    patients: NDArray[np.int64],
    *,
    spread: Compare | None = None,
    progress: Progress | None = None,
) -> list[Pair]:
    """Pairs of pictures of different patients whose similarity is at least `NEIGHBOURING`.

    Of a group of duplicates not every pair is listed, but enough to join them.

    Args:
        thumbs: (N, SIDE, SIDE).
        signatures: (N, views, LENGTH).
        patients: (N,), equal where two pictures are one patient's.
        spread: runs `compare` on each of many parts, in order; in this process by default.

    Time grows with N^2 for the signatures (blocked products, some 10^-8 s a pair of pictures), and with N for the at
    most 32 N comparisons of about 1 ms; memory with N, 4.9 kB a picture, and with one block of ROWS x N cosines.
    """
    found: list[Pair] = []
    pairs = candidates(signatures, patients, progress)
    for start in range(0, len(pairs), 16 * PAIRS):
        rest = _apart(pairs[start : start + 16 * PAIRS], found, len(thumbs))
        parts = [rest[place : place + PAIRS] for place in range(0, len(rest), PAIRS)]
        pictures = ((thumbs[part[:, 0]], thumbs[part[:, 1]]) for part in parts)
        alike = spread(pictures) if spread else map(compare, pictures)
        for part, values in zip(parts, alike, strict=True):
            found += [
                Pair(int(one), int(other), float(value))
                for (one, other), value in zip(part, values, strict=True)
                if value >= NEIGHBOURING
            ]
        if progress is not None:
            progress(0, f"near duplicates: {min(start + 16 * PAIRS, len(pairs))} of {len(pairs)} pairs compared")
    return found


def candidates(
    signatures: NDArray[np.float16], patients: NDArray[np.int64], progress: Progress | None = None
) -> NDArray[np.int64]:
    """Pairs (P, 2) of different patients, nearest by a view's signature, each once, those of larger cosine first."""
    count = np.int64(len(signatures))
    keys, values = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.float32)]
    for one, other in VIEWS:
        base = signatures[:, other].astype(np.float32)
        for start in range(0, len(base), ROWS):
            cosines = signatures[start : start + ROWS, one].astype(np.float32) @ base.T
            rows, columns = _nearest(cosines, patients, start)
            values.append(cosines[rows - start, columns])
            keys.append(np.minimum(rows, columns) * count + np.maximum(rows, columns))
        if progress is not None:
            progress(0, f"near duplicates: view {one}.{other} of {count} pictures searched")
    order = np.argsort(-np.concatenate(values), kind="stable")
    ordered = np.concatenate(keys)[order]
    _, first = np.unique(ordered, return_index=True)
    found = ordered[np.sort(first)]
    return np.stack([found // count, found % count], axis=1) if len(found) else np.empty((0, 2), dtype=np.int64)


def groups(links: Iterable[tuple[int, int]], count: int) -> Iterator[NDArray[np.int64]]:
    """Of `count` pictures those that are linked, directly or through others."""
    owner = owners(links, count)
    order = np.argsort(owner, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(owner[order])) + 1):
        if len(members) > 1:
            yield members


def owners(links: Iterable[tuple[int, int]], count: int) -> NDArray[np.int64]:
    """The number (count,) of each picture's group; one that is not linked is alone in its own."""
    ends = np.array(list(links), dtype=np.int64).reshape(-1, 2)
    graph = coo_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def _apart(pairs: NDArray[np.int64], found: Sequence[Pair], count: int) -> NDArray[np.int64]:
    """The pairs that are not in one group yet."""
    owner = owners(((pair.one, pair.other) for pair in found if pair.duplicate), count)
    return np.asarray(pairs[owner[pairs[:, 0]] != owner[pairs[:, 1]]])


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
