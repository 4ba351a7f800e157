"""Each form of a report says what the report says, and all their bytes are there before the first is sent."""

import json
import warnings
from io import BytesIO

import numpy as np
import pydicom
import pytest
from fhir.resources.R4B.bundle import Bundle
from hl7apy.parser import parse_message
from outgoing import QUICK, Desk, bundle, decided, report_of
from pydicom.uid import ExplicitVRLittleEndian

from hscc_edge.serve import outbox
from hscc_edge.serve.config import KIND_FORMS, Destination
from hscc_edge.serve.results.evaluation import RECALL
from hscc_edge.serve.results.forms import FORMS, deliveries, wanted
from hscc_edge.serve.results.measurement_report import withdraw
from hscc_edge.serve.results.result import read_result
from hscc_edge.serve.results.sinks import SINKS
from hscc_edge.serve.results.sr import derived_uid, report_uid


def report(predecessor=None, **changes) -> bytes:
    case = decided()
    images = case.images
    for image in images:
        for keyword, value in changes.items():
            setattr(image, keyword, value)
    return report_of(bundle(), [(case.decision, images)], report_uid(bundle(), case.digests), predecessor)


def recalled() -> bytes:
    return withdraw(report(), RECALL, derived_uid("recalled"))


def test_every_kind_s_forms_exist_and_every_form_goes_somewhere():
    assert KIND_FORMS.keys() == SINKS.keys()
    assert {form for forms in KIND_FORMS.values() for form in forms} == FORMS.keys()
    assert wanted(Destination(kind="hl7")) == ("hl7-oru",)
    assert wanted(Destination(forms=("key-object",))) == ("key-object",)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("content", [report, recalled])
def test_a_form_of_the_same_report_is_the_same_object_for_the_same_patient(form, content):
    original = content()
    made, again = FORMS[form](read_result(original)), FORMS[form](read_result(original))
    assert made.sop == again.sop
    if made.sop is None:
        return
    assert made.sop != str(read_result(original).sop)
    dataset = pydicom.dcmread(BytesIO(made.content))
    assert dataset.SOPInstanceUID == made.sop == dataset.file_meta.MediaStorageSOPInstanceUID
    assert (dataset.PatientID, str(dataset.PatientName), dataset.AccessionNumber) == ("P-77", "Doe^Jane", "A-1")
    assert dataset.StudyInstanceUID == "1.2.3" and dataset.SeriesInstanceUID != "1.2.3.1"


def test_bytes_are_journalled_for_every_destination_and_form(tmp_path):
    everything = [Destination(name=kind, kind=kind, forms=forms, url="http://x") for kind, forms in KIND_FORMS.items()]
    desk = Desk(tmp_path, *everything)
    made = desk.report()
    rows = desk.journal.read("SELECT destination, form, content IS NULL FROM deliveries ORDER BY id")
    assert [(kind, form) for kind, form, _ in rows] == [(k, form) for k, forms in KIND_FORMS.items() for form in forms]
    assert {form for _, form, empty in rows if empty} == {"comprehensive-3d-sr"}
    (web,) = [item for item in outbox.due(desk.journal, "stow") if item.form == "comprehensive-3d-sr"]
    assert web.content == made.content and web.sop == made.sop
    assert len({item.sop for item in outbox.due(desk.journal, "stow")}) == 4


def test_deliveries_without_other_forms_do_not_read_the_report(tmp_path):
    desk = Desk(tmp_path, QUICK)
    (item,) = deliveries(desk.station.config, b"not read")
    assert item.content is None


def test_a_form_is_made_once_for_all_its_destinations(tmp_path, monkeypatch):
    places = [Destination(name=name, forms=("comprehensive-3d-sr", "enhanced-sr")) for name in ("one", "two")]
    make, reports = FORMS["enhanced-sr"], []
    monkeypatch.setitem(FORMS, "enhanced-sr", lambda result: reports.append(result) or make(result))
    _, one, _, two = deliveries(Desk(tmp_path, *places).station.config, report())
    assert len(reports) == 1 and one.content == two.content and one.content is not None


def test_the_picture_shows_the_words_and_names_nobody():
    made = FORMS["secondary-capture"](read_result(report()))
    dataset = pydicom.dcmread(BytesIO(made.content))
    assert dataset.BurnedInAnnotation == "NO"
    pixels = dataset.pixel_array
    assert pixels.shape[1] == 768 and 1000 < np.count_nonzero(pixels > 100) < pixels.size / 4
    other = pydicom.dcmread(BytesIO(FORMS["secondary-capture"](read_result(report(PatientName="Roe^Max"))).content))
    assert np.array_equal(other.pixel_array, pixels)
    gone = pydicom.dcmread(BytesIO(FORMS["secondary-capture"](read_result(recalled())).content))
    assert gone.pixel_array.shape[0] < pixels.shape[0]


def test_the_key_object_points_at_the_images_with_the_words():
    document = pydicom.dcmread(BytesIO(FORMS["key-object"](read_result(report())).content))
    kinds = [item.ValueType for item in document.ContentSequence]
    assert kinds.count("IMAGE") + kinds.count("COMPOSITE") == 2
    text = next(
        item.TextValue for item in document.ContentSequence if item.ValueType == "TEXT" and "\n" in item.TextValue
    )
    assert "PRELIMINARY, NOT VERIFIED" in text and "Glioma, Brain" in text


def as_received(**values) -> bytes:
    """A report on images that went through a file, in the character set of their scanner."""
    case, images = decided(), []
    for image in case.images:
        image.file_meta = pydicom.dataset.FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for keyword, value in values.items():
                setattr(image, keyword, value)
        content = BytesIO()
        pydicom.dcmwrite(content, image, enforce_file_format=True)
        images.append(pydicom.dcmread(BytesIO(content.getvalue())))
    return report_of(bundle(), [(case.decision, images)], report_uid(bundle(), ["a"]))


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 100", "Müller^Jürgen"), ("ISO_IR 192", "山田^太郎"),
        ("ISO_IR 144", "\u041b\u044e\u043a^\u0418\u0432\u0430\u043d"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
    ],
)  # fmt: skip
def test_a_name_stays_itself_in_every_form_whatever_its_character_set(charset, name):
    original = as_received(SpecificCharacterSet=charset, PatientName=name)
    for make in FORMS.values():
        made = make(read_result(original))
        if made.sop is None and made.content is not None:
            assert name.split("=")[0] in made.content.decode() or "P-77" in made.content.decode()
            continue
        dataset = pydicom.dcmread(BytesIO(made.content or original))
        assert dataset.SpecificCharacterSet == "ISO_IR 192" and str(dataset.PatientName) == name


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_headers_that_are_wrong_stay_as_wrong_as_they_are_and_no_form_fails():
    wrong = {
        "PatientSex": "Male?", "PatientBirthDate": "19700230", "StudyDate": "garbage", "StudyTime": "noon",
        "AccessionNumber": "too long to be an accession number", "Modality": "", "StudyID": "x" * 40,
        "IssuerOfPatientID": "Hospital",
    }  # fmt: skip
    original = as_received(**wrong)
    for make in FORMS.values():
        made = make(read_result(original))
        if made.sop is not None:
            dataset = pydicom.dcmread(BytesIO(made.content))
            assert all(dataset[keyword].value == wrong[keyword] for keyword in wrong if keyword != "Modality")


def test_the_hl7_message_parses_and_is_preliminary():
    message = parse_message(FORMS["hl7-oru"](read_result(report())).content.decode(), find_groups=False)
    assert message.msh.msh_9.value == "ORU^R01^ORU_R01" and len(message.msh.msh_10.value) <= 20
    assert message.pid.pid_3.value == "P-77" and message.pid.pid_5.value == "Doe^Jane"
    assert message.obr.obr_25.value == "P" and message.obr.obr_3.value == "A-1"
    rows = [(row.obx_2.value, row.obx_3.value, row.obx_5.value, row.obx_11.value) for row in message.obx]
    assert rows[0] == ("CWE", "121071^Finding^DCM", "393564001^Glioma^SCT", "P")
    assert rows[1] == ("NM", "P-393564001^Probability of Glioma^99HSCC", "0.900000", "P")
    assert {status for *_, status in rows} == {"P"}


def test_the_hl7_message_of_a_recall_says_that_there_is_no_result():
    message = parse_message(FORMS["hl7-oru"](read_result(recalled())).content.decode(), find_groups=False)
    first = message.obx[0]
    assert (first.obx_5.value, first.obx_11.value) == ("No result: The classifier was recalled", "X")


def test_a_delimiter_in_a_name_cannot_break_the_hl7_message():
    content = FORMS["hl7-oru"](read_result(report(PatientID="P|7^7~\\&x", PatientName="D|oe^J&ane"))).content.decode()
    assert len(content.split("\r")[1].split("|")) == 9
    assert "P\\F\\7\\S\\7\\R\\\\E\\\\T\\x" in content and "D\\F\\oe^J\\T\\ane" in content


def test_the_fhir_resources_are_valid_and_say_the_same():
    content = FORMS["fhir-report"](read_result(report())).content
    Bundle.model_validate_json(content)
    first, second = (entry["resource"] for entry in json.loads(content)["entry"])
    assert (first["resourceType"], first["status"]) == ("DiagnosticReport", "preliminary")
    assert first["conclusionCode"][0]["coding"][0]["code"] == "393564001" and "NOT VERIFIED" in first["conclusion"]
    assert first["imagingStudy"][0]["identifier"]["value"] == "urn:oid:1.2.3"
    assert second["valueCodeableConcept"]["coding"][0]["system"] == "http://snomed.info/sct"
    assert [part["valueQuantity"]["value"] for part in second["component"]] == [0.9, 0.1]
    assert first["result"][0]["reference"] == json.loads(content)["entry"][1]["fullUrl"]


def test_the_fhir_resources_of_a_recall_are_cancelled_and_name_what_they_replace():
    first, second = (
        entry["resource"] for entry in json.loads(FORMS["fhir-report"](read_result(recalled())).content)["entry"]
    )
    assert first["status"] == second["status"] == "cancelled" and "valueCodeableConcept" not in second
    (replaces,) = first["extension"]
    assert replaces["valueReference"]["identifier"]["value"] == f"urn:oid:{read_result(report()).sop}"
