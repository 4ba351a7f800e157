"""`export` proves every graph that it writes; `build` says what it did not do."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from commandline import run

from hscc_edge.bundle import read_bundle
from hscc_edge.cli.exported import chosen_of, stream_of
from hscc_edge.data.case import stream
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.runtime import PRECISIONS


@pytest.fixture
def bare(dense, tmp_path) -> Path:
    """The trained bundle without its ONNX files."""
    root = shutil.copytree(dense, tmp_path / "bare")
    manifest = json.loads((root / "manifest.json").read_text())
    for name in [name for name in manifest["files"] if name.endswith(".onnx") or name.startswith("reports/")]:
        del manifest["files"][name]
        (root / name).unlink()
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root


def test_every_precision_is_proved_and_int8_is_built(bare, phantom, tmp_path, monkeypatch, capsys):
    """FP32 is written unasked; what is INT8 and what is not, and why, stands in the report."""
    words = ("export", bare, "--cohort", phantom.root, "--precision", " fp16,int8,fp16", "--images", 4)
    more = ("--calibration", 8, "--range", "mse", "--max-drop", 100, "--json")
    code, out, _ = run(monkeypatch, capsys, *words, *more)
    shown = json.loads(out)["precision"]
    assert code == 0 and list(shown) == ["fp32", "fp16", "int8"]
    assert not shown["fp32"]["emulated"] and shown["fp16"]["emulated"] and shown["fp16"]["overflowed"] == 0
    assert shown["fp16"]["bytes"] < 0.7 * shown["fp32"]["bytes"] and shown["fp16"]["full"] == {}
    assert shown["fp16"]["calibration"]["images"] == 8
    assert shown["int8"]["quantised"] == shown["int8"]["nodes"] == 8 and shown["int8"]["left"] == {}
    assert (shown["int8"]["method"], shown["int8"]["contract"]["split"]) == ("mse", "val")
    bundle = read_bundle(bare)
    assert json.loads(bundle.path("reports/export.json").read_text()) == shown
    assert all(bundle.path(name).is_file() for name in PRECISIONS.values())
    code, out, _ = run(
        monkeypatch, capsys, "build", bare, "--precision", "int8", "--cache", tmp_path / "cache", "--json"
    )
    assert code == 0 and json.loads(out)["quantised_layers"] == 8


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--range", "median"), "the range method 'median' is unknown"),
        (("--calibration", 0), "--calibration is 0: expected 1 or more"),
        (("--max-drop", -1), "--max-drop is -1.0: expected points of accuracy"),
        (("--precision", "int4"), "the precision 'int4' is unknown"),
    ],
)
def test_wrong_options_are_told_before_any_work(words, told, dense, phantom, monkeypatch, capsys):
    code, _, err = run(monkeypatch, capsys, "export", dense, "--cohort", phantom.root, *words)
    assert code == 2 and told in err


def test_the_images_of_the_proof_are_of_every_class(dense, phantom):
    """Picture cohorts are sorted by class: their first images are all of one."""
    bundle, cohort = read_bundle(dense), phantom.select("test")
    ordered = dataclasses.replace(cohort, instances=tuple(sorted(cohort.instances, key=lambda item: item.label)))
    known = {image.tobytes(): item.label for item, image in stream(cohort, parse_preprocess(bundle.spec.preprocess))}
    chosen = [image.tobytes() for image in stream_of(bundle, chosen_of(bundle, ordered, 8))()]
    assert len(set(chosen)) == 8 and {known[image] for image in chosen} == set(cohort.classes)
    assert chosen == [image.tobytes() for image in stream_of(bundle, chosen_of(bundle, ordered, 8))()]
    assert len(chosen_of(bundle, cohort, 10_000).instances) == len(cohort.instances)


def test_build_before_export_says_what_to_run(bare, tmp_path, monkeypatch, capsys):
    for precision in PRECISIONS:
        code, _, err = run(monkeypatch, capsys, "build", bare, "--precision", precision, "--cache", tmp_path / "cache")
        assert code == 2 and "run hscc-edge export" in err
    assert not (tmp_path / "cache").exists()


def test_build_prints_facts_and_admits_what_did_not_run(dense, tmp_path, monkeypatch, capsys):
    words = ("build", dense, "--precision", "fp32", "--cache", tmp_path / "cache")
    code, out, _ = run(monkeypatch, capsys, *words)
    assert code == 0 and "not inspected" in out and "not run" in out
    code, out, _ = run(monkeypatch, capsys, *words, "--json")
    facts = json.loads(out)
    assert code == 0 and facts["executed"] is False and facts["inspected"] is False
    assert Path(facts["path"]).stat().st_size == facts["bytes"]
