"""Percentiles are numpy's own, to the bit."""

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hscc_edge.data.percentiles import CHUNK, percentiles

PIXELS = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=1, max_dims=3, max_side=12),
    elements=st.floats(-1e6, 1e6, width=32),
)


@given(PIXELS, st.lists(st.floats(0, 100), max_size=4))
def test_they_are_numpys(values, shares):
    shares = [0, 0.5, 1, 50, 99.5, 100, *shares]
    assert percentiles(values, shares) == np.percentile(values, shares).tolist()


def test_a_view_is_left_as_it_is():
    values = np.arange(10, dtype=np.float32)[::-2]
    assert percentiles(values, (50,)) == [5.0] and values.tolist() == [9, 7, 5, 3, 1]


@pytest.mark.parametrize("offset", [-3000.0, 0.0, 40.5])
def test_pictures_of_several_chunks_too(offset):
    values = np.random.default_rng(0).integers(0, 4096, (700, 800)).astype(np.float32) + np.float32(offset)
    assert values.size > 2 * CHUNK
    assert percentiles(values, (0, 1, 50, 99, 100)) == np.percentile(values, (0, 1, 50, 99, 100)).tolist()


def test_flat_pictures_and_air_that_half_of_all_pixels_share():
    flat = np.full((300, 300), 7, np.float32)
    assert percentiles(flat, (1, 99)) == [7.0, 7.0]
    air = np.where(np.arange(90_000) % 2, flat.reshape(-1), 0).astype(np.float32)
    assert percentiles(air, (1, 50, 99)) == np.percentile(air, (1, 50, 99)).tolist()
