"""What an image looks like, against pictures of known noise, range and spacing."""

import dataclasses

import numpy as np
import pydicom
import pytest

from hscc_edge.data.appearance import FEATURES, appearance, row_spacing_mm
from hscc_edge.data.dicom import read_image
from hscc_edge.data.volume import Volume


@pytest.fixture(scope="module")
def image(phantom):
    return read_image(phantom.path(phantom.instances[0]))


def noisy(image, sigma: float):
    pixels = np.random.default_rng(0).normal(500, sigma, (200, 300)).astype(np.float32)
    return dataclasses.replace(image, pixels=pixels)


@pytest.mark.parametrize("sigma", [2.0, 20.0])
def test_noise_is_its_share_of_the_contrast(image, sigma):
    found = appearance(noisy(image, sigma), None)
    assert found["noise"] * found["contrast"] == pytest.approx(sigma, rel=0.05)
    assert found["brightness"] == pytest.approx(500, abs=sigma / 5)
    assert found["contrast"] == pytest.approx(2 * 2.326 * sigma, rel=0.1)


def test_a_ramp_has_no_noise_and_a_flat_picture_none_to_tell(image):
    ramp = np.add.outer(np.arange(64.0), 3 * np.arange(64.0)).astype(np.float32)
    assert appearance(dataclasses.replace(image, pixels=ramp), None)["noise"] < 1e-6
    flat = appearance(dataclasses.replace(image, pixels=np.ones((64, 64), np.float32)), None)
    assert "noise" not in flat and flat["contrast"] == 0


def test_what_the_headers_say_is_there_and_nothing_but_features(image):
    headed = dataclasses.replace(image, headers=dataclasses.replace(image.headers, window=(40.0, 400.0)))
    found = appearance(headed, 0.9)
    assert (found["window_centre"], found["window_width"], found["spacing_mm"]) == (40.0, 400.0, 0.9)
    assert set(found) <= set(FEATURES)
    volume = Volume(np.stack([image.pixels] * 3), (1.0, 1.0, 1.0), np.eye(4), image.headers, (None,) * 3)
    assert appearance(volume, None) == appearance(image, None)


def test_the_spacing_is_found_in_plain_and_in_enhanced_files():
    plain, measures, group, enhanced = (pydicom.Dataset() for _ in range(4))
    plain.PixelSpacing = measures.PixelSpacing = [0.5, 0.7]
    group.PixelMeasuresSequence = [measures]
    enhanced.SharedFunctionalGroupsSequence = [group]
    assert row_spacing_mm(plain) == row_spacing_mm(enhanced) == 0.5
    assert row_spacing_mm(pydicom.Dataset()) is None
