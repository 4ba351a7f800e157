"""Choosing calibration images: properties of every method, of the report and of the subset file."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hscc_edge.data.cohort import Cohort, Instance
from hscc_edge.data.coverage import coverage, variance_covered
from hscc_edge.data.phantom import write_phantom
from hscc_edge.data.relatives import relatives
from hscc_edge.data.subset import (
    METHODS,
    Pool,
    Relatives,
    choose,
    overlap,
    pick_indices,
    place,
    refuse_overlap,
    squared_distances,
    whitened,
)
from hscc_edge.data.subset_file import Choice, read_choice, read_subset, write_subset
from hscc_edge.errors import CohortError, ConfigError, InputError

each_method = pytest.mark.parametrize("method", METHODS)


def cohort_of(labels: str, patients: list[int] | None = None, split: str = "train", **more: str) -> Cohort:
    """An instance for each letter; its patient is its number unless told."""
    owners = list(range(len(labels))) if patients is None else patients
    instances = tuple(
        Instance(
            f"{split}/{number:04d}.dcm", f"{split}-{owner}", "1.1", "1.2", f"1.3.{split}.{number}", label, split,
            f"{int.from_bytes(split.encode(), 'big') + number:064x}", **more,
        )
        for number, (label, owner) in enumerate(zip(labels, owners, strict=True))
    )  # fmt: skip
    return Cohort(Path("/nowhere"), "made", "image", tuple(sorted(set(labels))), "made", {}, instances)


def features_for(size: int, seed: int = 0, width: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(size, width))


def pool_of(features: np.ndarray) -> Pool:
    return Pool(features, np.zeros(len(features), dtype=np.intp))


@each_method
@given(labels=st.text("abc", min_size=2, max_size=60), seed=st.integers(0, 9), data=st.data())
@settings(max_examples=25, deadline=None)
def test_count_no_repeats_determinism_and_class_shares(method, labels, seed, data):
    cohort, features = cohort_of(labels), features_for(len(labels), seed)
    count = data.draw(st.integers(1, len(labels)))
    part = choose(cohort, count, seed, method=method, features=features)
    assert len(part.instances) == len({item.file for item in part.instances}) == count
    assert choose(cohort, count, seed, method=method, features=features).instances == part.instances
    for label in set(labels):
        held = sum(item.label == label for item in part.instances)
        assert abs(held - count * labels.count(label) / len(labels)) <= 1


@each_method
@given(order=st.permutations(range(24)), seed=st.integers(0, 3))
@settings(max_examples=15, deadline=None)
def test_the_order_of_the_pool_does_not_matter(method, order, seed):
    cohort, features = cohort_of("abbc" * 6), features_for(24)
    mixed = dataclasses.replace(cohort, instances=tuple(cohort.instances[index] for index in order))
    one = choose(cohort, 9, seed, method=method, features=features)
    other = choose(mixed, 9, seed, method=method, features=features[order])
    assert one.instances == other.instances


@each_method
def test_seeds_differ(method):
    cohort, features = cohort_of("ab" * 40), features_for(80)
    found = {choose(cohort, 8, seed, method=method, features=features).digest for seed in range(6)}
    assert len(found) > 1


@each_method
@given(patients=st.lists(st.integers(0, 7), min_size=8, max_size=40), seed=st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_patients_are_spread(method, patients, seed):
    """One class: no patient comes again while another that is not used up has come less often."""
    cohort, features = cohort_of("a" * len(patients), patients), features_for(len(patients))
    count = len(patients) // 2
    part = choose(cohort, count, seed, method=method, features=features)
    taken = {owner: sum(item.patient == f"train-{owner}" for item in part.instances) for owner in set(patients)}
    most = max(taken.values())
    assert all(number >= min(most - 1, patients.count(owner)) for owner, number in taken.items())


@each_method
def test_of_near_duplicates_one_is_taken(method):
    cohort, features = cohort_of("a" * 20), np.repeat(features_for(10), 2, axis=0)
    groups = {place(item): str(number // 2) for number, item in enumerate(cohort.instances)}
    part = choose(cohort, 10, 0, method=method, features=features, kin=Relatives(groups))
    assert len({groups[place(item)] for item in part.instances}) == 10
    with pytest.raises(CohortError, match="has 10 to choose from"):
        choose(cohort, 11, 0, method=method, features=features, kin=Relatives(groups))


def test_equal_files_count_once_and_frames_of_a_file_do_not():
    cohort = cohort_of("aaaa")
    same = tuple(dataclasses.replace(item, digest="0" * 64) for item in cohort.instances)
    with pytest.raises(CohortError, match="has 1 to choose from"):
        choose(dataclasses.replace(cohort, instances=same), 2, 0)
    frames = tuple(dataclasses.replace(same[0], frame=str(number)) for number in range(4))
    assert len(choose(dataclasses.replace(cohort, instances=frames), 4, 0).instances) == 4
    unknown = tuple(dataclasses.replace(item, digest="") for item in cohort.instances)
    assert len(choose(dataclasses.replace(cohort, instances=unknown), 4, 0).instances) == 4


@given(seed=st.integers(0, 200), size=st.integers(4, 9), count=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_farthest_first_is_within_twice_the_least_radius(seed, size, count):
    """Against every subset (Gonzalez 1985)."""
    features = features_for(size, seed, width=2)
    far = np.sqrt(squared_distances(features, features))

    def radius(chosen):
        return far[:, list(chosen)].min(axis=1).max()

    best = min(radius(chosen) for chosen in itertools.combinations(range(size), count))
    assert radius(pick_indices(pool_of(features), count, "k-centre", seed)) <= 2 * best + 1e-6


@given(seed=st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_each_pick_of_d_optimal_has_the_greatest_determinant(seed):
    features = features_for(30, seed, width=4)
    chosen = pick_indices(pool_of(features), 8, "d-optimal", seed)
    x = whitened(features)
    for step in range(1, 8):
        kept = x[chosen[:step]]
        gram = kept.T @ kept + 1e-3 * np.eye(4)
        gains = {i: np.linalg.slogdet(gram + np.outer(x[i], x[i]))[1] for i in range(30) if i not in chosen[:step]}
        assert gains[chosen[step]] == pytest.approx(max(gains.values()), abs=1e-6)


def served(features: np.ndarray, chosen: list[int]) -> float:
    return float(squared_distances(features, features[chosen]).min(axis=1).mean())


def mean_apart(features: np.ndarray, chosen: list[int]) -> float:
    return float(np.linalg.norm(features[chosen].mean(axis=0) - features.mean(axis=0)))


@pytest.mark.parametrize(("method", "cost"), [("facility-location", served), ("herding", mean_apart)])
def test_a_method_betters_random_in_what_it_is_greedy_for(method, cost):
    features = np.exp(features_for(400, 1))
    own, other = (
        [cost(features, pick_indices(pool_of(features), 20, name, seed)) for seed in range(8)]
        for name in (method, "random")
    )
    assert max(own) < min(other)


def test_importance_draws_by_squared_norm():
    features = np.ones((200, 1))
    features[:20] = 6.0  # 20 x 36 against 180 x 1: four of five first picks
    first = [pick_indices(pool_of(features), 1, "importance", seed)[0] for seed in range(300)]
    assert 0.7 < np.mean(np.asarray(first) < 20) < 0.9


@each_method
def test_features_of_no_variance_are_no_fault(method):
    found = choose(cohort_of("ab" * 10), 12, 0, method=method, features=np.full((20, 3), 2.0))
    assert len(found.instances) == 12


def test_without_strata_classes_do_not_count():
    features = np.r_[np.zeros((30, 1)), [[5.0], [9.0]]]
    part = choose(cohort_of("a" * 30 + "bb"), 3, 0, method="k-centre", features=features, stratify=False)
    assert {"train/0030.dcm", "train/0031.dcm"} <= {item.file for item in part.instances}


def test_unfit_requests_are_told():
    cohort = cohort_of("aabb")
    with pytest.raises(InputError, match="expected one of random"):
        choose(cohort, 2, 0, method="best")
    with pytest.raises(InputError, match="give a model"):
        choose(cohort, 2, 0, method="herding")
    for count in (0, 5):
        with pytest.raises(CohortError, match=f"{count} calibration images"):
            choose(cohort, count, 0)


@pytest.mark.parametrize("key", ["patient", "sop", "digest"])
def test_overlap_with_the_test_split_is_refused_and_names_nobody(key):
    train, test = cohort_of("aabb"), cohort_of("aabb", split="test")
    whole = dataclasses.replace(train, instances=train.instances + test.instances)
    assert set(overlap(train, whole).values()) == {0}
    refuse_overlap(train, whole)
    shared = dataclasses.replace(train.instances[2], **{key: getattr(test.instances[1], key)})
    leaking = dataclasses.replace(train, instances=(*train.instances[:2], shared))
    with pytest.raises(CohortError, match="share 1 ") as met:
        refuse_overlap(leaking, whole)
    assert getattr(shared, key) not in str(met.value)


@given(seed=st.integers(0, 20), count=st.integers(1, 30))
@settings(max_examples=20, deadline=None)
def test_shares_of_variance_grow_to_one(seed, count):
    features = features_for(30, seed)
    order = list(np.random.default_rng(seed).permutation(30))
    found = [variance_covered(features, order[:number]) for number in (count, 30)]
    assert found[0]["nearest"] <= found[1]["nearest"] + 1e-9 and found[0]["span"] <= found[1]["span"] + 1e-9
    assert found[1] == {"nearest": pytest.approx(1), "span": pytest.approx(1), "radius": pytest.approx(0, abs=1e-6)}


def test_the_span_is_a_projection():
    """Two axes of variance 4 and 1 about the mean: an image on the first keeps 0.8."""
    features = np.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert variance_covered(features, [0])["span"] == pytest.approx(0.8)


def test_the_report_counts_and_holds_no_identifier():
    one, other = cohort_of("aab", site="north"), cohort_of("aab", split="test")
    whole = dataclasses.replace(one, instances=one.instances + other.instances)
    part = choose(whole.select("train"), 2, 0, method="k-centre", features=features_for(3))
    found = coverage(whole, whole.select("train"), part, features_for(3))
    assert found["classes"]["a"] == {"pool": pytest.approx(2 / 3), "chosen": 0.5, "images": 1}
    assert found["site"] == {"north": {"pool": 1.0, "chosen": 1.0, "images": 2}} and "scanner" not in found
    assert (found["images"], found["pool"], found["patients"], found["pool_patients"]) == (2, 3, 2, 3)
    text = json.dumps(found, allow_nan=False)
    assert not [item for item in whole.instances for uid in (item.patient, item.sop, item.file) if uid in text]


def test_a_subset_file_gives_the_choice_back(tmp_path):
    train, test = cohort_of("abbc" * 5), cohort_of("abc", split="test")
    whole = dataclasses.replace(train, instances=train.instances + test.instances)
    chosen, path = choose(whole.select("train"), 7, 3), tmp_path / "subset.toml"
    choice = Choice(whole.digest, "train", "random", 3)
    report = coverage(whole, whole.select("train"), chosen)
    write_subset(path, chosen, choice, report)
    assert read_subset(path, whole).instances == chosen.instances and read_choice(path) == choice
    with pytest.raises(InputError, match="exists"):
        write_subset(path, chosen, choice, report)
    write_subset(path, chosen, choice, report, replace=True)
    text = path.read_text()
    assert not [item for item in whole.instances if item.patient in text or item.sop in text or item.file in text]
    for change in ({"label": "a"}, {"split": "val"}, {"digest": "f" * 64}):
        altered = dataclasses.replace(train.instances[1], **change)
        moved = dataclasses.replace(whole, instances=(*whole.instances[:1], altered, *whole.instances[2:]))
        with pytest.raises(CohortError, match="choose again"):
            read_subset(path, moved)


def test_frames_of_one_file_are_told_apart_in_a_subset_file(tmp_path):
    cohort = cohort_of("aaaa")
    frames = tuple(
        dataclasses.replace(cohort.instances[0], sop=f"1.3.{number}", frame=str(number)) for number in range(4)
    )
    whole = dataclasses.replace(cohort, instances=frames)
    chosen = choose(whole, 2, 0)
    write_subset(tmp_path / "subset.toml", chosen, Choice(whole.digest, "train", "random", 0), {})
    assert read_subset(tmp_path / "subset.toml", whole).instances == chosen.instances


def test_a_file_that_overlaps_the_test_split_is_refused(tmp_path):
    """A patient is no part of a cohort's digest."""
    train, test = cohort_of("aabb"), cohort_of("ab", split="test")
    whole = dataclasses.replace(train, instances=train.instances + test.instances)
    write_subset(tmp_path / "subset.toml", train, Choice(whole.digest, "train", "random", 0), {})
    leak = dataclasses.replace(test.instances[0], patient=train.instances[0].patient)
    with pytest.raises(CohortError, match="share 1 patients"):
        read_subset(
            tmp_path / "subset.toml",
            dataclasses.replace(whole, instances=(*train.instances, leak, *test.instances[1:])),
        )


@pytest.mark.parametrize(
    "text",
    [
        "not toml",
        'split = "train"',
        'cohort = "c"\nsplit = "train"\nmethod = "random"\nseed = 0\nstratified = true\nbundle = ""\nimages = []',
        'cohort = "c"\nsplit = "train"\nmethod = "random"\nseed = 0\nstratified = true\nbundle = ""\nimages = ["x"]',
        'cohort = "c"\nsplit = "train"\nmethod = "random"\nseed = "0"\nstratified = true\nbundle = ""\n'
        f'images = ["{"0" * 64}"]',
    ],
)
def test_a_malformed_subset_file_is_told(tmp_path, text):
    path = tmp_path / "subset.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="hscc-edge cohort subset"):
        read_subset(path, cohort_of("ab"))


def test_images_without_a_digest_make_no_file(tmp_path):
    cohort = cohort_of("ab")
    bare = dataclasses.replace(
        cohort, instances=tuple(dataclasses.replace(item, digest="") for item in cohort.instances)
    )
    with pytest.raises(CohortError, match="2 chosen images have no digest"):
        write_subset(tmp_path / "subset.toml", bare, Choice(bare.digest, "train", "random", 0), {})


def test_near_duplicates_are_found_and_those_of_test_images_are_never_taken(tmp_path):
    """Two slices of a phantom are copies of others under another window, one of them of a test image."""
    made = write_phantom(tmp_path / "cohort", patients=16, slices=1, size=64, seed=2)
    items = [dataclasses.replace(item, split="test" if n < 2 else "train") for n, item in enumerate(made.instances)]
    for copy, source in ((3, 0), (5, 4)):
        data = pydicom.dcmread(made.path(items[source]))
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = items[copy].sop
        data.PixelData = (data.pixel_array // 2 + 7).astype(data.pixel_array.dtype).tobytes()
        data.save_as(made.path(items[copy]))
    whole = dataclasses.replace(made, instances=tuple(items))
    pool = whole.select("train")
    kin = relatives(pool, whole)
    assert place(items[3]) in kin.tested and kin.groups[place(items[5])] == kin.groups[place(items[4])]
    most = len(pool.instances) - len(kin.tested) - 1
    found = {place(item) for item in choose(pool, most, 0, kin=kin, stratify=False).instances}
    assert place(items[3]) not in found and len(found & {place(items[4]), place(items[5])}) == 1
    with pytest.raises(CohortError, match=f"has {most} to choose from"):
        choose(pool, most + 1, 0, kin=kin, stratify=False)
