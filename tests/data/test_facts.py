"""Facts of headers: real files, ages and planes as properties, enhanced objects, and values that nobody can read."""

import datetime
import math
import typing
import warnings
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from hscc_edge.data.facts import AGE_BANDS, GROUPS, KEYWORDS, Facts, age_band, facts_of, orientation_of

AXIAL = (1, 0, 0, 0, 1, 0)
HINTS = typing.get_type_hints(Facts)
DAYS = st.dates(datetime.date(1900, 1, 1), datetime.date(2030, 12, 31))


def wheel(name):
    path = get_testdata_file(name, download=False)
    assert path, f"{name} is not in pydicom's wheel"
    return Path(path)


def made(**values) -> Dataset:
    """A data set of values as a file would hold them, unchecked."""
    dataset = Dataset()
    for keyword, value in values.items():
        content = "\\".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        put(dataset, keyword, content.encode())
    return dataset


def put(dataset, keyword, content, vr=None):
    tag = Tag(keyword)
    vr = vr or pydicom.datadict.dictionary_VR(tag)
    dataset[tag] = RawDataElement(tag, vr, len(content), content, 0, False, True)


def well_typed(facts):
    for item in fields(Facts):
        value, hint = getattr(facts, item.name), HINTS[item.name]
        allowed = typing.get_args(hint) if typing.get_origin(hint) is not tuple else (tuple,)
        assert type(value) in (allowed or (hint,)), f"{item.name} is {value!r}"
        if isinstance(value, tuple):
            assert all(type(part) is str for part in value)
        assert not isinstance(value, float) or math.isfinite(value), item.name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dicomdirtests/98892003/MR2/4981", {
            "sex": "M", "age_years": 45, "age_band": "40-64", "field_strength_t": 1.5, "modality": "MR",
            "orientation": "axial", "slice_position_mm": 18.75, "rows": 16, "frames": 1, "study_year": 2003,
            "scanner": "Philips Medical Systems, Inc. Eclipse 1.5T", "malformed": (), "contrast": False,
        }),
        ("examples_overlay.dcm", {
            "age_years": 58, "orientation": "axial", "bits_stored": 12, "photometric": "MONOCHROME2",
            "image_type": ("DERIVED", "SECONDARY", "MPR", "CSA MPR", "", "CSAPARALLEL", "M", "ND", "NORM"),
        }),
        ("liver_1frame.dcm", {"modality": "SEG", "orientation": "axial", "slice_thickness_mm": 1.0, "frames": 1}),
        ("MR_small_bigendian.dcm", {"modality": "MR", "transfer_syntax": "1.2.840.10008.1.2.2", "study_year": 2004}),
    ],
)  # fmt: skip
def test_real_files(name, expected):
    facts = facts_of(pydicom.dcmread(wheel(name), stop_before_pixels=True))
    assert {key: getattr(facts, key) for key in expected} == expected
    well_typed(facts)


def birthdays(birth, study):
    """Birthdays from the first to the day of the study; 29 February is kept on 1 March in other years."""
    count = 0
    for year in range(birth.year + 1, study.year + 1):
        try:
            day = birth.replace(year=year)
        except ValueError:
            day = datetime.date(year, 3, 1)
        count += day <= study
    return count


@given(DAYS, DAYS)
def test_age_counts_birthdays_and_the_birth_date_is_not_kept(birth, study):
    facts = facts_of(made(PatientBirthDate=birth.strftime("%Y%m%d"), StudyDate=study.strftime("%Y%m%d")))
    if study < birth or birthdays(birth, study) > 130:
        assert facts.age_years is None and facts.malformed == ("PatientBirthDate",)
    else:
        assert facts.age_years == birthdays(birth, study) and facts.malformed == ()
    assert facts.study_year == study.year
    if birth.year != study.year:
        assert birth.strftime("%Y%m%d") not in str(asdict(facts)) and str(birth) not in str(asdict(facts))
    assert study.strftime("%Y%m%d") not in str(asdict(facts))


@given(st.integers(0, 999), st.sampled_from("DWMY"))
def test_age_strings(number, unit):
    facts = facts_of(made(PatientAge=f"{number:03d}{unit}"))
    years = {"D": number / 365.25, "W": number * 7 / 365.25, "M": number / 12, "Y": number}[unit]
    if years > 130:
        assert facts.age_years is None and facts.malformed == ("PatientAge",)
    else:
        assert facts.age_years == pytest.approx(years, abs=1) and facts.age_years <= years + 0.02
        assert facts.age_band == age_band(facts.age_years)


def test_age_of_the_header_wins_and_a_malformed_one_gives_way_to_the_dates():
    dates = {"PatientBirthDate": "19600102", "StudyDate": "20100102"}
    assert facts_of(made(PatientAge="049Y", **dates)).age_years == 49
    facts = facts_of(made(PatientAge="old", **dates))
    assert facts.age_years == 50 and facts.malformed == ("PatientAge",)


@given(st.integers(-5, 200))
def test_age_bands_cover_a_life_once_each(years):
    assert bool(age_band(years)) == (0 <= years <= 130)
    if 0 <= years <= 130:
        low, _, high = age_band(years).rstrip("+").partition("-")
        assert int(low) <= years and (not high or years <= int(high))
    assert sorted(end for _, end in AGE_BANDS) == [end for _, end in AGE_BANDS]


def turned(axis, angle):
    """Rotation matrix about one of the patient's axes."""
    a, b = [index for index in range(3) if index != axis]
    matrix = np.eye(3)
    matrix[a, a] = matrix[b, b] = math.cos(angle)
    matrix[a, b], matrix[b, a] = -math.sin(angle), math.sin(angle)
    return matrix


@given(st.sampled_from(range(3)), st.floats(-math.pi, math.pi), st.booleans(), st.floats(0, 90), st.booleans())
def test_orientation(normal, within, flip, tilt, other):
    """The plane's name is that of its normal's axis, however the picture lies in it, up to 37 degrees of tilt."""
    tilt = min(tilt, 90 - tilt) if tilt > 45 else tilt
    first, second = [index for index in range(3) if index != normal]
    tilted = turned(second if other else first, math.radians(tilt)) @ turned(normal, within)
    row, column = tilted[:, first], tilted[:, second]
    cosines = [*(column if flip else row), *(row if flip else column)]
    limit = math.degrees(math.acos(0.8))
    if abs(tilt - limit) > 1e-6:
        name = ("sagittal", "coronal", "axial")[normal] if tilt < limit else "oblique"
        assert orientation_of(cosines) == name


@pytest.mark.parametrize("value", [(1, 0, 0), (1, 0, 0, 1, 0, 0), (2, 0, 0, 0, 1, 0), ("nan",) * 6, ("a",) * 6, 7])
def test_cosines_of_no_plane(value):
    facts = facts_of(made(ImageOrientationPatient=value, SliceLocation="3.5"))
    assert facts.orientation == "" and facts.slice_position_mm == 3.5
    assert facts.malformed == ("ImageOrientationPatient",)


def test_position_is_along_the_normal():
    facts = facts_of(made(ImageOrientationPatient=(0, 1, 0, 0, 0, -1), ImagePositionPatient=(7, 2, 3), SliceLocation=9))
    assert facts.orientation == "sagittal" and facts.slice_position_mm == -7


@pytest.mark.parametrize(
    ("values", "field", "expected"),
    [
        ({"PatientSex": "f "}, "sex", "F"),
        ({"PatientSex": "female"}, "sex", ""),
        ({"MagneticFieldStrength": "15000"}, "field_strength_t", 1.5),
        ({"MagneticFieldStrength": "0"}, "field_strength_t", None),
        ({"ContrastBolusAgent": "Gadovist 7.5 ml"}, "contrast", True),
        ({"ContrastBolusAgent": "NONE"}, "contrast", False),
        ({"ContrastBolusAgent": ""}, "contrast", False),
        ({"Laterality": "L", "ImageLaterality": "R"}, "laterality", "R"),
        ({"EchoTime": "1,5"}, "echo_time_ms", None),
        ({"EchoTime": "nan"}, "echo_time_ms", None),
        ({"ScanningSequence": ("SE", "IR")}, "scanning_sequence", ("SE", "IR")),
        ({"StudyDate": "2009.11.23"}, "study_year", 2009),
        ({"StudyDate": "20091345", "SeriesDate": "20100101"}, "study_year", 2010),
        ({"BodyPartExamined": "Brain"}, "body_part", "BRAIN"),
        ({"SeriesDescription": "x" * 2000}, "series_description", ""),
        ({"NumberOfFrames": "0"}, "frames", None),
        ({}, "frames", 1),
    ],
)
def test_values(values, field, expected):
    facts = facts_of(made(**values))
    assert getattr(facts, field) == expected
    assert bool(facts.malformed) == (expected in ("", None) or (field == "study_year" and len(values) > 1))


def test_the_station_is_a_pseudonym_under_the_key():
    one, same, other = (facts_of(made(StationName="MR-EAST"), key).station for key in (b"a", b"a", b"b"))
    assert one == same != other and "EAST" not in one
    assert facts_of(made(DeviceSerialNumber="MR-EAST"), b"a").station == one


def enhanced(frames=3) -> Dataset:
    def measures(**values):
        item = Dataset()
        for keyword, value in values.items():
            setattr(item, keyword, value)
        return item

    dataset = pydicom.dcmread(wheel("liver_1frame.dcm"))
    for keyword in ("SliceThickness", "ImageOrientationPatient", "BodyPartExamined"):
        if keyword in dataset:
            delattr(dataset, keyword)
    timing = measures(RepetitionTime=2000.0)
    region = measures(CodeValue="T-A0100", CodingSchemeDesignator="SRT", CodeMeaning="Brain")
    anatomy = measures(FrameLaterality="L", AnatomicRegionSequence=[region])
    shared = measures(MRTimingAndRelatedParametersSequence=[timing], FrameAnatomySequence=[anatomy])
    own = [
        measures(
            MREchoSequence=[measures(EffectiveEchoTime=10.0 + index)],
            PixelMeasuresSequence=[measures(SliceThickness="2.5", PixelSpacing=[1, 1])],
            PlaneOrientationSequence=[measures(ImageOrientationPatient=list(AXIAL))],
            PlanePositionSequence=[measures(ImagePositionPatient=[0, 0, 5 + index])],
        )
        for index in range(frames)
    ]
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], own
    dataset.NumberOfFrames = frames
    return dataset


def test_enhanced_objects_speak_of_their_first_frame():
    facts = facts_of(enhanced())
    assert (facts.echo_time_ms, facts.repetition_time_ms, facts.slice_thickness_mm) == (10.0, 2000.0, 2.5)
    assert (facts.orientation, facts.slice_position_mm, facts.frames) == ("axial", 5.0, 3)
    assert (facts.body_part, facts.laterality, facts.malformed) == ("BRAIN", "L", ())


@pytest.mark.parametrize("keyword", KEYWORDS)
@settings(max_examples=30)
@given(content=st.binary(max_size=64), vr=st.sampled_from([None, "DS", "IS", "SQ", "US", "UN", "AT", "OB", "PN", "FD"]))
def test_no_value_raises(keyword, content, vr):
    dataset = made(Modality="MR", StudyDate="20100101", PatientAge="040Y")
    put(dataset, keyword, content, vr)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        facts = facts_of(dataset)
    well_typed(facts)
    assert set(facts.malformed) <= set(KEYWORDS)


@pytest.mark.parametrize("keyword", GROUPS)
def test_malformed_groups_are_counted(keyword):
    dataset = made(Modality="MR")
    put(dataset, keyword, b"\xff" * 32)
    facts = facts_of(dataset)
    assert facts.modality == "MR" and keyword in facts.malformed
