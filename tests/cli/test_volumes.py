"""A classifier of volumes, all the way: trained, exported, compressed and validated on series."""

import json

import numpy as np
import pytest
from typer.main import get_command
from workbench import Bench

from hscc_edge.bundle import read_bundle
from hscc_edge.cli import app
from hscc_edge.data.case import stream
from hscc_edge.data.cohort import read_cohort
from hscc_edge.data.phantom import write_phantom
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.runtime import open_runtime
from hscc_edge.serve.config import ServedModel
from hscc_edge.validate.predict import predict

RECIPE = """
name = "cubes"
preprocess = [
  { name = "series", modality = "MR" },
  { name = "volume", minimum_slices = 5 },
  { name = "orient", axes = "SPL" },
  { name = "percentile", lower = 1.0, upper = 99.0 },
  { name = "resize", depth = 8, height = 32, width = 32 },
  { name = "normalise", mean = [0.3], std = [0.25] },
]
[network]
name = "DenseNet"
args = { spatial_dims = 3, init_features = 8, growth_rate = 4, block_config = [2, 2] }
[decision]
unit = "study"
[train]
epochs = 1
batch_size = 8
[site]
value = "12738006"
scheme = "SCT"
meaning = "Brain"
[procedure]
value = "113091000"
scheme = "SCT"
meaning = "Magnetic resonance imaging"
"""


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """A cohort of 24 series of 6 slices, and a classifier of them that was trained, compressed and exported."""
    root = tmp_path_factory.mktemp("volumes")
    (root / "recipe.toml").write_text(RECIPE)
    write_phantom(root / "cohort", patients=40, slices=6, size=32, seed=2)
    for words in (
        ["train", root / "recipe.toml", "--cohort", root / "cohort", "--out", root / "dense"],
        ["export", root / "dense", "--cohort", root / "cohort", "--images", "4"],
        ["compress", root / "dense", "--cohort", root / "cohort", "--budget", "flops=1.1x", "--images", "16",
         "--out", root / "small"],
        ["export", root / "small", "--cohort", root / "cohort", "--images", "4"],
    ):  # fmt: skip
        get_command(app).main([*map(str, words)], standalone_mode=False)
    return root


def test_what_was_trained_says_how_its_files_are_read(volumes):
    spec = read_bundle(volumes / "small").spec
    preprocess = parse_preprocess(spec.preprocess)
    assert preprocess.series.modality == "MR" and preprocess.rules.minimum_slices == 5
    assert spec.input_shape == (1, 8, 32, 32)
    metadata = json.loads((volumes / "small" / "configs" / "metadata.json").read_text())
    assert metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] == [8, 32, 32]
    dense = read_bundle(volumes / "dense").spec
    assert dense.preprocess == spec.preprocess and spec.plan is not None


def test_a_study_is_one_input(volumes):
    cohort = read_cohort(volumes / "cohort").select("test")
    bundle = read_bundle(volumes / "small")
    found = list(stream(cohort, parse_preprocess(bundle.spec.preprocess)))
    assert len(found) == len(cohort.cases("study")) and {pixels.shape for _, pixels in found} == {(1, 8, 32, 32)}
    logits = open_runtime(bundle, "ort").infer(np.stack([pixels for _, pixels in found]))
    assert logits.shape == (len(found), 4)


def test_it_is_validated_against_its_original(volumes, capsys):
    words = ["validate", volumes / "small", "--reference", volumes / "dense", "--cohort", volumes / "cohort",
             "--report", volumes / "report.html", "--seconds", 0, "--json"]  # fmt: skip
    get_command(app).main([*map(str, words)], standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    assert told["cohort"]["cases"] == len(read_cohort(volumes / "cohort").select("test").cases("study"))


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_the_daemon_decides_a_study_as_validation_does(volumes, tmp_path):
    cohort, bundle = read_cohort(volumes / "cohort").select("test"), read_bundle(volumes / "small")
    runtime = open_runtime(bundle)
    known = predict(bundle, runtime, cohort)
    runtime.close()
    made = Bench(tmp_path, volumes / "small", batch=2, model=(ServedModel(volumes / "small", "cubes"),))
    studies = list(cohort.cases("study").items())[:3]
    uids = [made.put([cohort.path(item).read_bytes() for item in items]) for _, items in studies]
    short = made.put([cohort.path(item).read_bytes() for item in list(cohort.cases("study").values())[3][:3]])
    assert made.work() == 4
    found = {
        study: json.loads(odds) for study, odds in made.journal.read("SELECT study, probabilities FROM observations")
    }
    decided = {case.key: case.decision.probabilities for case in known}
    for uid in uids:
        assert found[uid] == pytest.approx(decided[cohort.pseudonym(uid)], abs=1e-5)
        assert made.states(uid) == [("reported", None)] * 6
    assert made.states(short) == [("no-result", "no volume by the model's rules")] * 3
    made.close()
