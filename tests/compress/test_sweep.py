"""A sweep is whole after any interruption, several workers share it, and its front is what the definition says."""

import dataclasses
import json
import os
import re
import signal
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from torch import nn
from typer.main import get_command

from hscc_edge.bundle import WEIGHTS, read_bundle, write_bundle
from hscc_edge.cli import app
from hscc_edge.compress import METHODS
from hscc_edge.compress.front import front_of, pareto
from hscc_edge.compress.front_page import render
from hscc_edge.compress.problem import Settings
from hscc_edge.compress.sweep import Sweep, processes, run_sweep
from hscc_edge.compress.sweep_recipe import completed, point_of, read_sweep
from hscc_edge.compress.sweep_study import JOURNAL, Studies, claim, draw, open_studies, record, refuse, worker_name
from hscc_edge.compress.sweep_trial import splits_of
from hscc_edge.errors import BudgetError, ConfigError, HsccError, InputError
from hscc_edge.model.load import weights_of
from hscc_edge.model.zoo import build_network

RECIPE = """
name = "tiny"
methods = ["hscc", "svd"]
budgets = ["flops=2x", "flops=1000x"]
seeds = [0]
objectives = ["kl", "flops", "latency"]
[settings]
images = 16
cells = "2x2"
structures = "one-region,shared-reduce,own-factors"
refit = false
[search]
method = "hscc"
trials = 4
[search.space]
regions = [1, 4]
damping = { low = 1e-4, high = 1e-1, log = true }
"""
WANTED = {f"{method} flops={ratio}x seed 0" for method in ("hscc", "svd") for ratio in (2, 1000)}
WANTED |= {f"search {number}" for number in range(4)}
FACTS = {"bundle": "b", "cohort": "c"}
ROOT = Path(__file__).resolve().parents[2]


def written(folder: Path, text: str = RECIPE) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def told(out: Path, recipe: Path) -> list[optuna.trial.FrozenTrial]:
    """Complete and refused trials on disk."""
    trials = open_studies(out, read_sweep(recipe), {}).trials(TrialState.COMPLETE, TrialState.FAIL)
    return [trial for trial in trials if trial.state == TrialState.COMPLETE or "refused" in trial.user_attrs]


@pytest.fixture(scope="module")
def alive(tmp_path_factory, dense) -> Path:
    """The bundle half as wide, with random weights: a second of training leaves it nearly dead, whatever the image."""
    spec = read_bundle(dense).spec
    spec = dataclasses.replace(spec, network={**spec.network, "args": {**spec.network["args"], "width": 0.125}})
    network = build_network(spec.network["name"], spec.input_shape[0], len(spec.labels), spec.network["args"])
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    out = tmp_path_factory.mktemp("alive") / "bundle"
    write_bundle(out, spec, {WEIGHTS: weights_of(network)})
    return out


@pytest.fixture(scope="module")
def killed(tmp_path_factory, alive, phantom) -> tuple[Path, Path, list[optuna.trial.FrozenTrial]]:
    """A sweep whose process was killed in the middle: (out, recipe, what was done)."""
    folder = tmp_path_factory.mktemp("killed")
    out, recipe = folder / "out", written(folder)
    process = processes().Process(target=run_sweep, args=(Sweep(read_sweep(recipe), alive, phantom.root, out),))
    process.start()
    journal, end = out / JOURNAL, time.monotonic() + 300
    finished = re.compile(rb'"op_code":6,[^\n]*"state":[13]')
    while time.monotonic() < end and process.is_alive():
        if journal.is_file() and len(finished.findall(journal.read_bytes())) >= 2:
            break
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    done = told(out, recipe)
    assert 2 <= len(done) < len(WANTED)
    return out, recipe, done


@pytest.fixture(scope="module")
def swept(killed, alive, phantom) -> tuple[Path, Path]:
    """The same sweep, gone on with by two workers."""
    out, recipe, _ = killed
    run_sweep(Sweep(read_sweep(recipe), alive, phantom.root, out), workers=2)
    return out, recipe


def test_every_wanted_trial_is_there_once_after_a_kill(killed, swept):
    out, recipe, before = killed
    after = told(out, recipe)
    assert Counter(trial.user_attrs["wanted"] for trial in after) == Counter(WANTED)
    kept = {(trial.user_attrs["wanted"], trial.user_attrs.get("worker"), trial.datetime_complete) for trial in after}
    assert {(t.user_attrs["wanted"], t.user_attrs.get("worker"), t.datetime_complete) for t in before} <= kept
    workers = {trial.user_attrs["worker"] for trial in after}
    assert 2 <= len(workers) <= 3 and not list((out / "workers").iterdir())
    assert not (out / "statistics").exists()


def test_a_second_run_does_nothing_more(swept, alive, phantom):
    out, recipe = swept
    lines = (out / JOURNAL).read_bytes().count(b"\n")
    before = json.loads((out / "front.json").read_text())
    front = run_sweep(Sweep(read_sweep(recipe), alive, phantom.root, out))
    studies = sum(b'"op_code":0' in line for line in (out / JOURNAL).read_bytes().splitlines()[lines:])
    assert (out / JOURNAL).read_bytes().count(b"\n") == lines + studies
    assert json.loads((out / "front.json").read_text())["entries"] == before["entries"] and front.left == 0


def test_the_front_is_what_its_definition_says(swept):
    front = json.loads((swept[0] / "front.json").read_text())
    assert front["objectives"] == ["kl", "flops", "latency"] and {entry["name"] for entry in front["entries"]} == WANTED
    measured = [entry for entry in front["entries"] if entry["outcome"]]
    for entry in measured:
        own = [entry["outcome"][name] for name in front["objectives"]]
        others = [[other["outcome"][name] for name in front["objectives"]] for other in measured]
        beaten = any(
            all(a <= b for a, b in zip(other, own, strict=True)) and any(a < b for a, b in zip(other, own, strict=True))
            for other in others
        )
        assert entry["pareto"] is not beaten
    assert any(entry["pareto"] for entry in measured)


def test_outcomes_are_measured_and_refusals_give_their_reason(swept):
    front = json.loads((swept[0] / "front.json").read_text())
    for entry in front["entries"]:
        if entry["budget"] == "flops=1000x":
            assert entry["outcome"] is None and "out of reach" in entry["refused"] and not entry["pareto"]
            continue
        outcome = entry["outcome"]
        assert 0 < outcome["flops"] <= 0.5 and outcome["bytes"] == pytest.approx(outcome["params"], rel=0.1)
        assert outcome["params"] < 1 or entry["params"]["regions"] > 1  # each region has factors of its own
        assert outcome["kl"] > 1e-6 and outcome["latency"] > 0 and outcome["latency_ms"] > 0
    grid, search = ([e for e in front["entries"] if e["stage"] == stage] for stage in ("grid", "search"))
    assert {(entry["params"]["damping"], entry["params"]["refit"]) for entry in grid} == {(1e-3, False)}
    assert len({entry["params"]["damping"] for entry in search}) > 1
    assert front["facts"]["judged"].startswith("val, ") and "optuna" in front["facts"]["versions"]


def test_the_page_stands_alone(swept):
    page = (swept[0] / "front.html").read_text()
    assert "http" not in re.sub(r"http://www\.w3\.org/\S*", "", page)
    assert "<script" not in page and "<link" not in page and " src=" not in page
    assert page.count("<svg") >= 2 and "KL against latency" in page and "out of reach" in page


def test_another_recipe_bundle_or_cohort_is_refused_but_more_trials_are_not(tmp_path):
    recipe = read_sweep(written(tmp_path))
    assert open_studies(tmp_path / "out", recipe, FACTS).left() == len(WANTED)
    other = read_sweep(written(tmp_path, RECIPE.replace("flops=2x", "flops=3x")))
    with pytest.raises(ConfigError, match="another recipe"):
        open_studies(tmp_path / "out", other, FACTS)
    with pytest.raises(ConfigError, match="another bundle"):
        open_studies(tmp_path / "out", recipe, {**FACTS, "bundle": "x"})
    more = read_sweep(written(tmp_path, RECIPE.replace("trials = 4", "trials = 6")))
    assert open_studies(tmp_path / "out", more, FACTS).left() == len(WANTED) + 2


def test_a_torn_line_is_dropped(tmp_path):
    recipe = read_sweep(written(tmp_path))
    open_studies(tmp_path / "out", recipe, FACTS)
    journal = tmp_path / "out" / JOURNAL
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":4,"worker_id":"w')
    assert open_studies(tmp_path / "out", recipe, FACTS).left() == len(WANTED)
    assert journal.read_bytes().startswith(whole) and b'"worker_id":"w' not in journal.read_bytes()


def test_the_lock_of_a_killed_process_holds_nobody_up(tmp_path, monkeypatch):
    recipe = read_sweep(written(tmp_path))
    open_studies(tmp_path / "out", recipe, FACTS)
    (tmp_path / "out" / f"{JOURNAL}.lock").touch()
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits"))
    assert open_studies(tmp_path / "out", recipe, FACTS).left() == len(WANTED)


def test_a_dead_workers_trial_is_queued_anew_as_it_was_drawn_and_a_live_ones_is_not(tmp_path):
    recipe = read_sweep(written(tmp_path, RECIPE.replace('["hscc", "svd"]', '["svd"]')))
    studies = open_studies(tmp_path / "out", recipe, FACTS)
    with worker_name(tmp_path / "out") as live:
        claims = [claim(studies, live, "") for _ in range(2)]
        assert [study.study_name for study, _ in claims] == ["grid", "grid"]
        study, trial = claim(studies, "dead", "")
        point = draw(studies, trial)
        again = open_studies(tmp_path / "out", recipe, FACTS)
        states = Counter(item.state for item in again.trials())
        assert states == {TrialState.RUNNING: 2, TrialState.FAIL: 1, TrialState.WAITING: 4}
        names = Counter(item.user_attrs["wanted"] for item in again.trials(TrialState.WAITING, TrialState.RUNNING))
        assert max(names.values()) == 1 and len(names) == 6
        found = [claim(again, live, "") for _ in range(4)]
        assert claim(again, live, "") is None
        (same,) = [item for _, item in found if item.user_attrs["wanted"] == trial.user_attrs["wanted"]]
        assert study.study_name == "search" and draw(again, same) == point


def test_a_worker_keeps_to_what_it_holds_and_another_takes_what_is_free(tmp_path):
    recipe = read_sweep(written(tmp_path, RECIPE.replace("seeds = [0]", "seeds = [0, 1]")))
    studies = open_studies(tmp_path / "out", recipe, FACTS)
    with ExitStack() as stack:
        first, second = (stack.enter_context(worker_name(tmp_path / "out")) for _ in range(2))
        families: dict[str, list[str]] = {first: [], second: []}
        for worker in (first, second, first, second):
            _, trial = claim(studies, worker, (families[worker] or [""])[-1])
            families[worker].append(trial.user_attrs["family"])
    assert families == {first: ["hscc 0"] * 2, second: ["hscc 1"] * 2}


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Studies:
    """A sweep with invented outcomes: KL is the budget's times one that depends on regions alone."""
    tmp_path = tmp_path_factory.mktemp("filled")
    text = RECIPE.replace("trials = 4", "trials = 24").replace("1000x", "6x")
    text = text.replace("regions = [1, 4]", "regions = [1, 4, 9]")
    studies = open_studies(tmp_path / "out", read_sweep(written(tmp_path, text)), FACTS)
    with worker_name(tmp_path / "out") as worker:
        while (claimed := claim(studies, worker, "")) is not None:
            study, trial = claimed
            point = draw(studies, trial)
            if point.method == "svd" and point.budget == "flops=6x":
                refuse(study, trial, "out of reach")
                continue
            ratio = float(point.budget[len("flops=") : -1])
            kl = 1e-3 * ratio**2 / point.settings.regions
            outcome = {"kl": kl, "kl_se": 0.0, "accuracy": 0.0, "flops": 1 / ratio, "params": 0.5, "bytes": 0.5,
                       "latency": 0.5, "latency_ms": 1.0, "seconds": 0.1}  # fmt: skip
            record(study, trial, outcome, ("kl", "flops", "latency"))
    return studies


def test_importance_finds_the_hyper_parameter_that_decides(filled):
    facts = {"bundle": "b", "judged": "val", "bundle_digest": "b", "cohort_digest": "c", "workers": 1}
    front = front_of(filled, facts)
    assert front.importances["kl"]["regions"] > 0.9
    assert sum(front.importances["kl"].values()) == pytest.approx(1)
    ratios = {effect.value: effect.ratio for effect in front.effects if effect.name == "regions"}
    assert set(ratios) <= {"1", "4", "9"} and ratios["1"] > ratios["4"] > ratios["9"]
    assert ratios["1"] / ratios["9"] == pytest.approx(9, rel=0.3)
    assert {(item.method, item.budget) for item in front.averages} == {
        ("hscc", "flops=2x"), ("hscc", "flops=6x"), ("svd", "flops=2x")
    }  # fmt: skip
    assert "What matters among the hyper-parameters" in render(front)


def test_every_budget_is_searched_alike(filled):
    counts = Counter(trial.params["budget"] for trial in filled.search.get_trials())
    assert counts == {"flops=2x": 12, "flops=6x": 12}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), max_size=12))
def test_pareto_is_the_definition(rows):
    expected = [
        not any(all(a <= b for a, b in zip(o, r, strict=True)) and o != r for o in rows) for r in rows
    ]  # fmt: skip
    assert pareto(rows) == expected


MISTAKES = [
    ('name = "tiny"', 'name = "tiny"\nepochs = 3', "unknown key 'epochs'"),
    ("trials = 4", "trials = 4\nbudget = 3", r"unknown key 'budget' in \[search\]"),
    ("trials = 4", "", r"lacks the key 'trials' in \[search\]"),
    ("log = true", "logarithmic = true", "unknown key 'logarithmic'"),
    ("regions = [1, 4]", "region = [1, 4]", "unknown hyper-parameter 'region'"),
    ("images = 16", "image = 16", "unknown hyper-parameter 'image'"),
    ("regions = [1, 4]", "regions = [0, 4]", "regions = 0: expected 1 or more"),
    ("regions = [1, 4]", "regions = [4, 4]", "different values"),
    ("low = 1e-4", "low = 0.2", "low first"),
    ("regions = [1, 4]", "cells = { low = 1, high = 2 }", "expected a list"),
    ("regions = [1, 4]", 'structures = ["one-region,fancy"]', "structures = 'one-region,fancy'"),
    ('cells = "2x2"', 'cells = "2 by 2"', "rows x columns"),
    ('"latency"]', '"speed"]', "objective 'speed'"),
    ('["kl", "flops", "latency"]', '["kl"]', "one objective"),
    ("seeds = [0]", "seeds = 0", "seeds = 0"),
    ('methods = ["hscc", "svd"]', 'methods = "hscc"', "methods = 'hscc'"),
    ("trials = 4", 'trials = 4\nsampler = "grid"', "sampler = 'grid'"),
]


@pytest.mark.parametrize(("old", "new", "message"), MISTAKES, ids=[item[2] for item in MISTAKES])
def test_a_bad_recipe_is_one_sentence(tmp_path, old, new, message):
    assert RECIPE.count(old) == 1
    with pytest.raises(ConfigError, match=message) as caught:
        read_sweep(written(tmp_path, RECIPE.replace(old, new)))
    assert "\n" not in str(caught.value)


def test_unknown_methods_and_budgets_are_refused(tmp_path):
    with pytest.raises(InputError, match="the method 'svt' is unknown"):
        read_sweep(written(tmp_path, RECIPE.replace('"svd"', '"svt"')))
    with pytest.raises(BudgetError, match="is not understood"):
        read_sweep(written(tmp_path, RECIPE.replace("flops=2x", "flop=2x")))
    with pytest.raises(ConfigError, match="does not exist"):
        read_sweep(tmp_path / "absent.toml")


@pytest.mark.parametrize("path", sorted((ROOT / "calibration" / "recipes").glob("sweep-*.toml")), ids=lambda p: p.stem)
def test_the_recipes_that_we_ship_are_read(path):
    recipe = read_sweep(path)
    assert recipe.search is not None and set(recipe.methods) <= set(METHODS)


def test_all_methods_are_those_of_the_registry(tmp_path):
    recipe = read_sweep(written(tmp_path, RECIPE.replace('["hscc", "svd"]', '["all"]')))
    assert recipe.methods == tuple(METHODS)


def test_defaults_are_those_of_compress():
    point = point_of("hscc", "flops=6x", 3, {})
    assert point.settings == Settings(seed=3) and point.refit and point.images == 512
    assert completed("paper", {})["refit"] is False


def test_the_test_split_is_never_seen(phantom):
    source, judged, name = splits_of(phantom)
    assert {item.split for item in source.instances} == {"train"} and name == "val"
    assert {item.split for item in judged.instances} == {"val"}
    left = tuple(item for item in phantom.instances if item.split != "val")
    source, judged, name = splits_of(dataclasses.replace(phantom, instances=left))
    assert {item.split for item in (*source.instances, *judged.instances)} == {"train"} and name != "val"
    patients = [{item.patient for item in part.instances} for part in (source, judged)]
    assert all(patients) and not patients[0] & patients[1]
    assert np.isclose(len(patients[1]), sum(map(len, patients)) / 3, atol=3)


def test_the_verb_prints_one_object_and_goes_on(dense, phantom, tmp_path, capsys):
    text = (
        RECIPE.replace('"latency"]', '"bytes"]')
        .replace('["hscc", "svd"]', '["svd"]')
        .replace("trials = 4", "trials = 0")
    )
    words = ["sweep", str(dense), "--recipe", str(written(tmp_path, text)), "--cohort", str(phantom.root),
             "--out", str(tmp_path / "out"), "--trials", "1", "--json"]  # fmt: skip
    for left in (1, 0):
        get_command(app).main(words, standalone_mode=False)
        streams = capsys.readouterr()
        found = json.loads(streams.out)
        assert found["left"] == left and streams.out.count("\n") == 1 and not streams.err
    assert found["measured"] == 1 and found["refused"] == 1 and found["pareto"] == ["svd flops=2x seed 0"]
    assert json.loads(Path(found["front"]).read_text())["entries"][0]["outcome"]["latency"] is None


@pytest.mark.parametrize("words", [["--workers", "0"], ["--trials", "0"]], ids=" ".join)
def test_counts_below_one_are_refused(dense, phantom, tmp_path, words):
    command = ["sweep", str(dense), "--recipe", str(written(tmp_path)), "--cohort", str(phantom.root), "--out",
               str(tmp_path / "out"), *words]  # fmt: skip
    with pytest.raises(HsccError, match="expected 1 or more"):
        get_command(app).main(command, standalone_mode=False)
    assert not os.path.exists(tmp_path / "out")
