"""Pixel data of one frame -> stored samples, by the decoders that are installed, in a stated order, under limits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, uid
from pydicom.encaps import encapsulate, generate_frames, get_frame
from pydicom.pixels.decoders.base import Decoder, JPEGExtended12BitDecoder, get_decoder
from pydicom.pixels.utils import as_pixel_options

from hscc_edge.data.codestream import JPEG as JPEG_STREAMS
from hscc_edge.data.codestream import codestream_of
from hscc_edge.data.frames import PIXELS, frame_count
from hscc_edge.data.limits import LIMITS, Limits
from hscc_edge.errors import DicomError

# Bits that are not stored are cut off below, HighBit and all; pydicom's own way does not look at it.
NATIVE: dict[str, Any] = {"view_only": True, "correct_unused_bits": False, "allow_excess_frames": False}
SIZES = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")
JPEG12 = "gdcm-12"
# A panic in a decoder in Rust (pylibjpeg-rle) is a BaseException of this module, that nobody can import.
RUST_PANIC = "pyo3_runtime"
if JPEG12 not in JPEGExtended12BitDecoder.available_plugins:
    JPEGExtended12BitDecoder.add_plugin(JPEG12, ("hscc_edge.data.jpeg12", "decode_frame"))


@dataclass(frozen=True, slots=True)
class Family:
    """Transfer syntaxes with the same plugins of pydicom, in the order in which they are tried.

    `package` is what to install where none is; `pylibjpeg` the package behind pydicom's plugin of that name.
    """

    plugins: tuple[str, ...]
    package: str
    pylibjpeg: str


# GDCM ends the process on some damaged files of 8 bits: Pillow reads those, and GDCM what nothing else reads.
JPEG = Family(("pillow", "pylibjpeg"), "pillow", "pylibjpeg-libjpeg")
JPEG_LOSSLESS = Family(("gdcm", "pylibjpeg"), "python-gdcm", "pylibjpeg-libjpeg")
JPEG_EXTENDED = Family((JPEG12, *JPEG.plugins), "python-gdcm", "pylibjpeg-libjpeg")
JPEG_LS = Family(("pyjpegls", "gdcm", "pylibjpeg"), "pyjpegls", "pylibjpeg-libjpeg")
JPEG_2000 = Family(("pylibjpeg", "gdcm", "pillow"), "pylibjpeg pylibjpeg-openjpeg", "pylibjpeg-openjpeg")
HTJ2K = Family(("pylibjpeg",), "pylibjpeg pylibjpeg-openjpeg", "pylibjpeg-openjpeg")
RLE = Family(("pylibjpeg", "pydicom"), "pylibjpeg pylibjpeg-rle", "pylibjpeg-rle")
LOSSY = {uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSNearLossless, uid.JPEG2000, uid.HTJ2K}
CELLS = {
    uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian,
    uid.RLELossless,
}  # fmt: skip
# benchmarks/transfer_syntaxes.py measures every plugin of every one.
FAMILIES: dict[str, Family] = {
    uid.JPEGBaseline8Bit: JPEG,
    uid.JPEGExtended12Bit: JPEG_EXTENDED,
    uid.JPEGLossless: JPEG_LOSSLESS,
    uid.JPEGLosslessSV1: JPEG_LOSSLESS,
    uid.JPEGLSLossless: JPEG_LS,
    uid.JPEGLSNearLossless: JPEG_LS,
    uid.JPEG2000Lossless: JPEG_2000,
    uid.JPEG2000: JPEG_2000,
    uid.HTJ2KLossless: HTJ2K,
    uid.HTJ2KLosslessRPCL: HTJ2K,
    uid.HTJ2K: HTJ2K,
    uid.RLELossless: RLE,
}


@dataclass(frozen=True, slots=True)
class Decoded:
    """One frame's stored samples.

    Attributes:
        samples: (H, W), or (H, W, 3) for three samples a pixel; the type that the header allocates; bits that are not
            stored (such as overlays, PS3.5 8.1.1) are gone.
        photometric: the colour space that the samples are in now.
        decoder: what decoded them: "native", or a package.
    """

    samples: NDArray[Any]
    photometric: str
    decoder: str


def decode(dataset: Dataset, index: int, limits: Limits = LIMITS, *, plugin: str = "") -> Decoded:
    """Frame `index` of a data set with pixels; memory grows with that frame, time with the frames before it.

    `plugin` names the only one of pydicom's that may decode it.

    Raises:
        DicomError: if its size is over a limit, no installed decoder reads its transfer syntax, or all of them fail.
    """
    decoder, _ = _prepare(dataset, limits)
    if decoder.is_native:
        return _native(decoder, dataset, index)
    options = as_pixel_options(dataset, pixel_keyword="PixelData")
    try:
        encoded = get_frame(
            dataset.PixelData, index,
            number_of_frames=options["number_of_frames"], extended_offsets=options.get("extended_offsets"),
        )  # fmt: skip
    except Exception as error:  # pydicom gives no list of what malformed offset tables and fragments raise
        raise _unsplit(error) from error
    return _encoded(decoder, encoded, options, dataset, limits, plugin)


def decode_each(dataset: Dataset, limits: Limits = LIMITS) -> Iterator[Decoded]:
    """Every frame in order, one in memory at a time; time grows with the frames.

    Raises:
        DicomError: as `decode` does; also if the file ends before its last frame.
    """
    decoder, count = _prepare(dataset, limits)
    if decoder.is_native:
        yield from (_native(decoder, dataset, index) for index in range(count))
        return
    options = as_pixel_options(dataset, pixel_keyword="PixelData")
    encoded = generate_frames(
        dataset.PixelData, number_of_frames=count, extended_offsets=options.get("extended_offsets")
    )
    for index in range(count):
        try:
            frame = next(encoded, None)
        except Exception as error:  # as above
            raise _unsplit(error) from error
        if frame is None:
            raise DicomError(f"the file ends after {index} of {count} frames: fetch it again")
        yield _encoded(decoder, frame, options, dataset, limits)


def plugins_for(syntax: str) -> tuple[str, ...]:
    """The installed decoders of an encapsulated transfer syntax, in the order in which they are tried."""
    available = get_decoder(syntax).available_plugins
    return tuple(plugin for plugin in FAMILIES[syntax].plugins if plugin in available)


def decoder_name(plugin: str, syntax: str) -> str:
    """The package that does the work of one of pydicom's plugins, such as "pylibjpeg-openjpeg"."""
    return FAMILIES[syntax].pylibjpeg if plugin == "pylibjpeg" else "gdcm" if plugin == JPEG12 else plugin


def _prepare(dataset: Dataset, limits: Limits) -> tuple[Decoder, int]:
    """The decoder and the number of frames, once the sizes that the header claims are allowed."""
    decoder = _decoder_of(dataset)
    keyword = next((keyword for keyword in PIXELS if keyword in dataset), None)
    if keyword is None:
        raise DicomError("it has no pixels: expected an image; leave it out")
    if decoder.is_encapsulated and keyword != "PixelData":
        raise DicomError(f"it has {keyword} in {decoder.UID.name}: expected uncompressed samples; fetch it again")
    count = frame_count(dataset, limits)
    try:
        rows, columns, samples, bits = (int(dataset[name].value) for name in SIZES)
    except (KeyError, TypeError, ValueError) as error:
        raise DicomError("it lacks rows, columns or another attribute of its pixels: fetch it again") from error
    if not 0 < rows * columns * samples <= limits.samples:
        raise DicomError(
            f"it claims {rows} x {columns} pixels of {samples} samples: expected 1 to {limits.samples} in all; "
            "leave it out"
        )
    if rows * columns * samples * bits > 8 * limits.decoded_bytes:
        raise DicomError(
            f"it claims {rows} x {columns} x {samples} samples of {bits} bits: expected at most "
            f"{limits.decoded_bytes} bytes; leave it out"
        )
    return decoder, count


def _decoder_of(dataset: Dataset) -> Decoder:
    syntax = getattr(dataset, "file_meta", {}).get("TransferSyntaxUID")
    if not syntax:
        raise DicomError("its header names no transfer syntax (PS3.10 section 7.1): fetch it again")
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        name = uid.UID(syntax).name
        known = name if name != syntax else "a transfer syntax that PS3.6 does not list"
        raise DicomError(f"it is in {known}, which no decoder here reads: convert it to another first") from error
    if decoder.is_encapsulated and not plugins_for(syntax):
        raise DicomError(
            f"it is in {decoder.UID.name}, and no decoder for that is installed: "
            f"run pip install {FAMILIES[syntax].package}"
        )
    return decoder


def _native(decoder: Decoder, dataset: Dataset, index: int) -> Decoded:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            samples, found = decoder.as_array(dataset, index=index, raw=True, **NATIVE)
        except Exception as error:  # pydicom raises many classes on headers that lie
            raise DicomError(
                f"its pixels do not fit its header ({type(error).__name__}): it is damaged; fetch it again"
            ) from error
    stored = _stored(samples, dataset, decoder.UID)
    return Decoded(stored, str(found["photometric_interpretation"]), "native")


def _encoded(
    decoder: Decoder, encoded: bytes, options: dict[str, Any], dataset: Dataset, limits: Limits, only: str = ""
) -> Decoded:
    _check_codestream(encoded, decoder.UID, options, limits)
    buffer = encapsulate([encoded], has_bot=False)
    alone = {name: value for name, value in options.items() if name != "extended_offsets"}
    alone |= {"number_of_frames": 1, "correct_unused_bits": False}
    failures = []
    for plugin in (only,) if only else plugins_for(decoder.UID):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                samples, found = decoder.as_array(buffer, index=0, raw=True, decoding_plugin=plugin, **alone)
            except BaseException as error:  # native decoders raise whatever they like
                if isinstance(error, Exception) or type(error).__module__ == RUST_PANIC:
                    failures.append(f"{decoder_name(plugin, decoder.UID)}: {type(error).__name__}")
                    continue
                raise
        stored = _stored(samples, dataset, decoder.UID)
        return Decoded(stored, str(found["photometric_interpretation"]), decoder_name(plugin, decoder.UID))
    raise DicomError(
        f"its pixels ({decoder.UID.name}) cannot be decoded ({', '.join(failures)}): it is damaged, or needs a decoder "
        "that is not installed"
    )


def _check_codestream(encoded: bytes, syntax: uid.UID, options: dict[str, Any], limits: Limits) -> None:
    """Refuse what a native decoder should not see: another size than the header's, or half a picture."""
    try:
        found = codestream_of(encoded, syntax)
    except ValueError as error:
        raise DicomError(f"its pixels are no {syntax.name} ({error}): it is damaged; fetch it again") from error
    if found is None:
        return
    claimed = (options["rows"], options["columns"], options["samples_per_pixel"])
    if (found.rows, found.columns, found.components) != claimed:
        raise DicomError(
            f"its codestream has {found.rows} x {found.columns} x {found.components} samples, its header "
            f"{' x '.join(map(str, claimed))}: expected the same; fetch it again"
        )
    if found.bits > options["bits_allocated"]:
        raise DicomError(
            f"its codestream has samples of {found.bits} bits: expected at most the {options['bits_allocated']} that "
            "its header allocates; fetch it again"
        )
    if syntax in JPEG_STREAMS and options["bits_allocated"] not in (8, 16):
        raise DicomError(
            f"its header allocates {options['bits_allocated']} bits to samples in {syntax.name}: expected 8 or 16 "
            "(PS3.5 8.2); fetch it again"
        )
    if not found.whole:
        raise DicomError(f"its pixels ({syntax.name}) end before their end marker: it is cut off; fetch it again")


def _stored(samples: NDArray[Any], dataset: Dataset, syntax: uid.UID) -> NDArray[Any]:
    """Samples without the bits of their cells that are not stored (PS3.5 8.1.1), signs extended.

    Uncompressed and RLE cells are as the header has them, HighBit too; a codestream holds samples at the low end. What
    a lossy one decodes to beyond the stored range is an error of compression, and takes the end of the range.
    """
    cell = 8 * samples.dtype.itemsize
    bits = int(dataset.get("BitsStored") or cell)
    high = int(dataset.get("HighBit") or bits - 1) if syntax in CELLS else bits - 1
    if samples.dtype.kind not in "iu" or bits >= cell or not bits <= high + 1 <= cell:
        return samples
    low, top = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if samples.dtype.kind == "i" else (0, (1 << bits) - 1)
    if high + 1 == bits and samples.max() <= top and samples.min() >= low:
        return samples
    if syntax in LOSSY:
        return np.asarray(np.clip(samples, low, top))
    return np.asarray(np.right_shift(np.left_shift(samples, cell - 1 - high), cell - bits))


def _unsplit(error: Exception) -> DicomError:
    return DicomError(
        f"its encapsulated pixels cannot be split into frames ({type(error).__name__}): it is damaged; fetch it again"
    )
