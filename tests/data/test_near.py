"""Near duplicates: copies are joined with their original, other pictures and one patient's are not."""

import io

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from hscc_edge.data.alignment import similarity, symmetries
from hscc_edge.data.near import DUPLICATE, NEIGHBOURING, candidates, groups, near_pairs, owners
from hscc_edge.data.thumbnail import SIDE, resampling, signatures, thumbnail

SIZE = 200


def picture(seed: int) -> np.ndarray:
    """A bright disc with structure of its own at several scales, on a dark ground; 8 bit."""
    random = np.random.default_rng(seed)
    noise = sum(gaussian_filter(random.normal(size=(SIZE, SIZE)), scale) * scale for scale in (3, 6, 12))
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE - 0.5
    disc = (x / random.uniform(0.3, 0.42)) ** 2 + (y / random.uniform(0.38, 0.45)) ** 2 < 1
    return np.where(disc, np.clip(120 + 90 * noise / noise.std() / 2, 25, 255), 2).astype(np.uint8)


def jpeg(grey: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    PIL.Image.fromarray(grey).save(file, "JPEG", quality=50)
    return np.asarray(PIL.Image.open(file))


COPIES = {
    "mirrored": lambda a: a[:, ::-1],
    "turned": lambda a: np.rot90(a),
    "transposed": lambda a: a.T,
    "smaller": lambda a: np.asarray(PIL.Image.fromarray(a).resize((131, 131))),
    "larger": lambda a: np.asarray(PIL.Image.fromarray(a).resize((333, 333))),
    "stretched": lambda a: np.asarray(PIL.Image.fromarray(a).resize((150, 300))),
    "jpeg": jpeg,
    "windowed": lambda a: np.clip((a.astype(float) - 20) * 1.3, 0, 255),
    "gamma": lambda a: 4095 * (a / 255) ** 0.7,
    "hounsfield": lambda a: a * 9.0 - 1024,
    "cropped": lambda a: a[10:-10, 10:-10],
    "cropped at two sides": lambda a: a[10:, 10:],
    "colour": lambda a: np.stack([a] * 3, axis=2),
}


@pytest.fixture(scope="module")
def originals():
    return [picture(seed) for seed in range(60)]


@pytest.fixture(scope="module")
def known(originals):
    return prepared(originals)


def prepared(pictures):
    thumbs = np.stack([thumbnail(np.ascontiguousarray(a, dtype=np.float32)) for a in pictures])
    return thumbs, np.stack([signatures(thumb) for thumb in thumbs])


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_is_joined_with_its_original_alone(originals, known, kind):
    copies = [COPIES[kind](a) for a in originals[:20]]
    thumbs, marks = (np.concatenate(both) for both in zip(known, prepared(copies), strict=True))
    pairs = [pair for pair in near_pairs(thumbs, marks, np.arange(80)) if pair.duplicate]
    assert {(pair.one, pair.other) for pair in pairs} == {(i, 60 + i) for i in range(20)}


def test_pictures_of_one_patient_are_not_compared(originals):
    thumbs, marks = prepared([*originals[:10], *(a[:, ::-1] for a in originals[:10])])
    assert not near_pairs(thumbs, marks, np.tile(np.arange(10), 2))
    assert len(near_pairs(thumbs, marks, np.arange(20))) == 10


def test_similarity_falls_from_slice_to_slice():
    # structure that changes smoothly along the first axis
    volume = gaussian_filter(np.random.default_rng(0).normal(size=(40, SIZE, SIZE)), (4, 5, 5))
    thumbs = prepared((volume - volume.min()) * 1000)[0].astype(np.float32)
    alike = [float(similarity(thumbs[:-step], thumbs[step:]).mean()) for step in (1, 2, 3, 8)]
    assert alike == sorted(alike, reverse=True)
    assert alike[0] > DUPLICATE > alike[2] > NEIGHBOURING > alike[3]


def test_many_copies_are_one_group(originals):
    many = [np.roll(originals[0], 0, axis=0) + np.uint8(i % 7) for i in range(40)]
    thumbs, marks = prepared([*originals[1:20], *many])
    pairs = near_pairs(thumbs, marks, np.arange(len(thumbs)))
    assert [group.tolist() for group in groups(((p.one, p.other) for p in pairs), len(thumbs))] == [list(range(19, 59))]


def test_work_may_be_spread(originals):
    thumbs, marks = prepared([*originals[:9], *(np.rot90(a) for a in originals[:9])])
    calls = []

    def spread(parts):
        for one, other in parts:
            calls.append(len(one))
            yield similarity(one.astype(np.float32), other.astype(np.float32))

    found = near_pairs(thumbs, marks, np.arange(18), spread=spread)
    assert found == near_pairs(thumbs, marks, np.arange(18)) and sum(calls) >= 9


def test_one_grey_has_no_thumbnail():
    assert thumbnail(np.full((30, 40), 7, dtype=np.float32)) is None
    assert candidates(np.zeros((0, 4, 99), dtype=np.float16), np.zeros(0, dtype=np.int64)).shape == (0, 2)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 7))
def test_signatures_are_equal_for_all_symmetries(seed, which):
    thumb = np.random.default_rng(seed).integers(0, 255, (1, SIDE, SIDE)).astype(np.uint8)
    same = symmetries(thumb)[which, 0]
    assert np.abs(signatures(thumb[0]).astype(float) - signatures(same).astype(float)).max() < 2e-3


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000))
def test_a_monotone_grey_map_changes_a_thumbnail_little(seed):
    grey = gaussian_filter(np.random.default_rng(seed).normal(size=(90, 90)), 4).astype(np.float32)
    grey = (grey - grey.min()) / (grey.max() - grey.min())
    one, other = thumbnail(grey).astype(float), thumbnail(3 * grey**0.8 - 1).astype(float)
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.98


@given(st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=40))
def test_groups_are_what_links_reach(links):
    owner = owners(links, 30)
    assert all(owner[a] == owner[b] for a, b in links)
    found = [set(group.tolist()) for group in groups(links, 30)]
    assert sorted(x for group in found for x in group) == sorted(i for i in range(30) if (owner == owner[i]).sum() > 1)
    assert len(set(owner.tolist())) >= 30 - len(links)


def test_reading_a_whole_line_changes_nothing():
    assert np.allclose(resampling(np.asarray(0.0), np.asarray(1.0), 12), np.eye(12))
    assert DUPLICATE > NEIGHBOURING
