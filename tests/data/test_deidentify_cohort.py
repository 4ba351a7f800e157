"""A cohort and a folder become others that hold no identifier, are valid DICOM, and say what was not done."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import PIL.Image
import pydicom
import pytest
import typer
from PIL import ImageDraw, ImageFont
from pydicom.data import get_testdata_file

from hscc_edge.cli.deidentify import deidentify
from hscc_edge.data.cohort import read_cohort
from hscc_edge.data.deidentify.burned import has_text_like, header_warnings
from hscc_edge.data.deidentify.cohort import deidentify_cohort, deidentify_folder
from hscc_edge.data.deidentify.dataset import deidentify_dataset
from hscc_edge.data.deidentify.key import check_apart, new_key, read_key
from hscc_edge.data.deidentify.profile import Profile
from hscc_edge.data.dicom import read_dataset, read_image
from hscc_edge.data.images import import_images, secondary_capture
from hscc_edge.data.phantom import write_phantom
from hscc_edge.errors import CohortError, ConfigError, DicomError, StorageError

KEY = b"k" * 32
REAL = ("MR_small.dcm", "CT_small.dcm", "JPEG2000.dcm", "MR_small_RLE.dcm", "examples_ybr_color.dcm")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp("small") / "cohort"
    write_phantom(root, patients=16, slices=2, size=32, seed=1)
    return read_cohort(root)


def pathed(name):
    return Path(get_testdata_file(name, download=False))


def run(monkeypatch, capsys, *words):
    """(exit code or the error, stdout) of the verb."""
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(deidentify)
    monkeypatch.setattr(sys, "argv", ["deidentify", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        app()
    return end.value.code, capsys.readouterr().out


def test_a_cohort_keeps_labels_splits_and_pixels(small, tmp_path):
    made, report = deidentify_cohort(small, tmp_path / "out", Profile(), KEY)
    read = read_cohort(tmp_path / "out")
    assert read.digest == made.digest and read.classes == small.classes and read.unit == small.unit
    before = {read_image(small.path(item)).pixels.tobytes(): item for item in small.instances}
    patients = {}
    for item in read.instances:
        original = before[read_image(read.path(item)).pixels.tobytes()]
        assert (item.label, item.split) == (original.label, original.split)
        assert patients.setdefault(original.patient, item.patient) == item.patient
        headers = read_image(read.path(item)).headers
        assert (item.sop, item.series, item.study, item.patient) == (
            headers.sop_instance_uid, headers.series_uid, headers.study_uid, headers.patient_id,
        )  # fmt: skip
    assert len(set(patients.values())) == len(patients)
    assert report.files == {"written": len(small.instances)}
    assert [item.sop for item in read.instances] != [item.sop for item in small.instances]


def test_nothing_of_the_original_is_in_the_directory(small, tmp_path):
    deidentify_cohort(small, tmp_path / "out", Profile(), KEY)
    written = b"".join(path.read_bytes() for path in sorted((tmp_path / "out").rglob("*")) if path.is_file())
    for item in small.instances:
        for value in (item.patient, item.study, item.series, item.sop, item.digest):
            assert value.encode() not in written
    assert KEY not in written and str(small.root).encode() not in written
    again, _ = deidentify_cohort(small, tmp_path / "again", Profile(), KEY)
    other, _ = deidentify_cohort(small, tmp_path / "other", Profile(), b"o" * 32)
    assert again.digest == read_cohort(tmp_path / "out").digest != other.digest


def test_a_cohort_that_is_done_is_refused_and_leaves_nothing(small, tmp_path):
    made, _ = deidentify_cohort(small, tmp_path / "out", Profile(), KEY)
    with pytest.raises(DicomError, match=r"row \d+ of the cohort's table") as refused:
        deidentify_cohort(made, tmp_path / "twice", Profile(), KEY)
    assert not (tmp_path / "twice").exists() and made.instances[0].sop not in str(refused.value)


def errors_of(path):
    said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True)
    return Counter(line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error"))


def captures(folder):
    for number in range(2):
        pixels = np.full((16, 16, 3) if number else (16, 16), 7, np.uint8)
        path = folder / f"sc{number}.dcm"
        secondary_capture(pixels, "0" * 64, jpeg=bool(number), number=number).save_as(path, enforce_file_format=True)
        yield path


@pytest.mark.parametrize("profile", [Profile(), Profile(dates="shift", clean_descriptors=True)], ids=["basic", "shift"])
def test_files_are_no_less_valid_than_before(small, tmp_path, profile):
    for path in (*map(pathed, REAL), *captures(tmp_path), small.path(small.instances[0])):
        made = tmp_path / "made.dcm"
        deidentify_dataset(read_dataset(path, pixels=True), profile, KEY).save_as(made, enforce_file_format=True)
        assert errors_of(made) - errors_of(path) == Counter(), path.name
        dumped = subprocess.run(["dcmdump", "-q", "+P", "SOPInstanceUID", made], capture_output=True, text=True)
        assert dumped.returncode == 0 and "2.25." in dumped.stdout and not dumped.stderr


def test_a_folder_leaves_out_what_it_cannot_do(small, tmp_path):
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "notes.txt").write_text("Anna")
    made, _ = deidentify_cohort(small, tmp_path / "made", Profile(), KEY)
    os.link(made.path(made.instances[0]), folder / "done.dcm")
    with pytest.raises(CohortError, match="holds no DICOM file that can be"):
        deidentify_folder(folder, tmp_path / "out", Profile(), KEY)
    os.link(small.path(small.instances[0]), folder / "deep" / "Anna.dcm")
    deidentify_folder(folder, tmp_path / "out", Profile(), KEY)
    said = json.loads((tmp_path / "out" / "deidentification.json").read_text())
    assert said["left_out"] == {"de-identified already": 1, "not readable as DICOM": 1}
    assert said["files"] == {"written": 1} and set(said["not_done"]) == {"113101", "113102"}
    assert not [path for path in (tmp_path / "out").rglob("*Anna*")]
    with pytest.raises(CohortError, match="lies in"):
        deidentify_folder(folder, folder / "out", Profile(), KEY)


def test_the_verb(small, tmp_path, monkeypatch, capsys):
    key, out = tmp_path / "site.key", tmp_path / "out"
    (tmp_path / "p.toml").write_text('dates = "shift"\n')
    code, said = run(
        monkeypatch, capsys, small.root, out, "--key", key, "--new-key", "--profile", tmp_path / "p.toml", "--json"
    )
    assert code == 0 and json.loads(said)["options"][0]["code"] == "113107"
    assert os.stat(key).st_mode & 0o777 == 0o600 and len(key.read_bytes()) == 32
    code, said = run(monkeypatch, capsys, small.root, out, "--key", key, "--overwrite")
    assert code == 0 and "not done: 113101" in said and "look at" in said
    assert "Example: hscc-edge cohort deidentify" in run(monkeypatch, capsys, "--help")[1].replace("\n", " ")


def test_a_key_is_kept_apart_and_to_its_owner(tmp_path):
    key = tmp_path / "key"
    assert new_key(key) == read_key(key)
    with pytest.raises(StorageError, match="something stands there"):
        new_key(key)
    key.chmod(0o640)
    with pytest.raises(ConfigError, match="mode 0640"):
        read_key(key)
    short = tmp_path / "short"
    short.write_bytes(b"k" * 31)
    short.chmod(0o600)
    with pytest.raises(ConfigError, match="31 bytes"):
        read_key(short)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_key(tmp_path / "none")
    with pytest.raises(ConfigError, match="given away"):
        check_apart(tmp_path / "out" / "key", tmp_path / "out")


def with_text(pixels, size, fill, place=(4, 4)):
    picture = PIL.Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    ImageDraw.Draw(picture).text(place, "MUELLER ANNA 01.02.1962", fill=fill, font=ImageFont.load_default(size))
    return np.asarray(picture, np.float32)


@pytest.mark.parametrize("size", [11, 16, 24, 36])
@pytest.mark.parametrize("fill", [255, 0])
def test_burnt_in_text_is_pointed_at(size, fill):
    generator = np.random.default_rng(size)
    ground = generator.normal(60 if fill else 190, 8, (512, 512))
    assert not has_text_like(ground.astype(np.float32))
    assert has_text_like(with_text(ground, size, fill))
    assert has_text_like(np.repeat(with_text(ground, size, fill)[..., None], 3, axis=2))


def test_pictures_without_text_are_not_pointed_at(small):
    names = [name for name in REAL if "ybr" not in name]
    real = [read_image(pathed(name)).pixels for name in names]
    phantoms = [read_image(small.path(item)).pixels for item in small.instances]
    assert not any(map(has_text_like, [*real, *phantoms, np.zeros((8, 8), np.float32)]))
    assert has_text_like(read_image(pathed("examples_rgb_color.dcm")).pixels), "an ultrasound with captions"


def test_the_header_warns_too(tmp_path):
    dataset = pydicom.dcmread(pathed("MR_small.dcm"))
    assert header_warnings(dataset)[0] == "Burned In Annotation is not stated"
    dataset.BurnedInAnnotation, dataset.Modality = "YES", "US"
    assert header_warnings(dataset)[:2] == ["Burned In Annotation is YES", "modality US often carries burnt-in text"]
    dataset.BurnedInAnnotation, dataset.Modality = "NO", "MR"
    dataset.ImageType, dataset.RecognizableVisualFeatures = ["ORIGINAL", "PRIMARY"], "NO"
    assert header_warnings(dataset) == []


def test_a_picture_with_a_name_is_listed(tmp_path):
    for label in ("a", "b"):
        folder = tmp_path / "pictures" / label
        folder.mkdir(parents=True)
        ground = np.full((128, 256), 40.0)
        picture = with_text(ground, 14, 255) if label == "a" else ground
        PIL.Image.fromarray(picture.astype(np.uint8)).save(folder / "x.png")
    cohort = import_images(tmp_path / "pictures", tmp_path / "cohort", test_fraction=0.0)
    made, report = deidentify_cohort(cohort, tmp_path / "out", Profile(), KEY)
    named = [item.file for item in made.instances if item.label == "a"]
    assert [f"dicom/{name}" for name in report.to_look_at] == named
