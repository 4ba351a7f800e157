"""The report on made-up answers: what it claims and admits, and that whoever cannot see the plots reads the same."""

import dataclasses
import json
import re

import numpy as np
import pytest
from axe import axe

from hscc_edge.model.decision import decide, parse_rule
from hscc_edge.model.head import Head
from hscc_edge.validate import report
from hscc_edge.validate.claim import ability, answer, claim
from hscc_edge.validate.collect import Collection
from hscc_edge.validate.evidence import SCHEMA, Evidence, weigh
from hscc_edge.validate.gate import Gating, Line
from hscc_edge.validate.latency import compare_times
from hscc_edge.validate.pack.typed import typed
from hscc_edge.validate.predict import Case
from hscc_edge.validate.predictions import Predictions
from hscc_edge.validate.report import render
from hscc_edge.validate.tables import contrast, figures, percentiles
from hscc_edge.validate.uses import Use

LABELS = ("glioma", "meningioma", "none")
PLAIN = {"unit": "image"}
CONDITIONS = {
    "runtime": "ort", "precision": "fp32", "threads": 1, "seconds": 1.0, "runtime_name": "onnxruntime 1.0 CPU",
    "date": "2026-11-24 09:00 UTC", "machine": "Linux x86_64", "python": "3.11", "versions": {"numpy": "2.0"},
}  # fmt: skip


def answers(truth: np.ndarray, wrong: set[int], each: int, decision: dict, noise: float) -> Predictions:
    """A classifier that errs on the cases `wrong`; `each` cases a patient."""
    rng, head, rule = np.random.default_rng(3), Head("softmax", LABELS), parse_rule(decision)
    cases = []
    for i, label in enumerate(truth):
        logits = noise * rng.normal(size=(1, 3)).clip(-1, 1)
        logits[0, (label + (i in wrong)) % 3] += 3.0
        logits = logits.astype(np.float32)
        cases.append(Case(f"case{i}", f"p{i // each}", LABELS[label], decide(rule, head, logits), logits))
    facts = {"name": "net", "digest": "d" * 64, "method": "hscc", "budget": "flops=6x", "decision": decision,
             "head": {"kind": "softmax", "labels": list(LABELS)}, "flops": 10, "dense_flops": 60, "params": 1,
             "dense_params": 2}  # fmt: skip
    return Predictions(facts, "onnxruntime 1.0 CPU", "fp32", tuple(cases))


def collection(
    cases: int, old: set[int], new: set[int], each: int = 1, decision: dict = PLAIN, calls: int = 60, **more
) -> Collection:
    """Both classifiers on the same cases; `old` and `new` are those that each gets wrong."""
    truth = np.arange(cases) % 3
    first, second = (answers(truth, wrong, each, decision, noise) for wrong, noise in ((old, 0.9), (new, 1.0)))
    cohort = {
        "name": "made", "source": "made up", "digest": "e" * 64, "splits": ["test"], "unit": decision["unit"],
        "cases": cases, "images": cases, "patients": -(-cases // each), "classes": list(LABELS), "per_class": {},
    }  # fmt: skip
    times = np.random.default_rng(0).normal(10, 0.1, size=(2, calls)) / [[1.0], [3.0]]
    return Collection(first, second, cohort, CONDITIONS, compare_times(*times), **more)


@pytest.fixture(scope="module")
def paper() -> Collection:
    """43 against 44 of 49 pictures, as 87.76 and 89.80 % are."""
    return collection(49, {0, 1, 2, 3, 4, 5}, {0, 1, 2, 3, 4})


@pytest.fixture(scope="module")
def undeclared(paper) -> Evidence:
    """Without a margin."""
    return weigh(paper)


@pytest.fixture(scope="module")
def clustered() -> Evidence:
    """Three cases a patient, a site of few patients, operating points, a limit of energy, and cases turned away."""
    decision = PLAIN | {"operating_points": {"glioma": 0.3}, "energy_limit": -2.4, "least_probability": 0.5}
    columns = {"site": ("A",) * 285 + ("B",) * 15}
    uses = tuple(Use(f"2026-11-{day}", ("test",), "e" * 64, ("f" * 64,), "validate", "0.1.0") for day in (10, 11))
    wrong = set(range(30))
    return weigh(collection(300, wrong, wrong | {40, 41, 290}, 3, decision, columns=columns, uses=uses), 0.05, 0.10)


@pytest.fixture(scope="module")
def page(clustered) -> str:
    return render(clustered)


def plain(page: str) -> str:
    """Without the marks that keep intervals on one line."""
    return re.sub(r"</?span[^>]*>", "", page)


@pytest.fixture
def words(monkeypatch):
    """The page without its plots, which take seconds."""
    names = ("difference", "confusions", "per_class", "forest", "latencies", "roc", "reliability")
    monkeypatch.setattr(report, "_plots", lambda _: dict.fromkeys(names, ""))
    return render


def test_a_gain_of_one_picture_is_told_as_that(paper, undeclared, words):
    assert claim(undeclared).startswith("The two could not be told apart in accuracy: of 49 pictures")
    assert "decided 44 rightly and the original 43, one picture more" in claim(undeclared)
    assert answer(undeclared).startswith("No margin was declared, so there is no verdict")
    assert "NO VERDICT" in words(undeclared)
    held = weigh(paper, margin=0.02)
    page = words(held)
    needed = next(need for need in held.reach.needs if need.margin == 0.02)
    assert held.verdict.word == "INCONCLUSIVE" and held.verdict.cases_needed == needed.as_seen > 49
    assert "<strong>INCONCLUSIVE</strong> at a margin of 2 points" in page
    assert f"this margin needs about {needed.as_seen}" in page and "2 (declared)" in page
    assert page.index("INCONCLUSIVE") < page.index("<b>89.8 %</b>") < page.index("Paired difference")
    assert ability(held) in page and held.reach.smallest_margin > 0.02


def test_the_claim_follows_the_interval(undeclared, words):
    better = weigh(collection(90, set(range(50)), set(range(10))), 0.02)
    worse = weigh(collection(90, set(range(20)), set(range(80))), 0.02)
    assert "decides more cases rightly" in claim(better) and "40 pictures more" in claim(better)
    assert better.verdict.superior and "superior as well" in words(better)
    assert "decides fewer cases rightly" in claim(worse) and worse.verdict.word == "INFERIOR"
    assert '<div class="verdict bad">' in words(worse) and '<div class="verdict unsure">' in words(undeclared)
    assert "as many" in claim(weigh(collection(49, {1}, {2})))


def test_every_figure_of_the_evidence_stands_in_the_page(clustered, page):
    for row in figures(clustered):
        assert all(part in plain(page) for part in (row.reference, row.candidate, row.difference))
    names = {row.name.partition(",")[0] for row in figures(clustered)}
    assert {"Accuracy", "AUC", "PR-AUC", "Turned away", "Beyond the limit of free energy"} <= names
    old, new = clustered.reference_refusals, clustered.candidate_refusals
    for side, told in ((old, clustered.reference_figures), (new, clustered.candidate_figures)):
        assert side.share.count == sum(side.reasons.values()) == told.undecided > 0
        assert side.alarms.count == sum(n for reason, n in side.reasons.items() if "free energy" in reason)
    assert all(reason in page for reason in (*old.reasons, *new.reasons))
    assert "glioma, from 0.3" in page and "no decision" in page and "use 2 of the split test" in page


def test_a_naive_interval_is_shown_beside_the_right_one_and_never_alone(clustered, undeclared, page, words):
    shown = contrast(clustered)
    assert shown[0].name == "accuracy, original" and float(shown[0].design_effect) > 1.5
    assert "As if cases were independent: wrong" in page
    assert contrast(undeclared) == [] and "As if cases were independent" not in words(undeclared)


def test_a_subgroup_of_few_patients_is_inconclusive_and_not_hidden(clustered, page):
    small = {group.name: group.small for group in clustered.groups}
    assert small["site=B"] and not small["site=A"]
    row = re.search(r'<tr><th scope="row">site=B</th>.*?</tr>', page)[0]
    assert "inconclusive: few patients" in row and "NON-INFERIOR" not in row
    assert "site=B (5 patients)" in page


def test_every_plot_is_named_and_colours_can_be_read(page):
    drawings = re.findall(r"<svg[^>]*>", page)
    assert len(drawings) == 7 and all('role="img" aria-label="' in drawing for drawing in drawings)
    for kind in ("aria-label", "id"):
        names = re.findall(rf' {kind}="([^"]+)"', page)
        assert len(names) == len(set(names)) > 7
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(re.findall(r' id="([^"]+)"', page))
    colours = re.findall(r"[ {;]color: (#\w{6})", page.partition("</style>")[0])
    backgrounds = [*re.findall(r"background: (#\w{6})", page), "#ffffff"]
    assert len(colours) > 5 and all(contrast_ratio(colour, "#ffffff") >= 4.5 for colour in colours)
    assert all(contrast_ratio("#1c2733", background) >= 4.5 for background in backgrounds)


def test_axe_finds_no_barrier_in_a_real_browser(page, tmp_path):
    assert axe(page, tmp_path)["violations"] == []


def contrast_ratio(first: str, second: str) -> float:
    """WCAG 2.1."""

    def luminance(colour: str) -> float:
        parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_percentiles_say_how_many_calls_they_lack(undeclared):
    found = {row.name: row.candidate for row in percentiles(undeclared)}
    assert found["50th percentile"].startswith("3.3")
    assert found["99.9th percentile"] == "not enough calls: 3,688 needed"


def test_a_machine_without_a_gpu_is_named_in_the_heading(paper, undeclared, words):
    page = words(undeclared)
    assert "Latency: CPU only" in page and "TensorRT on a Jetson: not run" in page
    page = words(weigh(dataclasses.replace(paper, conditions=CONDITIONS | {"runtime": "trt"})))
    assert "CPU only" not in page and "not run" not in page


def test_gate_lines_stand_before_the_figures(undeclared, words):
    lines = Line("latency.p99_ms", "FAIL", "99th percentile 9 ms"), Line("memory.peak_mib", "INCONCLUSIVE", "not run")
    held = dataclasses.replace(undeclared, gate=Gating(lines))
    page = words(held)
    assert page.index("Gate: FAIL") < page.index("latency.p99_ms") < page.index("All figures")
    assert '<div class="verdict bad">' in page and held.to_json()["gate"]["state"] == "FAIL"
    assert "gate" not in undeclared.to_json()


def test_the_json_gives_the_same_page(clustered, words):
    facts = json.loads(json.dumps(clustered.to_json(), allow_nan=False))
    assert facts["schema"] == SCHEMA and words(typed(Evidence, facts)) == words(clustered)


def test_overflows_and_a_class_without_cases_leave_a_page(paper, words):
    nothing = np.full((1, 3), np.nan, np.float32)
    refused = decide(parse_rule(PLAIN), Head("softmax", LABELS), nothing)
    broken = [dataclasses.replace(case, logits=nothing, decision=refused) for case in paper.candidate.cases]
    found = weigh(dataclasses.replace(paper, candidate=dataclasses.replace(paper.candidate, cases=tuple(broken))))
    page = words(typed(Evidence, json.loads(json.dumps(found.to_json(), allow_nan=False))))
    assert "the model&#39;s output is not finite" in page and found.candidate_probabilities.cases == 0
    ones = [dataclasses.replace(case, label=LABELS[0]) for case in paper.candidate.cases]
    sides = {name: dataclasses.replace(getattr(paper, name), cases=tuple(ones)) for name in ("reference", "candidate")}
    single = weigh(dataclasses.replace(paper, **sides))
    assert single.candidate_probabilities.areas == () and "No case of: meningioma, none." in words(single)
