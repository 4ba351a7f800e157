"""Each object that is sent, held against the standard by other people's tools, and the SR against TID 1500's rows."""

import json
import subprocess
from io import BytesIO

import pydicom
import pytest
from highdicom.sr import srread
from outgoing import FINDINGS, MR, bundle, decided, headers, report_of

from hscc_edge.model.decision import Decision
from hscc_edge.serve.results.evaluation import RECALL
from hscc_edge.serve.results.forms import FORMS
from hscc_edge.serve.results.measurement_report import withdraw
from hscc_edge.serve.results.result import read_result
from hscc_edge.serve.results.sr import derived_uid, report_uid

VALIDATOR = [
    "java", "-XX:TieredStopAtLevel=1", "-Djdk.xml.xpathExprOpLimit=0", "-Djdk.xml.xpathTotalOpLimit=0",
    "-Djdk.xml.xpathExprGrpLimit=0",
    "-cp", "/usr/share/java/pixelmed.jar", "com.pixelmed.validate.DicomSRValidator", "-checktemplateid",
    "-checkcontentitemorder",
]  # fmt: skip


@pytest.fixture(scope="module")
def reports() -> dict[str, bytes]:
    """A finding, one of two cases without a result, and one that was recalled."""
    case, images = decided(), headers("1.2.3")
    plain = report_of(bundle(), [(case.decision, images)], report_uid(bundle(), case.digests))
    doubt = Decision(None, (0.5, 0.5), 1, "unlike what the model was calibrated on (free energy over the limit)")
    mixed = report_of(
        bundle(decision={"unit": "image", "energy_limit": 1.0}),
        [(case.decision, images[:1]), (doubt, images[1:])], derived_uid("mixed"), plain,
    )  # fmt: skip
    return {"plain": plain, "mixed": mixed, "recalled": withdraw(mixed, RECALL, derived_uid("recalled"))}


@pytest.fixture(scope="module")
def files(reports, tmp_path_factory):
    """(report, form) -> file, of every DICOM form of every report."""
    root, found = tmp_path_factory.mktemp("forms"), {}
    for name, report in reports.items():
        for form, make in FORMS.items():
            made = make(read_result(report))
            if made.sop is not None or made.content is None:
                path = root / f"{name}-{form}.dcm"
                path.write_bytes(made.content or report)
                found[name, form] = path
    return found


def test_every_dicom_form_passes_dciodvfy(files):
    kinds = {
        "comprehensive-3d-sr": "Comprehensive3DSR", "enhanced-sr": "EnhancedSR", "secondary-capture": "SCImage",
        "key-object": "KeyObjectSelectionDocument",
    }  # fmt: skip
    assert len(files) == 3 * len(kinds)
    for (_, form), path in files.items():
        done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True)
        lines = (done.stdout + done.stderr).splitlines()
        assert kinds[form] in lines and not [line for line in lines if line.startswith("Error")], (path, lines)


def test_pixelmed_finds_the_template_and_no_error_in_it(files):
    """Of a report with a finding and with a case without result, since each run takes the validator seconds."""
    path = files["mixed", "comprehensive-3d-sr"]
    done = subprocess.run([*VALIDATOR, str(path)], capture_output=True, text=True, timeout=300)
    said = (done.stdout + done.stderr).splitlines()
    assert any("Found Root Template TID_1500" in line for line in said), said
    assert said[-1] == "IOD validation complete" and not [line for line in said if line.startswith("Error")], said
    beyond = [line for line in said if line.startswith("Warning")]  # the template may be extended
    assert all("99HSCC" in line and "not in template" in line for line in beyond), beyond


def rows_of(item: pydicom.Dataset, depth: int = 0):
    """(depth, relationship, value type, concept) of every item of a content tree."""
    name = item.ConceptNameCodeSequence[0].CodeMeaning if item.get("ConceptNameCodeSequence") else ""
    yield depth, item.get("RelationshipType", ""), item.ValueType, name
    for child in item.get("ContentSequence", ()):
        yield from rows_of(child, depth + 1)


def test_the_tree_has_the_template_s_rows_in_their_order(reports):
    dataset = pydicom.dcmread(BytesIO(reports["plain"]))
    assert dataset.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert list(rows_of(dataset)) == [
        (0, "", "CONTAINER", "Imaging Measurement Report"),
        (1, "HAS CONCEPT MOD", "CODE", "Language of Content Item and Descendants"),
        (1, "HAS OBS CONTEXT", "CODE", "Observer Type"),
        (1, "HAS OBS CONTEXT", "UIDREF", "Device Observer UID"),
        (1, "HAS OBS CONTEXT", "TEXT", "Device Observer Name"),
        (1, "HAS OBS CONTEXT", "TEXT", "Device Observer Model Name"),
        (1, "HAS CONCEPT MOD", "CODE", "Procedure reported"),
        (1, "CONTAINS", "CONTAINER", "Imaging Measurements"),
        (2, "CONTAINS", "CONTAINER", "Measurement Group"),
        (3, "HAS OBS CONTEXT", "TEXT", "Tracking Identifier"),
        (3, "HAS OBS CONTEXT", "UIDREF", "Tracking Unique Identifier"),
        (3, "CONTAINS", "CODE", "Finding"),
        (3, "HAS CONCEPT MOD", "CODE", "Finding Site"),
        (3, "HAS CONCEPT MOD", "TEXT", "Algorithm Name"),
        (3, "HAS CONCEPT MOD", "TEXT", "Algorithm Version"),
        *[(3, "HAS CONCEPT MOD", "TEXT", "Algorithm Parameters")] * 3,
        (3, "CONTAINS", "NUM", "Probability of Glioma"),
        (3, "CONTAINS", "NUM", "Probability of No abnormality detected"),
        (3, "CONTAINS", "CODE", "Result status"),
        (3, "CONTAINS", "CODE", "Probability of the finding against the limit"),
        (3, "CONTAINS", "CODE", "Likeness to the calibration cohort"),
        *[(3, "CONTAINS", "IMAGE", "Source of Measurement")] * 2,
    ]


def test_highdicom_reads_it_back(files):
    report = srread(files["mixed", "comprehensive-3d-sr"])
    first, second = report.content.get_image_measurement_groups()
    assert first.finding_type.value == FINDINGS["glioma"].value
    assert [(item.name.meaning, item.value) for item in first.get_measurements()] == [
        ("Probability of Glioma", 0.9), ("Probability of No abnormality detected", 0.1),
    ]  # fmt: skip
    assert second.finding_type is None and second.get_measurements() == []
    said = {item.name.value: item.value.value for item in second.get_qualitative_evaluations()}
    assert said == {"status": "no-result", "reason": "unlike"}
    assert [image.referenced_sop_instance_uid for image in first.source_images] == ["1.2.3.1.1"]
    assert first.tracking_uid != second.tracking_uid


def test_each_image_that_is_referred_to_is_evidence_and_no_other(files):
    for (name, form), path in files.items():
        if form == "comprehensive-3d-sr":
            report = srread(path)
            (study,) = report.CurrentRequestedProcedureEvidenceSequence
            evidence = [
                item.ReferencedSOPInstanceUID
                for series in study.ReferencedSeriesSequence
                for item in series.ReferencedSOPSequence
            ]
            groups = report.content.get_image_measurement_groups()
            told = [image.referenced_sop_instance_uid for group in groups for image in group.source_images]
            assert sorted(told) == sorted(evidence) == ["1.2.3.1.1", "1.2.3.1.2"], name
            assert study.StudyInstanceUID == report.StudyInstanceUID and "PertinentOtherEvidenceSequence" not in report


def test_dsrdump_reads_it_back(files):
    done = subprocess.run(
        ["dsrdump", "+Pl", str(files["plain", "comprehensive-3d-sr"])], capture_output=True, text=True, check=True
    )
    for part in ("PRELIMINARY", "UNVERIFIED", "PARTIAL", '"Glioma"', '="0.9"', "ab" * 32, '"Brain"'):
        assert part in done.stdout
    assert done.stdout.count("MR image") == 2
    old = subprocess.run(
        ["dsrdump", str(files["recalled", "enhanced-sr"])], capture_output=True, text=True, check=True
    ).stdout
    assert "Predecessor Docs    : 1" in old and old.count("The classifier was recalled") == 2 and "NUM" not in old


def test_its_tree_as_json_has_what_a_viewer_reads(reports):
    """By DICOM JSON alone, as OHIF does: groups, their images with tracking identifiers, and the evidence's series."""
    tree = json.loads(json.dumps(pydicom.dcmread(BytesIO(reports["mixed"])).to_json_dict()))
    part = next(item for item in items(tree) if named(item) == "126010")
    groups = [item for item in items(part) if named(item) == "125007"]
    assert len(groups) == 2
    for number, group in enumerate(groups):
        inside = {named(item): item for item in items(group)}
        assert inside["112039"]["0040A160"]["Value"] == [f"case {number + 1}"]
        assert inside["112040"]["0040A124"]["Value"][0].startswith("2.25.")
        image = inside["121112"]["00081199"]["Value"][0]
        assert image["00081150"]["Value"] == [MR] and image["00081155"]["Value"] == [f"1.2.3.1.{number + 1}"]
    evidence = tree["0040A375"]["Value"][0]
    series = evidence["00081115"]["Value"][0]
    assert evidence["0020000D"]["Value"] == ["1.2.3"] and series["0020000E"]["Value"] == ["1.2.3.1"]
    assert len(series["00081199"]["Value"]) == 2


def items(node: dict) -> list[dict]:
    return node.get("0040A730", {}).get("Value", [])


def named(node: dict) -> str:
    return node["0040A043"]["Value"][0]["00080100"]["Value"][0]
