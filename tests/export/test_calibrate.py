"""Ranges of tensors: right, finite, and one image in memory at a time."""

import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from graphs import convolution, noise

from hscc_edge.errors import ExportError, InputError
from hscc_edge.export.calibrate import BINS, METHODS, Span, second_moments, spans, thresholds, watched

SHAPE = (1, 6, 6)


@pytest.fixture(scope="module")
def content() -> bytes:
    return convolution()


def test_spans_are_those_of_the_tensors(content):
    images = noise(5, SHAPE)
    found = spans(content, lambda: images)
    values = np.stack(images)
    assert found["image"] == Span(float(values.min()), float(values.max())) and "logits" in found
    assert found["active"].lowest == 0 and found["active"].highest == found["maps"].highest
    assert Span(-3, 2).largest == 3 and Span(1, 2).largest == 2


@pytest.mark.parametrize("method", METHODS)
def test_thresholds_are_within_the_span_and_hold_most_values(method, content):
    images = noise(20, SHAPE)
    found = spans(content, lambda: images)
    chosen = thresholds(content, lambda: images, found, method, ["image", "active"])
    values = np.abs(np.stack(images))
    assert 0.5 * found["image"].largest < chosen["image"] <= found["image"].largest
    assert (values <= chosen["image"]).mean() > 0.95
    if method == "percentile":
        assert chosen["image"] == pytest.approx(np.percentile(values, 99.99), rel=0.02)
    if method == "min-max":
        assert chosen["image"] == found["image"].largest


def test_an_outlier_is_cut_by_all_but_min_max(content):
    """One pixel of 14,400 is 40 times the rest."""
    images = noise(400, SHAPE)
    images[7][0, 2, 3] = 200.0
    found = spans(content, lambda: images)
    chosen = {name: thresholds(content, lambda: images, found, name, ["image"])["image"] for name in METHODS}
    assert chosen["min-max"] == 200 and chosen["percentile"] < 6 and chosen["entropy"] < 100


def test_mse_is_the_least_error():
    values = np.random.default_rng(0).standard_t(3, size=50_000)
    largest = float(np.abs(values).max())
    counts = np.histogram(values, BINS, range=(-largest, largest))[0]

    def error(limit: float) -> float:
        step = limit / 127
        return float(((np.clip(np.rint(values / step), -127, 127) * step - values) ** 2).mean())

    chosen = METHODS["mse"](counts, largest)
    assert chosen < 0.9 * largest
    assert error(chosen) <= 1.05 * min(error(share * largest) for share in np.linspace(0.2, 1, 33))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("everywhere", [True, False])
def test_values_that_are_not_finite_are_told(wrong, everywhere, content):
    images = noise(3, SHAPE)
    if everywhere:
        images = [np.full(SHAPE, wrong, np.float32)] * 3
    else:
        images[2][0, 0, 0] = wrong
    number = 1 if everywhere else 3
    with pytest.raises(ExportError, match=f"calibration image {number} gives the tensor image a value"):
        spans(content, lambda: images)


def test_no_image_and_no_method_are_told(content):
    with pytest.raises(ExportError, match="no calibration image"):
        spans(content, list)
    with pytest.raises(InputError, match="'median' is unknown: expected one of percentile, entropy, mse, min-max"):
        thresholds(content, list, {}, "median", [])


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_that_is_always_zero_has_range_zero(method, content):
    images = [np.zeros(SHAPE, np.float32)]
    found = spans(content, lambda: images)
    assert thresholds(content, lambda: images, found, method, ["image"]) == {"image": 0}


def test_a_dark_first_image_costs_no_memory_and_images_are_let_go(content):
    """A histogram whose bins are as wide as the first image's would need a billion of them."""
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def images() -> Iterator[np.ndarray]:
        nonlocal most
        for index, image in enumerate(noise(6, SHAPE)):
            made = image * np.float32(1e-9 if index == 0 else 1e3)
            alive.append(weakref.ref(made))
            most = max(most, sum(item() is not None for item in alive))
            yield made
            del made

    found = spans(content, images)
    chosen = thresholds(content, images, found, "percentile", ["image"])
    assert 1e3 < chosen["image"] < 1e4 and most <= 2


def test_second_moments_are_of_channels(content):
    images = noise(4, SHAPE)
    found = second_moments(content, lambda: images, {"maps": 1})["maps"]
    maps = np.concatenate([tensors["maps"] for tensors in watched(content, ["maps"], lambda: images)])
    columns = np.moveaxis(maps, 1, 0).reshape(3, -1).astype(np.float64)
    assert np.allclose(found, columns @ columns.T / columns.shape[1])
