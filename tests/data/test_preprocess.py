"""THE preprocessing: properties, round trip, and the MONAI pipeline equal to it bit for bit."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hscc_edge.data.case import stream
from hscc_edge.data.dicom import Image
from hscc_edge.data.pipeline import loader
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.errors import ConfigError

STEPS = [
    {"name": "percentile", "lower": 1, "upper": 99},
    {"name": "resize", "height": 12, "width": 20},
    {"name": "channels", "count": 3},
    {"name": "normalise", "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 1.0]},
]
PIXELS = hnp.arrays(
    np.float32, st.tuples(st.integers(2, 40), st.integers(2, 40)), elements=st.floats(-2000, 4000, width=32)
)


@given(PIXELS)
@settings(deadline=None)
def test_shape_range_and_finite(pixels):
    preprocess = parse_preprocess(STEPS)
    result = preprocess(Image(pixels, None))
    assert result.shape == preprocess.shape == (3, 12, 20)
    assert result.dtype == np.float32 and np.isfinite(result).all()
    assert result[0].min() >= -2.001 and result[0].max() <= 2.001


@given(PIXELS, st.floats(0.1, 50), st.floats(-500, 500))
@settings(deadline=None)
def test_percentiles_do_not_see_scale_and_offset(pixels, scale, offset):
    preprocess = parse_preprocess(STEPS[:2])
    if np.ptp(np.percentile(pixels, (1, 99))) < 1:
        return
    moved = (pixels.astype(np.float64) * scale + offset).astype(np.float32)
    assert np.allclose(preprocess(Image(pixels, None)), preprocess(Image(moved, None)), atol=2e-2)


@given(PIXELS, st.floats(-500, 500), st.floats(2, 3000))
@settings(deadline=None)
def test_a_window_is_monotone_and_clipped(pixels, center, width):
    step = {"name": "window", "center": center, "width": width}
    size = {"name": "resize", "height": pixels.shape[0], "width": pixels.shape[1]}
    result = parse_preprocess([step, size])(Image(pixels, None))[0]
    order = np.argsort(pixels, axis=None)
    assert (np.diff(result.ravel()[order]) >= 0).all() and result.min() >= 0 and result.max() <= 1


def test_a_header_window_is_used(phantom):
    from hscc_edge.data.dicom import read_image

    image = read_image(phantom.path(phantom.instances[0]))
    size = {"name": "resize", "height": 64, "width": 64}
    center, width = image.headers.window
    first = parse_preprocess([{"name": "window", "source": "header"}, size])(image)
    second = parse_preprocess([{"name": "window", "center": center, "width": width}, size])(image)
    assert np.array_equal(first, second)


RECORDED = {
    "percentile": (
        [{"name": "percentile", "lower": 0.5, "upper": 99.5}, {"name": "resize", "height": 61, "width": 33}],
        {"grey": "57eebddb8fd7b062", "colour": "ea0fbaa707db383c"},
    ),
    "window": (
        [
            {"name": "window", "center": 300, "width": 1500},
            {"name": "resize", "height": 48, "width": 48},
            {"name": "channels", "count": 3},
            {"name": "normalise", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        ],
        {"grey": "f95697ad8c0bd0b8", "colour": "e3c857c85967f07f"},
    ),
    "header": (
        [
            {"name": "window", "source": "header"},
            {"name": "resize", "height": 100, "width": 100},
            {"name": "channels", "count": 1},
            {"name": "normalise", "mean": [0.3], "std": [0.25]},
        ],
        {"grey": "9d25de268a243754", "colour": "bb98be58c3412632"},
    ),
    "range": (
        [{"name": "window", "source": "header"}, {"name": "resize", "height": 100, "width": 100}, *STEPS[2:]],
        {"grey": "6050007c4522c22b", "colour": "ce02038cdf493c5a"},
    ),
    "same_size": (
        [{"name": "resize", "height": 50, "width": 70}, {"name": "channels", "count": 1}],
        {"grey": "32d4ed623c509eb2", "colour": "e053a0c9f7409a9e"},
    ),
}


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize(("kind", "shape"), [("grey", (50, 70)), ("colour", (50, 70, 3))])
def test_bundles_that_exist_see_the_same_bits(name, kind, shape):
    """Digests recorded before a step was ever changed: where one differs, every bundle served is another classifier."""
    steps, digests = RECORDED[name]
    pixels = (np.random.default_rng(7).integers(0, 4096, shape).astype(np.float32) - 512) * np.float32(0.75)
    headers = SimpleNamespace(window=None if name == "range" else (400.0, 900.0))
    result = parse_preprocess(steps)(Image(pixels, headers))
    assert hashlib.sha256(result.tobytes()).hexdigest()[:16] == digests[kind]


def test_round_trip():
    preprocess = parse_preprocess(STEPS)
    assert parse_preprocess(preprocess.to_json()) == preprocess


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([{"name": "sharpen"}], "unknown step"),
        ([{"name": "percentile", "lower": 1}], "lacks the option 'upper'"),
        ([{"name": "percentile", "lower": 99, "upper": 1}, STEPS[1]], "out of range"),
        ([{"name": "resize", "height": 1, "width": 2, "length": 3}], "unknown option 'length'"),
        ([STEPS[0]], "no step 'resize'"),
        ([STEPS[1], {"name": "normalise", "mean": [0.1, 0.2], "std": [1, 1]}], "out of range"),
        ([STEPS[1], {"name": "window"}], "out of range"),
    ],
)
def test_bad_steps_are_told(steps, words):
    with pytest.raises(ConfigError, match=words):
        parse_preprocess(steps)


@pytest.mark.parametrize("cache", [False, True])
def test_the_pipeline_is_the_preprocessing(phantom, cache):
    preprocess, part = parse_preprocess(STEPS), phantom.select("val")
    batches = list(loader(part, preprocess, batch_size=5, shuffle=False, seed=0, cache=cache))
    images = np.concatenate([np.asarray(batch["image"]) for batch in batches])
    labels = np.concatenate([np.asarray(batch["label"]) for batch in batches])
    expected = list(stream(part, preprocess))
    assert np.array_equal(images, np.stack([image for _, image in expected]))
    assert labels.tolist() == [part.label_index(item) for item, _ in expected]


def test_the_same_seed_gives_the_same_batches(phantom):
    preprocess, part = parse_preprocess(STEPS), phantom.select("val")

    def draw(seed):
        found = loader(part, preprocess, batch_size=4, shuffle=True, seed=seed, augment=True, cache=True)
        return np.concatenate([np.asarray(batch["image"]) for batch in found])

    assert np.array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))


def test_the_cache_reads_each_file_once(phantom, monkeypatch):
    """MONAI caches only what it takes for a deterministic transform: count the reads."""
    from hscc_edge.data import case

    read, count = case.read_image, []
    monkeypatch.setattr(case, "read_image", lambda path, frame: count.append(path) or read(path, frame))
    part = phantom.select("val")
    batches = loader(part, parse_preprocess(STEPS), batch_size=4, shuffle=True, seed=0, augment=True, cache=True)
    for _ in range(3):
        assert sum(len(batch["image"]) for batch in batches) == len(part.instances)
    assert len(count) == len(part.instances)
