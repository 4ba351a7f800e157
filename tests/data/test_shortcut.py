"""Shortcuts: what gives a label away is named, what does not is left alone."""

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit

from hscc_edge.data.shortcut import FAMILIES, features, find_shortcuts

COUNT = 160


def dataset_of(pixels: np.ndarray, **headers: object) -> Dataset:
    found = Dataset()
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found.Rows, found.Columns = pixels.shape
    found.Modality, found.Manufacturer, found.BitsStored = "MR", "Maker", 12
    for keyword, value in headers.items():
        setattr(found, keyword, value)
    return found


def cohort(give=None, patients=COUNT, seed=0):
    """Noise pictures of two classes; `give(pixels, headers)` changes what a picture of the second shows and says."""
    random = np.random.default_rng(seed)
    rows, labels = [], []
    for index in range(patients):
        label = ("a", "b")[index % 2]
        pixels = random.uniform(0, 1000, (40, 48)).astype(np.float32)
        size, headers = 5000 + int(random.integers(0, 500)), {}
        if give and label == "b":
            pixels, size, headers = give(pixels, size)
        rows.append(features(pixels, dataset_of(pixels, **headers), size))
        labels.append(label)
    return rows, labels, list(range(patients))


def framed(pixels, size):
    pixels = pixels.copy()
    pixels[0] = 1000
    return pixels, size, {}


def captioned(pixels, size):
    pixels = pixels.copy()
    pixels[1:4, 1:5] = 0
    return pixels, size, {}


GIVEN = {
    "size": lambda pixels, size: (pixels[:, :44], size, {}),
    "file": lambda pixels, size: (pixels, size + 700, {}),
    "headers": lambda pixels, size: (pixels, size, {"Manufacturer": "Other"}),
    "borders": framed,
    "corners": captioned,
    "histogram": lambda pixels, size: (pixels**2 / 1000, size, {}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_gives_the_label_away_is_named(family):
    (found,) = find_shortcuts(*cohort(GIVEN[family]), families=[family])
    assert found.verdict == "predicts" and found.classes == ("a", "b")
    low, high = found.interval
    assert low <= found.balanced_accuracy <= high and found.balanced_accuracy > 0.9


def test_noise_is_no_evidence():
    for item in find_shortcuts(*cohort(seed=3)):
        assert item.verdict == "no evidence" and item.interval[0] < 0.6 and item.classes == (), item


def test_copies_of_one_patient_count_once_and_stand_on_one_side():
    # 40 patients with 7 pictures each, every patient with a border of its own: it can be learned by heart only
    random = np.random.default_rng(1)
    rows, labels, groups = [], [], []
    for patient in range(40):
        shade = random.uniform(0, 1000)
        for _ in range(7):
            pixels = random.uniform(0, 1000, (40, 48)).astype(np.float32)
            pixels[0], pixels[-1] = shade, shade
            rows.append(features(pixels, dataset_of(pixels), 5000))
            labels.append(("a", "b")[patient % 2])
            groups.append(patient)
    (borders,) = find_shortcuts(rows, labels, groups, families=["borders"])
    assert borders.cases == 40 and borders.verdict == "no evidence"
    (alone,) = find_shortcuts(rows, labels, list(range(280)), families=["borders"])
    assert alone.verdict == "predicts"


def test_few_cases_are_not_judged():
    found = find_shortcuts(*cohort(framed, patients=20))
    assert {item.verdict for item in found} == {"too few cases"} and found[0].to_json()["cases"] == 20


@pytest.mark.parametrize("entry", [3, 17])
def test_quantisation_is_read_from_a_jpeg(entry):
    table = b"\xff\xd8\xff\xdb\x00\x43\x00" + bytes([entry] * 64) + b"\xff\xd9\x00"
    pixels = np.random.default_rng(0).uniform(size=(16, 16)).astype(np.float32)
    dataset = dataset_of(pixels, PixelData=encapsulate([table]))
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    assert features(pixels, dataset, 100)["file"][2] == entry
