"""Nothing that identifies is left in the bytes; what is to be kept is kept; the table is the standard's."""

import io

import pytest
from planted import planted_dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from hscc_edge.data.deidentify import deidentify_dataset
from hscc_edge.data.deidentify_profile import Profile
from hscc_edge.data.dicom import read_dataset

KEY = bytes(range(32))
CLEANING = {"clean_descriptors": True, "clean_structured_content": True, "clean_graphics": True}
PROFILES = {
    "basic": Profile(),
    "cleaned": Profile(**CLEANING),
    "shifted": Profile(dates="shift", **CLEANING),
    "patient": Profile(retain_patient_characteristics=True),
    "device": Profile(retain_device_identity=True, **CLEANING),
    "institution": Profile(retain_institution_identity=True),
    "uids": Profile(retain_uids=True),
    "full dates": Profile(dates="keep"),
}


def stored(dataset):
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def cleaned(content, profile=PROFILES["basic"], key=KEY):
    return deidentify_dataset(read_dataset(io.BytesIO(content), pixels=True), profile, key)


def left(content, planted):
    return sorted(place for place, value in planted.items() if value in content)


@pytest.fixture(scope="module")
def original():
    dataset, planted = planted_dataset(ExplicitVRLittleEndian)
    return stored(dataset), planted


def test_the_sentinels_are_there_to_be_found(original):
    content, planted = original
    assert len(planted) > 3000 and left(content, planted) == sorted(planted)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_nothing_planted_is_left(syntax):
    dataset, planted = planted_dataset(syntax, share=1.0 if syntax == ExplicitVRLittleEndian else 0.1, seed=3)
    content = stored(dataset)
    assert len(left(content, planted)) > 0.9 * len(planted)
    assert left(stored(cleaned(content)), planted) == []
