"""The bundle: whole, unaltered, opened by MONAI, with no pickle in it; training that repeats itself."""

import json

import numpy as np
import pytest
import torch

from hscc_edge.bundle import WEIGHTS, add_files, read_bundle, write_bundle
from hscc_edge.data.cohort import read_cohort
from hscc_edge.errors import BundleError, ModelError
from hscc_edge.model.load import load_network
from hscc_edge.model.plan import Box
from hscc_edge.model.recipe import read_recipe
from hscc_edge.model.regional import cut, join
from hscc_edge.model.train import train
from hscc_edge.model.zoo import build_network, network_names


def test_reads_what_it_wrote(dense, tmp_path):
    bundle = read_bundle(dense)
    copy = write_bundle(tmp_path / "copy", bundle.spec, {WEIGHTS: bundle.path(WEIGHTS).read_bytes()})
    assert copy.spec == bundle.spec and read_bundle(copy.root).digest == copy.digest
    more = add_files(copy, {"reports/note.txt": b"seen"})
    assert more.digest != copy.digest and more.path("reports/note.txt").read_bytes() == b"seen"
    assert read_bundle(more.root).files.keys() == copy.files.keys() | {"reports/note.txt"}
    with pytest.raises(BundleError, match=r"holds no models/model\.onnx: run hscc-edge export"):
        more.path("models/model.onnx")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda root: (root / WEIGHTS).unlink(), "lacks models/model.safetensors"),
        (lambda root: (root / "LICENSE").write_text("other"), "was altered"),
        (lambda root: (root / "manifest.json").write_text("{"), "is not JSON"),
        (lambda root: (root / "manifest.json").write_text("{}"), "lists no files"),
        (lambda root: (root / "manifest.json").write_text('{"files": {"../x": "0"}}'), "names a file outside it"),
        (lambda root: (root / "manifest.json").unlink(), "is not a bundle"),
    ],
)
def test_harm_is_seen(dense, tmp_path, harm, words):
    bundle = read_bundle(dense)
    copy = write_bundle(tmp_path / "copy", bundle.spec, {WEIGHTS: bundle.path(WEIGHTS).read_bytes()})
    harm(copy.root)
    with pytest.raises(BundleError, match=words):
        read_bundle(copy.root)


def test_monai_opens_it(dense, monkeypatch):
    from monai.bundle.config_parser import ConfigParser

    metadata = json.loads((dense / "configs" / "metadata.json").read_text())
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"]["0"] == "none"
    parser = ConfigParser()
    parser.read_config(str(dense / "configs" / "inference.json"))
    parser["bundle_root"] = str(dense)
    network = parser.get_parsed_content("network_def")
    images = torch.zeros(1, *read_bundle(dense).spec.input_shape)
    assert torch.equal(network(images), load_network(read_bundle(dense))(images))
    assert not [path for path in dense.rglob("*") if path.suffix in (".pt", ".pth", ".pkl", ".bin")]


def test_training_repeats_itself(phantom, recipe, tmp_path):
    cohort, parsed = read_cohort(phantom.root), read_recipe(recipe)
    first, second = (train(parsed, cohort, tmp_path / name) for name in ("first", "second"))
    assert first.files[WEIGHTS] == second.files[WEIGHTS] and first.digest == second.digest


@pytest.mark.parametrize("name", ["alexnet", "DenseNet121", "EfficientNetBN", "SEResNet50", "resnet18"])
def test_networks_by_name(name):
    network = build_network(name, 1, 3, {}).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 64, 64)).shape == (1, 3)


def test_unknown_networks_and_arguments_are_told():
    with pytest.raises(ModelError, match=r"unknown: expected one of alexnet"):
        build_network("vgg99", 1, 3, {})
    with pytest.raises(ModelError, match="refuses its arguments"):
        build_network("alexnet", 1, 3, {"depth": 9})
    assert len(network_names()) == len(set(network_names()))


def test_tiles_join_only_where_straight_cuts_separate_them():
    whole = torch.arange(2 * 3 * 6 * 6).reshape(2, 3, 6, 6)
    boxes = (Box((0, 0), (4, 2)), Box((4, 0), (6, 2)), Box((0, 2), (3, 6)), Box((3, 2), (6, 5)), Box((3, 5), (6, 6)))
    tiles = [cut(whole, box) for box in boxes]
    order = np.random.default_rng(0).permutation(5)
    assert torch.equal(join([boxes[i] for i in order], [tiles[i] for i in order]), whole)
    pinwheel = (Box((0, 0), (1, 2)), Box((0, 2), (2, 3)), Box((2, 1), (3, 3)), Box((1, 0), (3, 1)), Box((1, 1), (2, 2)))
    with pytest.raises(ModelError, match="straight lines"):
        join(pinwheel, [torch.zeros(1, 1, *(b - a for a, b in zip(x.start, x.stop, strict=True))) for x in pinwheel])
