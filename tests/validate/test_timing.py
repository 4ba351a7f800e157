"""The timing of a validation is the bench's own; a device that throttled makes it invalid, and no gate passes on it."""

import dataclasses
import json

import pytest

from hscc_edge.cli.bench import report_maker
from hscc_edge.cli.gated import gated
from hscc_edge.runtime import open_runtime
from hscc_edge.validate import bench, timing
from hscc_edge.validate.collect import Conditions, collect, read_collection
from hscc_edge.validate.evidence import weigh
from hscc_edge.validate.requirements import Requirements
from hscc_edge.validate.scenarios import scenario_of

WANTED = Requirements(p99_ms=1e6, speedup=1e-6)


@pytest.fixture(scope="module")
def found(twins, heads):
    return collect(*twins, heads.select("test"), Conditions(seconds=0.05), make=report_maker())


@pytest.fixture(scope="module")
def throttled(twins, heads, tmp_path_factory):
    """The bench's object of a device whose GPU is slowed down: two readings of Jetson Linux's alert."""
    root = tmp_path_factory.mktemp("device")
    alert = root / "sys/class/thermal/cooling_device0"
    alert.mkdir(parents=True)
    for name, text in (("type", "gpu-throttle-alert"), ("cur_state", "1")):
        (alert / name).write_text(text + "\n")
    runtimes = [open_runtime(bundle) for bundle in twins]
    asked = bench.Conditions((scenario_of("single"),), seconds=0)
    made = bench.measure_open(asked, twins[::-1], runtimes, heads.select("test"), report_maker(), root=root)
    return json.loads(json.dumps(made.to_json(), allow_nan=False))


def test_the_race_is_the_bench_s_own_and_the_rest_is_beside_it(found, tmp_path):
    (outcome,) = found.timing["outcomes"]
    sides = [side["samples_ms"] for side in outcome["sides"]]
    assert sides == [found.race.reference_ms, found.race.candidate_ms] and len(sides[0]) >= 20
    assert [item["digest"] for item in found.timing["bundles"]] == [
        found.reference.bundle["digest"], found.candidate.bundle["digest"],
    ]  # fmt: skip
    for side in outcome["sides"]:
        assert side["warm_up"]["calls"] >= 50 and [item["share"] for item in side["percentiles"]][-1] == 0.999
    assert all(start["first_inference_ms"] > 0 for start in found.timing["start_up"])
    assert {case["unit"] for case in found.timing["end_to_end"]} == {"study"}
    path = tmp_path / "found.json"
    path.write_text(json.dumps(found.to_json(), allow_nan=False))
    assert json.dumps(read_collection(path).to_json()) == json.dumps(found.to_json())


def test_what_was_not_measured_is_named_and_nothing_else(found):
    """This machine's own sensors decide which: each kind is either in the figures or in `not_run`."""
    evidence = weigh(found)
    told = "; ".join(evidence.not_run)
    for kind in found.timing["whole"]["not_measured"]:
        assert f"{kind}: not measured" in told
    assert ("energy an image: not measured" in told) == (not found.timing["energy"])
    assert "from file to report" not in told and evidence.to_json()["cpu_only"] is True
    rows = {name: pair for name, *pair in timing.rows(found.timing, 2.0)}
    assert "images a second" in {name.lower() for name in rows} and len(timing.device(found.timing)) >= 6
    for kind in found.timing["whole"]["not_measured"]:
        assert (kind[:1].upper() + kind[1:], "not measured") in timing.device(found.timing)


def test_a_case_that_cannot_be_reported_leaves_the_other_figures(twins, heads):
    def refuse(bundle, paths, decision):
        raise ValueError(f"PatientName of {paths[0]}")

    asked, test = bench.Conditions((), seconds=0), heads.select("test")
    runtimes = [open_runtime(bundle) for bundle in twins]
    made = bench.measure_open(asked, twins, runtimes, test, refuse)
    (line,) = [line for line in made.not_run if line.startswith("from file to report")]
    assert "(ValueError)" in line and "Patient" not in line and made.end_to_end == ()


def test_an_energy_of_a_study_is_that_of_its_images(found):
    energy = [{"joules_an_image": 0.5}, {"joules_an_image": 0.25}]
    rows = {name: pair for name, *pair in timing.rows({**found.timing, "energy": energy}, 3.0)}
    assert rows["Energy, J a case of 3 images, model alone"] == ["1.5000", "0.7500"]


def test_a_few_calls_alone_are_said_to_be_that(twins, heads):
    plain = weigh(collect(*twins, heads.select("test"), Conditions(seconds=0)))
    assert plain.timing is None and plain.invalid == "" and timing.FEW in plain.not_run


def test_a_device_that_throttled_makes_the_run_invalid_and_no_gate_passes_on_it(found, throttled):
    assert throttled["throttled"] == ["alert, gpu: 1"] and ("Throttling", "alert, gpu: 1") in timing.device(throttled)
    hot = dataclasses.replace(found, timing=throttled)
    calm = gated(Requirements(speedup=1e-6), found, weigh(found), None)
    assert (calm.state, calm.exit_code) == ("PASS", 0)
    evidence = weigh(hot)
    gating = gated(WANTED, hot, evidence, None)
    assert [line.state for line in gating.lines] == ["INCONCLUSIVE", "INCONCLUSIVE"] and gating.exit_code == 3
    assert all(line.figures == "invalid: throttled (alert, gpu: 1)" for line in gating.lines)
    assert evidence.to_json()["invalid"] == "invalid: throttled (alert, gpu: 1)"
    assert weigh(found).to_json()["invalid"] == ""
