"""Contracts: the strongest compression that holds, refusals that name the nearest, and jobs on the command line."""

import dataclasses
import json

import commandline
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hscc_edge.bundle import read_bundle
from hscc_edge.compress.compression import Compressed
from hscc_edge.compress.contract import Contract, cases_needed, check_contract, judge_of, strongest
from hscc_edge.errors import BudgetError, GateError, InputError
from hscc_edge.model.plan import Plan, parse_plan
from hscc_edge.validate.compare import Comparison
from hscc_edge.validate.noninferiority import judge
from hscc_edge.validate.paired import Pairs, interval

RUN = ["compress", "{dense}", "--cohort", "{cohort}", "--images", "32"]


def comparison(kl: float, difference: float = 0.0, low: float = 0.0, only: int = 0, cases: int = 100) -> Comparison:
    pairs = Pairs(0, only, cases, cases)
    return Comparison(difference, low, 0.0, cases, cases, only, 0, 1.0, 1.0, kl, 0.0, 1.0, 0, 0, 0.0, 0.0, None, pairs)


class Tries:
    """Networks whose KL is the square of the budget's ratio over 100; nothing beyond `reach`."""

    def __init__(self, reach: float = 1e9) -> None:
        self.reach, self.ratio, self.count = reach, 0.0, 0

    def attempt(self, budget):
        self.count += 1
        if budget.amount > self.reach:
            raise BudgetError("out of reach")
        self.ratio = budget.amount
        return Compressed(nn.Identity(), Plan("hscc", str(budget), ()))

    def judge(self, network):
        return comparison(self.ratio**2 / 100, difference=-self.ratio / 100, low=-self.ratio / 50)


@given(limit=st.floats(0.02, 200.0), reach=st.floats(1.2, 300.0))
@settings(max_examples=60, deadline=None)
def test_the_largest_ratio_that_holds_is_found(limit, reach):
    tries = Tries(reach)
    best = min((100 * limit) ** 0.5, reach, 256.0)
    found = strongest(tries.attempt, Contract(max_kl=limit), tries.judge)
    ratio = float(found.plan.budget.rpartition("flops=")[2].rstrip("x"))
    assert ratio <= best * (1 + 1e-4) and ratio >= best / 1.035
    assert tries.count < 20 and len(found.facts["trials"]) >= 1


def test_a_bound_is_stricter_than_a_point():
    point, bound = (
        strongest(tries.attempt, Contract(max_drop=10.0, confidence=confidence), tries.judge)
        for tries, confidence in ((Tries(), None), (Tries(), 95.0))
    )
    ratios = [float(found.plan.budget.rpartition("flops=")[2].rstrip("x")) for found in (point, bound)]
    assert ratios[0] == pytest.approx(10, rel=0.04) and ratios[1] == pytest.approx(5, rel=0.04)


def test_nothing_holds_is_a_gate_with_the_nearest():
    tries = Tries()
    with pytest.raises(GateError, match=r"the nearest, flops=1\.[0-9]+x, has KL 0\.01") as told:
        strongest(tries.attempt, Contract(max_kl=0.001), tries.judge)
    assert told.value.exit_code == 1


def test_cases_needed_fall_with_room():
    few, many = (cases_needed(comparison(0, -0.01, only=1), drop, 95.0) for drop in (5.0, 2.0))
    assert many > few > 0
    assert cases_needed(comparison(0, -0.02, only=2), 1.0, 95.0) == 0
    # no discordant case in 100: three in a hundred is the upper bound; the score test needs a tenth more
    assert 1 < cases_needed(comparison(0), 1.0, 95.0) / (1.96**2 * 0.03 / 0.01**2) < 1.15


def test_a_contract_is_the_gate_of_validation():
    """What --max-drop lets pass, validate --margin calls non-inferior, and nothing else."""
    rng = np.random.default_rng(0)
    for gain, loss, cases in rng.integers((0, 0, 60), (8, 12, 900), size=(200, 3)).tolist():
        pairs = Pairs(gain, loss, cases, cases)
        low, high = interval(pairs)
        found = dataclasses.replace(comparison(0), difference=pairs.difference, low=low, high=high, pairs=pairs)
        holds = Contract(max_drop=1.5, confidence=95.0).holds(found)
        assert holds == (judge(pairs, 0.015).word == "NON-INFERIOR")


def test_the_test_split_is_not_searched_on(dense, phantom):
    bundle = read_bundle(dense)
    with pytest.raises(InputError, match="could then prove nothing"):
        judge_of(bundle, nn.Identity(), phantom)


@pytest.mark.parametrize(
    "contract", [Contract(), Contract(confidence=95), Contract(max_drop=-1), Contract(max_kl=0.1, confidence=101)]
)
def test_senseless_contracts_are_refused(contract):
    with pytest.raises(InputError):
        check_contract(contract)


@pytest.fixture
def run(dense, phantom, monkeypatch, capsys):
    """The exit code and what the verb printed."""

    def call(*words):
        filled = [word.format(dense=dense, cohort=phantom.root) for word in RUN]
        return commandline.run(monkeypatch, capsys, *filled, *words)

    return call


def test_a_contract_ends_in_a_bundle_or_a_gate(run, tmp_path):
    code, out, err = run("--max-kl", "0.05", "--no-refit", "--out", tmp_path / "small", "--json")
    told = json.loads(out)
    assert code == 0 and told["facts"]["validation"] == "val"
    held = [trial for trial in told["facts"]["trials"] if trial["holds"]]
    assert max(trial["kl"] for trial in held) <= 0.05
    assert told["dense_flops"] / told["flops"] > 1
    code, out, err = run("--max-kl", "0", "--method", "svd", "--no-refit", "--out", tmp_path / "no")
    assert code == 1 and "no compression holds" in err and not (tmp_path / "no").exists()


def test_a_plan_is_applied_again_and_edited(run, tmp_path):
    code, out, err = run("--budget", "flops=3x", "--out", tmp_path / "small", "--json")
    assert code == 0
    told = json.loads(out)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(told["plan"]))
    code, _, _ = run("--plan", path, "--out", tmp_path / "again")
    first, second = (read_bundle(tmp_path / name) for name in ("small", "again"))
    assert code == 0 and first.spec.plan == second.spec.plan
    edited = json.loads(path.read_text())
    edited["layers"][0]["shape"] = "1x1"
    path.write_text(json.dumps(edited))
    code, out, err = run("--plan", path, "--out", tmp_path / "other")
    assert code == 2 and "another network" in err
    assert parse_plan(told["plan"]).layers


def test_moves_never_end_worse(run, tmp_path):
    code, out, _ = run("--budget", "flops=4x", "--moves", "6", "--no-refit", "--out",
                     tmp_path / "small", "--json")  # fmt: skip
    moves = json.loads(out)["facts"]["moves"]
    assert code == 0 and moves["last_kl"] <= moves["first_kl"] and moves["evaluations"] <= 6
