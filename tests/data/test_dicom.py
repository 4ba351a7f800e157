"""Reading real files in several transfer syntaxes, and clear words about those that cannot be read."""

import io

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import RLELossless

from hscc_edge.data.dicom import read_headers, read_image
from hscc_edge.errors import DicomError

LOSSLESS = (
    "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_bigendian.dcm",
)  # fmt: skip
WHEEL = {
    "MR_small.dcm": (64, 64), "CT_small.dcm": (128, 128), "MR_small_RLE.dcm": (64, 64), "JPEG2000.dcm": (1024, 256),
    "MR_small_jp2klossless.dcm": (64, 64), "MR_small_bigendian.dcm": (64, 64),
    "MR_small_jpeg_ls_lossless.dcm": (64, 64),
}  # fmt: skip


def wheel_file(name):
    from pathlib import Path

    path = get_testdata_file(name, download=False)
    assert path, f"{name} is not in pydicom's wheel"
    return Path(path)


@pytest.mark.parametrize("name", WHEEL)
def test_real_files(name):
    image = read_image(wheel_file(name))
    assert image.pixels.shape == WHEEL[name]
    assert image.pixels.dtype == np.float32 and np.isfinite(image.pixels).all() and np.ptp(image.pixels) > 0


def test_lossless_syntaxes_agree():
    plain = read_image(wheel_file("MR_small.dcm")).pixels
    for name in (
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "MR_small_bigendian.dcm",
    ):
        assert np.array_equal(read_image(wheel_file(name)).pixels, plain), name


def test_rescale_is_applied():
    dataset = pydicom.dcmread(wheel_file("CT_small.dcm"))
    expected = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    assert np.allclose(read_image(wheel_file("CT_small.dcm")).pixels, expected)


def changed(phantom, **attributes) -> io.BytesIO:
    dataset = pydicom.dcmread(phantom.path(phantom.instances[0]))
    for keyword, value in attributes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    buffer.seek(0)
    return buffer


def test_monochrome1_is_turned_over(phantom):
    plain = read_image(phantom.path(phantom.instances[0])).pixels
    turned = read_image(changed(phantom, PhotometricInterpretation="MONOCHROME1")).pixels
    assert np.array_equal(turned, 4095 - plain)


def test_rle_written_here_reads_back(phantom):
    dataset = pydicom.dcmread(phantom.path(phantom.instances[0]))
    plain = read_image(phantom.path(phantom.instances[0])).pixels
    dataset.compress(RLELossless, generate_instance_uid=False)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    buffer.seek(0)
    assert np.array_equal(read_image(buffer).pixels, plain)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"PixelData": None}, "has no pixels"),
        ({"NumberOfFrames": 4}, "4 frames"),
        ({"Rows": 0}, "claims 0 x"),
        ({"Rows": 60000, "Columns": 60000}, "claims 60000"),
        ({"Rows": 900}, "do not fit its header"),
        ({"PixelData": b"\0\0"}, "do not fit its header"),
        ({"SeriesInstanceUID": None}, "lacks a SOP, series or study UID"),
    ],
)
def test_what_cannot_be_read_is_told_without_identifiers(phantom, attributes, words):
    with pytest.raises(DicomError, match=words) as told:
        read_image(changed(phantom, **attributes))
    item = phantom.instances[0]
    assert not any(secret in str(told.value) for secret in (item.patient, item.study, item.sop, "Phantom^"))


def test_no_dicom_and_no_file(tmp_path):
    (tmp_path / "text.dcm").write_text("this is no image" * 50)
    with pytest.raises(DicomError, match="not a DICOM file"):
        read_headers(tmp_path / "text.dcm")
    with pytest.raises(DicomError, match="does not exist"):
        read_headers(tmp_path / "absent.dcm")


def test_repr_names_nobody(phantom):
    headers = read_headers(phantom.path(phantom.instances[0]))
    assert headers.patient_id not in repr(headers) and headers.study_uid not in repr(headers)
