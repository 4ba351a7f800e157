"""Allocation: never above the budget, never a better step left, and clear words where it cannot be met."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hscc_edge.compress.allocate import Budget, Option, allocate, parse_budget
from hscc_edge.errors import BudgetError


def option(cost: int, loss: float) -> Option:
    return Option("dense" if loss == 0 else "one-region", (), (), cost, cost * 2, loss)


@st.composite
def layers(draw):
    found = []
    for _ in range(draw(st.integers(1, 5))):
        dense = draw(st.integers(50, 1000))
        steps = draw(st.lists(st.tuples(st.integers(1, dense), st.floats(1e-6, 10)), max_size=8))
        found.append([option(dense, 0.0), *(option(cost, loss) for cost, loss in steps)])
    return found


@given(layers(), st.integers(0, 200), st.floats(1, 20), st.sampled_from(["flops", "params"]))
def test_budget_holds_and_no_step_is_left(options, fixed, ratio, cost):
    budget = Budget(cost, ratio)
    dense = fixed + sum(getattr(layer[0], cost) for layer in options)
    least = fixed + sum(min(getattr(item, cost) for item in layer) for layer in options)
    if least > int(dense / ratio):
        with pytest.raises(BudgetError, match="out of reach"):
            allocate(options, fixed, budget)
        return
    chosen = allocate(options, fixed, budget)
    spent = fixed + sum(getattr(item, cost) for item in chosen)
    assert spent <= dense / ratio
    for layer, picked in zip(options, chosen, strict=True):
        for item in layer:
            fits = spent - getattr(picked, cost) + getattr(item, cost) <= int(dense / ratio)
            assert not (fits and item.loss < picked.loss)


@given(layers(), st.floats(1, 5))
def test_the_largest_ratio_named_can_be_met(options, ratio):
    try:
        allocate(options, 100, Budget("flops", ratio * 100))
    except BudgetError as error:
        largest = float(str(error).rpartition("=")[2].rstrip("x"))
        if largest >= 1:
            allocate(options, 100, Budget("flops", largest))


def test_one_times_is_dense():
    options = [[option(100, 0.0), option(10, 0.1)], [option(50, 0.0), option(5, 0.2)]]
    assert [item.loss for item in allocate(options, 7, Budget("flops", 1.0))] == [0.0, 0.0]


@pytest.mark.parametrize("text", ["6x", "flops=6", "flops=zx", "flops=0.5x", "time=3x", "flops=infx", "flops=nanx", ""])
def test_bad_budgets_are_refused(text):
    with pytest.raises(BudgetError, match="budget"):
        parse_budget(text)


def test_a_budget_prints_as_it_is_written():
    assert str(parse_budget("flops=6x")) == "flops=6x"
    assert parse_budget("params=2.5x") == Budget("params", 2.5)
