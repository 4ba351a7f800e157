"""What an encoded frame says of itself before a native decoder sees it: its size, and whether it is whole."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pydicom.uid import (
    UID,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
)

JP2_SIGNATURE = b"\0\0\0\x0cjP  "
SOC, SIZ = b"\xff\x4f", b"\xff\x51"  # ISO/IEC 15444-1 table A.2
SOI, END = b"\xff\xd8", b"\xff\xd9"  # ISO/IEC 10918-1 table B.1; END is EOC in JPEG 2000, too
FRAME_STARTS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15, and SOF55 of JPEG-LS
JPEG = {*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes}
START_OF_SCAN = 0xDA
MARKERS = 4096


@dataclass(frozen=True, slots=True)
class Codestream:
    """Size of an encoded frame, the bits of its first component, and whether it ends with its end marker."""

    rows: int
    columns: int
    components: int
    bits: int
    whole: bool


def codestream_of(encoded: bytes, syntax: UID) -> Codestream | None:
    """What a JPEG, JPEG-LS, JPEG 2000 or HTJ2K frame declares; None for other transfer syntaxes.

    Raises:
        ValueError: if it is none of what its transfer syntax says.
    """
    try:
        if syntax in JPEG2000TransferSyntaxes:
            return _jpeg2000(encoded)
        return _jpeg(encoded) if syntax in JPEG else None
    except (struct.error, IndexError) as error:
        raise ValueError("the codestream ends within its header") from error


def _whole(encoded: bytes) -> bool:
    """Some writers pad with zeros, some with bytes of 255."""
    return END in encoded[-16:] or encoded.rstrip(b"\0").endswith(END)


def _jpeg(encoded: bytes) -> Codestream:
    """From the frame header; the segments before the first scan must follow each other without a gap."""
    if encoded[:2] != SOI:
        raise ValueError("the codestream does not start as JPEG does")
    at, found = 2, None
    for _ in range(MARKERS):
        while encoded[at + 1] == 0xFF:  # fill bytes, B.1.1.2
            at += 1
        lead, marker, length = struct.unpack_from(">BBH", encoded, at)
        if lead != 0xFF or length < 2:
            raise ValueError("the codestream has bytes between its segments")
        if marker == START_OF_SCAN:
            break
        if marker in FRAME_STARTS:
            bits, rows, columns, components = struct.unpack_from(">BHHB", encoded, at + 4)
            if not 2 <= bits <= 16:
                raise ValueError(f"the codestream claims samples of {bits} bits")
            found = Codestream(rows, columns, components, bits, _whole(encoded))
        at += 2 + length
    if found is None:
        raise ValueError("the codestream has no frame before its first scan")
    return found


def _jpeg2000(encoded: bytes) -> Codestream:
    at = _codestream_box(encoded) if encoded.startswith(JP2_SIGNATURE) else 0
    if encoded[at : at + 4] != SOC + SIZ:
        raise ValueError("the codestream does not start as JPEG 2000 does")
    right, lower, left, upper = struct.unpack_from(">4I", encoded, at + 8)
    components, signed_bits = struct.unpack_from(">HB", encoded, at + 40)
    return Codestream(lower - upper, right - left, components, (signed_bits & 0x7F) + 1, _whole(encoded))


def _codestream_box(encoded: bytes) -> int:
    """Where the codestream starts within a JP2 file (ISO/IEC 15444-1 annex I)."""
    at = 0
    for _ in range(MARKERS):
        length, kind = struct.unpack_from(">I4s", encoded, at)
        if kind == b"jp2c":
            return at + 8
        if length < 8:
            break
        at += length
    raise ValueError("the JP2 boxes hold no codestream")
