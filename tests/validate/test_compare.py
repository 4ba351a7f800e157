"""Two classifiers on the same cases: areas, divergence, overflow, and subgroups, against peers and by hand."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from hscc_edge.errors import InputError
from hscc_edge.model.decision import decide, parse_rule
from hscc_edge.model.head import Head, kl
from hscc_edge.validate.compare import compare
from hscc_edge.validate.predict import Case
from hscc_edge.validate.subgroups import groups

LABELS = ("a", "b", "c")
HEAD = Head("softmax", LABELS)
RULE = parse_rule({"unit": "study"})


def made(logits: np.ndarray, truth: np.ndarray, each: int = 1) -> list[Case]:
    """One case a row, `each` cases a patient."""
    return [
        Case(str(i), str(i // each), LABELS[label], decide(RULE, HEAD, row[None]), row[None].astype(np.float32))
        for i, (row, label) in enumerate(zip(logits, truth, strict=True))
    ]


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 3, 240)
    logits = rng.normal(size=(240, 3)) + 1.5 * np.eye(3)[truth]
    return truth, logits, logits + 0.6 * rng.normal(size=(240, 3))


def test_the_area_is_scikit_learns_and_its_interval_holds_it(data):
    truth, first, second = data
    found = compare(made(first, truth), made(second, truth), HEAD)
    macro = [
        roc_auc_score(truth, [case.decision.probabilities for case in made(each, truth)], multi_class="ovr")
        for each in (first, second)
    ]
    assert found.area.value == pytest.approx(macro[1] - macro[0])
    assert found.area.low < found.area.value < found.area.high and 0 < found.area.p_value < 1
    same = compare(made(first, truth), made(first, truth), HEAD).area
    assert same.value == pytest.approx(0) and (same.low, same.high, same.p_value) == (None, None, None)


def test_divergence_and_logits_are_means_over_images(data):
    truth, first, second = data
    found = compare(made(first, truth, 4), made(second, truth, 4), HEAD)
    apart = kl(HEAD, first.astype(np.float32), second.astype(np.float32))
    by_patient = apart.reshape(-1, 4).mean(axis=1)
    assert found.kl == pytest.approx(apart.mean(), rel=1e-5)
    assert found.kl_se == pytest.approx(by_patient.std(ddof=1) / 60**0.5, rel=1e-5)
    assert found.logit_largest == pytest.approx(np.abs(first - second).max(), rel=1e-5)
    assert found.p_value is None and found.mid_p is None and found.pairs.clustered


def test_an_overflow_is_counted_and_wrong(data):
    truth, first, second = data
    broken = second.copy()
    broken[:30, 0] = np.inf
    found = compare(made(first, truth), made(broken, truth), HEAD)
    assert found.overflowed == 30 and found.area is None and np.isfinite(found.kl)
    assert found.difference < compare(made(first, truth), made(second, truth), HEAD).difference
    nothing = compare(made(first, truth), made(np.full_like(second, np.nan), truth), HEAD)
    assert np.isnan(nothing.kl) and nothing.agreement == 0 and nothing.overflowed == 240


def test_flips_add_up(data):
    truth, first, second = data
    found = compare(made(first, truth), made(second, truth), HEAD)
    changed = (first.argmax(axis=1) != second.argmax(axis=1)).sum()
    assert (
        found.only_reference + found.only_candidate + found.other_wrong == changed == round(240 * (1 - found.agreement))
    )


def test_other_cases_are_refused(data):
    truth, first, _ = data
    with pytest.raises(InputError, match="the same split"):
        compare(made(first, truth), made(first, truth)[::-1], HEAD)


def test_subgroups_are_corrected_step_by_step(data):
    truth, first, second = data
    columns = {"site": [str(i % 4) for i in range(240)], "alike": ["x"] * 240}
    found = groups(made(first, truth), made(second, truth), columns)
    assert [group.name for group in found] == ["class=a", "class=b", "class=c", *(f"site={i}" for i in range(4))]
    assert sum(group.cases for group in found if group.column == "site") == 240
    ordered = sorted(found, key=lambda group: group.p_value)
    largest = 0.0
    for place, group in enumerate(ordered):  # Holm 1979: the smallest by all, the next by one fewer
        largest = max(largest, min((len(found) - place) * group.p_value, 1.0))
        assert group.p_holm == pytest.approx(largest)
    assert all(group.word == "" for group in found)
    worded = groups(made(first, truth), made(second, truth), columns, margin=0.5)
    assert {group.word for group in worded} == {"NON-INFERIOR"}
