"""Every transfer syntax that dcmtk, GDCM, pydicom and OpenJPH write, read back; what is refused before decoding."""

import io
import struct
import subprocess
from pathlib import Path

import encoders
import numpy as np
import pydicom
import pytest
from encoders import in_memory
from pydicom import uid
from pydicom.encaps import encapsulate, generate_frames

from hscc_edge.data import decoders
from hscc_edge.data.codestream import codestream_of
from hscc_edge.data.decoders import FAMILIES, decode, plugins_for
from hscc_edge.data.dicom import read_dataset, read_frames, read_image
from hscc_edge.data.limits import Limits
from hscc_edge.errors import DicomError

try:
    import tomllib
except ModuleNotFoundError:
    import tomli as tomllib

CASES = list(encoders.cases())
ENDED = [case for case in CASES if case.kind == "12 bit" and case.syntax in FAMILIES.keys() - {uid.RLELossless}]
FIRST = {
    uid.JPEGBaseline8Bit: "pillow", uid.JPEGExtended12Bit: "pillow", uid.JPEGLossless: "gdcm",
    uid.JPEGLosslessSV1: "gdcm",
    uid.JPEGLSLossless: "pyjpegls", uid.JPEGLSNearLossless: "pyjpegls", uid.RLELossless: "pylibjpeg-rle",
    **dict.fromkeys(
        (uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K),
        "pylibjpeg-openjpeg",
    ),
}  # fmt: skip


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("encoded")


def test_every_family_has_files():
    assert {case.syntax for case in CASES if case.syntax.is_encapsulated} == set(FAMILIES) == set(FIRST)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_others_write_is_read_back(case, folder):
    image = read_image(encoders.write(case, folder))
    error = np.abs(image.pixels - encoders.picture(case.kind).astype(np.float64)).max()
    assert error <= case.allowed
    twelve = case.syntax == uid.JPEGExtended12Bit and case.kind == "12 bit"
    assert image.decoder == ("gdcm" if twelve else FIRST.get(case.syntax, "native"))


@pytest.mark.parametrize("case", ENDED, ids=str)
def test_a_codestream_cut_off_is_refused(case, folder):
    path = encoders.write(case, folder)
    dataset = pydicom.dcmread(path)
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.PixelData = encapsulate([frame[: len(frame) * 2 // 3]])
    with pytest.raises(DicomError, match="end before their end marker"):
        read_image(in_memory(dataset))


@pytest.mark.parametrize(
    "syntax", sorted(FAMILIES.keys() - {uid.RLELossless}), ids=lambda syntax: uid.UID(syntax).keyword
)
def test_a_codestream_of_another_size_never_reaches_a_decoder(syntax, folder):
    case = next(case for case in CASES if case.syntax == syntax and case.kind in ("8 bit", "12 bit"))
    dataset = pydicom.dcmread(encoders.write(case, folder))
    dataset.Rows = 12
    with pytest.raises(DicomError, match="its codestream has 48 x 66 x 1 samples, its header 12 x 66 x 1"):
        read_image(in_memory(dataset))


@pytest.mark.parametrize("syntax", sorted(FAMILIES.keys() - {uid.RLELossless}), ids=uid.UID)
@pytest.mark.parametrize("bits", [17, 20])
def test_more_bits_than_cells_have_never_reach_a_decoder(syntax, bits, folder):
    """GDCM wrote beyond its buffer on a lossless JPEG that claims 20 bits."""
    case = next(case for case in CASES if case.syntax == syntax and case.kind in ("8 bit", "12 bit"))
    dataset = pydicom.dcmread(encoders.write(case, folder))
    frame = bytearray(next(generate_frames(dataset.PixelData, number_of_frames=1)))
    jpeg_2000 = frame.startswith(b"\xff\x4f")
    starts = (frame.find(bytes((0xFF, mark))) for mark in (0xC0, 0xC1, 0xC3, 0xF7))
    frame[42 if jpeg_2000 else min(at for at in starts if at > 0) + 4] = bits - 1 if jpeg_2000 else bits
    dataset.PixelData = encapsulate([bytes(frame)])
    with pytest.raises(DicomError, match=f"samples of {bits} bits"):
        read_image(in_memory(dataset))


JPEGS = [uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLosslessSV1, uid.JPEGLSLossless]


@pytest.mark.parametrize("syntax", JPEGS, ids=uid.UID)
def test_bytes_between_segments_never_reach_a_decoder(syntax, folder):
    """GDCM ended the process on them: libjpeg warns, and GDCM throws where nobody catches."""
    case = next(case for case in CASES if case.syntax == syntax and case.kind in ("8 bit", "12 bit"))
    dataset = pydicom.dcmread(encoders.write(case, folder))
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    scan = frame.find(b"\xff\xda")
    dataset.PixelData = encapsulate([frame[:scan] + b"\0" * 27 + frame[scan:]])
    with pytest.raises(DicomError, match="bytes between its segments"):
        read_image(in_memory(dataset))


def test_fewer_bits_stored_than_the_codestream_has_do_not_end_the_process(folder):
    """GDCM ended the process on BitsStored 2 of 8 in JPEG Baseline."""
    case = next(case for case in CASES if case.syntax == uid.JPEGBaseline8Bit and case.kind == "8 bit")
    dataset = pydicom.dcmread(encoders.write(case, folder))
    dataset.BitsStored = 2
    assert read_image(in_memory(dataset)).pixels.max() == 3


@pytest.mark.parametrize("syntax", JPEGS, ids=uid.UID)
def test_cells_that_jpeg_has_not_never_reach_a_decoder(syntax, folder):
    """GDCM ended the process on a lossless JPEG in cells of 32 bits."""
    case = next(case for case in CASES if case.syntax == syntax and case.kind in ("8 bit", "12 bit"))
    dataset = pydicom.dcmread(encoders.write(case, folder))
    dataset.BitsAllocated = 32
    with pytest.raises(DicomError, match="allocates 32 bits"):
        read_image(in_memory(dataset))


def test_two_decoders_agree_on_12_bit_jpeg(folder, tmp_path):
    case = next(case for case in CASES if case.syntax == uid.JPEGExtended12Bit and case.kind == "12 bit")
    path = encoders.write(case, folder)
    subprocess.run(["dcmdjpeg", str(path), str(tmp_path / "dcmtk.dcm")], check=True, capture_output=True)
    assert np.array_equal(read_image(path).pixels, read_image(tmp_path / "dcmtk.dcm").pixels)


def test_a_bomb_in_a_jp2_box_is_refused_and_does_not_hang():
    box = b"\0\0\0\x0cjP  \r\n\x87\n" + struct.pack(">I4s", 0, b"free") + b"\0" * 64
    with pytest.raises(ValueError, match="no codestream"):
        codestream_of(box, uid.JPEG2000)


def test_high_bits_are_not_pixels():
    """Overlays in the high bits (PS3.5 8.1.1), and samples at the high end of their cells."""
    plain = encoders.picture("12 bit")
    overlaid = encoders.dataset("12 bit")
    overlaid.PixelData = (plain | (plain << 13)).tobytes()
    assert np.array_equal(read_image(in_memory(overlaid)).pixels, plain)
    left = encoders.dataset("12 bit")
    left.HighBit, left.PixelData = 15, (plain << 4).tobytes()
    assert np.array_equal(read_image(in_memory(left)).pixels, plain)


def test_signs_are_extended_from_the_stored_bits():
    dataset = encoders.dataset("12 bit signed")
    dataset.PixelData = (encoders.picture("12 bit signed") & 0x0FFF).astype("<u2").tobytes()
    assert np.array_equal(read_image(in_memory(dataset)).pixels, encoders.picture("12 bit signed"))


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("depth", [8, 16])
def test_colour_planes_in_either_order(planar, depth):
    dataset = encoders.dataset("RGB")
    picture = encoders.picture("RGB").astype(f"<u{depth // 8}")
    dataset.BitsAllocated = dataset.BitsStored = depth
    dataset.HighBit, dataset.PlanarConfiguration = depth - 1, planar
    dataset.PixelData = (np.moveaxis(picture, -1, 0) if planar else picture).tobytes()
    assert np.array_equal(read_image(in_memory(dataset)).pixels, picture)


@pytest.mark.parametrize(("bits", "signed"), [(1, 0), (8, 0), (8, 1), (16, 0), (16, 1), (32, 0), (32, 1)])
def test_cells_of_every_size(bits, signed):
    span = 2 ** (bits - 1) if signed else 0
    values = np.linspace(-span, 2**bits - 1 - span, 48 * 66).round().astype(np.int64).reshape(48, 66)
    dataset = encoders.dataset("8 bit")
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit, dataset.PixelRepresentation = bits - 1, signed
    cells = values.astype(f"<{'ui'[signed]}{bits // 8}") if bits > 1 else np.packbits(values == 1, bitorder="little")
    dataset.PixelData = cells.tobytes()
    assert np.array_equal(read_image(in_memory(dataset)).pixels, values.astype(np.float32))


@pytest.mark.parametrize(("keyword", "kind"), [("FloatPixelData", "<f4"), ("DoubleFloatPixelData", "<f8")])
def test_float_pixels_are_finite(keyword, kind):
    dataset = encoders.dataset("16 bit")
    values = np.linspace(-1.5, 2.5, 48 * 66).reshape(48, 66).astype(kind)
    values[3, 4], values[5, 6] = np.nan, np.inf
    del dataset.PixelData, dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit
    dataset.BitsAllocated = 8 * values.dtype.itemsize
    setattr(dataset, keyword, values.tobytes())
    image = read_image(in_memory(dataset))
    assert np.isfinite(image.pixels).all() and image.padding.sum() == 2
    assert np.array_equal(image.pixels[~image.padding], values[~image.padding].astype(np.float32))


def test_frames_of_an_encapsulated_file_in_any_order(folder):
    case = next(case for case in CASES if case.syntax == uid.JPEGLSLossless and case.kind == "16 bit")
    dataset = pydicom.dcmread(encoders.write(case, folder))
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.NumberOfFrames, dataset.PixelData = 3, encapsulate([frame] * 3)
    images = list(read_frames(in_memory(dataset)))
    assert len(images) == 3 and [image.headers.instance_number for image in images] == [1, 2, 3]
    assert all(np.array_equal(image.pixels, encoders.picture("16 bit")) for image in images)
    assert np.array_equal(read_image(in_memory(dataset), 2).pixels, images[2].pixels)
    with pytest.raises(DicomError, match="has 3 frames: expected one; name one from 0 to 2"):
        read_image(in_memory(dataset))
    with pytest.raises(DicomError, match="no frame 3"):
        read_image(in_memory(dataset), 3)
    dataset.NumberOfFrames = 5
    with pytest.raises(DicomError, match=r"cannot be split|ends after"):
        list(read_frames(in_memory(dataset)))


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(samples=100), "expected 1 to 100 in all"),
        (Limits(decoded_bytes=100), "expected at most 100 bytes"),
        (Limits(frames=1), "claims 2 frames"),
    ],
)
def test_limits_hold_before_memory_is_asked_for(limits, words):
    dataset = encoders.dataset("8 bit")
    dataset.NumberOfFrames = 2
    with pytest.raises(DicomError, match=words):
        decode(dataset, 0, limits)


def test_a_deflated_bomb_is_refused(tmp_path, folder):
    case = next(case for case in CASES if case.syntax == uid.DeflatedExplicitVRLittleEndian)
    path = encoders.write(case, folder)
    assert read_image(path, limits=Limits(inflated_bytes=1 << 20)).pixels.size
    with pytest.raises(DicomError, match="inflates to over 6000 bytes"):
        read_image(io.BytesIO(path.read_bytes()), limits=Limits(inflated_bytes=6000))
    with pytest.raises(DicomError, match="bytes: expected at most 100"):
        read_dataset(path, pixels=True, limits=Limits(file_bytes=100))


@pytest.mark.parametrize(
    ("syntax", "words"),
    [
        (uid.MPEG2MPML, "MPEG2 Main Profile .* which no decoder here reads"),
        ("1.2.3.4.5", "a transfer syntax that PS3.6 does not list, which no decoder here reads"),
    ],
)
def test_a_syntax_that_nothing_reads_is_named(syntax, words, folder):
    case = next(case for case in CASES if case.syntax == uid.JPEGLSLossless)
    dataset = pydicom.dcmread(encoders.write(case, folder))
    dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
    with pytest.raises(DicomError, match=words) as told:
        read_image(in_memory(dataset))
    assert "1.2.3.4.5" not in str(told.value)


def test_a_decoder_that_is_not_installed_is_named(folder, monkeypatch):
    case = next(case for case in CASES if case.syntax == uid.HTJ2KLossless)
    path = encoders.write(case, folder)
    monkeypatch.setattr(decoders, "plugins_for", lambda syntax: ())
    with pytest.raises(DicomError, match=r"is installed: run pip install pylibjpeg pylibjpeg-openjpeg$"):
        read_image(path)


def test_gpl_decoders_are_in_an_extra_of_their_own():
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
    project = tomllib.loads(text)["project"]
    assert project["optional-dependencies"].pop("gpl-decoders") == ["pylibjpeg-libjpeg>=2.1"]
    assert "pylibjpeg-libjpeg" not in str(project) and "gpl" not in str(project["optional-dependencies"])
    assert all(plugins_for(syntax) for syntax in FAMILIES)
