"""What the device collects is all that the workstation needs, and gives the same figures to the bit."""

import json

import pytest
from typer.main import get_command

from hscc_edge.bundle import read_bundle
from hscc_edge.cli import app
from hscc_edge.errors import InputError
from hscc_edge.validate.collect import Conditions, collect, read_collection
from hscc_edge.validate.evidence import weigh


def run(*words):
    get_command(app).main([str(word) for word in words], standalone_mode=False)


@pytest.fixture(scope="module")
def found(dense, phantom):
    bundle = read_bundle(dense)
    return collect(bundle, bundle, phantom.select("test"), Conditions(seconds=0))


def test_a_collection_survives_its_json(found, tmp_path):
    path = tmp_path / "found.json"
    path.write_text(json.dumps(found.to_json(), allow_nan=False))
    again = read_collection(path)
    assert again.to_json() == found.to_json()
    assert json.dumps(weigh(again).to_json()) == json.dumps(weigh(found).to_json())
    for first, second in zip(found.candidate.cases, again.candidate.cases, strict=True):
        assert first.decision == second.decision and first.logits.tobytes() == second.logits.tobytes()


def test_a_collection_names_nobody(found, phantom):
    text = json.dumps(found.to_json())
    for item in phantom.select("test").instances:
        assert not any(secret in text for secret in (item.patient, item.study, item.series, item.sop, item.file))


def test_the_verb_collects_and_weighs_later(dense, phantom, tmp_path, capsys):
    file, report = tmp_path / "found.json", tmp_path / "report.html"
    run("validate", dense, "--reference", dense, "--cohort", phantom.root, "--seconds", 0, "--collect", file, "--json")
    assert json.loads(capsys.readouterr().out) == {"collection": str(file), "cases": 8}
    run("validate", "--from", file, "--report", report, "--json")
    printed = json.loads(capsys.readouterr().out)
    assert printed["comparison"]["agreement"] == 1 and printed["cohort"]["splits"] == ["test"]
    assert json.loads(report.with_suffix(".json").read_text()) == printed


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "cannot be read as JSON"),
        ('{"kind": "bench", "schema": 1}', "is no collection of schema 1"),
        ('{"kind": "collection", "schema": 1}', "is malformed"),
    ],
)
def test_another_file_is_refused(content, sentence, tmp_path):
    path = tmp_path / "found.json"
    path.write_text(content)
    with pytest.raises(InputError, match=sentence):
        read_collection(path)


def test_logits_that_do_not_fit_the_head_are_refused(found, tmp_path):
    raw = found.to_json()
    raw["candidate"]["cases"][0]["logits"] = [[1.0, 2.0]]
    path = tmp_path / "found.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(InputError, match=r"predictions are malformed.*expected \(images"):
        read_collection(path)


def test_the_verb_needs_its_three_or_a_collection(dense):
    with pytest.raises(InputError, match="give the three, or --from alone"):
        run("validate", dense, "--json")
