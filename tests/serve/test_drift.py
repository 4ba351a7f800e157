"""Drift: the statistics against scipy's, alarms that come and end with their hysteresis, and what follows from one."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from scipy.stats import ks_2samp
from workbench import Bench, slices

from hscc_edge.bundle import add_files, read_bundle, rewrite
from hscc_edge.errors import BundleError
from hscc_edge.runtime import open_runtime
from hscc_edge.serve.config import Drift
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.observations import Observation, Observed, record
from hscc_edge.serve.worker import models
from hscc_edge.serve.worker.drift import CHANCE, Watch, _ks, distance, fact_of, look
from hscc_edge.validate.drift import DRIFT, familiar, parse_familiar

pytestmark = pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
SETTINGS = Drift(window=100)


@pytest.fixture
def journal(tmp_path):
    found = Journal(tmp_path / "journal.sqlite")
    yield found
    found.close()


@pytest.fixture
def bundle(dense):
    return read_bundle(dense)


def cases(count: int, seed: int, noise: float = 1.0, scanner: str = "a", score: float = 0.9) -> list[Observation]:
    random = np.random.default_rng(seed)
    return [
        Observation(
            f"{seed}-{number}", "ring", (score, 1 - score), random.normal(-3, 1),
            {"noise": noise * random.gamma(4.0), "spacing_mm": 0.5, "scanner": scanner}, 1.0,
        )
        for number in range(count)
    ]  # fmt: skip


def add(journal: Journal, digest: str, seen: list[Observation], study: str = "1.2.3", name: str = "tiny") -> None:
    with journal.transaction() as db:
        record(db, study, Observed(name, digest, seen))


def test_the_largest_difference_and_its_chance_are_scipys():
    random = np.random.default_rng(0)
    first, second = np.sort(random.normal(0, 1, 300)), np.sort(random.normal(0.3, 1, 200))
    known = ks_2samp(first, second, method="asymp")
    assert _ks(first, second) == pytest.approx(known.statistic)
    assert distance(list(first), list(second))[1] == pytest.approx(known.pvalue, rel=0.3)


def test_without_drift_the_index_is_about_none_and_chance_is_evenly_spread():
    random = np.random.default_rng(1)
    found = np.array([distance(list(random.gamma(2, size=150)), list(random.gamma(2, size=200))) for _ in range(300)])
    assert np.mean(found[:, 0]) < 0.03 and not np.any((found[:, 0] >= SETTINGS.on) & (found[:, 1] < CHANCE))
    assert np.mean(found[:, 1] < 0.05) < 0.09
    words = np.array(
        [distance(list(random.choice(["a", "b"], 150)), list(random.choice(["a", "b"], 150))) for _ in range(300)]
    )
    assert np.mean(words[:, 1] < 0.05) < 0.09


def test_the_index_is_that_of_its_definition():
    before, now = ["a"] * 500 + ["b"] * 500, ["a"] * 900 + ["b"] * 100
    p, q = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    expected = float(((p - q) * np.log(p / q)).sum()) - (1 / 1000 + 1 / 1000)
    index, chance = distance(before, now)
    assert index == pytest.approx(expected, rel=0.01) and chance < 1e-12
    assert distance([1.0] * 50, [1.0] * 50) == (0.0, 1.0)
    assert distance([1.0] * 50, [2.0] * 50)[0] > 5


def test_an_alarm_comes_with_a_shift_stands_and_ends(journal, bundle):
    watch = Watch(journal, SETTINGS, "tiny", bundle)
    add(journal, bundle.digest, cases(200, 0))
    assert watch.seen(200) is None and journal.fact(fact_of("tiny")) is None
    add(journal, bundle.digest, cases(100, 1, noise=2.0))
    assert watch.seen(10) is None, "a look takes a quarter of a window"
    reason = watch.seen(90)
    assert reason.startswith("noise (PSI ") and "energy" not in reason
    standing = json.loads(journal.fact(fact_of("tiny")))
    assert standing["features"] == ["noise"] and standing["reference"] == "the first 100 cases on this device"
    add(journal, bundle.digest, cases(100, 2, noise=2.0))
    assert watch.seen(100) is None and journal.fact(fact_of("tiny")) is not None, "told once"
    add(journal, bundle.digest, cases(100, 3))
    assert watch.seen(100) is None and journal.fact(fact_of("tiny")) is None
    kinds = [row[0] for row in journal.read("SELECT kind FROM events ORDER BY id")]
    assert kinds == ["drift", "drift-over"]


def test_an_alarm_that_stands_ends_only_below_the_lower_limit(journal, bundle):
    add(journal, bundle.digest, cases(200, 0))
    add(journal, bundle.digest, cases(100, 1, noise=1.2))
    (new,) = [shift for shift in look(journal, SETTINGS, bundle).shifts if shift.feature == "noise"]
    assert SETTINGS.off < new.psi < SETTINGS.on and not new.alarm
    (old,) = [shift for shift in look(journal, SETTINGS, bundle, ["noise"]).shifts if shift.feature == "noise"]
    assert old.alarm


def test_another_scanner_is_seen_though_the_pictures_are_alike(journal, bundle):
    add(journal, bundle.digest, cases(200, 0))
    add(journal, bundle.digest, cases(60, 1) + cases(40, 2, scanner="b"))
    assert [shift.feature for shift in look(journal, SETTINGS, bundle).drifted] == ["scanner"]


def test_the_calibration_cohort_is_the_reference_where_the_bundle_has_it(journal, bundle, phantom, tmp_path):
    part, runtime = phantom.select("train"), open_runtime(bundle)
    found = familiar(bundle, bundle.spec.decision, runtime, part)
    runtime.close()
    assert found.cases == len(part.cases("study")) == len(found.values["score"]) and found.cohort == part.digest
    assert {"score", "energy", "noise", "contrast", "brightness", "spacing_mm"} <= found.values.keys()
    assert parse_familiar(found.to_json(), "tiny") == found
    shutil.copytree(bundle.root, tmp_path / "calibrated")
    calibrated = add_files(read_bundle(tmp_path / "calibrated"), {DRIFT: json.dumps(found.to_json()).encode()})
    add(journal, calibrated.digest, cases(100, 1))
    seen = look(journal, SETTINGS, calibrated)
    assert seen.reference == f"{found.cases} cases of the calibration cohort"
    assert {"noise", "spacing_mm", "score", "energy"} <= {shift.feature for shift in seen.drifted}
    with pytest.raises(BundleError, match="run hscc-edge calibrate again"):
        parse_familiar({"kind": "drift", "schema": 9}, "tiny")


def test_another_bundle_ends_the_alarm_of_the_one_before(journal, bundle):
    add(journal, bundle.digest, cases(200, 0) + cases(100, 1, noise=3.0))
    assert Watch(journal, SETTINGS, "tiny", bundle).seen(100) is not None
    Watch(journal, SETTINGS, "tiny", dataclasses.replace(bundle, digest="other"))
    assert journal.fact(fact_of("tiny")) is None


def test_by_choice_an_alarm_brings_the_model_before_back(tmp_path, dense, phantom):
    made = Bench(tmp_path, dense, drift=Drift(window=20, roll_back=True))
    shutil.copytree(dense, tmp_path / "newer")
    newer = rewrite(read_bundle(tmp_path / "newer"), {})
    models.activate(made.journal, models.install(made.station, made.journal, newer.root).digest)
    made.worker.refresh()
    uid = made.put(slices(phantom, "1", 3))
    add(made.journal, newer.digest, cases(40, 0) + cases(19, 1, noise=50.0), uid)
    made.work()
    found = models.find(made.journal, "tiny", models.WITHDRAWN)
    assert found.digest == newer.digest and found.reason.startswith("drift: ")
    made.worker.refresh()
    assert made.journal.fact(fact_of("tiny")) is None
    assert [item.kind for item in made.world()] == ["activated", "activated", "drift", "rolled-back", "drift-over"]
    made.close()


def test_a_case_without_an_energy_counts_and_spoils_nothing(journal, bundle):
    seen = cases(200, 0)
    seen[150] = dataclasses.replace(seen[150], energy=float("nan"), probabilities=())
    add(journal, bundle.digest, seen)
    assert not look(journal, SETTINGS, bundle).drifted
