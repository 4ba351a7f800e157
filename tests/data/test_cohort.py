"""Importing pictures, finding leaks, choosing calibration images."""

import json
import subprocess

import numpy as np
import PIL.Image
import pydicom
import pytest

from hscc_edge.data.cohort import read_cohort
from hscc_edge.data.images import import_images
from hscc_edge.data.leakage import check_cohort
from hscc_edge.data.phantom import write_phantom
from hscc_edge.data.subset import choose
from hscc_edge.errors import CohortError, DicomError


@pytest.fixture
def pictures(tmp_path):
    """Two splits, two classes; one picture stands in both splits, one twice in a split, one is in colour."""
    random = np.random.default_rng(0)
    root = tmp_path / "pictures"
    for split in ("training", "testing"):
        for label in ("cat", "dog"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(4):
                grey = random.integers(0, 255, (20, 24), dtype=np.uint8)
                PIL.Image.fromarray(grey).save(folder / f"{number}.png")
    colour = random.integers(0, 255, (20, 24, 3), dtype=np.uint8)
    PIL.Image.fromarray(colour).save(root / "training" / "cat" / "colour.jpg", quality=95)
    same = PIL.Image.open(root / "training" / "dog" / "0.png").convert("RGB")
    same.save(root / "testing" / "dog" / "copy.png")
    same.save(root / "training" / "dog" / "again.png")
    return root


def test_import_keeps_pixels_and_says_where_they_come_from(pictures, tmp_path):
    cohort = import_images(pictures, tmp_path / "cohort")
    assert read_cohort(tmp_path / "cohort").digest == cohort.digest
    assert [sum(item.split == split for item in cohort.instances) for split in ("train", "test")] == [10, 9]
    first = pydicom.dcmread(cohort.path(cohort.instances[0]))
    assert np.array_equal(first.pixel_array, np.asarray(PIL.Image.open(pictures / "training" / "cat" / "0.png")))
    assert list(first.ImageType) == ["DERIVED", "SECONDARY"] and "sha256" in first.DerivationDescription
    for item in cohort.instances[:6]:
        done = subprocess.run(["dciodvfy", str(cohort.path(item))], capture_output=True, text=True)
        lines = (done.stdout + done.stderr).splitlines()
        assert any("SCImage" in line for line in lines)
        assert not [line for line in lines if line.startswith("Error")]


def test_duplicates_are_found_and_dropped(pictures, tmp_path):
    kept = check_cohort(import_images(pictures, tmp_path / "kept")).to_json()
    assert kept["duplicates"]["exact"] == {"groups": 1, "files": 3, "across_splits": 1} and not kept["ok"]
    dropped = import_images(pictures, tmp_path / "dropped", drop_duplicates=True)
    assert check_cohort(dropped).ok
    assert [sum(item.split == split for item in dropped.instances) for split in ("train", "test")] == [9, 8]


def test_damage_and_leaking_patients_are_found(tmp_path):
    write_phantom(tmp_path / "cohort", patients=16, slices=2, size=16)
    clean = check_cohort(read_cohort(tmp_path / "cohort")).to_json()
    assert clean["unreadable"] == clean["altered"] == [] and clean["patients_in_two_splits"] == 0
    (tmp_path / "cohort" / "dicom" / "000003.dcm").write_bytes(b"nothing")
    (tmp_path / "cohort" / "dicom" / "000004.dcm").unlink()
    table = tmp_path / "cohort" / "instances.csv"
    lines = table.read_text().splitlines()
    moved = lines[1].replace(",train,", ",test,").replace(",val,", ",test,")
    lines[1] = moved if moved != lines[1] else lines[1].replace(",test,", ",train,")
    table.write_text("\n".join(lines) + "\n")
    found = check_cohort(read_cohort(tmp_path / "cohort")).to_json()
    assert found["unreadable"] == ["dicom/000003.dcm", "dicom/000004.dcm"]
    assert found["altered"] == ["dicom/000003.dcm"] and found["patients_in_two_splits"] == 1
    assert "PHANTOM" not in json.dumps(found)


def test_bad_folders_are_told(tmp_path, pictures):
    with pytest.raises(CohortError, match="does not exist"):
        import_images(tmp_path / "absent", tmp_path / "out")
    (tmp_path / "one" / "cat").mkdir(parents=True)
    with pytest.raises(CohortError, match="two classes"):
        import_images(tmp_path / "one", tmp_path / "out")
    (pictures / "training" / "cat" / "0.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(DicomError, match="cannot be decoded"):
        import_images(pictures, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "pictures"]


def test_the_calibration_choice_is_stratified(phantom):
    train = phantom.select("train")
    part = choose(train, 20, seed=1)
    counts = [sum(item.label == label for item in part.instances) for label in part.classes]
    assert len({item.file for item in part.instances}) == 20 and max(counts) - min(counts) <= 1
    assert choose(train, 20, seed=1).digest == part.digest != choose(train, 20, seed=2).digest
    with pytest.raises(CohortError, match="calibration images"):
        choose(train, len(train.instances) + 1, seed=0)
