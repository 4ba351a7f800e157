"""Statistics against known values and peers; what a real validation writes."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, recall_score
from statsmodels.stats.contingency_tables import mcnemar
from typer.main import get_command

from hscc_edge.bundle import read_bundle
from hscc_edge.cli import app
from hscc_edge.model.decision import Decision, decide, parse_rule
from hscc_edge.model.head import Head
from hscc_edge.validate.collect import Conditions
from hscc_edge.validate.compare import compare
from hscc_edge.validate.evidence import gather
from hscc_edge.validate.latency import race
from hscc_edge.validate.metrics import figures, proportion
from hscc_edge.validate.predict import Case
from hscc_edge.validate.report import render

LABELS = ("a", "b", "c")
ANSWERS = st.lists(
    st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=2, max_size=60
)


@given(ANSWERS)
@settings(deadline=None, max_examples=30)
def test_figures_agree_with_scikit_learn(rows):
    truth, answers = [row[0] for row in rows], [row[1] for row in rows]
    found = figures(truth, answers, LABELS, [str(i) for i in range(len(rows))])
    assert found.accuracy.value == pytest.approx(accuracy_score(truth, answers))
    assert found.macro_f1.value == pytest.approx(
        f1_score(truth, answers, labels=LABELS, average="macro", zero_division=0)
    )
    recalls = recall_score(truth, answers, labels=LABELS, average=None, zero_division=np.nan)
    for item, recall in zip(found.classes, recalls, strict=True):
        assert item.sensitivity.value is None if np.isnan(recall) else item.sensitivity.value == pytest.approx(recall)
        negatives = [answer != item.label for label, answer in zip(truth, answers, strict=True) if label != item.label]
        assert item.specificity.of == len(negatives) and item.specificity.count == sum(negatives)
    assert sum(map(sum, found.confusion)) == len(rows)


def test_an_undecided_case_is_wrong():
    found = figures(["a", "b"], ["a", None], LABELS, ["1", "2"])
    assert found.accuracy.value == 0.5 and found.undecided == 1 and found.confusion[1] == (0, 0, 0, 1)


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (29, 29, 0.8830, 1.0)],
)
def test_wilson_intervals_are_those_published(count, of, low, high):
    """Newcombe 1998, Statistics in Medicine 17:857, table I (method 3)."""
    found = proportion(count, of)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


def case(truth: str, answer: str, patient: str, shift: float = 0.0) -> Case:
    logits = np.array([[float(answer == label) * 3 + shift * index for index, label in enumerate(LABELS)]])
    return Case(patient, patient, truth, Decision(answer, (), 1), logits.astype(np.float32))


@given(ANSWERS)
@settings(deadline=None, max_examples=25)
def test_the_comparison_is_antisymmetric_and_holds_its_estimate(rows):
    head = Head("softmax", LABELS)
    first = [case(truth, answer, str(i)) for i, (truth, answer, _) in enumerate(rows)]
    second = [case(truth, answer, str(i)) for i, (truth, _, answer) in enumerate(rows)]
    there, back = compare(first, second, head), compare(second, first, head)
    assert there.difference == pytest.approx(-back.difference)
    assert there.low <= there.difference + 1e-12 and there.difference <= there.high + 1e-12
    table = [[0, there.only_reference], [there.only_candidate, 0]]
    if there.only_reference + there.only_candidate:
        assert there.p_value == pytest.approx(mcnemar(table, exact=True).pvalue)
    same = compare(first, first, head)
    assert (same.difference, same.p_value, same.agreement, same.kl) == (0, 1, 1, 0) and same.low < 0 < same.high


def test_cases_of_one_patient_do_not_count_as_independent():
    head = Head("softmax", LABELS)
    rows = [("a", "a", "b" if i < 10 else "a") for i in range(100)]
    first = [case(truth, answer, str(i)) for i, (truth, answer, _) in enumerate(rows)]
    apart = compare(first, [case(t, a, str(i)) for i, (t, _, a) in enumerate(rows)], head)
    grouped = [case(truth, answer, str(i // 10)) for i, (truth, answer, _) in enumerate(rows)]
    together = compare(grouped, [case(t, a, str(i // 10)) for i, (t, _, a) in enumerate(rows)], head)
    assert together.difference == apart.difference
    assert together.high - together.low > 1.5 * (apart.high - apart.low)


def test_latency_is_interleaved():
    calls = []

    class Fake:
        def __init__(self, name):
            self.name = name

        def infer(self, images):
            calls.append(self.name)
            return images

        def close(self):
            """Nothing to close."""

    found = race(Fake("a"), Fake("b"), [np.zeros((1, 2, 2), np.float32)], seconds=0)
    timed = calls[10:]
    # The first call after the other's goes untimed.
    assert timed[:11] == ["a", "a", "b", "b", "b", "a", "a", "a", "b", "b", "b"]
    assert found.reference.samples == found.candidate.samples == 20
    assert found.reference.p50_ms <= found.reference.p90_ms <= found.reference.p99_ms


@pytest.mark.parametrize(("aggregate", "expected"), [("mean", "a"), ("max", "b"), ("top-k", "a")])
def test_decisions(aggregate, expected):
    rule = parse_rule({"unit": "study", "aggregate": aggregate, "k": 2, "minimum_images": 3})
    logits = np.log(np.array([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1], [0.04, 0.95, 0.01]]))
    logits[2] = np.log([0.34, 0.62, 0.04])
    head = Head("softmax", LABELS)
    found = decide(rule, head, logits)
    assert found.label == expected and sum(found.probabilities) == pytest.approx(1)
    assert decide(rule, head, logits[:2]).reason == "2 images, the model needs at least 3"
    assert decide(rule, head, np.full((3, 3), np.nan)).label is None


@pytest.fixture(scope="module")
def evidence(dense, phantom):
    bundle = read_bundle(dense)
    return gather(bundle, bundle, phantom.select("test"), Conditions(seconds=0))


def test_a_bundle_equals_itself(evidence):
    assert evidence.comparison.agreement == 1 and evidence.comparison.kl == 0
    assert evidence.reference_figures == evidence.candidate_figures


def test_the_report_is_self_contained_and_says_what_the_json_says(evidence, phantom):
    page, facts = render(evidence), evidence.to_json()
    assert json.loads(json.dumps(facts, allow_nan=False))["schema"] == 2
    for share in (evidence.reference_figures.accuracy, evidence.candidate_figures.accuracy):
        assert f"{100 * share.value:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f})" in re.sub(
            r"</?span[^>]*>", "", page
        )
    bare = (
        page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace("http://creativecommons.org", "")
    )
    assert "http" not in bare and "<script" not in page and "<link" not in page
    assert "TensorRT on a Jetson: not run" in page
    for item in phantom.select("test").instances:
        for secret in (item.patient, item.study, item.series, item.sop):
            assert secret not in page and secret not in json.dumps(facts)


def test_the_verb_writes_report_and_json(dense, phantom, tmp_path, capsys):
    words = ["validate", str(dense), "--reference", str(dense), "--cohort", str(phantom.root), "--seconds", "0",
             "--report", str(tmp_path / "r.html"), "--json"]  # fmt: skip
    get_command(app).main(words, standalone_mode=False)
    printed = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "r.json").read_text())["candidate_figures"] == printed["candidate_figures"]
