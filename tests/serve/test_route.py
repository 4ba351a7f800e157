"""Routing rules on headers: the first that matches counts, and no value of a header reaches a reason."""

import pydicom
import pytest

from hscc_edge.errors import ConfigError
from hscc_edge.serve.config import Route
from hscc_edge.serve.config_file import read_config
from hscc_edge.serve.route import UNMATCHED, fault_of, matches, priority, scope


def headers(**attributes: object) -> pydicom.Dataset:
    dataset = pydicom.Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


MR = headers(Modality="MR", BodyPartExamined="HEAD", ImageType=["ORIGINAL", "PRIMARY", "M"], MagneticFieldStrength=1.5)


def test_without_routes_everything_is_looked_at_by_all():
    found = scope((), MR)
    assert (found.models, found.aside, found.priority) == (None, "", 0)


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ({"Modality": ("MR",)}, True),
        ({"Modality": ("CT", "M?")}, True),
        ({"Modality": ("mr",)}, False),
        ({"ImageType": ("PRIMARY",)}, True),
        ({"ImageType": ("DERIVED",)}, False),
        ({"Modality": ("MR",), "BodyPartExamined": ("KNEE",)}, False),
        ({"MagneticFieldStrength": ("1.5*",)}, True),
        ({"StudyDescription": ("",)}, True),
        ({"StudyDescription": ("?*",)}, False),
        ({}, True),
    ],
)
def test_every_keyword_must_match_by_one_of_its_values(when, expected):
    assert matches(when, MR) is expected


def test_the_first_route_that_matches_counts():
    routes = (
        Route({"BodyPartExamined": ("HEAD*",)}, ("brain",), priority="stat"),
        Route({"Modality": ("MR",)}, aside="only heads"),
    )
    assert scope(routes, MR).models == {"brain"} and priority(routes, MR) == 2
    knee = scope(routes, headers(Modality="MR", BodyPartExamined="KNEE"))
    assert knee.aside == "out of scope: only heads" and knee.models is None
    assert scope(routes, headers(Modality="CT")).aside == UNMATCHED


def test_a_reason_holds_no_value_of_a_header():
    secret = "SECRET^NAME"
    found = scope((Route({"PatientName": ("X*",)}),), headers(PatientName=secret, Modality="MR"))
    assert found.aside == UNMATCHED and secret not in repr(found)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_malformed_value_matches_nothing():
    broken = pydicom.Dataset()
    broken[0x00180087] = pydicom.DataElement(0x00180087, "DS", None)
    broken._dict[pydicom.tag.Tag(0x00180087)] = pydicom.dataelem.RawDataElement(
        pydicom.tag.Tag(0x00180087), "DS", 3, b"abc", 0, False, True, True
    )
    assert not matches({"MagneticFieldStrength": ("1.5",)}, broken)


def test_a_keyword_that_is_none_or_holds_no_text_is_told():
    assert fault_of("Modality") is None
    assert "expected a keyword of PS3.6" in str(fault_of("Modalitty"))
    assert "no text or number" in str(fault_of("PixelData"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('when = { Modalitty = ["MR"] }', "line 6: the route names 'Modalitty'"),
        ('models = ["brain"]', "line 6: the route names the model 'brain': expected one of head"),
        ('priority = "now"', "line 6: priority is 'now'"),
    ],
)
def test_a_wrong_route_is_told_with_its_line(tmp_path, line, words):
    path = tmp_path / "serve.toml"
    path.write_text(f'state = "state"\n[[model]]\nbundle = "bundle"\nname = "head"\n[[route]]\n{line}\n')
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert words in str(caught.value)
