"""A decoding plugin for pydicom: JPEG Extended with 12 bits by GDCM, which pydicom's own plugin for GDCM leaves out."""

from __future__ import annotations

import zlib  # noqa: F401  before gdcm: its wheel has a zlib of its own, and a libz loaded after it frees memory twice

from pydicom.pixels.decoders.base import DecodeRunner
from pydicom.uid import JPEGExtended12Bit

try:
    import gdcm
except ImportError:
    gdcm = None

DECODER_DEPENDENCIES = {JPEGExtended12Bit: ("python-gdcm>=3.0.24",)}


def is_available(uid: str) -> bool:
    """Whether the plugin decodes a transfer syntax here."""
    return gdcm is not None and uid in DECODER_DEPENDENCIES


def decode_frame(source: bytes, runner: DecodeRunner) -> bytes:
    """One frame of 9 to 12 bits -> its samples in 16-bit little endian cells.

    Raises:
        ValueError: if the frame has other bits, or GDCM gives no samples.
    """
    if not 8 < runner.bits_stored <= 12 or runner.bits_allocated != 16 or runner.samples_per_pixel != 1:
        raise ValueError("this plugin decodes greyscale of 9 to 12 bits in 16")
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(source)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((runner.columns, runner.rows, 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType(str(runner.photometric_interpretation))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGExtendedProcess2_4))
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, 12, 11, runner.pixel_representation))
    samples = image.GetBuffer()
    if not samples:
        raise ValueError("GDCM gives no samples")
    return bytes(samples.encode("utf-8", "surrogateescape"))
