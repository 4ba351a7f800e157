"""The split: by patient, stratified, the same whatever the order, and nobody moves when data is added."""

import dataclasses
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hscc_edge.data.split import SplitRule, assign, split_cohort
from hscc_edge.errors import CohortError

FRACTIONS = {"val": 0.1, "test": 0.25}
STRATA = st.dictionaries(st.integers(0, 10**6).map(str), st.sampled_from("abc"), min_size=1, max_size=150)


@given(STRATA, st.integers(0, 9))
def test_every_stratum_has_its_shares(strata, seed):
    splits = assign(strata, FRACTIONS, seed)
    assert splits.keys() == strata.keys()
    for stratum, size in Counter(strata.values()).items():
        counts = Counter(splits[group] for group in strata if strata[group] == stratum)
        for split, share in FRACTIONS.items():
            assert abs(counts[split] - share * size) < 1


@given(STRATA, st.integers(0, 9), st.randoms(use_true_random=False))
def test_the_order_does_not_matter(strata, seed, random):
    shuffled = list(strata.items())
    random.shuffle(shuffled)
    assert assign(dict(shuffled), FRACTIONS, seed) == assign(strata, FRACTIONS, seed)


@given(STRATA, STRATA, st.integers(0, 9))
def test_nobody_moves_when_data_is_added(strata, more, seed):
    before = assign(strata, FRACTIONS, seed)
    after = assign({**more, **strata}, FRACTIONS, seed, before)
    assert {group: after[group] for group in before} == before


def test_another_seed_is_another_split():
    strata = {str(number): "a" for number in range(200)}
    assert assign(strata, FRACTIONS, 0) != assign(strata, FRACTIONS, 1)


@pytest.mark.parametrize("fractions", [{"test": 1.0}, {"val": 0.5, "test": 0.5}, {"test": -0.1}])
def test_shares_that_leave_nothing_to_train_are_refused(fractions):
    with pytest.raises(CohortError, match="sum is below 1"):
        assign({"a": "x"}, fractions, 0)


def test_patients_groups_and_sites_stay_together(phantom):
    patients = sorted({item.patient for item in phantom.instances})
    site = {patient: "north" if number % 4 else "south" for number, patient in enumerate(patients)}
    sited = dataclasses.replace(
        phantom,
        instances=tuple(dataclasses.replace(item, site=site[item.patient], split="") for item in phantom.instances),
    )
    groups = {patients[1]: "twins", patients[2]: "twins"}
    rule = SplitRule(FRACTIONS, seed=3, test_sites=("south",), groups=groups)
    split = split_cohort(sited, rule)
    sides = {item.patient: item.split for item in split.instances}
    assert all(sides[item.patient] == item.split for item in split.instances)
    assert {sides[patient] for patient in patients if site[patient] == "south"} == {"test"}
    assert sides[patients[1]] == sides[patients[2]]
    assert {"train", "val", "test"} == {side for patient, side in sides.items() if site[patient] == "north"}
    assert split_cohort(split, SplitRule({"test": 0.9}, seed=9)) == split
    assert split_cohort(split, SplitRule({"test": 0.9}, seed=9), afresh=True) != split


def test_mistakes_are_told(phantom):
    with pytest.raises(CohortError, match="no column 'colour'"):
        split_cohort(phantom, SplitRule(FRACTIONS, stratify=("colour",)))
    with pytest.raises(CohortError, match="test site 'nowhere'"):
        split_cohort(phantom, SplitRule(FRACTIONS, test_sites=("nowhere",)))
    first, *rest = phantom.instances
    torn = dataclasses.replace(first, split="test" if first.split != "test" else "train")
    with pytest.raises(CohortError, match="already: split the cohort with --afresh"):
        split_cohort(dataclasses.replace(phantom, instances=(torn, *rest)), SplitRule(FRACTIONS))
