"""Spoilt pictures: each fault is seeded, bounded and stronger as named; equal classifiers fall alike."""

import json

import numpy as np
import pytest
from typer.main import get_command

from hscc_edge.bundle import read_bundle
from hscc_edge.cli import app
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.validate.robustness import FAULTS, PLACES, STRENGTHS, _curve, _falls, spoilt
from hscc_edge.validate.robustness_plot import draw

PICTURE = np.random.default_rng(0).random((1, 40, 40), dtype=np.float32) ** 2
each_fault = pytest.mark.parametrize("name", FAULTS)


@each_fault
def test_a_fault_is_seeded_keeps_the_shape_and_grows(name):
    fault = FAULTS[name]
    assert len(fault.strengths) == STRENGTHS and list(fault.strengths) == sorted(fault.strengths)
    worse = [fault.spoil(PICTURE.copy(), strength, 3) for strength in fault.strengths]
    assert all(item.shape == PICTURE.shape and item.dtype == np.float32 and np.isfinite(item).all() for item in worse)
    np.testing.assert_array_equal(worse[0], fault.spoil(PICTURE.copy(), fault.strengths[0], 3))
    damage = [float(np.abs(item - PICTURE).mean()) for item in worse]
    mild = min(range(STRENGTHS), key=lambda place: abs(fault.strengths[place] - (1 if name == "gamma" else 0)))
    assert 0 < damage[mild] <= damage[0] and damage[mild] < damage[-1]


@pytest.mark.parametrize("name", ["rotation", "missing border", "other window"])
def test_pictures_are_spoilt_in_either_direction_at_every_strength(name):
    """Places count up evenly, so that a direction by the seed's parity would be one direction a strength."""
    for place, strength in enumerate(FAULTS[name].strengths):
        seen = {FAULTS[name].spoil(PICTURE.copy(), strength, 1000 * number + place).tobytes() for number in range(12)}
        assert len(seen) > 1


def test_a_case_is_spoilt_alike_for_all(dense, phantom):
    preprocess = parse_preprocess(read_bundle(dense).spec.preprocess)
    part = phantom.select("test")
    first = list(spoilt(part, part.instances[:1], preprocess, 7))
    again = list(spoilt(part, part.instances[:1], preprocess, 7))
    assert len(first) == len(PLACES) == 1 + STRENGTHS * len(FAULTS)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(item.shape == first[0].shape and not np.array_equal(item, first[0]) for item in first[1:])
    mild = list(spoilt(part, part.instances[:1], preprocess, 7, strengths=1))
    assert len(mild) == 1 + len(FAULTS) and all(map(np.array_equal, mild, first[:1] + first[1::STRENGTHS]))


def test_falling_sooner_shows_and_equals_do_not():
    hits = np.ones((60, 2, 6))
    hits[:30, 1, 3:] = 0
    found = _curve("noise", _falls(hits), hits, (1.0,) * 6)
    assert found.fall == pytest.approx(-0.5 * 3 / 5) and found.high < 0 and found.p_value < 1e-3
    assert found.low < found.fall < found.high and found.reference == (1.0,) * 6
    equal = _curve("noise", _falls(np.ones((60, 2, 6))), np.ones((60, 2, 6)), (1.0,) * 6)
    assert (equal.fall, equal.low, equal.high, equal.p_value) == (0, None, None, 1)


def test_the_verb_measures_a_bundle_against_itself(dense, phantom, tmp_path, capsys):
    out = tmp_path / "robustness.json"
    words = ["robustness", str(dense), "--reference", str(dense), "--cohort", str(phantom.root), "--out", str(out)]
    get_command(app).main([*words, "--json"], standalone_mode=False)
    printed = json.loads(capsys.readouterr().out)
    assert json.loads(out.read_text()) == printed and printed["kind"] == "robustness"
    for curve in printed["curves"]:
        assert curve["reference"] == curve["candidate"] and set(curve["agreement"]) == {1.0} and curve["fall"] == 0
    assert draw(printed) == out.with_suffix(".svg").read_text()
    held = out.read_text()
    assert not any(secret in held for item in phantom.instances for secret in (item.patient, item.sop, item.file))
