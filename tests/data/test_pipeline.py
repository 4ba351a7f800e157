"""The pipeline: the same batches by any number of workers, a store that no old entry leaves, faults told or skipped."""

import dataclasses
import hashlib
import multiprocessing
import pickle
import shutil

import numpy as np
import pydicom
import pytest
import torch
from monai.data import CacheDataset
from monai.transforms import Compose, RandFlipd

from hscc_edge.data import case
from hscc_edge.data.cache import key_of
from hscc_edge.data.case import stream
from hscc_edge.data.pipeline import Finish, Read, dataset, loader
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.data.series import read_volume
from hscc_edge.errors import CohortError, ConfigError, DicomError, StorageError

STEPS = [
    {"name": "percentile", "lower": 1, "upper": 99},
    {"name": "resize", "height": 12, "width": 20},
    {"name": "channels", "count": 3},
]
CUBE = [
    {"name": "orient", "axes": "SPL"},
    {"name": "percentile", "lower": 1, "upper": 99},
    {"name": "resize", "depth": 4, "height": 16, "width": 20},
    {"name": "channels", "count": 2},
]


@pytest.fixture
def few(phantom, tmp_path):
    """Eight patients of the phantom, whose files may be changed."""
    patients = sorted({item.patient for item in phantom.instances})[:8]
    part = tuple(item for item in phantom.instances if item.patient in patients)
    for item in part:
        (tmp_path / item.file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(phantom.path(item), tmp_path / item.file)
    return dataclasses.replace(phantom, root=tmp_path, instances=part)


def drawn(batches):
    found = list(batches)
    images = [np.asarray(batch["image"]) for batch in found]
    return np.concatenate(images), np.concatenate([np.asarray(batch["label"]) for batch in found])


@pytest.mark.parametrize("cache", [False, True])
def test_workers_change_nothing(few, cache):
    """Three epochs, shuffled and augmented, by 0, 1 and 2 workers."""

    def epochs(workers):
        batches = loader(
            few, parse_preprocess(STEPS), batch_size=5, shuffle=True, seed=4, augment=True, cache=cache, workers=workers
        )
        return [drawn(batches) for _ in range(3)]

    alone = epochs(0)
    assert not np.array_equal(alone[0][0], alone[1][0])
    for workers in (1, 2):
        for (images, labels), (expected, its) in zip(epochs(workers), alone, strict=True):
            assert np.array_equal(images, expected) and np.array_equal(labels, its)


def test_an_abandoned_epoch_changes_nothing_after_it(few):
    preprocess = parse_preprocess(STEPS)

    def second(stop):
        batches = loader(few, preprocess, batch_size=4, shuffle=False, seed=4, augment=True)
        for number, _ in enumerate(batches):
            if number == stop:
                break
        return drawn(batches)[0]

    assert np.array_equal(second(0), second(100))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache", [False, True])
def test_damaged_files_stop_the_run_or_are_listed(few, workers, cache):
    preprocess = parse_preprocess(STEPS)
    whole = np.stack([pixels for _, pixels in stream(few, preprocess)])
    for index in (3, 4, 5):
        few.path(few.instances[index]).write_bytes(b"\0" * 40 * index)
    make = {"batch_size": 3, "shuffle": False, "seed": 0, "cache": cache, "workers": workers, "augment": False}
    with pytest.raises(DicomError, match="not a DICOM file"):
        list(loader(few, preprocess, **make))
    assert not multiprocessing.active_children(), "workers outlive the error"
    batches = loader(few, preprocess, **make, on_error="skip")
    for _ in range(2):
        assert np.array_equal(drawn(batches)[0], np.delete(whole, (3, 4, 5), axis=0))
    assert list(batches.skipped) == [few.instances[index].file for index in (3, 4, 5)]
    assert all("not a DICOM file" in reason for reason in batches.skipped.values())


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_no_damaged_file_is_never_skipped(few, workers, tmp_path):
    (tmp_path / "store").write_text("a file where a directory should be")
    batches = loader(
        few, parse_preprocess(STEPS), batch_size=3, shuffle=False, seed=0, workers=workers, on_error="skip",
        store=tmp_path / "store",
    )  # fmt: skip
    with pytest.raises(StorageError, match="cannot write"):
        list(batches)


def test_a_batch_of_damaged_files_alone_is_no_batch(few):
    for item in few.instances[:6]:
        few.path(item).write_bytes(b"")
    batches = loader(few, parse_preprocess(STEPS), batch_size=3, shuffle=False, seed=0, augment=True, on_error="skip")
    assert len(list(batches)) == len(few.instances) // 3 - 2 and len(batches.skipped) == 6


def test_on_error_is_one_of_two(few):
    for make in (loader, dataset):
        with pytest.raises(ConfigError, match="on_error is 'ignore': expected one of stop, skip"):
            extra = {"batch_size": 1, "shuffle": False, "seed": 0} if make is loader else {}
            make(few, parse_preprocess(STEPS), on_error="ignore", **extra)


@pytest.fixture
def decoded(monkeypatch):
    """The paths of the files that were decoded."""
    read, paths = case.read_image, []
    monkeypatch.setattr(case, "read_image", lambda path, frame: paths.append(path) or read(path, frame))
    return paths


def test_a_store_keeps_results_from_run_to_run(few, tmp_path, decoded):
    def run(steps=STEPS):
        decoded.clear()
        return drawn(
            loader(few, parse_preprocess(steps), batch_size=4, shuffle=False, seed=0, store=tmp_path / "store")
        )[0]

    first = run()
    assert len(decoded) == len(few.instances)
    assert np.array_equal(run(), first) and not decoded
    dataset = pydicom.dcmread(few.path(few.instances[2]))
    dataset.PixelData = dataset.PixelData[::-1]
    dataset.save_as(few.path(few.instances[2]))
    changed = run()
    assert decoded == [few.path(few.instances[2])] and not np.array_equal(changed[2], first[2])
    other = run([{**STEPS[0], "lower": 2}, *STEPS[1:]])
    assert len(decoded) == len(few.instances) and not np.array_equal(other, changed)


class Mine:
    """What a pickle in the store would run."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", "cut", "flipped", "pickle"])
def test_a_damaged_entry_is_made_again_and_nothing_is_unpickled(few, tmp_path, decoded, content):
    part = dataclasses.replace(few, instances=few.instances[:1])
    make = {"batch_size": 1, "shuffle": False, "seed": 0, "store": tmp_path / "store"}
    first = drawn(loader(part, parse_preprocess(STEPS), **make))[0]
    (entry,) = (path for path in (tmp_path / "store").rglob("*") if path.is_file())
    held = entry.read_bytes()
    array = np.asarray([Mine()], dtype=object)
    with (tmp_path / "evil.npy").open("wb") as file:
        np.lib.format.write_array(file, array, allow_pickle=True)
    evil = (tmp_path / "evil.npy").read_bytes()
    damaged = {
        "cut": held[:-4],
        "flipped": held[:-1] + bytes([held[-1] ^ 1]),
        "pickle": hashlib.sha256(evil).digest() + evil,
    }
    for bad in (damaged.get(content, content), pickle.dumps(Mine())):
        entry.write_bytes(bad)
        decoded.clear()
        assert np.array_equal(drawn(loader(part, parse_preprocess(STEPS), **make))[0], first) and len(decoded) == 1
        assert entry.read_bytes() == held


def test_the_key_knows_files_by_content_alone(tmp_path):
    for name, content in (("a", b"1"), ("b", b"2"), ("c", b"1")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (tmp_path / name for name in "abc")
    assert key_of([a, b], "x") == key_of([b, c], "x") != key_of([a, b], "y")
    assert key_of([a], "x") != key_of([a, c], "x")
    with pytest.raises(DicomError, match="cannot be read"):
        key_of([tmp_path / "absent"])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_item_of_a_volume_is_a_series(few, workers, tmp_path):
    preprocess = parse_preprocess(CUBE)
    cases = few.cases("series")
    assert {len(case) for case in cases.values()} == {3}
    batches = loader(
        few, preprocess, batch_size=3, shuffle=False, seed=0, workers=workers, cache=True, store=tmp_path / "store"
    )
    images, labels = drawn(batches)
    assert images.shape == (8, 2, 4, 16, 20) and preprocess.shape == images.shape[1:]
    volumes = [read_volume([few.path(item) for item in case]) for case in cases.values()]
    assert np.array_equal(images, np.stack([preprocess(volume) for volume in volumes]))
    assert labels.tolist() == [few.label_index(case[0]) for case in cases.values()]
    assert np.array_equal(drawn(batches)[0], images)


def test_volumes_are_augmented_and_skipped_too(few):
    preprocess = parse_preprocess([{"name": "volume", "minimum_slices": 3}, *CUBE])
    shutil.copy(few.path(few.instances[0]), few.path(few.instances[1]))
    gap = few.path(next(item for item in few.instances if item.series == few.instances[5].series))
    dataset = pydicom.dcmread(gap)
    dataset.ImagePositionPatient = [*dataset.ImagePositionPatient[:2], 500]
    dataset.save_as(gap)
    found = {}
    for workers in (0, 2):
        batches = loader(
            few, preprocess, batch_size=2, shuffle=True, seed=3, augment=True, workers=workers, on_error="skip"
        )
        found[workers] = drawn(batches)[0]
        assert len(batches.skipped) == 2 and len(found[workers]) == 6
        assert any("2 positions: expected at least 3" in reason for reason in batches.skipped.values())
    assert np.array_equal(found[0], found[2])


def test_a_study_gives_the_series_that_rules_choose(few):
    preprocess = parse_preprocess([{"name": "series", "modality": "MR", "minimum_slices": 3}, *CUBE])
    images, _ = drawn(loader(few, preprocess, batch_size=4, shuffle=False, seed=0))
    assert len(images) == len(few.cases("study"))
    with pytest.raises(DicomError, match="no series of the case fits the rules"):
        other = parse_preprocess([{"name": "series", "modality": "CT"}, *CUBE])
        list(loader(few, other, batch_size=4, shuffle=False, seed=0))


def test_a_case_with_two_labels_is_told(few):
    mixed = dataclasses.replace(few.instances[0], label=next(c for c in few.classes if c != few.instances[0].label))
    with pytest.raises(CohortError, match="2 labels"):
        dataset(dataclasses.replace(few, instances=(mixed, *few.instances[1:])), parse_preprocess(CUBE))


def test_monai_users_compose_the_halves_with_their_own(few):
    preprocess = parse_preprocess(STEPS)
    items = [{"image": few.path(item), "label": 0} for item in few.instances[:4]]
    flipped = CacheDataset(
        items, Compose([Read(preprocess), RandFlipd("image", prob=1.0, spatial_axis=1), Finish(preprocess)]),
        progress=False, num_workers=1,
    )  # fmt: skip
    for item, (_, pixels) in zip(flipped, stream(few, preprocess), strict=False):
        assert isinstance(item["image"], torch.Tensor) and np.array_equal(item["image"].numpy(), pixels[..., ::-1])
    own = loader(few, preprocess, batch_size=24, shuffle=False, seed=0, augment=[RandFlipd("image", 1.0, 1)])
    expected = np.stack([pixels for _, pixels in stream(few, preprocess)])
    assert np.array_equal(drawn(own)[0], expected[..., ::-1])
