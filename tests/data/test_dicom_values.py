"""What pixels mean: rescale and tables, palettes beside dcmtk, padding, which end is bright, the window that fits."""

import io
import subprocess

import encoders
import numpy as np
import PIL.Image
import pydicom
import pytest
from encoders import WHEEL, in_memory
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset, uid
from pydicom.pixels.processing import apply_voi_lut, apply_windowing

from hscc_edge.data.dicom import read_headers, read_image
from hscc_edge.data.lookup import Lut, lut_of, palette_of
from hscc_edge.data.voi import mirrored_window
from hscc_edge.errors import DicomError


def table(first, values, bits=16, keyword_data="LUTData") -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(values) % 65536, first, bits])
    item.add_new(keyword_data, "OW", np.asarray(values, "<u2").tobytes())
    return item


def window(values, centre, width, function):
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, to 0..1."""
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - centre) / width))
    shift, scale = (0.5, width - 1) if function == "LINEAR" else (0.0, width)
    return np.clip((values - (centre - shift)) / scale + 0.5, 0, 1)


@pytest.mark.parametrize(
    ("slope", "intercept"), [(1, 0), (1, -1024), (2, 3), (0.01234, -5.5), (-1, 100), (0, 7), (None, 9), (3, None)]
)
def test_rescale(slope, intercept):
    dataset = encoders.dataset("12 bit signed")
    if slope is not None:
        dataset.RescaleSlope = slope
    if intercept is not None:
        dataset.RescaleIntercept = intercept
    expected = encoders.picture("12 bit signed").astype(float) * (slope or 1) + (intercept or 0)
    assert np.array_equal(read_image(in_memory(dataset)).pixels, expected.astype(np.float32))


@pytest.mark.parametrize("value", ["nan", "1e39", "inf"])
def test_a_rescale_out_of_range_is_refused(value):
    dataset = encoders.dataset("16 bit")
    dataset.RescaleSlope, dataset.RescaleIntercept = "1.25", "0"
    content = in_memory(dataset).getvalue().replace(b"DS\x04\x001.25", b"DS\x04\x00" + value.encode().ljust(4))
    assert value.encode() in content
    with pytest.raises(DicomError, match="malformed attributes of its pixels"):
        read_image(io.BytesIO(content))


@pytest.mark.parametrize("first", [0, 700, -300])
def test_modality_table(first):
    """Inputs beyond either end take the end's value, PS3.3 C.11.1.1.1."""
    dataset = encoders.dataset("12 bit signed" if first < 0 else "12 bit")
    values = np.arange(1000) ** 2 // 16
    dataset.ModalityLUTSequence = [table(first, values)]
    stored = encoders.picture("12 bit signed" if first < 0 else "12 bit").astype(int)
    expected = values[np.clip(stored - first, 0, 999)]
    assert np.array_equal(read_image(in_memory(dataset)).pixels, expected)


@pytest.mark.parametrize("kind", ["12 bit", "12 bit signed", "8 bit"])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_monochrome1_shown_through_its_window_is_the_negative(kind, function):
    """A viewer windows first and inverts what it shows; turning over pixels and window gives the same."""
    dataset = encoders.dataset(kind)
    dataset.RescaleSlope, dataset.RescaleIntercept = 2, -30
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = [300, 20], [900, 5], function
    plain = read_image(in_memory(dataset))
    assert plain.headers.window == (300, 900) and plain.headers.voi_function == function
    dataset.PhotometricInterpretation = "MONOCHROME1"
    turned = read_image(in_memory(dataset))
    shown = [window(image.pixels.astype(float), *image.headers.window, function) for image in (plain, turned)]
    assert np.allclose(1 - shown[0], shown[1])
    reference = apply_windowing(plain.pixels.astype(float), dataset)
    low, high = np.ptp(reference), reference.min()
    assert low > 0 and np.allclose((reference - high) / low, (shown[0] - shown[0].min()) / np.ptp(shown[0]), atol=1e-6)


def test_monochrome1_turns_its_table_over():
    dataset = encoders.dataset("8 bit")
    dataset.VOILUTSequence = [table(20, np.arange(200) * 300)]
    plain = read_image(in_memory(dataset))
    assert np.array_equal(
        plain.headers.voi_lut(plain.pixels), apply_voi_lut(encoders.picture("8 bit").astype("u2"), dataset)
    )
    dataset.PhotometricInterpretation = "MONOCHROME1"
    turned = read_image(in_memory(dataset))
    assert np.array_equal(turned.headers.voi_lut(turned.pixels), 65535 - plain.headers.voi_lut(plain.pixels))
    assert read_headers(in_memory(dataset)).voi_lut == plain.headers.voi_lut


@given(
    first=st.integers(-500, 500), values=st.lists(st.integers(0, 4095), min_size=1, max_size=50),
    total=st.integers(-1000, 1000),
)  # fmt: skip
def test_a_table_turned_over_twice_is_itself(first, values, total):
    lut = Lut(first, 12, tuple(values))
    assert lut.mirrored(total).mirrored(total) == lut
    inputs = np.arange(-600, 700)
    assert np.array_equal(lut.mirrored(total)(total - inputs), 4095 - lut(inputs))
    assert mirrored_window(mirrored_window((3.0, 5.0), "LINEAR", total), "LINEAR", total) == (3.0, 5.0)


def test_table_of_8_bit_entries_in_bytes_and_in_words():
    for data in (bytes(range(200)), np.arange(200, dtype="<u2").tobytes()):
        item = Dataset()
        item.add_new("LUTDescriptor", "US", [200, 0, 8])
        item.add_new("LUTData", "OW", data)
        assert lut_of(item).values == tuple(range(200))
    assert lut_of(table(0, np.arange(65536))).values[-1] == 65535
    with pytest.raises(ValueError, match="100 entries instead of 200"):
        item.LUTData = bytes(100)
        lut_of(item)


def rendered(path, folder):
    subprocess.run(["dcm2pnm", "-W", str(path), str(folder / "out.ppm")], check=True, capture_output=True)
    return np.asarray(PIL.Image.open(folder / "out.ppm"), dtype=np.float32)


def test_a_palette_is_what_dcmtk_shows(tmp_path):
    palette = WHEEL / "examples_palette.dcm"
    assert np.array_equal(read_image(palette).pixels, rendered(palette, tmp_path))
    encoders.dataset("RGB").save_as(tmp_path / "rgb.dcm", enforce_file_format=True)
    for option in ("+pf", "+pu", "+pe"):
        made = tmp_path / f"{option}.dcm"
        done = subprocess.run(
            ["dcmquant", option, str(tmp_path / "rgb.dcm"), str(made)], capture_output=True, text=True
        )
        if done.returncode == 0:
            assert np.array_equal(read_image(made).pixels, rendered(made, tmp_path)), option


def test_segmented_palette_is_laid_out_as_the_plain_one():
    """PS3.3 C.7.9.2: discrete, linear, and an indirect segment that repeats both."""
    dataset = Dataset()
    words = [0, 2, 0, 100, 1, 3, 400, 2, 2, 0, 0]
    for colour in ("Red", "Green", "Blue"):
        dataset.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [10, 0, 16])
        dataset.add_new(f"Segmented{colour}PaletteColorLookupTableData", "OW", np.asarray(words, "<u2").tobytes())
    assert palette_of(dataset)[0].values == (0, 100, 200, 300, 400, 0, 100, 200, 300, 400)
    for words in ([1, 3, 400], [7, 1, 1], [2, 60000, 0, 0], [0, 2, 0, 100]):
        dataset.SegmentedGreenPaletteColorLookupTableData = np.asarray(words, "<u2").tobytes()
        with pytest.raises((ValueError, IndexError)):
            palette_of(dataset)


def test_padding_sets_nothing():
    dataset = encoders.dataset("16 bit signed")
    picture = encoders.picture("16 bit signed") // 4
    picture[:, :20] = -20000
    picture[0, :20] = -20005
    dataset.PixelData = picture.tobytes()
    dataset.RescaleSlope, dataset.RescaleIntercept = 2, 1
    assert read_image(in_memory(dataset)).padding is None
    dataset.add_new("PixelPaddingValue", "SS", -20000)
    image = read_image(in_memory(dataset))
    assert np.array_equal(image.padding, picture == -20000)
    dataset.add_new("PixelPaddingRangeLimit", "SS", -20010)
    image = read_image(in_memory(dataset))
    assert np.array_equal(image.padding, picture <= -20000)
    inside = picture[:, 20:] * 2.0 + 1
    assert np.array_equal(image.pixels[:, 20:], inside) and (image.pixels[:, :20] == inside.min()).all()


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_dark_whichever_end_is_bright(photometric):
    dataset = encoders.dataset("8 bit")
    picture = np.maximum(encoders.picture("8 bit"), 1)
    picture[5:9] = 0
    dataset.PixelData, dataset.PhotometricInterpretation = picture.tobytes(), photometric
    dataset.add_new("PixelPaddingValue", "US", 0)
    image = read_image(in_memory(dataset))
    assert image.padding[5:9].all() and image.padding.sum() == 4 * 66
    assert (image.pixels[5:9] == image.pixels[~image.padding].min()).all()


def test_padding_given_as_an_unsigned_number_and_padding_everywhere():
    dataset = encoders.dataset("16 bit signed")
    dataset.PixelData = np.full((48, 66), -2000, "<i2").tobytes()
    dataset.add_new("PixelPaddingValue", "US", 65536 - 2000)
    image = read_image(in_memory(dataset))
    assert image.padding is None and (image.pixels == -2000).all()
    picture = np.full((48, 66), -2000, "<i2")
    picture[4:8] = 5
    dataset.PixelData = picture.tobytes()
    assert np.array_equal(read_image(in_memory(dataset)).padding, picture == -2000)


def test_dose_is_scaled():
    path = WHEEL / "rtdose.dcm"
    dataset = pydicom.dcmread(path)
    assert np.allclose(read_image(path, 3).pixels, dataset.pixel_array[3] * float(dataset.DoseGridScaling))


@pytest.mark.parametrize("name", ["examples_ybr_color.dcm", "SC_ybr_full_422_uncompressed.dcm", "examples_jpeg2k.dcm"])
def test_ybr_is_rgb_here(name):
    image = read_image(WHEEL / name, 0)
    dataset = pydicom.dcmread(WHEEL / name)
    expected = dataset.pixel_array[0] if image.headers.frames > 1 else dataset.pixel_array
    assert np.abs(image.pixels - expected).max() <= 1 and image.headers.photometric.startswith("YBR")


@pytest.mark.parametrize(
    ("space", "depth", "words"),
    [("YBR_FULL", 16, "'YBR_FULL' in uint16"), ("HSV", 8, "'HSV' in uint8"), ("CMYK", 8, "'CMYK' in uint8")],
)
def test_colour_spaces_that_are_not_supported_are_named(space, depth, words):
    dataset = encoders.dataset("RGB")
    dataset.BitsAllocated = dataset.BitsStored = depth
    dataset.HighBit, dataset.PhotometricInterpretation = depth - 1, space
    dataset.PixelData = encoders.picture("RGB").astype(f"u{depth // 8}").tobytes()
    with pytest.raises(DicomError, match=words):
        read_image(in_memory(dataset))


def test_a_window_that_no_function_allows_is_none():
    dataset = encoders.dataset("8 bit")
    dataset.WindowCenter, dataset.WindowWidth = 5, 0.5
    assert read_headers(in_memory(dataset)).window is None
    dataset.VOILUTFunction = "LINEAR_EXACT"
    assert read_headers(in_memory(dataset)).window == (5, 0.5)
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.WindowWidth = 0
    assert read_headers(in_memory(dataset)).window is None
