"""Regions of a map: fine cells, and the hierarchical (guillotine) splits made of them.

A split cuts one block of cells straight through. The one that is worth most comes first, so that the splits of one
path nest: the planner takes as many of them as pay.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from itertools import pairwise

from hscc_edge.errors import ModelError
from hscc_edge.model.plan import Box

Worth = Callable[[Box], float]


def grid(positions: tuple[int, ...], parts: tuple[int, ...]) -> tuple[Box, ...]:
    """Cut a map into parts[i] pieces along axis i, the last axis fastest; never more pieces than positions.

    A map of more axes than `parts` names repeats the last number.
    """
    sizes = [*parts, *[parts[-1]] * len(positions)][: len(positions)]
    edges = [_edges(size, part) for size, part in zip(positions, sizes, strict=True)]
    spans = itertools.product(*(list(pairwise(line)) for line in edges))
    return tuple(Box(tuple(a for a, _ in box), tuple(b for _, b in box)) for box in spans)


def _edges(size: int, parts: int) -> list[int]:
    count = min(size, parts)
    return [round(size * index / count) for index in range(count + 1)]


def inside(box: Box, cells: tuple[Box, ...]) -> list[int]:
    """Indices of the cells that make up `box`.

    Raises:
        ModelError: if the box is no union of cells.
    """
    found = [
        index
        for index, cell in enumerate(cells)
        if all(a <= c and d <= b for a, b, c, d in zip(box.start, box.stop, cell.start, cell.stop, strict=True))
    ]
    if sum(cells[index].area for index in found) != box.area:
        raise ModelError(
            f"the region {box.start} to {box.stop} is no union of the cells that were measured: use finer cells"
        )
    return found


def bounding(cells: tuple[Box, ...]) -> Box:
    """The block that all cells make up."""
    axes = range(len(cells[0].start))
    return Box(tuple(min(c.start[i] for c in cells) for i in axes), tuple(max(c.stop[i] for c in cells) for i in axes))


def cuts(box: Box, cells: tuple[Box, ...]) -> Iterator[tuple[Box, Box]]:
    """Every straight cut of `box` along the edges of its cells."""
    for axis in range(len(box.start)):
        edges = sorted({cell.start[axis] for cell in cells if box.start[axis] < cell.start[axis] < box.stop[axis]})
        for edge in edges:
            stop = (*box.stop[:axis], edge, *box.stop[axis + 1 :])
            start = (*box.start[:axis], edge, *box.start[axis + 1 :])
            yield Box(box.start, stop), Box(start, box.stop)


def split_path(cells: tuple[Box, ...], worth: Worth, largest: int, least_gain: float = 0.0) -> list[tuple[Box, ...]]:
    """Sets of regions of size 1, 2, ... `largest`, each the one before with its best cut added.

    Args:
        worth: minus what a block's own factors lose; a cut gains worth(first) + worth(second) - worth(block).
        least_gain: stop where the best cut gains less.

    Time grows with `largest` x cuts a block.
    """
    leaves = [bounding(cells)]
    path = [tuple(leaves)]
    open_cuts = {leaves[0]: _best_cut(leaves[0], cells, worth)}
    while len(leaves) < largest:
        candidates = [(found[0], box) for box, found in open_cuts.items() if found is not None]
        if not candidates:
            break
        gain, box = max(candidates, key=lambda pair: pair[0])
        found = open_cuts.pop(box)
        if found is None or gain < least_gain:
            break
        index = leaves.index(box)
        leaves[index : index + 1] = found[1]
        for part in found[1]:
            open_cuts[part] = _best_cut(part, cells, worth)
        path.append(tuple(leaves))
    return path


def _best_cut(box: Box, cells: tuple[Box, ...], worth: Worth) -> tuple[float, tuple[Box, Box]] | None:
    whole = worth(box)
    found = [(worth(first) + worth(second) - whole, (first, second)) for first, second in cuts(box, cells)]
    return max(found, key=lambda pair: pair[0]) if found else None
