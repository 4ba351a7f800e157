"""The table is the standard's, and a profile is read with care."""

import pytest
from pydicom.datadict import tag_for_keyword

from hscc_edge.data.deidentify.profile import CODES, Profile, attribute_rules, content_rules, read_profile, rule_of
from hscc_edge.errors import ConfigError


def test_every_action_of_the_table_is_that_of_another_reading_of_the_standard():
    from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c as other

    names = {"D": "D", "Z": "Z", "X": "X", "U": "U", "Z_D": "Z/D", "X_Z": "X/Z", "X_D": "X/D", "X_Z_D": "X/Z/D",
             "X_Z_U_STAR": "X/Z/U*"}  # fmt: skip
    theirs = {f"{tag[0]:04X}{tag[1]:04X}": action for name, action in names.items()
              for tag in getattr(other, f"{name}_TAGS") if len(tag) == 2}  # fmt: skip
    ours = {tag: rule.basic for tag, rule in attribute_rules().items() if "x" not in tag and tag != "PRIVATE"}
    # Dose Calculation Model Name came between the editions 2026c and 2026d
    assert ours.pop("3004007F") == "X"
    assert len(theirs) == 652 and ours == theirs


@pytest.mark.parametrize(
    "keyword, vr, profile, action",
    [
        # PS3.15 2026d Table E.1-1
        ("PatientName", "PN", {}, "Z"),
        ("PatientID", "LO", {}, "Z/D"),
        ("PatientBirthDate", "DA", {"dates": "shift"}, "Z"),
        ("PatientSex", "CS", {"retain_patient_characteristics": True}, "K"),
        ("Allergies", "LO", {"retain_patient_characteristics": True}, "C"),
        ("StudyDate", "DA", {}, "Z"),
        ("StudyDate", "DA", {"dates": "keep"}, "K"),
        ("StudyDate", "DA", {"dates": "shift"}, "shift"),
        ("StudyInstanceUID", "UI", {}, "U"),
        ("StudyInstanceUID", "UI", {"retain_uids": True}, "K"),
        ("DeviceSerialNumber", "LO", {}, "X/Z/D"),
        ("DeviceSerialNumber", "LO", {"retain_device_identity": True}, "K"),
        ("StationAETitle", "AE", {"retain_device_identity": True}, "C"),
        ("InstitutionName", "LO", {"retain_institution_identity": True}, "K"),
        ("StudyDescription", "LO", {}, "X"),
        ("StudyDescription", "LO", {"clean_descriptors": True}, "C"),
        ("ContentSequence", "SQ", {"clean_structured_content": True}, "C"),
        ("GraphicAnnotationSequence", "SQ", {"clean_graphics": True}, "C"),
        ("SourceImageSequence", "SQ", {}, "X/Z/U*"),
        # both options name it; a true date would betray by how much the others moved
        ("DateOfLastCalibration", "DA", {"retain_device_identity": True, "dates": "shift"}, "shift"),
    ],
)
def test_actions_of_the_table(keyword, vr, profile, action):
    assert Profile(**profile).action(rule_of(tag_for_keyword(keyword)), vr) == action


def test_content_items_of_the_table():
    # PS3.15 2026d Table E.3.4-1
    assert content_rules()["DCM", "121022", "TEXT"].basic == "X"
    assert content_rules()["NCDR", "15", "DATETIME"].options["retain_longitudinal_modified_dates"] == "C"
    assert len(content_rules()) == 214


def test_codes_of_the_options():
    # PS3.16 CID 7050, as pydicom's copy of PS3.16 has it
    from pydicom.sr.codedict import codes

    theirs = {code.value: code.meaning for code in codes.cid7050.concepts.values()}
    assert {value: meaning for value, meaning in CODES.values()}.items() <= theirs.items()


def test_a_profile_is_read(tmp_path):
    path = tmp_path / "profile.toml"
    path.write_text(
        'dates = "shift"\nmax_shift_days = 30\nclean_descriptors = true\n'
        'safe_private = ["SIEMENS MR HEADER (0019,xx0C)"]\n'
    )
    profile = read_profile(path)
    assert profile.codes == (
        CODES["basic"], CODES["clean_descriptors"], CODES["retain_longitudinal_modified_dates"],
        CODES["retain_safe_private"],
    )  # fmt: skip
    assert profile.is_safe_private("SIEMENS MR HEADER", 0x0019100C)
    assert not profile.is_safe_private("SIEMENS MR HEADER", 0x0019100D)
    assert not profile.is_safe_private("ANOTHER", 0x0019100C)


@pytest.mark.parametrize(
    "text, words",
    [
        ("retain_everything = true", "retain_everything"),
        ("retain_uids = 1", "retain_uids"),
        ('dates = "later"', "later"),
        ("max_shift_days = 0", "max_shift_days is 0"),
        ('safe_private = ["GEMS"]', "GEMS"),
        ('safe_private = ["GEMS (0018,xx01)"]', "GEMS"),
        ("safe_private = [1]", "safe_private"),
        ("dates = ", "TOML"),
    ],
)
def test_a_profile_that_is_wrong(tmp_path, text, words):
    path = tmp_path / "profile.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_profile(path)


def test_a_profile_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="no readable TOML"):
        read_profile(tmp_path / "none.toml")
