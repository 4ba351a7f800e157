"""Temperature and limit of free energy: fitted off the test split, kept in the bundle, obeyed by decisions."""

import json
import shutil

import numpy as np
import pytest
from typer.main import get_command

from hscc_edge.bundle import read_bundle
from hscc_edge.cli import app
from hscc_edge.errors import CohortError, InputError
from hscc_edge.model.decision import Decision, parse_rule
from hscc_edge.model.head import Head
from hscc_edge.validate.familiarity import FOREIGN, alarms, case_energy, limit
from hscc_edge.validate.predict import Case

HEAD = Head("softmax", ("a", "b"))


def cases(count, seed=0):
    logits = np.random.default_rng(seed).normal(0, 3, (count, 1, 2)).astype(np.float32)
    return [Case(str(i), str(i), "a", Decision("a", (0.5, 0.5), 1), row) for i, row in enumerate(logits)]


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5])
def test_the_limit_turns_away_no_more_than_was_allowed_and_nearly_that(share):
    found = cases(400)
    bound = limit(found, HEAD, share)
    beyond = sum(case_energy(case, HEAD) > bound for case in found)
    assert share * 400 - 1 <= beyond <= share * 400


def test_false_alarms_on_new_cases_are_near_the_rate_that_was_allowed():
    found = alarms(cases(4000, 1), HEAD, limit(cases(4000), HEAD, 0.05))
    assert found.low < 0.05 < found.high


def test_too_few_cases_for_a_rate_are_refused():
    with pytest.raises(CohortError, match="has 50 cases: a false-alarm rate of 1 % needs 100"):
        limit(cases(50), HEAD, 0.01)


@pytest.fixture(scope="module")
def fitted(dense, phantom, tmp_path_factory):
    out = tmp_path_factory.mktemp("fitted") / "bundle"
    shutil.copytree(dense, out)
    words = ["calibrate", out, "--cohort", phantom.root, "--split", "val", "--false-alarms", "30", "--json"]
    return out, words


def test_what_is_fitted_is_kept_and_obeyed(fitted, dense, phantom, capsys):
    out, words = fitted
    before = read_bundle(out)
    with pytest.raises(CohortError, match="needs 20"):
        get_command(app).main([str(word) for word in words], standalone_mode=False)
    assert read_bundle(out).digest == before.digest
    words[words.index("val")] = "train"
    get_command(app).main([str(word) for word in words], standalone_mode=False)
    printed, after = json.loads(capsys.readouterr().out), read_bundle(out)
    rule = parse_rule(after.spec.decision)
    assert after.spec.version == before.spec.version + 1 and after.digest == printed["digest"] != before.digest
    assert rule.temperature == printed["temperature"] > 0 and rule.energy_limit == printed["energy_limit"]
    first, second = printed["log_loss"]
    assert second <= first and printed["false_alarms"]["count"] <= 0.3 * printed["false_alarms"]["of"]
    assert [item["kind"] for item in printed["caught"]] == list(FOREIGN)
    assert json.loads((out / "reports/calibration.json").read_text())["temperature"] == rule.temperature


def test_nothing_is_fitted_on_test(dense, phantom):
    words = ["calibrate", str(dense), "--cohort", str(phantom.root), "--split", "test"]
    with pytest.raises(InputError, match="split to fit on is test"):
        get_command(app).main(words, standalone_mode=False)
