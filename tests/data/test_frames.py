"""Frames of enhanced objects, beside highdicom's conversion of single-frame files, and of classic multi-frame ones."""

import numpy as np
import pydicom
import pytest
from encoders import WHEEL, in_memory
from highdicom.legacy import LegacyConvertedEnhancedMRImage
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from hscc_edge.data.dicom import read_frames, read_image
from hscc_edge.data.frames import PIXELS, frame_count, frame_dataset
from hscc_edge.data.limits import Limits
from hscc_edge.errors import DicomError

GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness")


@pytest.fixture(scope="module")
def slices():
    """Four slices with their own rescale, window and position."""
    made = []
    for index in range(4):
        dataset = pydicom.dcmread(WHEEL / "MR_small.dcm")
        dataset.SOPInstanceUID = generate_uid(None, [str(index)])
        dataset.InstanceNumber = index + 1
        dataset.ImagePositionPatient = [-10, 5.5, 3.0 * index]
        dataset.WindowCenter, dataset.WindowWidth = 600 + index, 1600 + index
        dataset.PixelData = (dataset.pixel_array + index).tobytes()
        made.append(dataset)
    return made


@pytest.fixture(scope="module")
def enhanced(slices):
    return LegacyConvertedEnhancedMRImage(
        slices, generate_uid(), 7, generate_uid(), 1, transfer_syntax_uid=ExplicitVRLittleEndian
    )


def test_a_frame_has_what_its_single_frame_file_has(slices, enhanced):
    assert frame_count(enhanced) == 4
    frames = [frame_dataset(enhanced, index) for index in range(4)]
    for single in slices:
        frame = next(f for f in frames if f.ImagePositionPatient == single.ImagePositionPatient)
        for keyword in GEOMETRY:
            assert frame[keyword].value == single[keyword].value, keyword
        assert (frame.WindowCenter, frame.WindowWidth) == (single.WindowCenter, single.WindowWidth)
        assert (frame.EchoTime, frame.RepetitionTime) == (single.EchoTime, single.RepetitionTime)
        assert not any(keyword in frame for keyword in (*PIXELS, "PerFrameFunctionalGroupsSequence"))
        assert "NumberOfFrames" not in frame
    assert [frame.InstanceNumber for frame in frames] == [1, 2, 3, 4]


def test_pixels_of_a_frame_are_those_of_its_file(slices, enhanced):
    images = list(read_frames(in_memory(enhanced)))
    assert len(images) == 4
    for single in slices:
        plain = read_image(in_memory(single))
        index = next(i for i, image in enumerate(images) if image.headers.window == plain.headers.window)
        assert np.array_equal(images[index].pixels, plain.pixels) and images[index].headers.frames == 4
        assert np.array_equal(read_image(in_memory(enhanced), index).pixels, plain.pixels)


def test_a_frames_own_groups_win_over_the_shared_ones_and_those_over_the_top(enhanced):
    dataset = pydicom.dcmread(in_memory(enhanced))
    dataset.RescaleSlope = 9
    shared, own = Dataset(), Dataset()
    shared.RescaleIntercept, shared.RescaleSlope, shared.RescaleType = 1, 2, "US"
    own.RescaleIntercept, own.RescaleSlope = 10, 3
    dataset.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = [shared]
    for item in dataset.PerFrameFunctionalGroupsSequence:
        if "PixelValueTransformationSequence" in item:
            del item.PixelValueTransformationSequence
    dataset.PerFrameFunctionalGroupsSequence[2].PixelValueTransformationSequence = [own]
    dataset.PerFrameFunctionalGroupsSequence[2].MRImageFrameTypeSequence = [Dataset()]
    dataset.PerFrameFunctionalGroupsSequence[2].MRImageFrameTypeSequence[0].FrameType = ["ORIGINAL", "PRIMARY", "M"]
    first, third = frame_dataset(dataset, 0), frame_dataset(dataset, 2)
    assert (first.RescaleIntercept, first.RescaleSlope, first.RescaleType) == (1, 2, "US")
    assert (third.RescaleIntercept, third.RescaleSlope, third.RescaleType) == (10, 3, "US")
    assert third.ImageType == third.FrameType and dataset.ImageType != third.FrameType
    stored = dataset.pixel_array[2]
    assert np.array_equal(read_image(in_memory(dataset), 2).pixels, stored * 3.0 + 10)


def test_groups_of_several_items_stay_sequences(enhanced):
    dataset = pydicom.dcmread(in_memory(enhanced))
    references = [Dataset(), Dataset()]
    for item in references:
        item.ReferencedSOPInstanceUID = generate_uid()
    dataset.PerFrameFunctionalGroupsSequence[1].ReferencedImageSequence = references[:1]
    dataset.PerFrameFunctionalGroupsSequence[1].IrradiationEventIdentificationSequence = references
    frame = frame_dataset(dataset, 1)
    assert len(frame.ReferencedImageSequence) == 1 and len(frame.IrradiationEventIdentificationSequence) == 2
    assert "ReferencedSOPInstanceUID" not in frame


def test_a_classic_object_gives_its_own_attributes():
    dataset = pydicom.dcmread(WHEEL / "rtdose.dcm")
    frame = frame_dataset(dataset, 14)
    assert frame.PixelSpacing == dataset.PixelSpacing and frame.InstanceNumber == 15
    single = pydicom.dcmread(WHEEL / "MR_small.dcm")
    assert frame_dataset(single, 0).InstanceNumber == single.InstanceNumber and "PixelData" in single


def test_text_and_words_keep_their_encoding():
    dataset = pydicom.dcmread(WHEEL / "MR_small_bigendian.dcm")
    dataset.NumberOfFrames = 2
    frame = frame_dataset(dataset, 1)
    assert frame.Rows == 64 and frame.SmallestImagePixelValue == dataset.SmallestImagePixelValue
    assert frame.file_meta.TransferSyntaxUID == dataset.file_meta.TransferSyntaxUID


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: setattr(d, "NumberOfFrames", 5), "claims 5 frames and describes 4"),
        (lambda d: setattr(d, "NumberOfFrames", -3), "claims -3 frames"),
        (lambda d: d.add_new("NumberOfFrames", "LO", "many"), "number of frames is malformed"),
        (lambda d: setattr(d, "NumberOfFrames", 1 << 21), "claims 2097152 frames"),
        (lambda d: d.add_new("PerFrameFunctionalGroupsSequence", "LO", "no sequence"), "functional groups of frame 4"),
        (lambda d: None, "no frame 4: the file has 4"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_malformed_is_told(enhanced, change, words):
    dataset = pydicom.dcmread(in_memory(enhanced))
    if words.startswith("functional"):
        dataset.NumberOfFrames = 5
    change(dataset)
    with pytest.raises(DicomError, match=words):
        frame_dataset(dataset, 4)


def test_the_limit_of_frames_is_the_callers():
    dataset = Dataset()
    dataset.NumberOfFrames = 12
    assert frame_count(dataset) == 12
    with pytest.raises(DicomError, match="claims 12 frames: expected 1 to 11"):
        frame_count(dataset, Limits(frames=11))
