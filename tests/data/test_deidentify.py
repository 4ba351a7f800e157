"""Nothing that identifies is left in the bytes, and an option keeps no more than its own."""

import io
import re

import pytest
from planted import planted_dataset
from pydicom.datadict import tag_for_keyword
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from hscc_edge.data.deidentify.dataset import deidentify_dataset
from hscc_edge.data.deidentify.profile import Profile, rule_of
from hscc_edge.data.dicom import read_dataset

KEY = bytes(range(32))
CLEANING = {"clean_descriptors": True, "clean_structured_content": True, "clean_graphics": True}
PROFILES = {
    "basic": Profile(),
    "cleaned": Profile(**CLEANING),
    # by one day: planted days are two apart, and none may fall upon another
    "shifted": Profile(dates="shift", max_shift_days=1, **CLEANING),
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


def tags_of(place):
    """(tag at the top, tag of the element) that a place names; 0 for what has none."""
    path = place.rpartition(" ")[0]
    names = (re.split(r"[\[.]", path)[0], re.split(r"[.]", path)[-1])
    return [int(name, 16) if re.fullmatch("[0-9A-F]{8}", name) else tag_for_keyword(name) or 0 for name in names]


def may_stay(place, profile):
    """Whether an option keeps the element at `place` or the one at the top around it, or it is a time under a shift."""
    vr = place.rpartition(" ")[2]
    actions = {profile.action(rule, vr) for tag in tags_of(place) if (rule := rule_of(tag))}
    kept_uid = vr == "UI" and profile.retain_uids and "private" not in place and place != "meta UI"
    return "K" in actions or (vr == "TM" and "shift" in actions) or kept_uid


@pytest.mark.parametrize("name", PROFILES)
def test_an_option_keeps_its_own_attributes_and_no_more(original, name):
    content, planted = original
    profile = PROFILES[name]
    stay = set(left(stored(cleaned(content, profile)), planted))
    assert sorted(place for place in stay if not may_stay(place, profile)) == []
    top = {place for place in planted if "[" not in place and (rule := rule_of(tags_of(place)[0]))
           and profile.action(rule, place.rpartition(" ")[2]) == "K"}  # fmt: skip
    # an age in weeks is rounded by nobody, a code of sex that is none is no sex
    assert sorted(top - stay) == []
    assert bool(top) == (name not in ("basic", "cleaned", "shifted"))
