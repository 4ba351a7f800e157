"""Every file of pydicom's wheel: read by a named decoder, or refused in one sentence; nothing is left out."""

import re
import subprocess
import warnings

import numpy as np
import PIL.Image
import pydicom
import pytest
from encoders import WHEEL
from pydicom import uid

from hscc_edge.data.dicom import read_frames, read_image
from hscc_edge.errors import DicomError

LOSSY = "JPEG-lossy.dcm"  # 12 bit, as JPGExtended.dcm is, which pydicom alone does not decode
NO_DICOM, NO_PIXELS, NO_UID = "is not a DICOM file", "has no pixels", "lacks a SOP, series or study UID"
EXPECTED = {
    "693_J2KI.dcm": (1, (512, 512), "pylibjpeg-openjpeg"),
    "CT_small.dcm": (1, (128, 128), "native"),
    "ExplVR_BigEnd.dcm": (1, (60, 80, 3), "native"),
    "ExplVR_BigEndNoMeta.dcm": NO_DICOM,
    "ExplVR_LitEndNoMeta.dcm": NO_DICOM,
    "GDCMJ2K_TextGBR.dcm": (1, (400, 400, 3), "pylibjpeg-openjpeg"),
    "J2K_pixelrep_mismatch.dcm": (1, (512, 512), "pylibjpeg-openjpeg"),
    "JPEG-lossy.dcm": (1, (1024, 256), "gdcm"),
    "JPEG2000-embedded-sequence-delimiter.dcm": "its codestream has 1024 x 3722445056",
    "JPEG2000.dcm": (1, (1024, 256), "pylibjpeg-openjpeg"),
    "JPEGLSNearLossless_08.dcm": NO_UID,
    "JPEGLSNearLossless_16.dcm": NO_UID,
    "JPGExtended.dcm": (1, (1024, 256), "gdcm"),
    "MR_small.dcm": (1, (64, 64), "native"),
    "MR_small_RLE.dcm": (1, (64, 64), "pylibjpeg-rle"),
    "MR_small_bigendian.dcm": (1, (64, 64), "native"),
    "MR_small_expb.dcm": (1, (64, 64), "native"),
    "MR_small_implicit.dcm": (1, (64, 64), "native"),
    "MR_small_jp2klossless.dcm": (1, (64, 64), "pylibjpeg-openjpeg"),
    "MR_small_jpeg_ls_lossless.dcm": (1, (64, 64), "pyjpegls"),
    "MR_small_padded.dcm": (1, (64, 64), "native"),
    "MR_truncated.dcm": "pixels do not fit its header",
    "README.txt": NO_DICOM,
    "SC_jpeg_no_color_transform.dcm": (1, (256, 256, 3), "pillow"),
    "SC_jpeg_no_color_transform_2.dcm": (1, (256, 256, 3), "pillow"),
    "SC_rgb_dcmtk_+eb+cr.dcm": (1, (100, 100, 3), "pillow"),
    "SC_rgb_dcmtk_+eb+cy+n1.dcm": (1, (100, 100, 3), "pillow"),
    "SC_rgb_dcmtk_+eb+cy+n2.dcm": (1, (100, 100, 3), "pillow"),
    "SC_rgb_dcmtk_+eb+cy+np.dcm": (1, (100, 100, 3), "pillow"),
    "SC_rgb_dcmtk_+eb+cy+s2.dcm": (1, (100, 100, 3), "pillow"),
    "SC_rgb_dcmtk_+eb+cy+s4.dcm": (1, (100, 100, 3), "pillow"),
    "SC_rgb_gdcm_KY.dcm": (1, (100, 100, 3), "pylibjpeg-openjpeg"),
    "SC_rgb_jls_lossy_line.dcm": NO_UID,
    "SC_rgb_jls_lossy_sample.dcm": NO_UID,
    "SC_rgb_jpeg.dcm": (1, (256, 256, 3), "pillow"),
    "SC_rgb_jpeg_app14_dcmd.dcm": (1, (256, 256, 3), "pillow"),
    "SC_rgb_jpeg_dcmd.dcm": (1, (256, 256, 3), "native"),
    "SC_rgb_jpeg_dcmtk.dcm": (1, (100, 100, 3), "pillow"),
    "SC_rgb_jpeg_gdcm.dcm": (1, (100, 100, 3), "gdcm"),
    "SC_rgb_jpeg_lossy_gdcm.dcm": (1, (100, 100, 3), "pillow"),
    "SC_rgb_rle.dcm": (1, (100, 100, 3), "pylibjpeg-rle"),
    "SC_rgb_rle_16bit.dcm": (1, (100, 100, 3), "pylibjpeg-rle"),
    "SC_rgb_rle_16bit_2frame.dcm": (2, (100, 100, 3), "pylibjpeg-rle"),
    "SC_rgb_rle_2frame.dcm": (2, (100, 100, 3), "pylibjpeg-rle"),
    "SC_rgb_rle_32bit.dcm": (1, (100, 100, 3), "pylibjpeg-rle"),
    "SC_rgb_rle_32bit_2frame.dcm": (2, (100, 100, 3), "pylibjpeg-rle"),
    "SC_rgb_small_odd.dcm": (1, (3, 3, 3), "native"),
    "SC_rgb_small_odd_big_endian.dcm": (1, (3, 3, 3), "native"),
    "SC_rgb_small_odd_jpeg.dcm": (1, (3, 3, 3), "pillow"),
    "SC_ybr_full_422_uncompressed.dcm": (1, (100, 100, 3), "native"),
    "UN_sequence.dcm": NO_UID,
    "badVR.dcm": "the number of frames is malformed",
    "crayons.icc": NO_DICOM,
    "empty_charset_LEI.dcm": NO_UID,
    "examples_jpeg2k.dcm": (1, (480, 640, 3), "pylibjpeg-openjpeg"),
    "examples_overlay.dcm": (1, (300, 484), "native"),
    "examples_palette.dcm": (1, (350, 800, 3), "native"),
    "examples_rgb_color.dcm": (1, (240, 320, 3), "native"),
    "examples_ybr_color.dcm": (30, (240, 320, 3), "pillow"),
    "image_dfl.dcm": (1, (512, 512), "native"),
    "liver_1frame.dcm": (1, (512, 512), "native"),
    "liver_expb_1frame.dcm": (1, (512, 512), "native"),
    "meta_missing_tsyntax.dcm": NO_UID,
    "nested_priv_SQ.dcm": NO_UID,
    "no_meta.dcm": NO_DICOM,
    "no_meta_group_length.dcm": NO_UID,
    "priv_SQ.dcm": NO_UID,
    "reportsi.dcm": NO_PIXELS,
    "reportsi_with_empty_number_tags.dcm": NO_PIXELS,
    "rtdose.dcm": (15, (10, 10), "native"),
    "rtdose_1frame.dcm": (1, (10, 10), "native"),
    "rtdose_expb.dcm": (15, (10, 10), "native"),
    "rtdose_expb_1frame.dcm": (1, (10, 10), "native"),
    "rtdose_rle.dcm": (15, (10, 10), "pylibjpeg-rle"),
    "rtdose_rle_1frame.dcm": (1, (10, 10), "pylibjpeg-rle"),
    "rtplan.dcm": NO_PIXELS,
    "rtplan.dump": NO_DICOM,
    "rtplan_truncated.dcm": NO_PIXELS,
    "rtstruct.dcm": NO_DICOM,
    "rtstruct.dump": NO_DICOM,
    "test-SR.dcm": NO_PIXELS,
    "test1.json": NO_DICOM,
    "test_PN.json": NO_DICOM,
    "waveform_ecg.dcm": NO_PIXELS,
    "zipMR.gz": NO_DICOM,
}
# A file set of small slices, and directories of it.
FILE_SET = [("README", NO_DICOM), ("DICOMDIR", NO_UID), ("TINY_ALPHA/", NO_PIXELS), ("", (1, (16, 16), "native"))]
FILES = {str(path.relative_to(WHEEL)): path for path in sorted(WHEEL.rglob("*")) if path.is_file()}


def header_of(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(FILES[name], stop_before_pixels=True)


def expected(name):
    if name.startswith("dicomdirtests/"):
        return next(found for part, found in FILE_SET if part in name)
    return EXPECTED[name]


@pytest.mark.parametrize("name", FILES)
def test_each_is_read_or_refused_in_one_sentence(name):
    wanted = expected(name)
    if isinstance(wanted, str):
        with pytest.raises(DicomError, match=re.escape(wanted)) as told:
            list(read_frames(FILES[name]))
        assert len(str(told.value).splitlines()) == 1 and not re.search(r"\d+\.\d+\.\d+\.\d+", str(told.value))
        return
    count, shape, decoder = wanted
    images = list(read_frames(FILES[name]))
    assert len(images) == count
    assert {(image.pixels.shape, image.decoder) for image in images} == {(shape, decoder)}
    assert all(image.pixels.dtype == np.float32 and np.isfinite(image.pixels).all() for image in images)


def eight_bit_colour(name):
    if not isinstance(expected(name), tuple) or len(expected(name)[1]) != 3:
        return False
    header = header_of(name)
    # dcmtk's free tools read no JPEG 2000, and stop at this file's APP14 segment
    read = header.file_meta.TransferSyntaxUID not in uid.JPEG2000TransferSyntaxes and name != "SC_rgb_jpeg.dcm"
    return (read and header.BitsAllocated <= 16 and header.BitsStored == 8) or name == "examples_palette.dcm"


@pytest.mark.parametrize("name", [name for name in FILES if eight_bit_colour(name)])
def test_colours_are_those_that_dcmtk_shows(name, tmp_path):
    syntax = header_of(name).file_meta.TransferSyntaxUID
    tool = "dcmj2pnm" if syntax in uid.JPEGTransferSyntaxes else "dcm2pnm"
    subprocess.run([tool, str(FILES[name]), str(tmp_path / "shown.ppm")], check=True, capture_output=True)
    shown = np.asarray(PIL.Image.open(tmp_path / "shown.ppm"), dtype=np.float32)
    assert np.abs(read_image(FILES[name], 0).pixels - shown).max() <= 1


def grey(name):
    if not isinstance(expected(name), tuple) or len(expected(name)[1]) != 2 or name in ("JPGExtended.dcm", LOSSY):
        return False
    return header_of(name).PhotometricInterpretation == "MONOCHROME2"


@pytest.mark.parametrize("name", [name for name in FILES if grey(name)])
def test_values_are_pydicoms_stored_samples_rescaled(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(FILES[name])
        stored = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    slope = float(dataset.get("RescaleSlope", dataset.get("DoseGridScaling", 1)))
    expected_values = stored * slope + float(dataset.get("RescaleIntercept", 0))
    for values, image in zip(expected_values, read_frames(FILES[name]), strict=True):
        seen = np.ones(values.shape, dtype=bool) if image.padding is None else ~image.padding
        assert np.allclose(image.pixels[seen], values[seen], rtol=1e-6)
