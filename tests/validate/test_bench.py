"""`bench`: what was not measured is named; percentiles against their definition; every node's time has its layer."""

import json
import math

import commandline
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hscc_edge.bundle import read_bundle
from hscc_edge.errors import BundleError, InputError
from hscc_edge.export.onnx import export_onnx
from hscc_edge.validate import bench, profile
from hscc_edge.validate.latency import ROUNDS, SWEEPS, _by_share, medians, medians_between, percentile, sample
from hscc_edge.validate.scenarios import SCENARIOS, play, queries, scenario_of


class Fake:
    """Answers at once; refuses batches over `largest`."""

    def __init__(self, name="fake", largest=1024):
        self.name, self.largest, self.sizes = name, largest, []

    def infer(self, images):
        if len(images) > self.largest:
            raise InputError("too many images")
        self.sizes.append(len(images))
        return images

    def close(self):
        """Nothing to close."""


IMAGES = [np.full((1, 2, 2), value, np.float32) for value in range(3)]


def test_a_percentile_s_interval_holds_the_truth_as_often_as_it_says():
    draws, truth = np.random.default_rng(1), math.log(10)
    held = [
        found.low_ms <= truth <= found.high_ms
        for found in (percentile(draws.exponential(size=60), 0.9) for _ in range(600))
        if found.high_ms is not None
    ]
    assert len(held) == 600 and 0.94 < np.mean(held) < 0.99


@given(st.integers(1, 800), st.sampled_from([0.5, 0.9, 0.99]))
@settings(deadline=None, max_examples=60)
def test_too_few_samples_give_no_percentile(count, share):
    found = percentile(np.arange(count, dtype=float), share)
    assert (found.ms is None) == (count < found.needed) == (found.high_ms is None)
    assert found.needed == {0.5: 6, 0.9: 36, 0.99: 368}[share]
    if found.ms is not None and found.low_ms is not None:
        assert found.low_ms <= found.ms <= found.high_ms


def test_runtimes_take_turns_on_the_same_batches():
    calls = []

    class Noting(Fake):
        def infer(self, images):
            calls.append((self.name, float(images.flat[0])))
            return images

    first, second = sample((Noting("a"), Noting("b")), [image[None] for image in IMAGES], 0, least=6)
    lead, rest = ["a"], ["a", "b", "b", "b", "a", "a"]  # the first call after the other's goes untimed
    assert [name for name, _ in calls] == lead + rest * 3 and len(first) == len(second) == 6
    assert [value for _, value in calls[1::6]] == [0, 1, 2]


def test_medians_interleave_and_keep_their_order():
    fast, slow = Fake("fast"), Fake("slow")
    slow.infer = lambda images: np.linalg.eigvalsh(np.ones((90, 90)))
    low, high = medians([(fast, IMAGES[0]), (slow, IMAGES[0])], own_clock=True)
    assert 0 <= low < high


def test_a_machine_that_drifts_changes_no_share():
    drift = np.array([1.0, 1.3, 0.8, 1.9, 1.1])[:, None]
    assert _by_share(drift * [20.0, 5.0, 1.0]) == pytest.approx([22.0, 5.5, 1.1])


def test_layers_are_called_between_others_and_never_twice_in_a_row():
    calls = []

    class Noting(Fake):
        def infer(self, images):
            calls.append(self.name)

    whole, *others = (Noting(name) for name in "wabc")
    first, rest = medians_between((whole, IMAGES[0]), [(other, IMAGES[0]) for other in others], own_clock=True)
    assert first >= 0 and len(rest) == 3
    sweeps = "".join(calls).replace("w", " ").split()
    assert sweeps == ["abc" * (1 + SWEEPS)] * ROUNDS


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_hands_over_its_queries_and_says_what_it_cannot(name):
    runtime = Fake()
    found = play(scenario_of(name), (runtime,), IMAGES, 0)
    (side,) = found.sides
    assert set(runtime.sizes) == {found.scenario.images} and side.samples == len(side.samples_ms) == 20
    assert side.images_s_low <= side.images_s <= side.images_s_high and found.speedup is None
    assert ("too few" in found.remark) == (found.scenario.share is not None)


def test_a_batch_that_does_not_fit_is_not_run():
    found = play(scenario_of("burst"), (Fake(largest=1),), IMAGES, 0)
    assert found.sides == () and found.remark.startswith("not run: ")
    with pytest.raises(InputError, match="single, burst, backlog"):
        scenario_of("offline")


def test_a_query_begins_with_another_image_each_time():
    found = queries(IMAGES, 4)
    assert [batch[:, 0, 0, 0].tolist() for batch in found] == [[0, 1, 2, 0], [1, 2, 0, 1], [2, 0, 1, 2]]


class Net(nn.Module):
    """Two convolutions and a Linear; `thin` factorises the second as own factors per half would."""

    def __init__(self, thin=False):
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Sequential(nn.Conv2d(16, 4, 3), nn.Conv2d(4, 16, 1)) if thin else nn.Conv2d(16, 16, 3)
        self.head = nn.Linear(16, 3)
        self.thin = thin

    def forward(self, x):
        x = torch.relu(self.first(x))
        parts = (x[:, :, :7], x[:, :, 5:]) if self.thin else (x,)
        x = torch.relu(torch.cat([self.second(part) for part in parts], dim=2))
        return self.head(x.mean((2, 3)))


def test_every_node_s_time_goes_to_the_layer_that_it_belongs_to(tmp_path):
    paths = []
    for thin in (False, True):
        paths.append(tmp_path / f"{thin}.onnx")
        paths[-1].write_bytes(export_onnx(Net(thin).eval(), (1, 12, 12)))
    layers = profile.layer_names(paths[0])
    assert layers == ("first", "second", "head")
    owners = profile.graph_layers(paths[1], layers)
    assert set(owners.values()) == set(layers)
    runs = profile.run_profiled(paths, [np.ones((1, 12, 12), np.float32)], 1)
    dense, thin = (profile.nodes_of(path, part, layers) for path, part in zip(paths, runs, strict=True))
    slices = [node.layer for node in thin if node.operation == "Slice"]
    assert len(slices) == 2 and set(slices) == {"second"}
    assert {node.layer for node in dense} == set(layers)
    table = profile.compare_layers(dense, thin)
    assert [row.name for row in table] == list(layers)
    assert sum(row.candidate_ms for row in table) == pytest.approx(sum(node.ms for node in thin))


@pytest.fixture(scope="module")
def found(dense, phantom):
    bundle = read_bundle(dense)
    asked = bench.Conditions((scenario_of("single"),), seconds=0, profile=True)
    reports = []

    def make(bundle, paths, decision):
        reports.append((len(paths), decision.label))
        return b"a report"

    return bench.measure(asked, bundle, bundle, phantom.select("test"), make), reports


def test_a_bench_holds_all_that_makes_it_reproducible(found, phantom):
    result, reports = found
    facts = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert facts["bundles"][0]["digest"] == facts["bundles"][1]["digest"] and facts["conditions"]["precision"] == "fp32"
    assert {"date", "machine", "versions"} <= facts["machine"].keys()
    settings = {"power_mode", "governors", "available_mib", "celsius", "megahertz"}
    assert settings == facts["before"].keys() == facts["after"].keys() and facts["throttled"] == []
    (single,) = facts["outcomes"]
    assert all(len(side["samples_ms"]) == side["samples"] for side in single["sides"]) and len(single["sides"]) == 2
    assert all(start["process_s"] > start["load_s"] > 0 for start in facts["start_up"])
    assert facts["profiles"]["layers"][0]["name"] == "features.0"
    assert "a GPU: not run" in facts["not_run"]
    text = json.dumps(facts)
    assert not any(secret in text for item in phantom.instances for secret in (item.patient, item.sop))
    whole = facts["end_to_end"][0]
    assert whole["unit"] == "study" and whole["images"] == 3 * whole["cases"]
    assert len(reports) >= 10 and {count for count, _ in reports} == {3}


def test_bundles_of_unlike_images_are_not_compared(dense):
    bundle = read_bundle(dense)

    class Other:
        root = "other"

        class spec:
            input_shape = (3, 8, 8)

    with pytest.raises(BundleError, match="take images of"):
        bench.measure(bench.Conditions(()), bundle, Other())


def test_the_verb_prints_one_object_and_names_what_it_did_not_run(dense, phantom, tmp_path, monkeypatch, capsys):
    words = ["bench", dense, "--seconds", 0, "--scenario", "single,burst", "--cohort", phantom.root,
             "--out", tmp_path / "b.json", "--json"]  # fmt: skip
    code, out, _ = commandline.run(monkeypatch, capsys, *words)
    printed = json.loads(out)
    assert code == 0 and json.loads((tmp_path / "b.json").read_text()) == printed
    assert [item["scenario"]["name"] for item in printed["outcomes"]] == ["single", "burst"]
    assert printed["end_to_end"][0]["stages_ms"]["report"] > 0
    for words in ("no --reference was given", "--profile was not given"):
        assert any(words in line for line in printed["not_run"])
    code, out, _ = commandline.run(monkeypatch, capsys, "bench", dense, "--seconds", 0, "--scenario", "single")
    assert code == 0 and "too few" in out and "no cohort was given" in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["bench"], "no bundle was given"),
        (["bench", "x", "--threads", "0"], "--threads is 0"),
        (["bench", "--layers", "x"], "give --out TABLE"),
        (["bench", "--layers", "x", "--out", "t.json", "--runtime", "eager"], "candidates are timed by ort"),
        (["bench", "--layers", "x", "--out", "t.json", "--precision", "fp16"], "candidates are FP32 graphs"),
        (["bench", "--layers", "x", "--out", "t.json"], "holds no index.json"),
    ],
)
def test_mistakes_are_one_sentence(words, expected, monkeypatch, capsys):
    code, _, err = commandline.run(monkeypatch, capsys, *words)
    assert code == 2 and expected in err and len(err.strip().splitlines()) == 1
