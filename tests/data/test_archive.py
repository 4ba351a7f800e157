"""A folder as it came out of a PACS: labels from tables, reports, folders; what is left out is listed; nobody moves."""

import csv
import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path

import openpyxl
import pydicom
import pytest
from typer.main import get_command

from hscc_edge.cli import app
from hscc_edge.data.archive import import_archive
from hscc_edge.data.cohort import read_cohort
from hscc_edge.data.cohort_spec import Spec, parse_spec, read_spec
from hscc_edge.data.labels import LabelRule
from hscc_edge.data.scan import scan
from hscc_edge.data.series import SeriesRules
from hscc_edge.errors import CohortError, ConfigError


@pytest.fixture
def pacs(phantom, tmp_path):
    """The phantom's first 24 patients in folders of no meaning, with junk and a copy."""
    root = tmp_path / "pacs"
    patients = sorted({item.patient for item in phantom.instances})[:24]
    for number, item in enumerate(item for item in phantom.instances if item.patient in patients):
        folder = root / f"DISK{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(phantom.path(item), folder / f"IM{number:04d}")
    (root / "README.TXT").write_text("viewer")
    shutil.copy(root / "DISK0" / "IM0000", root / "COPY")
    return root


def labels_of(phantom, key="study"):
    return {getattr(item, key): item.label for item in phantom.instances}


def write_csv(path, labels, delimiter=","):
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=delimiter).writerows([("uid", "class"), *labels.items()])
    return path


def imported(root, out, spec, **options):
    index = out.with_name(out.name + ".index")
    scan(root, index, jobs=1)
    return import_archive(root, index, out, spec, **options)


def table_spec(path, **more):
    return Spec(labels=LabelRule(source=str(path), key="uid", column="class", **more))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_labels_from_a_table(pacs, phantom, tmp_path, delimiter):
    labels = labels_of(phantom)
    left, *_ = known = sorted({item.study for item in phantom.instances if item.patient.endswith(("00", "01"))})
    del labels[left]
    table = write_csv(tmp_path / "labels.csv", {**labels, "1.2.3": "ring"}, delimiter)
    found = imported(pacs, tmp_path / "cohort", table_spec(table))
    cohort = read_cohort(tmp_path / "cohort")
    assert cohort.digest == found.cohort.digest and len(known) == 2
    assert len(cohort.instances) == 23 * 3 and {item.label for item in cohort.instances} == set(phantom.classes)
    assert all(item.label == labels[item.study] for item in cohort.instances)
    assert found.left_out == {"no label": 3, "no image: text": 1, "copy of another file": 1}
    assert found.unmatched_labels == 1 + len(labels) - 23
    listed = list(csv.reader((tmp_path / "cohort" / "left-out.csv").read_text().splitlines()))
    assert len(listed) == 6 and ["README.TXT", "no image: text"] in listed
    sides = {(item.patient, item.split) for item in cohort.instances}
    assert len(sides) == 23 and {split for _, split in sides} == {"train", "val", "test"}
    assert all("PHANTOM" not in item.patient for item in cohort.instances)
    assert (tmp_path / "cohort" / "cohort.key").stat().st_mode & 0o77 == 0
    image = cohort.read(cohort.instances[0])
    assert image.headers.sop_instance_uid == cohort.instances[0].sop


def test_excel_patients_and_accession_numbers(pacs, phantom, tmp_path):
    (pacs / "COPY").unlink()
    for path in sorted(pacs.rglob("IM*")):
        dataset = pydicom.dcmread(path)
        dataset.AccessionNumber = str(70000 + int(dataset.PatientID.rsplit("-", 1)[1]))
        dataset.save_as(path)
    book = openpyxl.Workbook()
    book.active.append(["uid", "class"])
    for patient, label in labels_of(phantom, "patient").items():
        book.active.append([70000.0 + int(patient.rsplit("-", 1)[1]), label])
    book.save(tmp_path / "labels.xlsx")
    found = imported(pacs, tmp_path / "cohort", table_spec(tmp_path / "labels.xlsx", match="accession"))
    assert len(found.cohort.instances) == 72
    again = write_csv(tmp_path / "labels.csv", labels_of(phantom, "patient"))
    same = imported(pacs, tmp_path / "other", table_spec(again, match="patient")).cohort
    assert [item.label for item in same.instances] == [item.label for item in found.cohort.instances]
    assert {item.patient for item in same.instances}.isdisjoint(item.patient for item in found.cohort.instances)


def test_contradicting_labels_are_left_out(pacs, phantom, tmp_path):
    sops = labels_of(phantom, "sop")
    wrong = next(item for item in phantom.instances if item.patient.endswith("-0003"))
    sops[wrong.sop] = "none" if wrong.label != "none" else "ring"
    found = imported(pacs, tmp_path / "c", table_spec(write_csv(tmp_path / "l.csv", sops), match="sop"))
    assert found.left_out["contradicting labels"] == 3
    assert wrong.study not in {item.study for item in found.cohort.instances}
    twice = [*labels_of(phantom).items(), (wrong.study, "none"), (wrong.study, "ring")]
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("uid", "class"), *twice])
    assert imported(pacs, tmp_path / "d", table_spec(tmp_path / "t.csv")).left_out["contradicting labels"] == 3


def test_classes_may_be_merged_and_left_out(pacs, phantom, tmp_path):
    table = write_csv(tmp_path / "labels.csv", labels_of(phantom))
    classes = {"none": "healthy", "ring": "lesion", "blob": "lesion"}
    found = imported(pacs, tmp_path / "c", table_spec(table, classes=classes))
    assert set(found.cohort.classes) == {"healthy", "lesion"}
    assert found.left_out["no label"] == 18


def test_splits_and_pseudonyms_stay_when_data_is_added(pacs, phantom, tmp_path):
    table = write_csv(tmp_path / "labels.csv", labels_of(phantom))
    aside = [path for path in sorted(pacs.rglob("IM*")) if pydicom.dcmread(path).PatientID.endswith(("5", "6"))]
    for path in aside:
        path.rename(tmp_path / path.name)
    before = imported(pacs, tmp_path / "c", table_spec(table)).cohort
    for path in aside:
        (tmp_path / path.name).rename(path)
    summary = scan(pacs, tmp_path / "c.index", jobs=1)
    after = import_archive(pacs, tmp_path / "c.index", tmp_path / "c", table_spec(table), replace=True).cohort
    assert summary.read == len(aside) > 0
    splits = {item.sop: (item.patient, item.split) for item in after.instances}
    assert all(splits[item.sop] == (item.patient, item.split) for item in before.instances)
    assert len(after.instances) == len(before.instances) + len(aside)


def test_labels_and_splits_from_folders(phantom, tmp_path):
    root = tmp_path / "sorted"
    for number, item in enumerate(phantom.instances):
        folder = root / {"train": "training", "val": "val", "test": "Testing"}[item.split] / item.label / "x"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(phantom.path(item), folder / f"{number}.dcm")
    found = imported(root, tmp_path / "cohort", Spec()).cohort
    assert {(item.sop, item.label, item.split) for item in found.instances} == {
        (item.sop, item.label, item.split) for item in phantom.instances
    }


def report(path, images, meaning):
    """A TID 1500 report whose finding is about `images`."""
    import highdicom as hd
    from highdicom.sr import CodedConcept as Code

    person = hd.sr.ObserverContext(
        observer_type=Code("121006", "DCM", "Person"),
        observer_identifying_attributes=hd.sr.PersonObserverIdentifyingAttributes(name="R^"),
    )
    finding = hd.sr.QualitativeEvaluation(
        name=Code("121071", "DCM", "Finding"), value=Code(meaning.upper(), "99TEST", meaning)
    )
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(hd.UID(), "1"), qualitative_evaluations=[finding]
    )
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_person_context=person),
        procedure_reported=Code("113091000", "SCT", "MRI"),
        imaging_measurements=[group],
        title=Code("126000", "DCM", "Imaging Measurement Report"),
    )
    hd.sr.Comprehensive3DSR(
        evidence=images, content=content, series_instance_uid=hd.UID(), series_number=9, manufacturer="x",
        sop_instance_uid=hd.UID(), instance_number=1,
    ).save_as(path)  # fmt: skip


@pytest.mark.parametrize("match", ["study", "series", "sop"])
def test_labels_from_structured_reports(pacs, phantom, tmp_path, match):
    studies = {}
    for path in sorted(pacs.rglob("IM*")):
        dataset = pydicom.dcmread(path)
        studies.setdefault(dataset.StudyInstanceUID, []).append(dataset)
    labels = labels_of(phantom)
    for number, (study, images) in enumerate(studies.items()):
        report(pacs / f"SR{number:03d}", images, labels[study])
    found = imported(pacs, tmp_path / "c", Spec(labels=LabelRule(source="reports", match=match)))
    assert all(item.label == labels[item.study] for item in found.cohort.instances)
    assert len(found.cohort.instances) == 72 and found.left_out["no image: object"] == 24


def test_rules_choose_series(pacs, phantom, tmp_path):
    table = write_csv(tmp_path / "labels.csv", labels_of(phantom))
    (pacs / "COPY").unlink()
    files = sorted(pacs.rglob("IM*"))
    for path in files:
        dataset = pydicom.dcmread(path)
        dataset.SeriesDescription = "T2" if int(dataset.PatientID[-1]) % 2 else "T1 POST"
        dataset.save_as(path)
    localiser = pydicom.dcmread(files[0])
    localiser.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    localiser.save_as(files[0])
    spec = dataclasses.replace(table_spec(table), include=SeriesRules(modality="MR", description="t1.*post"))
    found = imported(pacs, tmp_path / "c", spec)
    assert found.left_out["rule description"] == 36 and found.left_out["localiser"] == 1
    assert len(found.cohort.instances) == 35
    none = dataclasses.replace(spec, include=SeriesRules(modality="CT"))
    with pytest.raises(CohortError, match="classifier needs two classes"):
        imported(pacs, tmp_path / "d", none)


def test_several_series_and_missing_patients(pacs, phantom, tmp_path):
    table = write_csv(tmp_path / "labels.csv", labels_of(phantom))
    (pacs / "COPY").unlink()
    extra, nameless = sorted(pacs.rglob("IM*"))[:2]
    dataset = pydicom.dcmread(extra)
    dataset.SeriesInstanceUID = "1.2.3"
    dataset.save_as(extra)
    dataset = pydicom.dcmread(nameless)
    dataset.PatientID = ""
    dataset.save_as(nameless)
    spec = dataclasses.replace(table_spec(table), one_series=True)
    left = imported(pacs, tmp_path / "c", spec).left_out
    assert left["several series of the study fit the rules"] == 3 and left["no PatientID"] == 1
    lost = dataclasses.replace(table_spec(table), patient="study")
    assert "no PatientID" not in imported(pacs, tmp_path / "d", lost).left_out


def test_a_multi_frame_file_is_an_image_a_frame(pacs, phantom, tmp_path):
    from pydicom.data import get_testdata_file

    shutil.copy(get_testdata_file("rtdose.dcm", download=False), pacs / "dose")
    study = str(pydicom.dcmread(pacs / "dose").StudyInstanceUID)
    table = write_csv(tmp_path / "labels.csv", {**labels_of(phantom), study: "ring"})
    spec = table_spec(table)
    frames = [item for item in imported(pacs, tmp_path / "c", spec).cohort.instances if item.study == study]
    assert [item.frame for item in frames] == [str(number) for number in range(15)]
    assert len({item.file for item in frames}) == 1
    together = dataclasses.replace(spec, frames="together")
    whole = [item for item in imported(pacs, tmp_path / "d", together).cohort.instances if item.study == study]
    assert [item.frame for item in whole] == [""]


def test_the_spec_says_it_all(tmp_path, phantom):
    write_csv(tmp_path / "labels.csv", labels_of(phantom))
    path = tmp_path / "spec.toml"
    path.write_text(
        'unit = "series"\nclasses = ["none", "ring"]\n[labels]\nsource = "labels.csv"\nmatch = "sop"\n'
        '[labels.classes]\nnone = "none"\n[include]\nmodality = "MR"\n[split]\ntest = 0.5\nstratify = ["label"]\n'
        '[codes.ring]\nvalue = "1"\nscheme = "SCT"\nmeaning = "Ring"\n'
    )
    spec = read_spec(path)
    assert Path(spec.labels.source) == tmp_path / "labels.csv" and spec.split.fractions == {"test": 0.5}
    assert spec.include.modality == "MR" and spec.classes == ("none", "ring") and spec.unit == "series"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"colour": 1}, "unknown key 'colour'"),
        ({"unit": "voxel"}, "expected one of image, series, study"),
        ({"one_series": "yes"}, "expected a bool"),
        ({"labels": {"file": "x"}}, r"\[labels\] has the unknown key"),
        ({"labels": {"match": "name"}}, "expected one of sop"),
        ({"split": {"train": 1}}, r"\[split\] has the unknown key"),
        ({"codes": {"a": {"value": "1"}}}, "expected value, scheme and meaning"),
    ],
)
def test_a_wrong_spec_is_told(raw, message):
    with pytest.raises((ConfigError, CohortError), match=message):
        parse_spec(raw)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.csv", None, "do not exist"),
        ("a.csv", "id,class\n1,x\n", "0 columns named 'uid'"),
        ("b.csv", "uid,class\n1\n", "line 2 of"),
        ("c.csv", "uid,class\n", "gives no label"),
        ("d.xlsx", "uid,class\n", "no Excel table"),
    ],
)
def test_a_wrong_table_is_told(pacs, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(CohortError, match=message):
        imported(pacs, tmp_path / "c", table_spec(tmp_path / name))
    assert not (tmp_path / "c").exists()


def test_the_verb(pacs, phantom, tmp_path, capsys):
    write_csv(tmp_path / "labels.csv", labels_of(phantom))
    words = ["cohort", "import", str(pacs), str(tmp_path / "c"), "--labels", str(tmp_path / "labels.csv"),
             "--key", "uid", "--column", "class", "--jobs", "1", "--json"]  # fmt: skip
    get_command(app).main(words, standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    assert told["images"] == 72 and told["patients"] == 24 and told["scanned"] == told["read"] == 74
    assert Counter(item.split for item in read_cohort(tmp_path / "c").instances) == told["splits"]
