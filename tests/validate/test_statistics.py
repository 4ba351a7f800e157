"""Each statistic against an independent source: R, scikit-learn, statsmodels, scipy, or a published worked example."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap
from scipy.stats.contingency import relative_risk
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    cohen_kappa_score,
    f1_score,
    roc_auc_score,
)
from statsmodels.stats.inter_rater import cohens_kappa
from statsmodels.stats.proportion import confint_proportions_2indep

from hscc_edge.errors import InputError
from hscc_edge.model.decision import Decision
from hscc_edge.model.head import Head, probabilities
from hscc_edge.validate.auc import area_interval, areas, average_precision, precision_areas
from hscc_edge.validate.calibration import calibration, log_loss, temperature
from hscc_edge.validate.intervals import check_independent, linear_variance, ratio, share, wilson
from hscc_edge.validate.metrics import at_thresholds, figures, figures_of, proportion
from hscc_edge.validate.outcomes import outcomes
from hscc_edge.validate.predict import Case
from hscc_edge.validate.resampling import Clusters, acceleration, bootstrap, clusters, jackknife, resample, weights

HERE = Path(__file__).parent
LABELS = ("a", "b", "c")


def ratio_of_sums(totals):
    return totals[:, :1] / totals[:, 1:2]


def alone(cases):
    return Clusters(np.arange(cases), np.zeros(cases, dtype=np.int64))


@pytest.fixture(scope="module")
def table():
    """tests/validate/proc.csv: patients, truth, two scores, with ties and several cases a patient."""
    rows = np.genfromtxt(HERE / "proc.csv", delimiter=",", names=True)
    return {name: rows[name] for name in rows.dtype.names}


@pytest.fixture(scope="module", params=["recorded", "live"])
def r(request):
    """What R says: recorded (proc.json, with R's and its packages' versions), and asked now if R is on this machine."""
    if request.param == "recorded":
        return json.loads((HERE / "proc.json").read_text())
    if shutil.which("Rscript") is None:
        pytest.skip("not run: no R on this machine, so its recorded answers alone were compared")
    done = subprocess.run(["Rscript", HERE / "proc.R", HERE / "proc.csv"], capture_output=True, text=True)
    if "there is no package" in done.stderr:
        pytest.skip("not run: this machine's R lacks pROC, boot, survey or psych; its recorded answers were compared")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_delong_is_that_of_proc(r, table):
    truth = np.stack([table["truth"], table["truth"]], axis=1) > 0
    scores = np.stack([table["a"], table["b"]], axis=1)
    found = areas(truth, scores, alone(len(truth)))
    assert found.values == pytest.approx(r["auc"], rel=1e-9)
    assert np.diag(found.covariance) == pytest.approx(r["variance"], rel=1e-9)
    assert found.covariance[0, 1] == pytest.approx(r["covariance"][0], rel=1e-9)
    half = 1.959963984540054 * found.standard_error([1, 0])
    assert [found.values[0] - half, found.values[0] + half] == pytest.approx(r["interval"], rel=1e-9)
    ours = area_interval(found, [1, 0])
    assert (ours.low, ours.high) == pytest.approx(r["interval"], abs=0.04)
    assert ours.low < r["interval"][0] and ours.method == "DeLong and Newcombe"


def test_bca_is_that_of_boot_and_of_the_textbook(r):
    """Efron and Tibshirani 1993, table 14.1 and section 14.3: variance of spatial ability, acceleration 0.061."""
    values = np.array([48, 36, 20, 29, 42, 42, 20, 42, 22, 41, 45, 14, 6, 0, 33, 28, 34, 4, 32, 24, 47, 41, 24, 26, 30,
                       41], dtype=float)  # fmt: skip
    sums = np.stack([values, values**2, np.ones(26)], axis=1)

    def variance(totals):
        return totals[:, 1:2] / totals[:, 2:] - (totals[:, :1] / totals[:, 2:]) ** 2

    assert acceleration(jackknife(sums, variance)) == pytest.approx([0.061], abs=5e-4)
    found = bootstrap(sums, variance, level=0.9, resamples=50_000)
    assert found.value == pytest.approx([171.5], abs=0.05)
    assert [found.low[0], found.high[0]] == pytest.approx(r["bca"], abs=2)
    assert [found.low[0], found.high[0]] == pytest.approx([115.8, 259.6], abs=3)


def test_the_variance_over_patients_is_that_of_survey(r, table):
    hits = (table["a"] > 0.5) == (table["truth"] > 0)
    sums = clusters(table["patient"].astype(str)).sums(np.stack([hits, np.ones(len(hits))], axis=1))
    rate = hits.mean()
    assert [rate, linear_variance(sums[:, 0] - rate * sums[:, 1], len(hits))] == pytest.approx(r["share"], rel=1e-9)


def test_kappa_is_that_of_psych_statsmodels_and_the_textbook(r):
    """Fleiss 1981, table 13.1: kappa 0.676, standard error 0.087."""
    counts = np.array([[75, 1, 4], [5, 4, 1], [0, 0, 10]])
    pairs = [(LABELS[i], LABELS[j]) for i in range(3) for j in range(3) for _ in range(counts[i, j])]
    found = figures(*zip(*pairs, strict=True), LABELS, [str(i) for i in range(100)]).kappa
    peer = cohens_kappa(counts)
    assert found.value == pytest.approx(0.676, abs=5e-4) and found.value == pytest.approx(r["kappa"][0], rel=1e-9)
    assert found.value == pytest.approx(peer.kappa)
    assert (found.low + found.high) / 2 == pytest.approx(found.value, abs=0.05) and found.high < found.value + 0.15
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * 0.087, rel=0.12)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * r["kappa"][1] ** 0.5, rel=0.12)


def test_obuchowski_is_the_paper_s_sum_over_pairs(table):
    """Obuchowski 1997, Biometrics 53:567, equations 1 to 5, by its double sums instead of ranks."""
    patient, truth, score = table["patient"].astype(int), table["truth"] > 0, table["a"]
    wins = (score[truth][:, None] > score[~truth]) + 0.5 * (score[truth][:, None] == score[~truth])
    area, count = wins.mean(), int(patient.max()) + 1
    with_, without, cross = 0.0, 0.0, 0.0
    for one in range(count):
        sick, well = patient[truth] == one, patient[~truth] == one
        first = (wins[sick].mean(axis=1) - area).sum() if sick.any() else 0.0
        second = (wins[:, well].mean(axis=0) - area).sum() if well.any() else 0.0
        with_, without, cross = with_ + first**2, without + second**2, cross + first * second
    m, n = truth.sum(), (~truth).sum()
    held, free = len(set(patient[truth])), len(set(patient[~truth]))
    expected = (held / (held - 1) * with_ / m**2 + free / (free - 1) * without / n**2
                + 2 * count / (count - 1) * cross / (m * n))  # fmt: skip
    found = areas(truth[:, None], score[:, None], clusters(table["patient"].astype(str)))
    assert found.covariance[0, 0] == pytest.approx(expected, rel=1e-9)
    delong = areas(truth[:, None], score[:, None], alone(len(truth))).covariance[0, 0]
    assert expected != pytest.approx(delong, rel=0.03)  # its patients have cases of both kinds, which cancel


def test_a_perfect_order_has_an_interval():
    truth, scores = np.arange(20)[:, None] >= 10, np.arange(20.0)[:, None]
    found = area_interval(areas(truth, scores, alone(20)), [1.0])
    assert found.value == found.high == 1 and 0.6 < found.low < 0.95
    pairs = area_interval(areas(truth, scores, Clusters(np.arange(20) // 2, np.zeros(10, dtype=np.int64))), [1.0])
    assert pairs.low < found.low
    with pytest.raises(InputError, match="needs both kinds"):
        areas(truth | True, scores, alone(20))


@pytest.mark.parametrize(
    ("counts", "published"),
    [((10, 75, 12, 225), (2.5, 1.126, 5.550)), ((36, 40, 16, 80), (4.5, 2.869, 7.059))],
)
def test_likelihood_ratios_agree_with_katz(counts, published):
    """Sahai and Khurshid 1996, section 3.1.2 (in scipy's documentation); Koopman 1984's counts by Katz 1978."""
    first, second = proportion(*counts[:2]), proportion(*counts[2:])
    found, peer = ratio(first, second), relative_risk(*counts)
    assert (peer.relative_risk, *peer.confidence_interval()) == pytest.approx(published, abs=1e-3)
    assert found.value == pytest.approx(published[0])
    score = confint_proportions_2indep(*counts, method="score", compare="ratio")
    for limits in (published[1:], score):
        assert np.log([found.low, found.high]) == pytest.approx(np.log(limits), abs=0.08)


def test_likelihood_ratios_at_the_ends():
    none, all_ = proportion(0, 40), proportion(30, 30)
    infinite = ratio(all_, none)
    assert infinite.value is None and infinite.high is None and infinite.low > 5
    assert ratio(none, all_).value == ratio(none, all_).low == 0 and 0 < ratio(none, all_).high < 0.2
    assert ratio(none, none).low is None


def test_the_bootstrap_is_scipy_s():
    values = np.random.default_rng(1).gamma(2, 1, 40)
    sums = np.stack([values, np.ones(40)], axis=1)
    for method, name in (("percentile", "percentile"), ("bca", "BCa")):
        peer = scipy_bootstrap((values,), np.mean, n_resamples=20_000, method=name, rng=np.random.default_rng(1))
        found = bootstrap(sums, ratio_of_sums, resamples=20_000, method=method)
        assert (found.low[0], found.high[0]) == pytest.approx(peer.confidence_interval, abs=0.02)
        assert found.standard_error[0] == pytest.approx(peer.standard_error, rel=0.03)


def test_resampling_is_seeded_stratified_and_alike_on_both_ways():
    strata = np.repeat([0, 1], [150, 50])
    sums = np.stack([strata, np.ones(200), np.random.default_rng(0).random(200) < 0.8], axis=1)
    first = resample(sums, lambda totals: totals, strata=strata, resamples=4000)
    assert (first == resample(sums, lambda totals: totals, strata=strata, resamples=4000)).all()
    assert (first[:, 0] == 50).all() and (first[:, 1] == 200).all()
    drawn = np.concatenate(list(weights(strata, resamples=4000)))
    assert (drawn[:, 150:].sum(axis=1) == 50).all() and (drawn @ sums)[:, 2].std() == pytest.approx(
        first[:, 2].std(), rel=0.06
    )
    degenerate = bootstrap(np.ones((20, 2)), ratio_of_sums, resamples=100)
    assert degenerate.value == [1] and np.isnan(degenerate.low).all()


def test_patients_make_strata_by_their_labels():
    found = clusters(["p", "p", "q", "r", "s", "s"], ["a", "b", "a", "a", "b", "b"])
    assert found.count == 4 and not found.independent
    assert found.strata[1] == found.strata[2] and found.strata[0] == found.strata[3] != found.strata[1]
    with pytest.raises(InputError, match="one of each"):
        clusters(["p"], ["a", "b"])


def test_a_naive_interval_of_clustered_cases_is_an_error():
    with pytest.raises(InputError, match="not independent"):
        check_independent(["p", "p", "q"])
    check_independent(["p", "q"])


def test_cases_of_one_patient_count_as_they_tell():
    patients, hits = np.repeat(np.arange(100), 5), np.repeat(np.arange(100) >= 16, 5)
    found = share(hits, clusters(patients.astype(str)))
    assert (found.low, found.high) == pytest.approx(wilson(84, 100), abs=0.003)
    assert (found.naive_low, found.naive_high) == wilson(420, 500) and found.design_effect == pytest.approx(5, abs=0.1)
    apart = share(hits, clusters(np.arange(500).astype(str)))
    assert (apart.low, apart.high) == wilson(420, 500) and apart.naive_low is None
    perfect = share(np.ones(500, dtype=bool), clusters(patients.astype(str)))
    assert perfect.low == pytest.approx(wilson(100, 100)[0], abs=0.003)


@pytest.fixture(scope="module")
def answers():
    """150 cases of 60 patients under a softmax head, with logits too large by half."""
    generator = np.random.default_rng(3)
    patient = generator.integers(0, 60, 150)
    true = generator.integers(0, 3, 150)
    logits = 3 * (1.2 * np.eye(3)[true] + generator.normal(size=(150, 3)))
    return patient, true, logits


def cases_of(answers, head):
    patient, true, logits = answers
    rows = probabilities(head, logits)
    return [Case(str(i), str(p), LABELS[t], Decision(LABELS[int(row.argmax())], tuple(row), 1), logits[i : i + 1])
            for i, (p, t, row) in enumerate(zip(patient, true, rows, strict=True))]  # fmt: skip


def test_figures_agree_with_scikit_learn(answers):
    found = outcomes(cases_of(answers, Head("softmax", LABELS)), LABELS)
    told = figures_of(found)
    true, decided = found.truth.argmax(axis=1), found.decided.argmax(axis=1)
    peers = {"balanced_accuracy": balanced_accuracy_score(true, decided), "kappa": cohen_kappa_score(true, decided),
             "micro_f1": f1_score(true, decided, average="micro"),
             "macro_f1": f1_score(true, decided, average="macro")}  # fmt: skip
    for name, peer in peers.items():
        item = getattr(told, name)
        assert item.value == pytest.approx(peer) and item.low < peer < item.high and "patients" in item.method
    assert told.accuracy.naive_low > told.accuracy.low and told.accuracy.patients < 60
    area = areas(found.truth, found.scores, found.cases)
    assert area.values.mean() == pytest.approx(roc_auc_score(true, found.scores, multi_class="ovr"))
    for k, item in enumerate(precision_areas(found.truth, found.scores, found.cases, resamples=50)):
        assert item.value == pytest.approx(average_precision_score(found.truth[:, k], found.scores[:, k]))
        assert item.low < item.value < item.high


def test_average_precision_under_weights_is_scikit_learn_s():
    generator = np.random.default_rng(2)
    truth, scores = generator.random(80) < 0.3, generator.integers(0, 9, 80).astype(float)
    drawn = generator.integers(0, 3, (20, 80)).astype(float)
    peers = [average_precision_score(truth, scores, sample_weight=row) for row in drawn]
    assert average_precision(truth, scores, drawn) == pytest.approx(peers)


def test_operating_points(answers):
    found = outcomes(cases_of(answers, Head("softmax", LABELS)), LABELS)
    (low, high) = (at_thresholds(found, {"b": value})[0] for value in (0.1, 0.9))
    assert low.sensitivity.value > high.sensitivity.value and low.specificity.value < high.specificity.value
    assert low.threshold == 0.1 and low.positive_ratio.value == pytest.approx(
        low.sensitivity.value / (1 - low.specificity.value)
    )
    with pytest.raises(InputError, match="operating point"):
        at_thresholds(found, {"z": 0.5})


def test_calibration_agrees_with_scikit_learn_and_its_bins(answers):
    head = Head("softmax", LABELS)
    found = outcomes(cases_of(answers, head), LABELS)
    told = calibration(found, head, resamples=200)
    assert told.brier.value == pytest.approx(brier_score_loss(found.truth.argmax(axis=1), found.scores))
    assert told.brier.low < told.brier.value < told.brier.high
    gap = sum(item.observed.of * abs(item.mean - item.observed.value) for item in told.bins if item.observed.of)
    assert told.error.value == pytest.approx(gap / told.cases) and sum(item.observed.of for item in told.bins) == 150
    assert 0 < told.error.low < told.error.value


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "single_logit"])
def test_the_temperature_is_the_one_that_fits(kind):
    generator = np.random.default_rng(4)
    head = Head(kind, LABELS[:2] if kind == "single_logit" else LABELS)
    logits = 2 * generator.normal(size=(4000, 1 if kind == "single_logit" else 3))
    rows = probabilities(head, logits)
    if kind == "sigmoid":
        truth = generator.random(rows.shape) < rows
    else:
        drawn = (generator.random((4000, 1)) > rows.cumsum(axis=1)[:, :-1]).sum(axis=1)
        truth = drawn[:, None] == np.arange(rows.shape[1])
    fitted = temperature(2.5 * logits, truth, head)
    assert fitted == pytest.approx(2.5, rel=0.08)
    best = log_loss(2.5 * logits / fitted, truth, head)
    assert all(best < log_loss(2.5 * logits / other, truth, head) for other in (0.9 * fitted, 1.1 * fitted))
    with pytest.raises(InputError, match="finite"):
        temperature(np.full((1, logits.shape[1]), np.nan), truth[:1], head)


@pytest.mark.parametrize("kind", ["sigmoid", "single_logit"])
def test_other_heads(kind):
    generator = np.random.default_rng(5)
    labels = LABELS if kind == "sigmoid" else ("no", "yes")
    head = Head(kind, labels)
    logits = 2 * generator.normal(size=(200, 3 if kind == "sigmoid" else 1))
    rows = probabilities(head, logits)
    truth = generator.random(rows.shape) < rows
    if kind == "single_logit":
        truth[:, 0] = ~truth[:, 1]
    cases = [Case(str(i), str(i), labels[int(truth[i, 1])], Decision(labels[int(row.argmax())], tuple(row), 1),
                  logits[i : i + 1]) for i, row in enumerate(rows)]  # fmt: skip
    found = outcomes(cases, labels, truth)
    told = calibration(found, head, resamples=200)
    expected = ((rows - truth) ** 2).mean() if kind == "sigmoid" else 2 * brier_score_loss(truth[:, 1], rows[:, 1])
    assert told.brier.value == pytest.approx(expected) and told.error.low == 0
    assert sum(item.observed.of for item in told.bins) == (600 if kind == "sigmoid" else 200)
    points = at_thresholds(found, dict.fromkeys(labels, 0.5))
    assert [item.sensitivity.of for item in points] == truth.sum(axis=0).tolist()
    assert (areas(found.truth, found.scores, found.cases).values > 0.7).all()


def test_a_case_without_a_decision_is_wrong_and_has_no_probability():
    cases = [Case("1", "1", "a", Decision("a", (0.7, 0.2, 0.1), 1), np.zeros((1, 3))),
             Case("2", "2", "b", Decision(None, (), 0, "too few images"), np.zeros((0, 3)))]  # fmt: skip
    found = outcomes(cases, LABELS)
    assert found.scored.tolist() == [True, False] and figures_of(found).undecided == 1
    assert calibration(found, Head("softmax", LABELS), resamples=10).cases == 1
    with pytest.raises(InputError, match="calibration needs"):
        calibration(outcomes(cases[1:], LABELS), Head("softmax", LABELS))
