"""A series becomes the same volume in any order, each fault is told in a sentence, and peers see the same voxels."""

import math
import tracemalloc

import highdicom.spatial
import numpy as np
import pydicom
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from made_series import COLUMNS, ROWS, SPACING, STEP, slice_of, values_of, write

from hscc_edge.data.geometry import Geometry, geometry_of, stack_of
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.data.series import VolumeRules, read_volume
from hscc_edge.errors import DicomError


@pytest.fixture(scope="module")
def pixels():
    return values_of(200)


@pytest.fixture(scope="module")
def files(pixels, tmp_path_factory):
    """200 oblique slices, shuffled."""
    return write(tmp_path_factory.mktemp("series") / "whole", [slice_of(k, plane) for k, plane in enumerate(pixels)])


def shortened(files, places):
    """The files without those that lie at `places`."""
    found = {path: geometry_of(pydicom.dcmread(path, stop_before_pixels=True)).position for path in files}
    ranked = sorted(files, key=found.__getitem__)
    return [path for path in files if ranked.index(path) not in places]


def added(files, tmp_path, *datasets):
    return [*files, *write(tmp_path / "more", list(datasets))]


def test_two_hundred_shuffled_slices_find_their_places(files, pixels):
    volume = read_volume(files)
    assert volume.pixels.dtype == np.float32 and np.array_equal(volume.pixels, pixels)
    assert volume.spacing_mm == pytest.approx((STEP, *SPACING), abs=1e-5)
    assert np.linalg.norm(volume.affine[:3, :3], axis=0) == pytest.approx(volume.spacing_mm, abs=1e-5)
    assert volume.duplicates == volume.apart == 0 and volume.filled == () and volume.tilt_deg < 0.01
    backwards = read_volume(files[::-1])
    assert np.array_equal(backwards.pixels, volume.pixels) and np.array_equal(backwards.affine, volume.affine)
    assert (backwards.headers, backwards.sources) == (volume.headers, volume.sources)


def test_every_voxel_lies_where_its_file_says(files):
    volume = read_volume(files)
    for place in (0, 77, 199):
        path, frame = volume.sources[place]
        dataset = pydicom.dcmread(path)
        assert frame == 0 and np.allclose(
            (volume.affine @ (place, 0, 0, 1))[:3], dataset.ImagePositionPatient, atol=1e-4
        )
        assert np.array_equal(dataset.pixel_array, volume.pixels[place])
        seen = (volume.affine @ (place, 3, 7, 1))[:3]
        peer = highdicom.spatial.PixelToReferenceTransformer(
            dataset.ImagePositionPatient, dataset.ImageOrientationPatient, dataset.PixelSpacing
        )
        assert np.allclose(seen, peer(np.asarray([[7, 3]])), atol=1e-4)


def test_simpleitk_sees_the_same_voxels_spacing_and_affine(files):
    volume, reader = read_volume(files), SimpleITK.ImageSeriesReader()
    reader.SetFileNames(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(files[0].parent)))
    peer = reader.Execute()
    assert np.array_equal(SimpleITK.GetArrayFromImage(peer), volume.pixels)
    assert peer.GetSpacing()[::-1] == pytest.approx(volume.spacing_mm, abs=1e-4)
    for index in ((0, 0, 0), (199, 11, 9), (50, 3, 8)):
        there = peer.TransformIndexToPhysicalPoint(tuple(reversed(index)))
        assert np.allclose((volume.affine @ (*index, 1))[:3], there, atol=1e-3)


@given(st.integers(2, 30), st.integers(0, 10**6), st.floats(0.4, 9), st.sets(st.integers(1, 28)))
@settings(deadline=None, max_examples=60)
def test_places_are_those_of_highdicom(depth, seed, step, missing):
    generator = np.random.default_rng(seed)
    row, column = np.linalg.qr(generator.normal(size=(3, 2)))[0].T
    places = [k for k in generator.permutation(depth) if k in (0, depth - 1) or k not in missing]
    origin = generator.uniform(-300, 300, 3)
    where = [origin + k * step * np.cross(row, column) for k in places]
    spacing, peers = highdicom.spatial.get_volume_positions(where, [*row, *column], allow_missing_positions=True)
    stack = stack_of([Geometry(tuple(p), tuple(row), tuple(column), (1.0, 1.0)) for p in where])
    assert (stack.irregular is None) == (spacing is not None)
    if spacing is not None:
        mine, its = np.asarray(stack.slots), max(peers) - np.asarray(peers)
        assert np.allclose(stack.spacing_mm * mine, spacing * its, atol=1e-6)
        assert len(stack.empty) + len(places) == stack.depth


def test_localisers_are_set_apart(files, tmp_path, pixels):
    scout = [
        slice_of(
            0, values_of(1)[0][:6], orientation=(0, 1, 0, 0, 0, -1), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]
        )
    ]
    volume = read_volume(added(files, tmp_path, *scout))
    assert volume.apart == 1 and np.array_equal(volume.pixels, pixels)


def test_mixed_orientations_are_refused_or_chosen(files, tmp_path, pixels):
    mixed = added(files, tmp_path, slice_of(0, pixels[0], orientation=(0, 1, 0, 0, 0, -1)))
    with pytest.raises(DicomError, match=r"200 coronal, 1 sagittal|1 of the 201"):
        read_volume(mixed)
    volume = read_volume(mixed, VolumeRules(plane="coronal"))
    assert volume.apart == 1 and np.array_equal(volume.pixels, pixels)


def test_an_identical_slice_is_dropped_and_counted(files, tmp_path, pixels):
    volume = read_volume(
        added(files, tmp_path, slice_of(7, pixels[7]), slice_of(7, pixels[7]), slice_of(199, pixels[199]))
    )
    assert volume.duplicates == 3 and np.array_equal(volume.pixels, pixels)


def test_a_slice_with_other_pixels_is_refused(files, tmp_path, pixels):
    with pytest.raises(DicomError, match=r"two slices at 17\.50 mm from the first have different pixels"):
        read_volume(added(files, tmp_path, slice_of(7, pixels[8])))


@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("EchoTime", (12.5, 90.0)),
        ("EchoNumbers", (1, 2)),
        ("TemporalPositionIdentifier", (1, 2)),
        ("DiffusionBValue", (0.0, 1000.0)),
        ("DiffusionGradientOrientation", ([0.6, 0.0, 0.8], [0.6, 0.8, 0.0])),
        ("ImageType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"])),
    ],
)
def test_echoes_and_times_are_groups(tmp_path, keyword, values):
    groups = [values_of(9, seed) for seed in (1, 2)]
    datasets = [slice_of(k, p, **{keyword: v}) for v, g in zip(values, groups, strict=True) for k, p in enumerate(g)]
    files = write(tmp_path / "echoes", [*datasets, slice_of(4, groups[1][4], **{keyword: values[1]})])
    with pytest.raises(DicomError, match=f"2 different images at a position, told apart by {keyword}"):
        read_volume(files)
    for index, group in enumerate(groups):
        volume = read_volume(files, VolumeRules(group=index + 1))
        assert np.array_equal(volume.pixels, group)
        assert (volume.duplicates, volume.apart) == (index, 10 - index)
    with pytest.raises(DicomError, match="choose group 1 to 2"):
        read_volume(files, VolumeRules(group=3))


def test_times_that_drift_from_slice_to_slice_are_groups_by_rank(tmp_path):
    groups = [values_of(9, seed) for seed in (1, 2)]
    datasets = [slice_of(k, p, TriggerTime=400.0 * n + 3 * k) for n, g in enumerate(groups) for k, p in enumerate(g)]
    assert np.array_equal(read_volume(write(tmp_path / "times", datasets), VolumeRules(group=2)).pixels, groups[1])
    with pytest.raises(DicomError, match="2 images at some positions and fewer at others"):
        read_volume(write(tmp_path / "hole", datasets[:-1]), VolumeRules(group=2))


def test_missing_slices_are_refused_filled_or_left_out(files, pixels):
    some = shortened(files, {40, 41, 120})
    with pytest.raises(DicomError, match=r"lacks 2 slice\(s\) between .* \(after slice 40\), and 3 of 200 in all"):
        read_volume(some)
    filled = read_volume(some, VolumeRules(missing="fill"))
    assert filled.filled == (40, 41, 120) and filled.pixels.shape == pixels.shape
    there = np.delete(np.arange(200), filled.filled)
    assert np.array_equal(filled.pixels[there], pixels[there])
    assert np.allclose(filled.pixels[41], pixels[39] / 3 + 2 * pixels[42] / 3, atol=1e-2)
    assert np.allclose(filled.affine, read_volume(files).affine, atol=1e-5)
    left = read_volume(some, VolumeRules(missing="allow"))
    assert np.array_equal(left.pixels, pixels[there]) and left.spacing_mm[0] == pytest.approx(STEP, abs=1e-4)


def test_uneven_steps_are_refused(tmp_path, pixels):
    files = write(tmp_path / "uneven", [slice_of(k + 0.4 * (k > 5), pixels[k]) for k in range(10)])
    with pytest.raises(DicomError, match=r"3\.50 mm apart, others 2\.\d+:"):
        read_volume(files, VolumeRules(missing="fill"))


def test_a_tilted_series_is_refused_or_shifted_upright(tmp_path):
    """The picture is a ramp in the patient's coordinates: shifted right, every voxel holds its own place."""
    upright, depth, lean = (1.0, 0, 0, 0, 1.0, 0), 40, (0.6, -0.3)
    row, column = np.arange(COLUMNS) * SPACING[1], np.arange(ROWS)[:, None] * SPACING[0]
    planes = [1000 + 10 * (column + lean[0] * k) + 20 * (row + lean[1] * k) + 3 * k for k in range(depth)]
    files = write(tmp_path / "tilted", [slice_of(k, p, orientation=upright, lean=lean) for k, p in enumerate(planes)])
    with pytest.raises(DicomError, match=r"tilted by 15\.0 degrees"):
        read_volume(files)
    volume = read_volume(files, VolumeRules(tilt="resample"))
    assert volume.tilt_deg == pytest.approx(math.degrees(math.atan2(math.hypot(*lean), STEP)), abs=0.01)
    assert volume.pixels.shape == (depth, ROWS + math.ceil(0.6 * 39 / 0.8), COLUMNS + math.ceil(0.3 * 39 / 1.25))
    d, h, w = np.indices(volume.pixels.shape)
    x, y, _ = (volume.affine @ np.stack([d, h, w, np.ones_like(d)]).reshape(4, -1))[:3].reshape(3, *volume.pixels.shape)
    down, right = y - 12.5, x + 40
    inside = np.ones(d.shape, dtype=bool)
    for mm, shift, extent in ((down, lean[0] * d, column.max()), (right, lean[1] * d, row.max())):
        inside &= (mm - shift > -1e-6) & (mm - shift < extent + 1e-6)
    assert inside.sum() > 0.7 * depth * ROWS * COLUMNS
    assert np.abs(volume.pixels - (1000 + 10 * down + 20 * right + 3 * d))[inside].max() < 1.01


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"PixelSpacing": [0.8, 1.3]}, "2 different pixel spacings"),
        ({"RescaleSlope": "2", "RescaleIntercept": "0", "RescaleType": "US"}, "2 different units"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "2 different units"),
        ({"SeriesInstanceUID": "1.2.3.5"}, "2 different series"),
        ({"FrameOfReferenceUID": "1.2.3.5"}, "2 different frames of reference"),
        ({"ImagePositionPatient": None}, "1 of the 6 slices have no position"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "not two unit vectors at a right angle"),
        ({"PixelSpacing": [0, 1.0]}, "expected millimetres above 0"),
        ({"ImagePositionPatient": [0.0, 1.0]}, "2, 6 and 2 numbers"),
        ({"ImagePositionPatient": [-44.0, 12.5, 63.0]}, "do not lie on one line"),
    ],
)
def test_faults_are_told_without_names(tmp_path, pixels, attributes, words):
    datasets = [slice_of(k, pixels[k], **(attributes if k == 4 else {})) for k in range(6)]
    with pytest.raises(DicomError, match=words) as told:
        read_volume(write(tmp_path / "fault", datasets))
    assert not any(secret in str(told.value) for secret in ("1.2.3", "P-77", "Nobody"))


def test_sizes_colours_and_too_few_are_told(tmp_path, pixels):
    files = write(tmp_path / "few", [slice_of(k, pixels[k]) for k in range(4)])
    with pytest.raises(DicomError, match=r"2 different sizes \(4 slices of \(12, 10\), 1 slices of \(6, 10\)\)"):
        read_volume(added(files, tmp_path, slice_of(4, pixels[4][:6])))
    with pytest.raises(DicomError, match="4 slices, 0 more set apart: expected at least 9"):
        read_volume(files, VolumeRules(minimum_slices=9))
    with pytest.raises(DicomError, match="at 4 positions: expected at least 5"):
        read_volume([*files, files[0]], VolumeRules(minimum_slices=5))
    with pytest.raises(DicomError, match="0 slices"):
        read_volume([])


def test_a_group_that_is_not_there_is_told(tmp_path, pixels):
    files = write(tmp_path / "plain", [slice_of(k, pixels[k]) for k in range(4)])
    assert np.array_equal(read_volume(files, VolumeRules(group=1)).pixels, pixels[:4])
    with pytest.raises(DicomError, match="one image at each position: expected 2 groups"):
        read_volume(files, VolumeRules(group=2))


def test_one_slice_has_its_thickness(tmp_path, pixels):
    volume = read_volume(write(tmp_path / "one", [slice_of(0, pixels[0])]))
    assert volume.pixels.shape == (1, ROWS, COLUMNS) and volume.spacing_mm == pytest.approx((STEP, *SPACING))


@pytest.mark.parametrize("lean", [(0.0, 0.0), (0.9, 0.4)])
def test_padding_is_kept_and_grows_where_slices_are_moved(tmp_path, pixels, lean):
    planes = pixels[:12] + 10
    planes[:, :3, :2] = 0
    files = write(tmp_path / "padded", [slice_of(k, p, PixelPaddingValue=0, lean=lean) for k, p in enumerate(planes)])
    volume = read_volume(files, VolumeRules(tilt="resample"))
    assert volume.padding.shape == volume.pixels.shape and volume.padding.dtype == bool
    if not any(lean):
        assert np.array_equal(volume.padding, planes == 0)
    assert (~volume.padding).sum() == pytest.approx((planes > 0).sum(), rel=0.15)
    step = {"name": "percentile", "lower": 0, "upper": 100, "padding": "exclude"}
    side = {"name": "resize", **dict(zip(("depth", "height", "width"), volume.pixels.shape, strict=True))}
    seen = volume.pixels[~volume.padding]
    expected = np.clip((volume.pixels - seen.min()) / np.ptp(seen), 0, 1)
    assert np.allclose(parse_preprocess([step, side])(volume)[0], expected, atol=1e-6)


def test_real_world_values_may_differ_in_slope(tmp_path, pixels):
    rescaled = {"RescaleIntercept": "-5", "RescaleType": "US"}
    files = write(tmp_path / "slopes", [slice_of(k, pixels[k], RescaleSlope=str(k + 1), **rescaled) for k in range(4)])
    assert np.array_equal(read_volume(files).pixels, pixels[:4] * np.arange(1, 5)[:, None, None] - 5)


def test_memory_is_the_volume_and_few_slices(tmp_path):
    planes = np.random.default_rng(0).integers(0, 999, (48, 160, 160))
    files = write(tmp_path / "wide", [slice_of(k, plane) for k, plane in enumerate(planes)])
    read_volume(files[:1])
    tracemalloc.start()
    volume = read_volume([*files, files[0]])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert volume.duplicates == 0 and peak < volume.pixels.nbytes * (1 + 12 / 48)
