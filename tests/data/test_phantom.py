"""The phantom: valid, reproducible, split by patient."""

import subprocess

import pytest

from hscc_edge.data.cohort import read_cohort
from hscc_edge.data.phantom import write_phantom
from hscc_edge.errors import CohortError, StorageError


def errors_of(path) -> list[str]:
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True)
    lines = (done.stdout + done.stderr).splitlines()
    assert lines, "dciodvfy said nothing"
    return [line for line in lines if line.startswith("Error")]


def test_files_conform(phantom):
    for item in phantom.instances[::17]:
        assert errors_of(phantom.path(item)) == []


def test_same_seed_same_cohort(tmp_path, phantom):
    again = write_phantom(tmp_path / "again", patients=40, slices=3, size=64, seed=5)
    other = write_phantom(tmp_path / "other", patients=40, slices=3, size=64, seed=6)
    assert again.digest == phantom.digest != other.digest


def test_split_by_patient_with_every_class(phantom):
    sides = {}
    for item in phantom.instances:
        sides.setdefault(item.patient, set()).add((item.split, item.label))
    assert all(len(found) == 1 for found in sides.values())
    for split in ("train", "val", "test"):
        assert {item.label for item in phantom.select(split).instances} == set(phantom.classes)


def test_bad_sizes_and_taken_places_are_told(tmp_path):
    with pytest.raises(CohortError, match="at least 16 patients"):
        write_phantom(tmp_path / "few", patients=3)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(StorageError, match="stands there"):
        write_phantom(tmp_path / "taken", patients=16, slices=1)
    assert not (tmp_path / "few").exists()
    with pytest.raises(CohortError, match="no split"):
        read_cohort_of(tmp_path).select("nonsense")


def read_cohort_of(tmp_path):
    write_phantom(tmp_path / "small", patients=16, slices=1, size=16)
    return read_cohort(tmp_path / "small")
