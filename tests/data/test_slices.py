"""Headers of slices: enhanced objects, malformed ones, and which series of a case is read."""

import contextlib
import dataclasses
import random
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from highdicom.legacy import LegacyConvertedEnhancedMRImage
from hypothesis import given, settings
from hypothesis import strategies as st
from made_series import COLUMNS, ROWS, enhanced, slice_of, values_of, write
from pydicom.uid import generate_uid

from hscc_edge.data.case import read_input
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.data.series import (
    SeriesRules,
    VolumeRules,
    choose,
    parse_series_rules,
    parse_volume_rules,
    read_volume,
)
from hscc_edge.data.slices import slices_of
from hscc_edge.errors import ConfigError, DicomError


def test_an_enhanced_twin_reads_the_same(tmp_path):
    planes = values_of(20, 4)
    datasets = [slice_of(k, p, RescaleSlope="1.5", RescaleIntercept="-7") for k, p in enumerate(planes)]
    single = read_volume(write(tmp_path / "single", datasets))
    twin = LegacyConvertedEnhancedMRImage(datasets, generate_uid(), 2, generate_uid(), 1)
    twin.save_as(tmp_path / "twin.dcm", enforce_file_format=True)
    volume = read_volume([tmp_path / "twin.dcm"])
    assert np.array_equal(volume.pixels, single.pixels) and volume.pixels.shape == (20, ROWS, COLUMNS)
    assert volume.spacing_mm == pytest.approx(single.spacing_mm) and np.allclose(volume.affine, single.affine)


def test_an_enhanced_object_of_two_echoes_reads_as_its_single_frames(tmp_path):
    groups = [values_of(7, seed) for seed in (1, 2)]
    frames = [slice_of(k, p, EchoTime=t) for t, g in zip((80.0, 20.0), groups, strict=True) for k, p in enumerate(g)]
    random.Random(2).shuffle(frames)
    enhanced(frames).save_as(tmp_path / "enhanced.dcm", enforce_file_format=True)
    files = write(tmp_path / "single", frames)
    with pytest.raises(DicomError, match="told apart by EchoTime"):
        read_volume([tmp_path / "enhanced.dcm"])
    for group, expected in ((1, groups[1]), (2, groups[0])):
        rules = VolumeRules(group=group)
        volume, single = read_volume([tmp_path / "enhanced.dcm"], rules), read_volume(files, rules)
        assert np.array_equal(volume.pixels, expected) and np.array_equal(single.pixels, expected)
        assert volume.spacing_mm == single.spacing_mm and np.array_equal(volume.affine, single.affine)
        assert [path for path, _ in volume.sources] == [tmp_path / "enhanced.dcm"] * 7


WHEEL = Path(pydicom.data.__file__).parent / "test_files"
FOLDERS = WHEEL / "dicomdirtests"


def test_a_real_series_agrees_with_simpleitk():
    files = sorted((FOLDERS / "98892001" / "CT5N").iterdir())
    uid = pydicom.dcmread(files[0]).SeriesInstanceUID
    volume, reader = read_volume(files[::-1]), SimpleITK.ImageSeriesReader()
    reader.SetFileNames(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(files[0].parent), uid))
    peer = reader.Execute()
    assert volume.pixels.shape[0] == len(files) > 3
    assert np.array_equal(SimpleITK.GetArrayFromImage(peer), volume.pixels)
    assert peer.GetSpacing()[::-1] == pytest.approx(volume.spacing_mm, abs=1e-4)
    last = tuple(size - 1 for size in volume.pixels.shape)
    for index in ((0, 0, 0), last):
        there = peer.TransformIndexToPhysicalPoint(tuple(reversed(index)))
        assert np.allclose((volume.affine @ (*index, 1))[:3], there, atol=1e-3)


def test_one_real_slice_in_five_transfer_syntaxes_is_one_slice():
    names = ("", "_RLE", "_bigendian", "_jp2klossless", "_jpeg_ls_lossless")
    volume = read_volume([WHEEL / f"MR_small{name}.dcm" for name in names])
    assert volume.pixels.shape == (1, 64, 64) and volume.duplicates == 4


def test_real_scouts_and_a_real_gap_are_told():
    with pytest.raises(DicomError, match=r"161 slice\(s\) between -99\.48 and 103\.02 mm"):
        read_volume((FOLDERS / "77654033" / "CT2").iterdir())
    with pytest.raises(DicomError, match="lacks 161 of 165 slices: at most one in ten is filled"):
        read_volume((FOLDERS / "77654033" / "CT2").iterdir(), VolumeRules(missing="fill"))
    with pytest.raises(DicomError, match="4 sagittal"):
        read_volume((FOLDERS / "98892003" / "MR700").iterdir())


MALFORMED = st.sampled_from(
    ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "Rows", "NumberOfFrames",
     "EchoTime", "ImageType", "RescaleSlope", "PixelData"]
)  # fmt: skip
VALUES = st.sampled_from([b"", b"NaN ", b"1e99", b"-1", b"\\\\", b"abc ", b"\xff\xfe", b"1\\2\\3 ", b"0" * 40])


@given(st.lists(st.tuples(MALFORMED, VALUES), min_size=1, max_size=3))
@settings(deadline=None, max_examples=80)
def test_malformed_headers_are_our_own_error(tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("malformed")
    datasets = [slice_of(k, plane) for k, plane in enumerate(values_of(3))]
    for keyword, value in changes:
        tag = pydicom.tag.Tag(keyword)
        vr = pydicom.datadict.dictionary_VR(tag) if keyword != "PixelData" else "OW"
        raw = pydicom.dataelem.RawDataElement(tag, vr, len(value), value, 0, False, True)
        datasets[1]._dict[tag] = raw
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files = write(folder / "files", datasets)
    with contextlib.suppress(DicomError):
        assert read_volume(files).pixels.shape[1:] == (ROWS, COLUMNS)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    root, planes = tmp_path_factory.mktemp("case"), values_of(6)
    kinds = {
        "1.2.3.4": {"SeriesDescription": "Ax T1 SE"},
        "1.2.3.5": {"SeriesDescription": "ax T1 +Gd", "ContrastBolusAgent": "Gadovist"},
        "1.2.3.6": {"SeriesDescription": "SAG T1", "orientation": (0, 1, 0, 0, 0, -1)},
        "1.2.3.7": {"SeriesDescription": "scout", "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
    }
    files = [
        path
        for uid, kind in kinds.items()
        for path in write(root / uid, [slice_of(k, p, SeriesInstanceUID=uid, **kind) for k, p in enumerate(planes)])
    ]
    return [item for path in files for item in slices_of(path)]


def test_one_series_is_chosen_by_rules(several):
    rules = SeriesRules(modality="MR", description=r"^ax t1", contrast=True, minimum_slices=6)
    assert {item.series for item in choose(several, rules)} == {"1.2.3.5"}
    assert {item.series for item in choose(several, SeriesRules(plane="sagittal"))} == {"1.2.3.6"}
    plain = SeriesRules(description="t1", exclude=r"\+", plane="coronal")
    assert {item.series for item in choose(several, plain)} == {"1.2.3.4"}


def test_the_chosen_series_is_read_for_a_volume_and_one_file_for_an_image(several):
    paths = list(dict.fromkeys(item.source for item in several))
    side = {"name": "resize", "height": 8, "width": 8}
    flat, deep = parse_preprocess([side]), parse_preprocess([{**side, "depth": 4}])
    chosen = parse_preprocess([{"name": "series", "contrast": True}, {**side, "depth": 4}])
    volume = read_input(paths, chosen)
    assert {path.parent.name for path, _ in volume.sources} == {"1.2.3.5"} and len(volume.pixels) == 6
    with pytest.raises(DicomError, match="3 different series"):
        read_input(paths, deep)
    assert read_input(paths[:1], flat).pixels.shape == (ROWS, COLUMNS)
    with pytest.raises(DicomError, match="24 files given"):
        read_input(paths, flat)


def test_nothing_of_a_header_is_logged(tmp_path, caplog):
    datasets = [slice_of(k, plane) for k, plane in enumerate(values_of(2))]
    tag = pydicom.tag.Tag("FrameOfReferenceUID")
    datasets[0]._dict[tag] = pydicom.dataelem.RawDataElement(tag, "UI", 12, b"Nobody^Ann 7", 0, False, True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files = write(tmp_path / "odd", datasets)
    caplog.clear()
    with pytest.raises(DicomError, match="2 different frames of reference") as told:
        read_volume(files)
    assert "Nobody" not in caplog.text + str(told.value)


def test_an_ambiguous_choice_and_none_are_told_in_counts(several):
    with pytest.raises(
        DicomError, match=r"2 series of the case fit the rules, of 6, 6 slices \(4 in all, 2 after desc"
    ) as told:
        choose(several, SeriesRules(description="ax"))
    with pytest.raises(
        DicomError, match=r"no series of the case fits the rules \(4 in all, 3 after desc.*, 0 after plane"
    ):
        choose(several, SeriesRules(description="T1", plane="axial"))
    assert "1.2.3" not in str(told.value) and "Gd" not in str(told.value)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"modalty": "MR"}, "unknown key 'modalty'"),
        ({"plane": "oblique"}, "expected one of , sagittal"),
        ({"minimum_slices": "9"}, "expected a int"),
        ({"minimum_slices": -1}, "not below 0"),
        ({"contrast": 1}, "expected a bool"),
        ({"description": "("}, "no regular expression"),
    ],
)
def test_bad_rules_are_told(raw, words):
    with pytest.raises(ConfigError, match=words):
        parse_series_rules(raw)


def test_rules_come_from_tables():
    raw = {"modality": "MR", "contrast": False, "minimum_slices": 20}
    assert parse_series_rules(raw) == SeriesRules(modality="MR", contrast=False, minimum_slices=20)
    assert parse_volume_rules({"missing": "fill", "group": 2}) == VolumeRules(missing="fill", group=2)
    with pytest.raises(ConfigError, match="expected one of refuse, resample"):
        parse_volume_rules({"tilt": "straighten"})
    assert dataclasses.asdict(VolumeRules()) == dataclasses.asdict(parse_volume_rules({}))
