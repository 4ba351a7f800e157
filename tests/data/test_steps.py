"""Steps on values and on space: PS3.3's formulas by pydicom, volumes by MONAI, and what holds of any input."""

import itertools
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.data import MetaTensor
from monai.transforms import (
    CropForeground,
    Orientation,
    Resize,
    ResizeWithPadOrCrop,
    ScaleIntensityRange,
    Spacing,
)
from pydicom.pixels import apply_voi_lut
from scipy import ndimage
from scipy.spatial.transform import Rotation

from hscc_edge.data.dicom import Image
from hscc_edge.data.lookup import Lut
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.data.steps import Sample, percentile, scale_range, window
from hscc_edge.data.steps_space import crop_foreground, orient, pad_or_crop, resize, spacing
from hscc_edge.data.volume import Volume
from hscc_edge.errors import ConfigError

RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SIZES = st.tuples(*[st.integers(2, 9)] * 3)
CODES = ["".join(sides) for axes in itertools.permutations(["LR", "PA", "SI"]) for sides in itertools.product(*axes)]


def smooth(shape, seed=0, sigma=2.0):
    noise = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    found = ndimage.gaussian_filter(noise, sigma, mode="nearest")
    return (found / np.abs(found).max()).astype(np.float32)


def placed(pixels, seed=0, mm=(3.0, 0.8, 1.1)):
    """A sample of one channel that lies obliquely in the patient, its axes permuted and some of them turned."""
    generator = np.random.default_rng(seed)
    turn = (
        Rotation.from_euler("xyz", generator.uniform(-0.4, 0.4, 3)).as_matrix() @ np.eye(3)[:, generator.permutation(3)]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn * generator.choice([-1, 1], 3) * mm
    affine[:3, 3] = generator.uniform(-100, 100, 3)
    return Sample(pixels[None], affine)


def of_monai(sample):
    return MetaTensor(torch.from_numpy(sample.pixels.copy()), affine=torch.from_numpy(RAS @ sample.affine))


def same_place(mine, its):
    return np.allclose(RAS @ mine.affine, np.asarray(its.affine), atol=1e-4)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@given(
    hnp.arrays(np.int16, (7, 5), elements=st.integers(-1000, 3000)),
    st.integers(-500, 2000),
    st.floats(1.5, 3000, width=16),
)
@settings(deadline=None, max_examples=25)
def test_windows_are_those_of_pydicom(function, values, center, width):
    dataset = pydicom.Dataset()
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = center, width, function
    dataset.BitsStored, dataset.PixelRepresentation, dataset.PhotometricInterpretation = 16, 1, "MONOCHROME2"
    with np.errstate(over="ignore"):
        peer = (apply_voi_lut(values, dataset) + 2**15) / (2**16 - 1)
    sample = Sample(values[None].astype(np.float32), None, headers(window=(center, width), voi_function=function))
    by_name = window(sample, center=center, width=width, function=function.lower())
    by_header = window(sample, source="header", function="header")
    assert np.allclose(by_name.pixels[0], peer, atol=2e-5) and np.array_equal(by_name.pixels, by_header.pixels)


def headers(**facts):
    return SimpleNamespace(**{"window": None, "voi_function": "LINEAR", "voi_lut": None, **facts})


def test_a_table_of_the_header_comes_first_where_it_is_asked_for():
    table = Lut(first=-2, bits=8, values=(0, 10, 60, 130, 255))
    image = Image(np.asarray([[-9, -1], [1, 7]], dtype=np.float32), headers(voi_lut=table, window=(1.0, 4.0)))
    size = {"name": "resize", "height": 2, "width": 2}
    step = {"name": "window", "source": "header", "function": "header"}
    by_table = parse_preprocess([step, size])(image)[0]
    assert np.allclose(by_table * 255, [[0, 10], [130, 255]])
    plain = parse_preprocess([{"name": "window", "source": "header"}, size])(image)[0]
    assert np.allclose(plain, np.clip((image.pixels - 0.5) / 3 + 0.5, 0, 1))


@given(hnp.arrays(np.float32, (1, 6, 6), elements=st.floats(-100, 100, width=16)), st.floats(1, 10**6, width=32))
@settings(deadline=None)
def test_padding_sets_no_percentile(pixels, far):
    padding = np.zeros((6, 6), dtype=bool)
    padding[:2] = True
    padded = pixels.copy()
    padded[:, padding] = far
    found = percentile(Sample(padded, padding=padding), lower=1, upper=99, padding="exclude").pixels
    expected = percentile(Sample(pixels[:, 2:]), lower=1, upper=99).pixels
    assert np.array_equal(found[:, 2:], expected)


@given(
    hnp.arrays(np.float32, (1, 5, 4), elements=st.floats(-2000, 2000, width=32)),
    st.floats(-1000, 0), st.floats(1, 1000), st.booleans(),
)  # fmt: skip
@settings(deadline=None)
def test_ranges_are_those_of_monai(pixels, low, high, clip):
    options = {"a_min": low, "a_max": high, "b_min": -1.0, "b_max": 1.0, "clip": clip}
    peer = np.asarray(ScaleIntensityRange(**options)(torch.from_numpy(pixels.copy())))
    assert np.allclose(scale_range(Sample(pixels), **options).pixels, peer, rtol=1e-5, atol=1e-4)


@given(SIZES, st.integers(0, 10**6), st.sampled_from(CODES))
@settings(deadline=None, max_examples=60)
def test_orientations_are_those_of_monai(shape, seed, axes):
    sample = placed(smooth(shape, seed), seed)
    labels = (("L", "R"), ("P", "A"), ("I", "S"))
    mine, its = orient(sample, axes=axes), Orientation(axcodes=axes, labels=labels)(of_monai(sample))
    assert np.array_equal(mine.pixels, np.asarray(its)) and same_place(mine, its)


@given(SIZES, st.integers(0, 10**6), st.tuples(st.sampled_from(CODES), st.sampled_from(CODES)))
@settings(deadline=None, max_examples=40)
def test_orientation_keeps_every_voxel_at_its_place(shape, seed, codes):
    sample = placed(smooth(shape, seed), seed)
    turned = orient(sample, axes=codes[0])
    index = np.unravel_index(int(np.argmax(sample.pixels)), sample.pixels.shape)[1:]
    there = np.unravel_index(int(np.argmax(turned.pixels)), turned.pixels.shape)[1:]
    assert np.allclose(sample.affine @ (*index, 1), turned.affine @ (*there, 1))
    again, at_once = orient(turned, axes=codes[1]), orient(sample, axes=codes[1])
    assert np.array_equal(again.pixels, at_once.pixels) and np.allclose(again.affine, at_once.affine)


@pytest.mark.parametrize("mm", [(1.0, 1.0, 1.0), (3.0, 2.0, 0.5), (4.4, 1.7, 2.3), (3.0, 0.8, 1.1)])
def test_spacing_is_that_of_monai(mm):
    sample = placed(smooth((14, 30, 26)), 3)
    mine = spacing(sample, mm=mm, antialias=False)
    its = Spacing(mm, mode="bilinear", padding_mode="border", dtype=np.float64)(of_monai(sample))
    assert mine.pixels.shape == tuple(its.shape) and same_place(mine, its)
    assert np.abs(mine.pixels - np.asarray(its)).max() < 1e-4
    assert np.linalg.norm(mine.affine[:3, :3], axis=0) == pytest.approx(mm)


def test_noise_of_an_affine_changes_no_size():
    """14.5 steps of the new spacing, give or take what a header's rounding leaves."""
    sizes = set()
    for noise in (-1e-5, 0, 1e-5):
        sample = Sample(smooth((30, 4, 4))[None], np.diag([0.8 * (1 + noise), 1.0, 1.0, 1.0]))
        sizes.add(spacing(sample, mm=(1.6, 1, 1)).pixels.shape)
    assert sizes == {(1, 16, 4, 4)}


@pytest.mark.parametrize("step", ["spacing", "resize"])
def test_fine_noise_does_not_come_through_as_grain(step):
    """A pattern that the coarse grid cannot hold averages out; without antialiasing it stays whole."""
    pattern = np.where(np.indices((12, 48, 48)).sum(axis=0) % 2, 1.0, -1.0).astype(np.float32)
    sample = Sample(pattern[None], np.diag([1.0, 1.0, 1.0, 1.0]))
    if step == "resize":
        assert resize(sample, depth=4, height=16, width=16).pixels.std() < 0.08
        return
    assert spacing(sample, mm=(3, 3, 3)).pixels[0, 1:-1, 1:-1, 1:-1].std() < 0.08
    assert spacing(sample, mm=(3, 3, 3), antialias=False).pixels.std() > 0.9


def test_a_larger_grid_is_that_of_monai():
    sample = placed(smooth((9, 20, 16)), 5)
    mine = resize(sample, depth=14, height=31, width=40)
    its = Resize((14, 31, 40), mode="trilinear", align_corners=False)(of_monai(sample))
    assert np.abs(mine.pixels - np.asarray(its)).max() < 1e-5


def test_a_smaller_grid_is_that_of_monai_where_there_is_nothing_to_lose():
    """The filters differ (a triangle here, a Gaussian that sees zeros beyond the edge there): inside a smooth volume by
    less than 0.02 of its range 2."""
    sample = Sample(smooth((24, 60, 48), sigma=6)[None], np.eye(4))
    mine = resize(sample, depth=12, height=40, width=24).pixels
    its = np.asarray(Resize((12, 40, 24), mode="trilinear", anti_aliasing=True)(of_monai(sample)))
    assert np.abs(mine - its)[:, 2:-2, 2:-2, 2:-2].max() < 0.02


@given(SIZES, st.integers(0, 10**6), SIZES)
@settings(deadline=None, max_examples=40)
def test_resizing_keeps_range_constants_and_place(shape, seed, size):
    sample = placed(smooth(shape, seed), seed)
    mine = resize(sample, depth=size[0], height=size[1], width=size[2])
    assert mine.pixels.shape == (1, *size)
    assert mine.pixels.min() >= sample.pixels.min() - 1e-5 and mine.pixels.max() <= sample.pixels.max() + 1e-5
    flat = resize(sample.holding(np.full_like(sample.pixels, 7)), depth=size[0], height=size[1], width=size[2])
    assert np.allclose(flat.pixels, 7)
    for corner in itertools.product((0, 1), repeat=3):
        mm = [one.affine @ (*(np.asarray(corner) * one.pixels.shape[1:] - 0.5), 1) for one in (sample, mine)]
        assert np.allclose(*mm, atol=1e-6)


@given(SIZES, st.integers(0, 10**6), st.floats(-0.2, 1.2), st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_foreground_is_that_of_monai(shape, seed, above, margin):
    sample = placed(smooth(shape, seed, sigma=0.5), seed)
    mine = crop_foreground(sample, above=above, margin=margin)
    if not (sample.pixels > above).any():
        assert mine is sample
        return
    its = CropForeground(select_fn=lambda x: x > above, margin=margin, allow_smaller=True)(of_monai(sample))
    assert np.array_equal(mine.pixels, np.asarray(its)) and same_place(mine, its)


@given(SIZES, SIZES, st.integers(0, 10**6))
@settings(deadline=None, max_examples=60)
def test_padding_and_cropping_are_those_of_monai(shape, size, seed):
    sample = placed(smooth(shape, seed), seed)
    mine = pad_or_crop(sample, depth=size[0], height=size[1], width=size[2], value=-3)
    its = ResizeWithPadOrCrop(size, value=-3)(of_monai(sample))
    assert np.array_equal(mine.pixels, np.asarray(its)) and same_place(mine, its)


def test_images_are_padded_cropped_and_cut_too():
    image = Image(np.pad(np.full((6, 9), 5, dtype=np.float32), ((3, 1), (0, 4))), None)
    steps = [{"name": "crop_foreground"}, {"name": "pad_or_crop", "height": 8, "width": 5, "value": 2.0}]
    expected = np.full((1, 8, 5), 2, dtype=np.float32)
    expected[:, 1:7] = 5
    assert np.array_equal(parse_preprocess(steps)(image), expected)


CUBE = [
    {"name": "orient", "axes": "SPL"},
    {"name": "spacing", "mm": [2.0, 1.0, 1.0]},
    {"name": "scale_range", "a_min": -1.0, "a_max": 1.0, "clip": True},
    {"name": "crop_foreground", "above": 0.4, "margin": 1},
    {"name": "resize", "depth": 6, "height": 20, "width": 18},
    {"name": "channels", "count": 2},
    {"name": "normalise", "mean": [0.5, 0.4], "std": [0.2, 0.3]},
]


def volume_of(pixels, affine):
    mm = tuple(np.linalg.norm(affine[:3, :3], axis=0))
    return Volume(pixels, mm, affine, headers(), ((None, 0),) * len(pixels))


@given(SIZES, st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_a_volume_has_the_shape_that_the_steps_declare(shape, seed):
    sample, preprocess = placed(smooth(shape, seed), seed), parse_preprocess(CUBE)
    result = preprocess(volume_of(sample.pixels[0], sample.affine))
    assert result.shape == preprocess.shape == (2, 6, 20, 18) and preprocess.volume
    assert result.dtype == np.float32 and np.isfinite(result).all()
    assert parse_preprocess(preprocess.to_json()) == preprocess


def test_the_same_head_turned_another_way_is_the_same_input():
    """A series stored sagittally, or upside down, gives the bits of the axial one."""
    preprocess = parse_preprocess([s for s in CUBE if s["name"] != "spacing"])
    sample = placed(smooth((8, 12, 10)), 1)
    expected = preprocess(volume_of(sample.pixels[0], sample.affine))
    for axes in ("LSA", "IPR", "PRS"):
        other = orient(sample, axes=axes)
        assert np.array_equal(preprocess(volume_of(other.pixels[0], other.affine)), expected)


def test_images_and_volumes_are_not_mixed_up():
    image = Image(np.ones((8, 8), dtype=np.float32), None)
    with pytest.raises(ConfigError, match="for a volume, and was given an image"):
        parse_preprocess(CUBE)(image)
    with pytest.raises(ConfigError, match="for an image, and was given a volume"):
        parse_preprocess([{"name": "resize", "height": 4, "width": 4}])(volume_of(np.ones((2, 4, 4)), np.eye(4)))


def test_another_step_is_another_digest():
    first = parse_preprocess(CUBE)
    assert first.digest == parse_preprocess(first.to_json()).digest
    others = [
        CUBE[1:],
        [*CUBE[:1], {"name": "spacing", "mm": [2.0, 1.0, 1.1]}, *CUBE[2:]],
        [CUBE[1], CUBE[0], *CUBE[2:]],
    ]
    assert len({parse_preprocess(steps).digest for steps in (CUBE, *others)}) == 4


SIZE = {"name": "resize", "height": 4, "width": 4}


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([{"name": "orient", "axes": "RAX"}, CUBE[4]], "out of range"),
        ([{"name": "orient", "axes": "RLS"}, CUBE[4]], "out of range"),
        ([{"name": "spacing", "mm": [1, 1]}, CUBE[4]], "out of range"),
        ([{"name": "spacing", "mm": 1.0}, CUBE[4]], "out of range"),
        ([{"name": "spacing", "mm": [1, 1, 0]}, CUBE[4]], "out of range"),
        ([{"name": "scale_range", "a_min": 1, "a_max": 1}, SIZE], "out of range"),
        ([{"name": "crop_foreground", "margin": -1}, SIZE], "out of range"),
        ([{"name": "resize", "height": 4.5, "width": 4}], "out of range"),
        ([{"name": "pad_or_crop", "height": 4, "width": 4, "value": float("nan")}], "out of range"),
        ([{"name": "percentile", "lower": 1, "upper": 9, "padding": "maybe"}, SIZE], "out of range"),
        ([{"name": "window", "center": 1, "width": 2, "function": "header"}, SIZE], "out of range"),
        ([{"name": "window", "source": "header", "function": "cubic"}, SIZE], "out of range"),
        ([CUBE[0], SIZE], "no step 'resize' or 'pad_or_crop' that sets depth, height and width"),
        ([SIZE, {"name": "crop_foreground"}], "after all others that change them"),
        ([SIZE, {"name": "channels", "count": 1}, {"name": "window", "source": "header"}], "comes after channels"),
        ([{"name": "channels", "count": 1}, *CUBE[:5]], "comes after channels"),
        ([SIZE, {"name": "percentile", "lower": 1, "upper": 9, "padding": "exclude"}], "leaves out padding"),
    ],
)
def test_bad_steps_are_told(steps, words):
    with pytest.raises(ConfigError, match=words):
        parse_preprocess(steps)
