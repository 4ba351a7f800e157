"""Locked cohorts: another table is refused, leaks are locked by a recorded override alone, versions are compared."""

import dataclasses
import json
import shutil

import pytest
from typer.main import get_command

from hscc_edge.cli import app
from hscc_edge.data.cohort import read_cohort, rewrite_cohort
from hscc_edge.data.difference import difference
from hscc_edge.data.lock import read_lock
from hscc_edge.data.phantom import write_phantom
from hscc_edge.data.split import SplitRule, split_cohort
from hscc_edge.errors import CohortError, GateError


@pytest.fixture
def cohort(tmp_path):
    write_phantom(tmp_path / "cohort", patients=40, slices=1, size=16)
    return tmp_path / "cohort"


def run(*words):
    get_command(app).main(["cohort", *map(str, words)], standalone_mode=False)


def leak(root):
    """One patient's picture stands in two splits."""
    cohort = read_cohort(root)
    first = next(item for item in cohort.instances if item.split == "test")
    copy = dataclasses.replace(first, split="train", sop=first.sop + ".1")
    rewrite_cohort(dataclasses.replace(cohort, instances=(*cohort.instances, copy)), root)


def test_a_locked_cohort_stays_as_it_is(cohort, capsys):
    run("lock", cohort, "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["digest"] == read_cohort(cohort).digest == read_lock(cohort).digest and not told["overridden"]
    with pytest.raises(CohortError, match="is locked: write the change to a new one"):
        run("split", cohort, "--afresh")
    table = cohort / "instances.csv"
    table.write_text(table.read_text().replace(",F,", ",M,"))
    with pytest.raises(CohortError, match="has changed since it was locked"):
        read_cohort(cohort)
    run("lock", cohort)
    assert read_cohort(cohort).instances


def test_leaks_are_locked_by_a_recorded_override_alone(cohort):
    leak(cohort)
    with pytest.raises(GateError, match="1 patients in two splits; 1 groups of equal pictures across splits"):
        run("lock", cohort)
    assert read_lock(cohort) is None
    run("lock", cohort, "--override", "known pair, agreed with the physicist")
    lock = read_lock(cohort)
    assert len(lock.overridden) == 2 and lock.reason.startswith("known pair")


def test_an_override_of_nothing_is_refused(cohort):
    with pytest.raises(CohortError, match="lock it without --override"):
        run("lock", cohort, "--override", "just in case")


def test_a_broken_lock_is_told(cohort):
    (cohort / "cohort.lock").write_text("{}")
    with pytest.raises(CohortError, match=r"cohort\.lock is malformed"):
        read_cohort(cohort)


def test_a_new_version_points_at_the_same_files_and_is_compared(cohort, tmp_path, capsys):
    run("split", cohort, "--out", tmp_path / "next", "--test", "0.5", "--afresh")
    before, after = read_cohort(cohort), read_cohort(tmp_path / "next")
    assert after.read(after.instances[0]).pixels.shape == (16, 16)
    capsys.readouterr()
    run("diff", cohort, tmp_path / "next", "--json")
    told = json.loads(capsys.readouterr().out)
    moved = sum(a.split != b.split for a, b in zip(before.instances, after.instances, strict=True))
    assert told["changed"] == {"split": moved} and told["added"] == told["removed"] == 0
    assert sum(told["moved"].values()) == moved and 0 < told["to_test"] <= moved
    assert told["unchanged"] == len(before.instances) - moved


def test_difference_counts_what_came_and_went(cohort):
    whole = read_cohort(cohort)
    first, second, *rest = whole.instances
    other = next(name for name in whole.classes if name != first.label)
    part = dataclasses.replace(whole, instances=(dataclasses.replace(first, label=other), *rest))
    found = difference(whole, part)
    assert (found.added, found.removed, found.relabelled) == (0, 1, {(first.label, other): 1})
    assert difference(part, whole).added == 1 and second.split
    assert difference(whole, split_cohort(whole, SplitRule({"test": 0.5}))).changed == {}


def test_a_copied_cohort_needs_no_files_beside_it(cohort, tmp_path):
    shutil.copy(cohort / "instances.csv", tmp_path / "instances.csv")
    with pytest.raises(CohortError, match=r"has no cohort\.toml"):
        read_cohort(tmp_path)
