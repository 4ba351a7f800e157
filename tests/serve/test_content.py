"""What a file says of itself: the quick way to read headers says what pydicom says, or leaves it to pydicom."""

from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from hscc_edge.serve.doors import content
from hscc_edge.serve.doors.content import IDENTIFIERS, digest_of, digest_of_file, read_headers
from hscc_edge.serve.doors.contexts import SYNTAXES

NAMES = (
    "MR_small.dcm",
    "MR_small_implicit.dcm",
    "MR_small_bigendian.dcm",
    "CT_small.dcm",
    "JPEG2000.dcm",
    "rtplan.dcm",
)
KEYWORDS = (*IDENTIFIERS, "Modality", "StudyDescription", "PatientSex", "ImageType", "NumberOfStudyRelatedInstances")


@pytest.mark.parametrize("name", NAMES)
def test_headers_are_those_that_pydicom_reads(name, monkeypatch):
    path = Path(str(get_testdata_file(name)))
    quick = read_headers(path, KEYWORDS, frozenset(SYNTAXES))
    monkeypatch.setattr(content, "_quick_values", lambda *arguments: None)
    slow = read_headers(path, KEYWORDS, frozenset(SYNTAXES))
    dataset = pydicom.dcmread(path)
    assert quick is not None and slow is not None
    assert [quick.values.get(keyword) for keyword in KEYWORDS] == [slow.values.get(keyword) for keyword in KEYWORDS]
    assert [quick.text(keyword) for keyword in IDENTIFIERS] == [str(dataset[keyword].value) for keyword in IDENTIFIERS]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_values_that_are_not_plain_are_read_as_well(tmp_path, phantom, syntax):
    dataset = pydicom.dcmread(phantom.path(phantom.instances[0]))
    item = pydicom.Dataset()
    item.CodeMeaning = "sequence of undefined length before what is wanted"
    dataset.ProcedureCodeSequence = [item]
    dataset["ProcedureCodeSequence"].is_undefined_length = True
    dataset.SpecificCharacterSet, dataset.StudyDescription = "ISO_IR 192", "Schädel"
    path = tmp_path / "x"
    dataset.file_meta.TransferSyntaxUID = syntax
    pydicom.dcmwrite(
        path, dataset, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian, force_encoding=True
    )
    found = read_headers(path, KEYWORDS, frozenset(SYNTAXES))
    assert found is not None and found.text("StudyDescription") == "Schädel"
    assert found.text("SeriesInstanceUID") == dataset.SeriesInstanceUID
    assert read_headers(path, KEYWORDS, frozenset(SYNTAXES) - {syntax}) is None


def test_a_wrong_group_length_neither_hides_nor_adds_content(phantom, tmp_path):
    plain = phantom.path(phantom.instances[0]).read_bytes()
    wrong = plain[:140] + (10_000).to_bytes(4, "little") + plain[144:]
    path = tmp_path / "x"
    path.write_bytes(wrong)
    assert digest_of(plain) == digest_of(wrong) == digest_of_file(path)


@pytest.mark.parametrize("cut", [0, 100, 132, 150, 200, 400])
def test_a_file_that_ends_early_is_not_parsed(phantom, tmp_path, cut):
    path = tmp_path / "x"
    path.write_bytes(phantom.path(phantom.instances[0]).read_bytes()[:cut])
    found = read_headers(path, KEYWORDS, frozenset(SYNTAXES))
    assert found is None or not all(found.text(keyword) for keyword in IDENTIFIERS)
