"""Features of a network to choose calibration images by, and the choice on the command line."""

import dataclasses
import json

import commandline
import numpy as np
import pytest
import torch
from torch import nn

from hscc_edge.bundle import read_bundle
from hscc_edge.cli.subset import subset
from hscc_edge.compress import compression
from hscc_edge.compress.calibration import SKETCH, WIDTH, features_of, measure, scaled, select
from hscc_edge.compress.problem import Settings
from hscc_edge.data.subset_file import read_choice, read_subset
from hscc_edge.errors import CohortError, InputError, ModelError
from hscc_edge.model.head import Head

HEAD = Head("softmax", ("a", "b", "c"))


def network_of(*middle: nn.Module) -> nn.Module:
    """An activation that works in place follows the first layer."""
    torch.manual_seed(0)
    first = nn.Conv2d(1, 6, 3, stride=2)
    return nn.Sequential(first, nn.ReLU(inplace=True), *middle, nn.Flatten(), nn.LazyLinear(3)).eval()


def batches_of(images: torch.Tensor, size: int) -> list[dict[str, torch.Tensor]]:
    return [{"image": part} for part in images.split(size)]


def test_rows_follow_their_images_and_the_network_is_left_as_it_is():
    network, images = network_of(nn.Conv2d(6, 4, 3)), torch.randn(10, 1, 12, 12)
    network(images)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = measure(network, HEAD, batches_of(images, 4))
    order = torch.randperm(10)
    mixed = measure(network, HEAD, batches_of(images[order], 10))
    outputs = SKETCH * np.arange(0, 6, 2)[:, None] + np.arange(SKETCH)  # of C; the factor of G is drawn anew
    assert found["moments"].shape == (10, 2 * SKETCH * 3)
    for name, columns in (("last", slice(None)), ("probabilities", slice(None)), ("moments", outputs.ravel())):
        assert np.allclose(found[name][order][:, columns], mixed[name][:, columns], atol=1e-5)
    with torch.no_grad():
        assert np.allclose(found["probabilities"], network(images).softmax(1).numpy(), atol=1e-6)
        flat = network[:-1](images).numpy()
    assert np.allclose(found["last"], flat, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_a_sketch_is_linear_in_the_second_moments():
    """Twice the output is four times the sketch of C, and a quarter of that of G."""
    images = torch.randn(6, 1, 8, 8)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.Flatten(), nn.LazyLinear(3)).eval()
    network(images)
    one = measure(network, HEAD, batches_of(images, 6))["moments"]
    with torch.no_grad():
        network[0].weight *= 2
        network[2].weight /= 2
    two = measure(network, HEAD, batches_of(images, 6))["moments"]
    assert np.allclose(two[:, :SKETCH], 4 * one[:, :SKETCH], rtol=1e-4)
    assert np.allclose(two[:, SKETCH : 2 * SKETCH], one[:, SKETCH : 2 * SKETCH] / 4, rtol=1e-3, atol=1e-12)
    assert np.allclose(two[:, 2 * SKETCH :], one[:, 2 * SKETCH :], rtol=1e-4, atol=1e-12)


def test_wide_inputs_keep_their_distances_and_no_layer_is_told():
    network, images = network_of(), torch.randn(40, 1, 64, 64)
    network(images)
    found = measure(network, HEAD, batches_of(images, 20))["last"]
    with torch.no_grad():
        wide = network[:-1](images).numpy()
    assert found.shape == (40, WIDTH) and wide.shape[1] > WIDTH
    far = [np.linalg.norm(values[:, None] - values[None], axis=2)[np.triu_indices(40, 1)] for values in (found, wide)]
    assert (far[0] / far[1]).min() > 0.7 and (far[0] / far[1]).max() < 1.3
    with pytest.raises(ModelError, match="at random"):
        measure(nn.Flatten(), HEAD, batches_of(torch.randn(4, 1, 1, 3), 4))


def test_a_network_without_a_linear_gives_its_last_convolutions_input():
    network = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Conv2d(5, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.randn(4, 1, 9, 9)
    with torch.no_grad():
        wanted = network[:2](images).mean(dim=(2, 3)).numpy()
    assert np.allclose(measure(network, HEAD, batches_of(images, 4))["last"], wanted, atol=1e-5)


class Windows(nn.Module):
    """Two halves of each image along the batch, through one Linear, and a Linear that sees no image."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.place, self.outer = nn.Linear(8, 5), nn.Linear(2, 5), nn.Linear(10, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        halves = self.inner(images.reshape(2 * len(images), 8)) + self.place(torch.ones(1, 2))
        return self.outer(halves.reshape(len(images), 10))


def test_windows_along_the_batch_are_their_images():
    network, images = Windows().eval(), torch.randn(6, 1, 4, 4)
    found = measure(network, HEAD, batches_of(images, 6))["moments"]
    assert found.shape == (6, 2 * SKETCH * 2)
    one = measure(network, HEAD, batches_of(images[3:5], 2))["moments"]
    assert np.allclose(found[3:5, :SKETCH], one[:, :SKETCH], atol=1e-5)


def test_features_are_in_units_of_the_pool():
    random = np.random.default_rng(0)
    raw = {
        "last": random.normal(3, 50, (30, 7)).astype(np.float32),
        "probabilities": random.random((30, 3)).astype(np.float32),
        "moments": (random.normal(size=(30, 2 * SKETCH)) * np.repeat([1e-6, 1e3], SKETCH)).astype(np.float32),
    }
    found = scaled(raw)
    assert (found.responses**2).sum(axis=1).mean() == pytest.approx(2)
    assert np.allclose((found.moments**2).reshape(30, 2, SKETCH).mean(axis=(0, 2)), 1)
    still = scaled({name: np.ones_like(values) * (name != "moments") for name, values in raw.items()})
    assert not still.responses.any() and not still.moments.any()


def test_features_are_kept_by_bundle_and_images(dense, phantom, tmp_path):
    bundle, pool = read_bundle(dense), phantom.select("train")
    seen: list[int] = []
    found = features_of(bundle, pool, lambda size, note: seen.append(size), tmp_path)
    again = features_of(bundle, pool, lambda size, note: seen.append(size), tmp_path)
    assert sum(seen) == len(pool.instances) == len(found.responses)
    assert np.array_equal(found.moments, again.moments)
    half = dataclasses.replace(pool, instances=pool.instances[::2])
    assert len(features_of(bundle, half, cache=tmp_path).responses) == len(half.instances)
    (kept,) = [
        path for path in tmp_path.iterdir() if path.stat().st_size == max(p.stat().st_size for p in tmp_path.iterdir())
    ]
    kept.write_bytes(b"damaged")
    assert np.array_equal(features_of(bundle, pool, cache=tmp_path).responses, found.responses)
    with pytest.raises(CohortError, match="are not the bundle's"):
        features_of(bundle, dataclasses.replace(pool, classes=("x", "y")))


def test_a_calibration_image_of_the_test_split_is_refused(phantom):
    with pytest.raises(CohortError, match="with the test split"):
        select(phantom, 4, 0, split="test")
    test = phantom.select("test").instances[0].patient
    leak = tuple(dataclasses.replace(item, patient=test) for item in phantom.select("train").instances)
    with pytest.raises(CohortError, match="with the test split"):
        compression.calibration_of(
            dataclasses.replace(phantom, instances=leak + phantom.select("test").instances), 4, 0
        )


def test_statistics_are_named_by_images_and_their_order(dense, phantom):
    bundle, settings = read_bundle(dense), Settings()
    chosen = compression.calibration_of(phantom, 12, 0)
    turned = dataclasses.replace(chosen, instances=chosen.instances[::-1])
    others = [compression.calibration_of(phantom, 12, 1), turned]
    assert len({compression.cache_key(bundle, part, settings) for part in (chosen, *others)}) == 3


@pytest.mark.parametrize("method", ["random", "herding"])
def test_a_chosen_file_calibrates_a_compression(dense, phantom, tmp_path, monkeypatch, capsys, method):
    path = tmp_path / "subset.toml"
    subset(
        phantom.root,
        path,
        24,
        method,
        None if method == "random" else dense,
        1,
        "train",
        True,
        False,
        None,
        False,
        True,
    )
    shown = json.loads(capsys.readouterr().out)
    assert shown["images"] == 24 and set(shown["overlap_with_test"].values()) == {0}
    assert ("nearest" in shown) == (method != "random")
    chosen = read_subset(path, phantom)
    assert read_choice(path).bundle == ("" if method == "random" else read_bundle(dense).digest)
    words = ("compress", dense, "--cohort", phantom.root, "--budget", "flops=2x", "--cells", "2x2")
    code, _, error = commandline.run(monkeypatch, capsys, *words, "--out", tmp_path / "one", "--calibration", path)
    assert code == 0, error
    assert read_bundle(tmp_path / "one").spec.calibration == {"cohort": chosen.digest, "images": 24}
    by_method = ("--calibration-method", method, "--images", "24", "--seed", "1")
    code, _, error = commandline.run(monkeypatch, capsys, *words, "--out", tmp_path / "two", *by_method)
    assert code == 0, error
    assert read_bundle(tmp_path / "two").spec.calibration == {"cohort": chosen.digest, "images": 24}


def test_what_cannot_be_chosen_by_is_told(dense, phantom, tmp_path, monkeypatch, capsys):
    words = ("compress", dense, "--cohort", phantom.root, "--out", tmp_path / "small", "--calibration-method")
    code, _, error = commandline.run(monkeypatch, capsys, *words, "best")
    assert code == 2 and "expected one of random" in error
    code, _, error = commandline.run(monkeypatch, capsys, *words, "herding", "--calibration", tmp_path / "a.toml")
    assert code == 2 and "give one of them" in error
    subset(phantom.root, tmp_path / "val.toml", 8, "random", None, 1, "val", True, False, None, False, True)
    code, _, error = commandline.run(monkeypatch, capsys, *words[:-1], "--calibration", tmp_path / "val.toml")
    assert code == 2 and "choose from train" in error
    (tmp_path / "val.toml").unlink()
    with pytest.raises(InputError, match="give a model"):
        subset(phantom.root, tmp_path / "a.toml", 24, "herding", None, 1, "train", True, False, None, False, True)
    assert not list(tmp_path.iterdir())
