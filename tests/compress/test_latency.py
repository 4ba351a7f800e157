"""Milliseconds: tables keep their order, graphs of layers are the layers, and a budget is met when measured."""

import dataclasses
import json
import math
import shutil

import commandline
import numpy as np
import onnxruntime
import pytest
import torch
from small import prepared, small_network, smooth_images
from torch import nn

from hscc_edge.compress import METHODS, job, latency
from hscc_edge.compress.allocate import Budget
from hscc_edge.compress.candidates import family, write_candidates
from hscc_edge.compress.cost import layer_shapes
from hscc_edge.compress.layer_graph import layer_graph
from hscc_edge.compress.problem import dense_option, layer_plan
from hscc_edge.errors import BudgetError, ConfigError
from hscc_edge.export.onnx import export_onnx
from hscc_edge.model.layers import factorised
from hscc_edge.validate import layer_times

ALL = ("one-region", "shared-reduce", "own-factors", "separable", "tucker-2", "clustered")


@pytest.fixture(scope="module")
def found():
    return prepared(small_network(), structures=ALL, clusters=2)


@pytest.fixture(scope="module")
def timed(found):
    image = smooth_images(1, 0)[0].numpy()
    dense = export_onnx(found.problem.network, image.shape)
    return latency.time_candidates(found.problem, found.proposal, dense, image), dense, image


@pytest.mark.parametrize("structure", ["dense", *ALL])
def test_a_layer_s_graph_computes_the_layer(found, structure):
    entry = found.proposal.candidates["features.5"]
    option = next(option for option in entry.options if option.structure == structure)
    shape = next(shape for shape in found.problem.shapes if shape.name == "features.5")
    dense = found.problem.network.get_submodule("features.5")
    module = nn.Sequential(factorised(dense, layer_plan(shape, option, dense_option(shape))), nn.ReLU()).eval()
    x = torch.randn(1, 32, 12, 12)
    session = onnxruntime.InferenceSession(layer_graph(module, x.shape), providers=["CPUExecutionProvider"])
    (given,) = session.run(None, {"image": x.numpy()})
    assert np.allclose(given, module(x).detach().numpy(), atol=1e-4)


def test_a_layer_between_others_is_computed_too(found):
    module = nn.Sequential(nn.Conv2d(16, 4, 3), nn.ReLU()).eval()
    x = torch.randn(1, 16, 9, 9)
    session = onnxruntime.InferenceSession(layer_graph(module, x.shape, between=True))
    (given,) = session.run(None, {"image": x.numpy()})
    assert np.allclose(given, module(x).mean((2, 3), keepdim=True).detach().numpy(), atol=1e-5)


def test_every_option_is_timed_and_more_flops_never_take_less(found, timed):
    table, _, _ = timed
    proposal = table.apply(found.proposal)
    assert table.dense_ms > 0 and proposal.fixed_latency_ms == table.fixed_ms >= 0
    for name, entry in proposal.candidates.items():
        assert len(entry.options) == len(found.proposal.candidates[name].options)
        assert all(option.latency_ms > 0 and math.isfinite(option.latency_ms) for option in entry.options)
        pairs = sorted(
            (option.flops, option.latency_ms) for option in entry.options if option.structure == "one-region"
        )
        times = [value for _, value in pairs]
        assert times == sorted(times)


def test_a_table_survives_its_file(timed, tmp_path):
    table, _, _ = timed
    path = tmp_path / "table.json"
    table.write(path)
    assert latency.read_table(json.loads(path.read_text())) == table
    with pytest.raises(ConfigError, match="malformed"):
        latency.read_table({"version": latency.VERSION, "runtime": "x"})
    with pytest.raises(ConfigError, match="version"):
        latency.read_table({"version": 99})


def test_a_latency_budget_is_planned_and_measured(found, timed):
    table, dense, image = timed
    chosen = latency.fit(found.proposal, table, Budget("latency", 2.0 * table.dense_ms, "ms"), dense, image)
    assert chosen.latency_ms <= 2.0 * table.dense_ms and chosen.speedup >= 0.5 - 1e-9
    assert chosen.plan.budget.startswith("latency=") and all(layer.latency_ms for layer in chosen.plan.layers[:2])


def test_a_network_that_takes_longer_than_predicted_is_planned_anew(found, monkeypatch):
    """The clock is FLOPs here, and a whole network takes a quarter more than its layers' sum."""
    times = {
        name: {family(option): [] for option in entry.options} for name, entry in found.proposal.candidates.items()
    }
    for name, entry in found.proposal.candidates.items():
        for option in sorted(entry.options, key=lambda option: option.flops):
            times[name][family(option)].append((option.flops, option.flops / 1e6))
    flops = sum(entry.options[0].flops for entry in found.proposal.candidates.values())
    kept = sum(shape.flops for shape in found.problem.shapes) - flops
    image = smooth_images(1, 0)

    def clock(dense, network, given, threads):
        whole = sum(shape.flops for shape in layer_shapes(network, lambda net: net(image)))
        return flops / 1e6, 1.25 * (whole - kept) / 1e6

    monkeypatch.setattr(latency, "time_networks", clock)
    table = latency.Table("FLOPs", flops / 1e6, 0.0, times)
    chosen = latency.fit(found.proposal, table, Budget("latency", 2.0), b"", image[0].numpy())
    assert chosen.measured_ms == pytest.approx(1.25 * chosen.predicted_ms, rel=1e-6)
    assert chosen.predicted_ms <= table.dense_ms / 2 < chosen.measured_ms
    assert 0.8 * table.dense_ms / 2 <= chosen.latency_ms <= table.dense_ms / 2


def test_what_cannot_be_had_is_refused(found, timed):
    table, dense, image = timed
    with pytest.raises(BudgetError, match="latency="):
        latency.fit(found.proposal, table, Budget("latency", 1e6), dense, image)


def test_alds_is_timed_by_its_numbers_of_groups_and_meets_milliseconds(found, timed):
    _, dense, image = timed
    alds = METHODS["alds"](found.problem)
    table = latency.time_candidates(found.problem, alds, dense, image)
    families = {name for name in table.times["features.5"] if name.startswith("channel-groups")}
    assert families == {f"channel-groups {groups}" for groups in (2, 4, 8)}
    chosen = latency.fit(alds, table, Budget("latency", 2.0 * table.dense_ms, "ms"), dense, image)
    assert chosen.latency_ms <= 2.0 * table.dense_ms and all(layer.latency_ms for layer in chosen.plan.layers[:2])


@pytest.fixture(scope="module")
def folder(found, timed, tmp_path_factory):
    out = tmp_path_factory.mktemp("candidates") / "layers"
    index = write_candidates(out, found.problem, found.proposal, timed[1], timed[2].shape)
    return out, index


def test_candidates_timed_elsewhere_give_the_same_table(found, timed, folder, tmp_path, monkeypatch, capsys):
    out, index = folder
    assert layer_times.read_index(out) == index
    words = ["bench", "--layers", out, "--out", tmp_path / "table.json", "--json"]
    code, printed, _ = commandline.run(monkeypatch, capsys, *words)
    raw = json.loads((tmp_path / "table.json").read_text())
    assert code == 0 and json.loads(printed) == raw
    table = latency.read_table(raw)
    shape = {layer: {name: [cost for cost, _ in points] for name, points in item.items()}
             for layer, item in table.times.items()}  # fmt: skip
    assert shape == {layer: {name: [cost for cost, _ in points] for name, points in item.items()}
                     for layer, item in timed[0].times.items()}  # fmt: skip
    assert table.network == timed[0].network == layer_times.digest(timed[1]) and not table.foreign


def test_every_structure_has_a_small_and_a_large_anchor(folder):
    _, index = folder
    families = [
        {layer_times.structure(layer.candidates[anchor.chosen[layer.name]].family) for layer in index.layers}
        for anchor in index.anchors
    ]
    flops = [
        sum(layer.candidates[anchor.chosen[layer.name]].flops for layer in index.layers) for anchor in index.anchors
    ]
    known = {layer_times.structure(item.family) for layer in index.layers for item in layer.candidates} - {"dense"}
    assert known == set(ALL) and len(index.anchors) == 1 + 2 * len(known)
    assert all(sum(name in names for names in families[1:]) >= 2 for name in known)
    assert min(flops) == flops[0] and all(small < large for small, large in zip(flops[1::2], flops[2::2], strict=True))


class Clock:
    """Graphs that take as long as they are told to."""

    name = "clock"

    def __init__(self, ms):
        self.ms = ms

    def close(self):
        pass


def test_what_layers_take_longer_in_a_network_is_in_the_table(folder, monkeypatch):
    """Here each structure takes longer in a network than alone by a share of its own, and the rest of it 0.5 ms."""
    out, index = folder
    longer = {"dense": 1.0, **{name: 1.1 + 0.05 * number for number, name in enumerate(ALL)}}
    rng = np.random.default_rng(0)
    alone = {layer.name: rng.uniform(0.1, 1.0, len(layer.candidates)) for layer in index.layers}
    found = {}
    for layer in index.layers:
        for candidate, ms in zip(layer.candidates, alone[layer.name], strict=True):
            found.setdefault(layer.name, {}).setdefault(candidate.family, []).append((candidate.flops, ms / 8.0))
    takes = {
        anchor.file: 0.5 + sum(
            longer[layer_times.structure(layer.candidates[anchor.chosen[layer.name]].family)]
            * alone[layer.name][anchor.chosen[layer.name]]
            for layer in index.layers
        )
        for anchor in index.anchors
    }  # fmt: skip
    monkeypatch.setattr(layer_times, "medians", lambda calls, own_clock, rounds: [runtime.ms for runtime, _ in calls])
    device = layer_times.Device(lambda path: Clock(takes[path.name]), "by hand", own_clock=True)
    raw = layer_times.table(out, index, (Clock(8.0), None), found, device)
    assert raw["fixed_ms"] == pytest.approx(0.5, rel=1e-4)
    assert raw["scales"] == pytest.approx(longer, rel=1e-4)
    assert all(own == pytest.approx(measured, rel=1e-4) for own, measured in raw["anchors"])
    for name, points in raw["times"][index.layers[0].name].items():
        first = min(found[index.layers[0].name][name])
        assert points[0][1] == pytest.approx(8.0 * first[1] * longer[layer_times.structure(name)], rel=1e-4)


@pytest.mark.parametrize("measured", [(9.0, 1.0), (1.0, 900.0)])
def test_a_scale_that_no_cache_explains_is_not_believed(measured):
    fixed, scales = layer_times.anchored([{"one-region": 1.0}, {"one-region": 2.0}], measured)
    assert fixed >= 0 and layer_times.SCALES[0] <= scales["one-region"] <= layer_times.SCALES[1]


def test_a_table_of_another_machine_plans_and_measures_nothing(found, timed):
    table, _, image = timed
    there = dataclasses.replace(table, machine="Linux aarch64, a Jetson, 6 cores")
    chosen = latency.fit(found.proposal, there, Budget("latency", 2.0 * table.dense_ms, "ms"), b"no graph", image)
    assert chosen.predicted_ms <= 2.0 * table.dense_ms and chosen.measured_ms is chosen.latency_ms is None
    assert chosen.speedup == pytest.approx(table.dense_ms / chosen.predicted_ms)


def test_a_table_of_another_network_is_refused(timed, tmp_path):
    table, dense, _ = timed
    table.write(tmp_path / "table.json")
    assert job.read_table_file(tmp_path / "table.json", dense) == table
    with pytest.raises(ConfigError, match="another dense network"):
        job.read_table_file(tmp_path / "table.json", dense + b"0")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda raw: raw.update(version=99), "version 99"),
        (lambda raw: raw.update(network="0" * 64), "is not the network"),
        (lambda raw: raw["layers"][0]["candidates"][0].update(file="../x.onnx"), "outside the directory"),
        (lambda raw: raw["anchors"][1]["chosen"].update({"features.5": 99}), "features.5 has no candidate 99"),
        (lambda raw: raw["anchors"][1]["chosen"].pop("features.5"), "malformed"),
        (lambda raw: raw.pop("layers"), "malformed"),
    ],
)
def test_a_directory_that_was_altered_is_refused(folder, tmp_path, change, match):
    raw = json.loads((folder[0] / "index.json").read_text())
    change(raw)
    (tmp_path / "index.json").write_text(json.dumps(raw))
    shutil.copy(folder[0] / "dense.onnx", tmp_path)
    with pytest.raises(ConfigError, match=match):
        layer_times.read_index(tmp_path)
