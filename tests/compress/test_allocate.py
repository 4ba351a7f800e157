"""Allocation: never above the budget, never a better step left, and clear words where it cannot be met."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hscc_edge.compress.allocate import Budget, Option, allocate, efficient, parse_budget
from hscc_edge.errors import BudgetError


def option(cost: int, loss: float) -> Option:
    return Option("dense" if loss == 0 else "one-region", (), (), cost, cost * 2, loss, latency_ms=cost / 10)


@st.composite
def layers(draw):
    found = []
    for _ in range(draw(st.integers(1, 5))):
        dense = draw(st.integers(50, 1000))
        steps = draw(st.lists(st.tuples(st.integers(1, dense), st.floats(1e-6, 10)), max_size=8))
        found.append([option(dense, 0.0), *(option(cost, loss) for cost, loss in steps)])
    return found


def total(options, fixed, cost):
    return fixed + sum(item.cost(cost) for item in options)


@given(layers(), st.integers(0, 200), st.floats(1, 20), st.sampled_from(["flops", "params", "bytes", "latency"]))
def test_budget_holds_and_no_step_is_left(options, fixed, ratio, cost):
    budget = Budget(cost, ratio)
    dense = total([layer[0] for layer in options], fixed, cost)
    least = fixed + sum(min(item.cost(cost) for item in layer) for layer in options)
    if least > dense / ratio:
        with pytest.raises(BudgetError, match="out of reach"):
            allocate(options, fixed, budget, dense)
        return
    chosen = allocate(options, fixed, budget, dense)
    spent = total(chosen, fixed, cost)
    assert spent <= dense / ratio * (1 + 1e-12)
    for layer, picked in zip(options, chosen, strict=True):
        for item in layer:
            fits = spent - picked.cost(cost) + item.cost(cost) <= dense / ratio * (1 - 1e-12)
            assert not (fits and item.loss < picked.loss)


@given(layers(), st.floats(1, 5))
def test_the_largest_ratio_named_can_be_met(options, ratio):
    dense = total([layer[0] for layer in options], 100, "flops")
    try:
        allocate(options, 100, Budget("flops", ratio * 100), dense)
    except BudgetError as error:
        largest = float(str(error).partition("flops=")[2].partition("can give is flops=")[2].partition("x")[0])
        if largest >= 1:
            allocate(options, 100, Budget("flops", largest), dense)


@given(layers())
def test_only_dominated_options_are_dropped(options):
    for layer in options:
        kept = efficient(layer, "flops")
        for item in layer:
            assert any(other.flops <= item.flops and other.loss <= item.loss for other in kept)


def test_a_budget_that_is_met_to_the_last_bit_ends():
    """16.2 - 13 is less than 3.2 in floating point, though 13 + 3.2 is 16.2."""
    options = [[option(127, 0.0), option(32, 0.1)]]
    (chosen,) = allocate(options, 13, Budget("latency", 25.7 / 16.2), 25.7)
    assert chosen.latency_ms == 3.2


def test_one_times_is_dense():
    options = [[option(100, 0.0), option(10, 0.1)], [option(50, 0.0), option(5, 0.2)]]
    assert [item.loss for item in allocate(options, 7, Budget("flops", 1.0), 157)] == [0.0, 0.0]


@pytest.mark.parametrize(
    "text",
    ["6x", "flops=6", "flops=zx", "flops=0.5x", "time=3x", "flops=infx", "flops=nanx", "", "bytes=3ms", "latency=0ms"],
)
def test_bad_budgets_are_refused(text):
    with pytest.raises(BudgetError, match="budget"):
        parse_budget(text)


@pytest.mark.parametrize("text", ["flops=6x", "params=2.5x", "bytes=5MB", "latency=3.5ms", "flops=1.5GFLOP"])
def test_a_budget_prints_as_it_is_written(text):
    assert str(parse_budget(text)) == text


def test_ceilings():
    assert parse_budget("flops=4x").ceiling(100.0) == 25.0
    assert parse_budget("bytes=5MB").ceiling(1e9) == 5e6
    assert parse_budget("latency=3.5ms").ceiling(100.0) == 3.5
    assert math.isnan(Option("dense", (), (), 1, 1, 0.0).cost("latency"))
