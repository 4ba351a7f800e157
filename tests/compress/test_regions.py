"""Regions tile the map, nest, and fall where the map differs."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hscc_edge.compress.regions import bounding, grid, inside, split_path
from hscc_edge.errors import ModelError
from hscc_edge.model.plan import Box
from hscc_edge.model.regional import cut, join

sizes = st.lists(st.integers(1, 12), min_size=1, max_size=3).map(tuple)


@given(sizes, st.integers(1, 5))
def test_a_grid_tiles_the_map(positions, parts):
    cover = torch.zeros(positions)
    for box in grid(positions, (parts,)):
        assert box.area > 0
        cover[box.slices] += 1
    assert bool((cover == 1).all())


@given(sizes, st.integers(1, 4), st.integers(1, 9), st.integers(0, 1000))
def test_splits_nest_and_can_be_joined_again(positions, parts, largest, seed):
    """Every set of the path tiles the map, has one region more than the one before, and joins to the map again."""
    value = torch.rand(positions, generator=torch.Generator().manual_seed(seed))
    cells = grid(positions, (parts,))
    path = split_path(cells, lambda box: float(value[box.slices].sum()) ** 2, largest)
    maps = torch.rand(2, 3, *positions)
    for count, boxes in enumerate(path, start=1):
        assert len(boxes) == count
        assert sum(box.area for box in boxes) == bounding(cells).area
        assert torch.equal(join(boxes, [cut(maps, box) for box in boxes]), maps)
    for before, after in pairwise(path):
        assert len(set(before) - set(after)) == 1


def test_the_first_cut_separates_what_differs():
    """Two halves whose energies lie in other directions: one cut between them is worth most."""
    cells = grid((4, 8), (4, 8))

    def worth(box: Box) -> float:
        left, right = (max(min(box.stop[1], stop) - max(box.start[1], start), 0) for start, stop in ((0, 3), (3, 8)))
        return max(left, right) * (box.stop[0] - box.start[0])

    first = split_path(cells, worth, 2)[1]
    assert first == (Box((0, 0), (4, 3)), Box((0, 3), (4, 8)))


def test_a_region_between_cells_is_refused():
    with pytest.raises(ModelError, match="finer cells"):
        inside(Box((0,), (3,)), grid((8,), (4,)))
