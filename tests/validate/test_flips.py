"""The contact sheet of flipped cases: which cases, in which order, with which map; nobody is named."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn
from typer.main import get_command

from hscc_edge.bundle import read_bundle
from hscc_edge.cli import app
from hscc_edge.errors import InputError
from hscc_edge.model.decision import decide
from hscc_edge.model.head import Head
from hscc_edge.validate.collect import Conditions, collect
from hscc_edge.validate.flips import flips
from hscc_edge.validate.saliency import occlusion


@pytest.fixture(scope="module")
def found(dense, phantom):
    bundle = read_bundle(dense)
    return collect(bundle, bundle, phantom.select("test"), Conditions(seconds=0))


def other(case, rule, head, sureness):
    """The same case, another label decided."""
    wanted = (head.labels.index(case.decision.label) + 1) % len(head.labels)
    logits = np.zeros_like(case.logits)
    logits[:, wanted] = sureness
    return dataclasses.replace(case, logits=logits, decision=decide(rule, head, logits))


@pytest.fixture(scope="module")
def flipped(found):
    cases = list(found.candidate.cases)
    rule, head = found.candidate.rule, found.candidate.head
    cases[2], cases[5] = other(cases[2], rule, head, 4.0), other(cases[5], rule, head, 9.0)
    candidate = dataclasses.replace(found.candidate, cases=tuple(cases))
    return dataclasses.replace(found, candidate=candidate)


def test_equal_classifiers_flip_nothing(found):
    assert flips(found) == ()


def test_flips_are_the_cases_with_unlike_decisions_the_surest_first(flipped):
    chosen = flips(flipped)
    assert [flip.case for flip in chosen] == [flipped.reference.cases[place].key for place in (5, 2)]
    for flip in chosen:
        assert flip.reference != flip.candidate
        wanted = {flip.reference: "original", flip.candidate: "compressed"}.get(flip.label, "neither")
        assert flip.right == wanted


class Corner(nn.Module):
    """Label 1 is as probable as the upper left quarter is bright."""

    def forward(self, x):
        bright = x[:, :, :16, :16].mean(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(bright), 8 * bright], dim=1)


def test_the_map_shows_where_the_decision_rests():
    pixels = np.random.default_rng(0).random((1, 32, 32), dtype=np.float32) / 2
    pixels[:, :16, :16] += 0.5
    found = occlusion(Corner().eval(), pixels, Head("softmax", ("a", "b")), 1)
    assert found.shape == (32, 32) and found[:12, :12].mean() > 10 * abs(found[20:, 20:]).mean()


def test_the_verb_writes_a_page_that_names_nobody(flipped, dense, phantom, tmp_path, capsys):
    file, out = tmp_path / "found.json", tmp_path / "flips.html"
    file.write_text(json.dumps(flipped.to_json()))
    words = [
        "flips",
        dense,
        "--reference",
        dense,
        "--cohort",
        phantom.root,
        "--from",
        file,
        "--most",
        "1",
        "--out",
        out,
    ]
    get_command(app).main([*map(str, words), "--json"], standalone_mode=False)
    printed, page = json.loads(capsys.readouterr().out), out.read_text()
    assert json.loads(out.with_suffix(".json").read_text()) == printed
    assert len(printed["flips"]) == 2 and printed["shown"] == 1 and page.count("<svg") == 1
    assert f"Case {printed['flips'][0]['case']}" in page and "1 of them shown" in page
    for item in phantom.select("test").instances:
        assert not any(secret in page + str(printed) for secret in (item.patient, item.study, item.series, item.sop))


def test_decisions_of_another_split_are_refused(flipped, dense, phantom, tmp_path):
    file = tmp_path / "found.json"
    file.write_text(json.dumps(flipped.to_json()))
    words = ["flips", dense, "--reference", dense, "--cohort", phantom.root, "--split", "val", "--from", file,
             "--out", tmp_path / "flips.html"]  # fmt: skip
    with pytest.raises(InputError, match="other bundles or another split"):
        get_command(app).main([str(word) for word in words], standalone_mode=False)
