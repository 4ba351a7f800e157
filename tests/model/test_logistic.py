"""Softmax and the logistic function are scipy's, to the last bits, for any logits; and scipy is not imported."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import special

from hscc_edge.model import logistic

LOGITS = arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(-1e4, 1e4))
FAR = np.array([[0.0, -745.2, 800.0], [-1e4, 1e4, 1e4], [3.0, 3.0, 3.0], [-40.0, 0.0, -800.0], [0.0, -0.0, 1e-300]])
CLOSE = {"rtol": 4e-15, "atol": 1e-300}
ROUNDED = {"rtol": 4e-15, "atol": 1e-15}


@settings(max_examples=300, deadline=None)
@given(LOGITS)
@example(FAR)
def test_one_class_of_many(values):
    np.testing.assert_allclose(logistic.softmax(values), special.softmax(values, axis=1), **CLOSE)
    np.testing.assert_allclose(logistic.logsumexp(values), special.logsumexp(values, axis=1), **ROUNDED)
    # scipy's gives 0 for the logarithm of all but one: log1p keeps what it rounds away.
    np.testing.assert_allclose(logistic.log_softmax(values), special.log_softmax(values, axis=1), **ROUNDED)


@settings(max_examples=300, deadline=None)
@given(LOGITS)
@example(FAR)
def test_each_class_alone(values):
    np.testing.assert_allclose(logistic.expit(values), special.expit(values), **CLOSE)
    np.testing.assert_allclose(logistic.log_expit(values), special.log_expit(values), **CLOSE)


def test_what_is_rounded_away_in_a_sum_is_kept():
    (certain,) = logistic.log_softmax(np.array([[0.0, -40.0]]))
    assert certain[0] == pytest.approx(-np.exp(-40.0), rel=1e-12) and certain[1] == -40.0
    values = np.array([[0.0, -40.0]])
    assert logistic.logsumexp(values)[0] == pytest.approx(np.exp(-40.0), rel=1e-12)


@pytest.mark.parametrize("row", [[np.inf, 1e4], [-np.inf, -np.inf], [-np.inf, 2.0], [np.nan, 1.0], [np.inf, np.inf]])
def test_infinite_values_give_what_scipy_gives(row):
    values = np.array([row])
    np.testing.assert_array_equal(logistic.logsumexp(values), special.logsumexp(values, axis=1))


def test_the_head_does_not_import_scipy():
    code = "import sys, hscc_edge.model.head; print(sorted(name for name in sys.modules if name.startswith('scipy')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
