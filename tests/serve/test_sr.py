"""What a report says and when there is one: deterministic UIDs, no result with its reason, one chain a study."""

from dataclasses import replace
from io import BytesIO

import pydicom
import pytest
from outgoing import FINDINGS, Desk, bundle, decided, headers, report_next, report_of

from hscc_edge.bundle import Code
from hscc_edge.errors import BundleError
from hscc_edge.serve.config import Report
from hscc_edge.serve.results import sr
from hscc_edge.serve.results.evaluation import evaluations, probability_of, why
from hscc_edge.serve.results.result import read_result
from hscc_edge.serve.results.sr import check_codes, report_uid

UNLIKE = "unlike what the model was calibrated on (free energy over the limit)"
IMPROBABLE = "the most probable finding has less than the probability 0.5"


def made(decision=None, **changes):
    case = decided()
    cases = [(decision or case.decision, case.images)]
    return report_of(bundle(**changes), cases, report_uid(bundle(**changes), case.digests))


def test_it_is_preliminary_partial_and_unverified_and_belongs_to_its_study():
    dataset = pydicom.dcmread(BytesIO(made()))
    assert (dataset.PreliminaryFlag, dataset.CompletionFlag, dataset.VerificationFlag) == (
        "PRELIMINARY", "PARTIAL", "UNVERIFIED",
    )  # fmt: skip
    assert dataset.StudyInstanceUID == "1.2.3" and dataset.PatientID == "P-77" and dataset.AccessionNumber == "A-1"
    assert dataset.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99HSCC"


def test_uids_follow_from_inputs_model_preprocessing_template_and_predecessor(monkeypatch):
    plain = report_uid(bundle(), ["a", "b"])
    assert plain == report_uid(bundle(), ["b", "a"])
    others = {
        report_uid(bundle(), ["a"]), report_uid(replace(bundle(), digest="cd" * 32), ["a", "b"]),
        report_uid(bundle(), ["a", "b"], "1.2"),
    }  # fmt: skip
    monkeypatch.setattr(sr, "TEMPLATE_VERSION", "next")
    others.add(report_uid(bundle(), ["a", "b"]))
    monkeypatch.undo()
    monkeypatch.setattr(sr, "REVISION", 10**6)
    others.add(report_uid(bundle(), ["a", "b"]))
    assert len(others) == 5 and plain not in others
    assert all(len(uid) <= 64 and uid.is_valid for uid in others)


def test_the_result_reads_back_from_the_report():
    result = read_result(made())
    assert (result.model, result.version, result.procedure.value) == ("brain", "ab" * 32, "25056-3")
    (case,) = result.cases
    assert case.finding == FINDINGS["glioma"] and max(p for _, p in case.probabilities) == 0.9 and case.reason is None
    assert [sop for _, sop in case.images] == ["1.2.3.1.1", "1.2.3.1.2"]
    assert result.predecessor is None
    assert result.lines() == [
        "Classifier result: PRELIMINARY, NOT VERIFIED", "Glioma, Brain", "  Probability of Glioma: 0.900",
        "  Probability of No abnormality detected: 0.100", "Model brain, abababababab",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "value"),
    [(UNLIKE, "unlike"), (IMPROBABLE, "improbable"), ("the model was recalled", "recalled"), ("2 images", None)],
)
def test_a_reason_has_one_code_and_one_meaning(reason, value):
    code = why(reason)
    assert value is None or code.value == value
    assert code == why(reason) and code != why("something else")
    assert len(code.value) <= 16 and 0 < len(code.meaning) <= 64


def test_how_sure_a_decision_is_follows_its_limits():
    limits = {"least_probability": 0.5, "energy_limit": 2.0}
    said = {name.value: value.value for name, value in evaluations(limits, None)}
    assert said == {"status": "decided", "certainty": "enough", "likeness": "like"}
    said = {name.value: value.value for name, value in evaluations({}, None)}
    assert said == {"status": "decided", "certainty": "no-limit", "likeness": "no-limit"}
    said = {name.value: value.value for name, value in evaluations({}, why(UNLIKE))}
    assert said == {"status": "no-result", "reason": "unlike"}


def test_probabilities_have_codes_of_their_findings():
    codes = {probability_of(Code(value, "SCT", "A" * 80)) for value in ("1", "1234567890123456", "1234567890123457")}
    assert len({code.value for code in codes}) == 3 and all(len(code.value) <= 16 for code in codes)
    assert {len(code.meaning) for code in codes} == {64}


def test_without_a_result_there_is_a_report_only_by_choice(tmp_path):
    doubtful = decided(label=None, reason=UNLIKE)
    desk = Desk(tmp_path / "quiet")
    assert desk.report(case=doubtful) is None
    told = Desk(tmp_path / "told", report=Report(no_result=True)).report(case=doubtful)
    (case,) = read_result(told.content).cases
    assert case.finding is None and case.reason.value == "unlike" and case.probabilities == ()
    assert told.result["cases"] == [{"label": None, "probabilities": (0.9, 0.1), "reason": UNLIKE}]


def test_what_was_reported_and_is_in_doubt_now_is_taken_back_always(tmp_path):
    desk = Desk(tmp_path)
    first = desk.report()
    second = desk.report(case=decided(label=None, count=3, reason=IMPROBABLE))
    result = read_result(second.content)
    assert result.predecessor == first.sop and result.cases[0].reason.value == "improbable"
    assert result.dataset.InstanceNumber == 2


def test_a_study_without_any_case_left_is_taken_back_with_the_reason(tmp_path):
    desk = Desk(tmp_path)
    first = desk.report()
    made = report_next(desk.station.config, desk.journal, "1.2.3", [], "cannot be decoded")
    result = read_result(made.content)
    assert result.predecessor == first.sop and [case.reason.meaning for case in result.cases] == ["cannot be decoded"]
    assert report_next(desk.station.config, desk.journal, "1.2.4", [], "x") is None


def test_what_is_said_already_is_not_said_again(tmp_path):
    desk = Desk(tmp_path)
    assert desk.report() is not None and desk.report() is None
    assert desk.report(case=decided(count=3)) is not None and desk.report(case=decided(count=3)) is None
    back = desk.report()  # as few images as at first, after a damaged file
    assert back is not None and back.predecessor is not None
    sops = [row[0] for row in desk.journal.read("SELECT sop FROM reports")]
    assert len(set(sops)) == 3
    assert desk.journal.read("SELECT COUNT(*) FROM reports WHERE current = 1") == [(1,)]


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"findings": {"glioma": FINDINGS["glioma"]}}, "the finding of 'none'"),
        ({"site": Code("", "SCT", "Brain")}, "the site"),
        ({"procedure": Code("1", "LN", " ")}, "the procedure"),
        ({"site": Code("1" * 17, "SCT", "Brain")}, "at most 16 characters"),
    ],
)
def test_a_bundle_without_codes_is_refused(changes, missing):
    with pytest.raises(BundleError, match=missing):
        check_codes(bundle(**changes))
    check_codes(bundle())


def test_headers_without_type_2_attributes_make_a_report():
    bare = headers("1.2.3")
    for image in bare:
        for keyword in ("PatientBirthDate", "AccessionNumber", "StudyID", "ReferringPhysicianName", "StudyTime"):
            delattr(image, keyword)
    report = pydicom.dcmread(BytesIO(report_of(bundle(), [(decided().decision, bare)], report_uid(bundle(), ["a"]))))
    assert report.AccessionNumber == "" and report.StudyID == ""
