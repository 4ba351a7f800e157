"""What stands in place of an identifier: stable, linked as the originals were, and told to nobody."""

import datetime
import io
import uuid

import numpy as np
import PIL.Image
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import DataElement, Dataset
from pydicom.config import IGNORE
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEGBaseline8Bit

from hscc_edge.data.deidentify.codes import meanings
from hscc_edge.data.deidentify.dataset import deidentify_dataset
from hscc_edge.data.deidentify.frames import without_comments
from hscc_edge.data.deidentify.profile import Profile
from hscc_edge.data.deidentify.values import Keyed, known_words, shifted
from hscc_edge.errors import DicomError

KEY, OTHER = b"k" * 32, b"o" * 32
days = st.dates(min_value=datetime.date(1920, 1, 1), max_value=datetime.date(2099, 12, 31))


def real(name="MR_small.dcm", **changes):
    dataset = pydicom.dcmread(get_testdata_file(name, download=False))
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    return dataset


def item(**attributes):
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


@given(st.from_regex(r"[1-9]\.[1-9][0-9]{0,20}", fullmatch=True))
def test_uids_are_those_of_ps35_b2(uid):
    found = Keyed(KEY).uid(uid)
    root, number = found.rsplit(".", 1)
    assert root == "2.25" and len(found) <= 64 and uuid.UUID(int=int(number)).variant == uuid.RFC_4122
    assert found == Keyed(KEY).uid(uid) != Keyed(OTHER).uid(uid)


def test_a_longer_key_is_used_whole():
    assert Keyed(b"k" * 64).uid("1.2") != Keyed(b"k" * 63 + b"x").uid("1.2")


@given(days, days, st.integers(1, 36500))
def test_intervals_stay(first, second, moved):
    before = [f"{day:%Y%m%d}" for day in (first, second)]
    after = [datetime.datetime.strptime(shifted(text, "DA", moved), "%Y%m%d").date() for text in before]
    assert after[1] - after[0] == second - first
    times = [shifted(f"{text}235959.5+0100", "DT", moved) for text in before]
    assert [time[:8] for time in times] == [f"{day:%Y%m%d}" for day in after]
    assert all(time[8:] == "235959.5+0100" for time in times)


@pytest.mark.parametrize("value", ["", "2024", "202413", "20240231", "20240101-20240201", "yesterday", "00010101"])
def test_a_date_that_cannot_be_moved_is_not_kept(value):
    assert shifted(value, "DA", 400) is None
    dataset = real()
    dataset.add(DataElement(0x00080020, "DA", value, validation_mode=IGNORE))
    assert not deidentify_dataset(dataset, Profile(dates="shift"), KEY).StudyDate
    full = deidentify_dataset(dataset, Profile(dates="keep"), KEY).get("StudyDate")
    assert not full or value == "00010101"


def test_dates_of_one_patient_move_together():
    profile = Profile(dates="shift")
    first, second = (real(StudyDate=day, AcquisitionDateTime=f"{day}101112.5") for day in ("20200229", "20210301"))
    moved = [deidentify_dataset(dataset, profile, KEY) for dataset in (first, second)]
    parsed = [datetime.datetime.strptime(dataset.StudyDate, "%Y%m%d") for dataset in moved]
    assert (parsed[1] - parsed[0]).days == 366 and moved[0].StudyDate not in ("", "20200229")
    assert all(dataset.AcquisitionDateTime == f"{dataset.StudyDate}101112.5" for dataset in moved)
    assert all(dataset.LongitudinalTemporalInformationModified == "MODIFIED" for dataset in moved)
    shifts = {Keyed(KEY).shift_days(str(number), 1825) for number in range(200)}
    assert len(shifts) > 150 and min(shifts) >= 1 and max(shifts) <= 1825


def test_files_stay_linked():
    first = real()
    second = real(SOPInstanceUID="1.2.3.4.5")
    second.ReferencedImageSequence = [
        item(ReferencedSOPClassUID=first.SOPClassUID, ReferencedSOPInstanceUID=first.SOPInstanceUID)
    ]
    one, two = (deidentify_dataset(dataset, Profile(), KEY) for dataset in (first, second))
    assert two.ReferencedImageSequence[0].ReferencedSOPInstanceUID == one.SOPInstanceUID != first.SOPInstanceUID
    assert two.ReferencedImageSequence[0].ReferencedSOPClassUID == first.SOPClassUID
    assert one.StudyInstanceUID == two.StudyInstanceUID and one.SOPInstanceUID != two.SOPInstanceUID
    assert one.PatientID == two.PatientID
    assert deidentify_dataset(first, Profile(), OTHER).PatientID != one.PatientID
    assert one.file_meta.MediaStorageSOPInstanceUID == one.SOPInstanceUID


def test_the_original_is_left_alone():
    dataset = real("CT_small.dcm")
    before = io.BytesIO()
    dataset.save_as(before)
    deidentify_dataset(dataset, Profile(dates="shift", clean_descriptors=True), KEY)
    after = io.BytesIO()
    dataset.save_as(after)
    assert before.getvalue() == after.getvalue()


def test_twice_is_refused():
    once = deidentify_dataset(real(), Profile(), KEY)
    with pytest.raises(DicomError, match="Patient Identity Removed YES"):
        deidentify_dataset(once, Profile(), KEY)


@pytest.mark.parametrize("lacks", ["SOPClassUID", "SOPInstanceUID", "TransferSyntaxUID"])
def test_what_is_no_file_is_refused(lacks):
    dataset = real()
    del (dataset.file_meta if lacks == "TransferSyntaxUID" else dataset)[lacks]
    with pytest.raises(DicomError, match="lacks a transfer syntax"):
        deidentify_dataset(dataset, Profile(), KEY)


def test_former_encrypted_and_signed_attributes_go():
    former = item(ModifiedAttributesSequence=[item(Rows=1)], ReasonForTheAttributeModification="COERCE")
    dataset = real(OriginalAttributesSequence=[former], EncryptedAttributesSequence=[item(EncryptedContent=b"ab")])
    dataset.DigitalSignaturesSequence = [item(Signature=b"ab")]
    done = deidentify_dataset(dataset, Profile(), KEY)
    assert not [
        element.keyword for element in done if "AttributesSequence" in element.keyword or "Digital" in element.name
    ]


def test_text_in_the_place_of_a_number_or_uid_goes():
    content = io.BytesIO()
    real(PatientAge="033Y", EchoTime="240.1", SeriesNumber="123456", FrameOfReferenceUID="1.2.34").save_as(content)
    broken = content.getvalue()
    for value, other in ((b"240.1 ", b"Anna\\1"), (b"123456", b"Muelle"), (b"1.2.34", b"Anna.M")):
        assert broken.count(value) == 1
        broken = broken.replace(value, other)
    for profile in (Profile(), Profile(retain_uids=True)):
        done = io.BytesIO()
        deidentify_dataset(pydicom.dcmread(io.BytesIO(broken)), profile, KEY).save_as(done, enforce_file_format=True)
        assert not [word for word in (b"Anna", b"Muelle") if word in done.getvalue()]


def test_what_was_done_is_said():
    done = deidentify_dataset(real(), Profile(dates="keep", retain_uids=True), KEY)
    assert done.PatientIdentityRemoved == "YES" and done.LongitudinalTemporalInformationModified == "UNMODIFIED"
    assert [code.CodeValue for code in done.DeidentificationMethodCodeSequence] == ["113100", "113106", "113110"]
    assert done.SOPInstanceUID == real().SOPInstanceUID
    assert "BurnedInAnnotation" not in done, "nobody looked"


def test_descriptions_keep_words_of_the_list_only():
    profile = Profile(clean_descriptors=True, descriptor_words=("knie",))
    done = deidentify_dataset(
        real(StudyDescription="MR Knie li, Fr. MUELLER 1962 T2", SeriesDescription="Dr. Who"), profile, KEY
    )
    assert done.StudyDescription == "MR Knie T2" and "SeriesDescription" not in done


@given(st.text())
def test_no_other_word_comes_out(text):
    assert set(known_words(text, ()).lower().split()) <= set(known_words(" ".join(text.split()), ()).lower().split())
    assert known_words(f"q{text}q".replace(" ", ""), ()) == "" or any(not c.isalnum() for c in text)


def test_the_patients_own_name_and_number_are_found_elsewhere():
    dataset = real(
        PatientName="Mueller^Anna", PatientID="MRN0012345", BodyPartExamined="MUELLER", Manufacturer="Mueller Medical"
    )
    dataset.SoftwareVersions, dataset.ScanOptions = "v1 MRN0012345x", "ANNAX"
    done = deidentify_dataset(dataset, Profile(), KEY)
    assert done.BodyPartExamined == done.Manufacturer == done.SoftwareVersions == ""
    assert done.ScanOptions == "ANNAX", "only whole words are names"


def test_the_oldest_are_not_told_apart():
    profile = Profile(retain_patient_characteristics=True)
    ages = {
        age: deidentify_dataset(real(PatientAge=age), profile, KEY).PatientAge
        for age in ("089Y", "090Y", "104Y", "008M")
    }
    assert ages == {"089Y": "089Y", "090Y": "090Y", "104Y": "090Y", "008M": "008M"}


def test_codes():
    public = item(CodeValue="12738006", CodingSchemeDesignator="SCT", CodeMeaning="the brain of Anna")
    shaped = item(CodeValue="999999999", CodingSchemeDesignator="SCT", CodeMeaning="of Anna")
    local = item(CodeValue="MUELLER", CodingSchemeDesignator="99WARD", CodeMeaning="Frau Mueller")
    done = deidentify_dataset(real(AnatomicRegionSequence=[public, shaped, local]), Profile(), KEY)
    found = [(code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning) for code in done.AnatomicRegionSequence]
    assert found == [
        ("12738006", "SCT", meanings()["SCT", "12738006"]),
        ("999999999", "SCT", "meaning not kept"),
        ("DEIDENTIFIED", "99DEID", "DEIDENTIFIED"),
    ]
    with_profile = Profile(retain_institution_identity=True)
    kept = deidentify_dataset(real(InstitutionCodeSequence=[local]), with_profile, KEY)
    assert kept.InstitutionCodeSequence[0].CodeMeaning == "Frau Mueller", "an option keeps the sequence"


def test_safe_private_attributes_stay_with_their_creator():
    dataset = real()
    block = dataset.private_block(0x0019, "MAKER", create=True)
    block.add_new(0x0C, "IS", "1000")
    block.add_new(0x0D, "LO", "Anna")
    done = deidentify_dataset(dataset, Profile(safe_private=("MAKER (0019,xx0C)",)), KEY)
    assert done.private_block(0x0019, "MAKER")[0x0C].value == 1000
    assert [element.tag.elem & 0xFF for element in done if element.tag.is_private] == [0x10, 0x0C]


def content_item(kind, concept, **attributes):
    value, scheme = concept
    code = item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning="x")
    return item(RelationshipType="CONTAINS", ValueType=kind, ConceptNameCodeSequence=[code], **attributes)


def test_structured_content():
    length = item(
        NumericValue="12.5",
        MeasurementUnitsCodeSequence=[item(CodeValue="mm", CodingSchemeDesignator="UCUM", CodeMeaning="mm")],
    )
    tree = [
        content_item("TEXT", ("121106", "DCM"), TextValue="seen by Dr. Mueller"),
        content_item("TEXT", ("121022", "DCM"), TextValue="accession 77"),
        content_item("PNAME", ("121008", "DCM"), PersonName="Mueller^Anna"),
        content_item("NUM", ("410668003", "SCT"), MeasuredValueSequence=[length]),
    ]
    clean = deidentify_dataset(real(ContentSequence=tree), Profile(clean_structured_content=True), KEY)
    kinds = [found.ValueType for found in clean.ContentSequence]
    assert "NUM" in kinds and "accession" not in str(clean) and "Mueller" not in str(clean)
    assert clean.ContentSequence[-1].MeasuredValueSequence[0].NumericValue == 12.5
    basic = deidentify_dataset(real(ContentSequence=tree), Profile(), KEY)
    assert len(basic.ContentSequence) == 4 and "Mueller" not in str(basic)
    assert basic.ContentSequence[-1].MeasuredValueSequence[0].NumericValue == 0


def jpeg(comment: bytes):
    exif = PIL.Image.Exif()
    exif[0x013B] = "ZQARTIST"
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(buffer, "JPEG", comment=comment, exif=exif)
    return buffer.getvalue()


def test_comments_in_a_jpeg_go_and_pixels_stay():
    frame = jpeg(b"ZQCOMMENT")
    clean = without_comments(frame)
    assert b"ZQ" in frame and b"ZQ" not in clean
    assert np.array_equal(*(np.asarray(PIL.Image.open(io.BytesIO(data))) for data in (frame, clean)))
    dataset = real()
    dataset.Rows = dataset.Columns = 16
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    done = deidentify_dataset(dataset, Profile(), KEY)
    assert next(generate_frames(done.PixelData, number_of_frames=1)).rstrip(b"\0") == clean


@pytest.mark.parametrize("name", ["JPEG2000.dcm", "MR_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm", "CT_small.dcm"])
def test_pixels_are_those_of_before(name):
    dataset = real(name)
    assert np.array_equal(deidentify_dataset(dataset, Profile(), KEY).pixel_array, dataset.pixel_array)


@pytest.mark.parametrize("signed", [0, 1])
def test_an_overlay_in_unused_bits_goes(signed):
    dataset = real()
    values = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) % 4096
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, signed
    dataset.PixelData = (values | 0x8000).tobytes()
    dataset.add_new(0x60000102, "US", 15)
    done = np.frombuffer(deidentify_dataset(dataset, Profile(), KEY).PixelData, np.uint16).reshape(64, 64)
    assert np.array_equal(done & 0x0FFF, values)
    above = done >> 12
    assert np.array_equal(above, np.where(values & 0x0800, 0xF, 0) if signed else np.zeros_like(values))
