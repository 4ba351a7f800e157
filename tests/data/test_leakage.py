"""The whole check: near duplicates across splits, contradictions, shortcuts, several processes, no extra."""

import dataclasses
import json
import sys

import numpy as np
import PIL.Image
import pytest
from scipy.ndimage import gaussian_filter

from hscc_edge.cli.check import show_findings
from hscc_edge.cli.output import Output
from hscc_edge.data.cohort import read_cohort
from hscc_edge.data.images import import_images
from hscc_edge.data.leakage import check_cohort, patients_together, without_leaks
from hscc_edge.data.split import SplitRule, split_cohort


def drawn(seed):
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(96, 96)), 3)
    return np.clip(128 + 60 * noise / noise.std(), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """25 pictures a class and split; of three in test the mirror image is in training, once under another label."""
    root = tmp_path_factory.mktemp("leakage")
    for number, (split, label) in enumerate((s, c) for s in ("training", "testing") for c in ("cat", "dog")):
        folder = root / "pictures" / split / label
        folder.mkdir(parents=True)
        for place in range(25):
            PIL.Image.fromarray(drawn(100 * number + place)).save(folder / f"{place:02d}.png")
    training = root / "pictures" / "training"
    for place, (own, label) in enumerate((("cat", "cat"), ("cat", "cat"), ("cat", "dog"))):
        grey = np.asarray(PIL.Image.open(root / "pictures" / "testing" / own / f"{place:02d}.png"))
        PIL.Image.fromarray(grey[:, ::-1]).save(training / label / f"copy{place}.png")
    import_images(root / "pictures", root / "cohort")
    return read_cohort(root / "cohort")


def test_near_duplicates_across_splits_spoil_a_cohort(cohort):
    found = check_cohort(cohort)
    plain = found.to_json()
    assert plain["duplicates"]["exact"] == {"groups": 0, "files": 0, "across_splits": 0}
    assert plain["duplicates"]["near"] == {"groups": 3, "files": 6, "across_splits": 3}
    assert plain["contradicting_labels"] == 1 and not plain["ok"] and plain["skipped"] == []
    assert {item["verdict"] for item in plain["shortcuts"].values()} == {"no evidence"}
    mended = without_leaks(cohort, found)
    assert len(mended.instances) == 100 and check_cohort(mended, shortcuts=False).ok
    assert [sum(item.split == split for item in mended.instances) for split in ("train", "test")] == [53, 47]


def test_a_split_that_keeps_alike_pictures_together_has_no_leaks(cohort):
    groups = patients_together(check_cohort(cohort, shortcuts=False))
    assert len(groups) == 6 and len(set(groups.values())) == 3
    fresh = split_cohort(cohort, SplitRule({"test": 0.4}, groups=groups), afresh=True)
    found = check_cohort(fresh, shortcuts=False)
    assert found.ok and len(found.near) == 3 and {item.split for item in fresh.instances} == {"train", "test"}


def test_processes_change_nothing(cohort):
    assert check_cohort(cohort, jobs=2, shortcuts=False) == check_cohort(cohort, shortcuts=False)


def test_what_is_not_looked_for_is_said(cohort, monkeypatch, capsys):
    bare = check_cohort(cohort, near=False, shortcuts=False)
    assert bare.ok and bare.skipped == ("near duplicates: as asked", "shortcuts: as asked")
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    found = check_cohort(cohort)
    assert found.shortcuts == () and found.to_json()["duplicates"]["near"]["groups"] == 3
    show_findings(Output(), found)
    shown = capsys.readouterr().out
    assert "near duplicates: 3 groups, 3 of them across splits" in shown
    assert "not done: shortcuts: the package 'sklearn' is not installed" in shown


def test_a_way_to_cheat_is_a_warning_and_no_fault(tmp_path, capsys):
    for index, label in enumerate(("cat", "dog")):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for place in range(40):
            grey = drawn(1000 * index + place)
            grey[:3] = 255 * index
            PIL.Image.fromarray(grey).save(tmp_path / "pictures" / label / f"{place}.png")
    found = check_cohort(import_images(tmp_path / "pictures", tmp_path / "cohort"))
    assert found.ok and any(sentence.startswith("borders") for sentence in found.warnings)
    assert found.to_json()["shortcuts"]["borders"]["classes"] == ["cat", "dog"]
    assert found.to_json()["shortcuts"]["size"]["verdict"] == "no evidence"
    show_findings(Output(), found)
    assert "warning: borders" in capsys.readouterr().out
    assert json.loads(json.dumps(found.to_json())) == found.to_json()


def test_slices_of_one_patient_are_no_near_duplicates(phantom):
    found = check_cohort(phantom, shortcuts=False)
    assert found.ok and found.near == ()
    same = dataclasses.replace(
        phantom, instances=tuple(dataclasses.replace(item, patient="one") for item in phantom.instances)
    )
    assert check_cohort(same, shortcuts=False).neighbouring == ()
