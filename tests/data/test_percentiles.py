"""Percentiles are numpy's own, to the bit."""

import hypothesis.extra.numpy as arrays
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hscc_edge.data.percentiles import percentiles

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
