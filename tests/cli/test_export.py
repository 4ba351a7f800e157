"""`export` proves every graph that it writes; `build` says what it did not do."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from commandline import run

from hscc_edge.bundle import read_bundle
from hscc_edge.cli import export as verbs
from hscc_edge.data.case import stream
from hscc_edge.data.preprocess import parse_preprocess


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


def test_fp16_alone_still_proves_the_fp32_graph_that_it_writes(bare, phantom, monkeypatch, capsys):
    words = ("export", bare, "--cohort", phantom.root, "--precision", " fp16,fp16", "--images", 4, "--json")
    code, out, _ = run(monkeypatch, capsys, *words)
    shown = json.loads(out)["precision"]
    assert code == 0 and list(shown) == ["fp32", "fp16"]
    assert not shown["fp32"]["emulated"] and shown["fp16"]["emulated"] and shown["fp16"]["overflowed"] == 0
    assert shown["fp16"]["bytes"] < 0.7 * shown["fp32"]["bytes"]
    bundle = read_bundle(bare)
    assert json.loads(bundle.path("reports/export.json").read_text()) == shown
    assert all(bundle.path(f"models/{name}").is_file() for name in ("model.onnx", "model.fp16.onnx"))


def test_the_images_of_the_proof_are_of_every_class(dense, phantom):
    """Picture cohorts are sorted by class: their first images are all of one."""
    bundle, cohort = read_bundle(dense), phantom.select("test")
    ordered = dataclasses.replace(cohort, instances=tuple(sorted(cohort.instances, key=lambda item: item.label)))
    known = {image.tobytes(): item.label for item, image in stream(cohort, parse_preprocess(bundle.spec.preprocess))}
    chosen = [image.tobytes() for image in verbs._images(bundle, ordered, 8)]
    assert len(set(chosen)) == 8 and {known[image] for image in chosen} == set(cohort.classes)
    assert chosen == [image.tobytes() for image in verbs._images(bundle, ordered, 8)]
    assert len(list(verbs._images(bundle, cohort, 10_000))) == len(cohort.instances)


def test_build_before_export_says_what_to_run(bare, tmp_path, monkeypatch, capsys):
    for precision in ("fp32", "fp16"):
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
