"""Hostile DICOM files, the same for the same seed: what benchmarks/fuzz_dicom.py and tests/data/test_fuzz.py read."""

from __future__ import annotations

import random
import struct
import warnings
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import encoders
import pydicom
from pydicom import Dataset, uid

from hscc_edge.data.dicom import read_frames
from hscc_edge.errors import DicomError

SMALL = 200_000
PREFIX = 132
LENGTHS = (0, 1, 3, 0xFE, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFF0, 0xFFFFFFFE, 0xFFFFFFFF)
NUMBERS = (0, 1, 2, 3, 7, 8, 9, 12, 15, 16, 17, 32, 33, 63, 64, 255, 4096, 32767, 65535)
LIES: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "SamplesPerPixel"), NUMBERS),
    "PixelRepresentation": (0, 1, 2, 65535),
    "PlanarConfiguration": (0, 1, 2, 65535),
    "NumberOfFrames": (0, 1, 2, 3, 1000, 2**20, 2**31 - 1, -1),
    "PhotometricInterpretation": (
        "MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR", "HSV",
        "", "X" * 16,
    ),
    "RescaleSlope": (0, 1e38, -1e38, 1e-40, "1e400", "nan"),
    "RescaleIntercept": ("inf", 1e38, -3),
    "WindowWidth": (0, -5, "nan", "1e400", [1, 2]),
    "PixelPaddingValue": NUMBERS,
    "PixelPaddingRangeLimit": NUMBERS,
    "VOILUTFunction": ("SIGMOID", "LINEAR_EXACT", "?"),
    "InstanceNumber": ("x", 2**31 - 1),
}  # fmt: skip
SYNTAXES = [
    getattr(uid, name)
    for name in (
        "ImplicitVRLittleEndian", "ExplicitVRLittleEndian", "ExplicitVRBigEndian", "DeflatedExplicitVRLittleEndian",
        "JPEGBaseline8Bit", "JPEGExtended12Bit", "JPEGLossless", "JPEGLosslessSV1", "JPEGLSLossless",
        "JPEGLSNearLossless", "JPEG2000Lossless", "JPEG2000", "HTJ2KLossless", "HTJ2K", "RLELossless", "MPEG2MPML",
    )
]  # fmt: skip


def corpus(folder: Path) -> list[tuple[str, bytes]]:
    """Files to mutate: the images of pydicom's wheel up to 200 kB, one of each writer and transfer syntax."""
    found = [(path.name, path.read_bytes()) for path in sorted(encoders.WHEEL.glob("*.dcm")) if _is_image(path)]
    seen = set()
    for case in encoders.cases():
        if (case.writer, case.syntax, case.kind == "RGB") in seen:
            continue
        seen.add((case.writer, case.syntax, case.kind == "RGB"))
        found.append((str(case), encoders.write(case, folder).read_bytes()))
    return found


def _is_image(path: Path) -> bool:
    if path.stat().st_size > SMALL:
        return False
    try:
        for _ in read_frames(path):
            pass
    except DicomError:
        return False
    return True


def mutants(files: list[tuple[str, bytes]], count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """`count` files with a name that says what was done to which; each depends on the seed and its number alone."""
    names = list(MUTATORS)
    for number in range(count):
        chance = random.Random(f"{seed}/{number}")
        name, content = files[chance.randrange(len(files))]
        kind = names[number % len(names)]
        yield f"{number:05d} {kind} of {name}", MUTATORS[kind](content, chance)


def _pixels_start(content: bytes) -> int:
    at = max(content.rfind(b"\xe0\x7f\x10\x00"), content.rfind(b"\x7f\xe0\x00\x10"))
    return at if at > PREFIX else len(content)


def flip_header(content: bytes, chance: random.Random) -> bytes:
    """Bits of the header turned over."""
    return _flipped(content, PREFIX, _pixels_start(content), chance.randint(1, 8), chance)


def flip_pixels(content: bytes, chance: random.Random) -> bytes:
    """Bits of the pixels, of their offset table or of their codestream turned over."""
    return _flipped(content, _pixels_start(content) + 8, len(content), chance.randint(1, 64), chance)


def flip_codestream_header(content: bytes, chance: random.Random) -> bytes:
    """Bits of the first bytes of a codestream turned over: sizes, tables, markers."""
    start = _pixels_start(content)
    starts = [at for at in (content.find(mark, start) for mark in (b"\xff\xd8", b"\xff\x4f\xff\x51")) if at >= 0]
    start = min(starts, default=start)
    return _flipped(content, start + 2, min(start + 200, len(content)), chance.randint(1, 4), chance)


def truncate(content: bytes, chance: random.Random) -> bytes:
    """The file cut off."""
    return content[: chance.randrange(len(content))]


def splice(content: bytes, chance: random.Random) -> bytes:
    """A piece taken out, doubled, or filled with one byte."""
    start = chance.randrange(PREFIX, max(len(content), PREFIX + 1))
    end = min(start + chance.choice((1, 2, 4, 16, 256, 4096)), len(content))
    piece = chance.choice((b"", content[start:end] * 2, bytes([chance.choice((0, 255))]) * (end - start)))
    return content[:start] + piece + content[end:]


def lie_about_length(content: bytes, chance: random.Random) -> bytes:
    """The length of an element replaced, in whichever form it stands before its value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(BytesIO(content), force=True)
            places = [dataset.get_item(tag).file_tell for tag in dataset.keys()]  # noqa: SIM118
        except Exception:  # files of the wheel that pydicom does not read
            return truncate(content, chance)
    places = [place for place in places if place and PREFIX < place <= len(content)]
    if not places:
        return truncate(content, chance)
    place, length = chance.choice(places), chance.choice(LENGTHS)
    packed = struct.pack("<H", length & 0xFFFF) if chance.random() < 0.5 else struct.pack("<I", length)
    return content[: place - len(packed)] + packed + content[place:]


def lie(content: bytes, chance: random.Random) -> bytes:
    """One to three attributes of the pixels with values that are not true."""
    return _edited(content, chance, lambda dataset: _lie(dataset, chance))


def _lie(dataset: Dataset, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 3)):
        keyword = chance.choice(list(LIES))
        if chance.random() < 0.1 and keyword in dataset:
            delattr(dataset, keyword)
            continue
        value = chance.choice(LIES[keyword])
        if isinstance(value, str) and keyword not in ("PhotometricInterpretation", "VOILUTFunction"):
            dataset.add_new(keyword, "LO", value)
        else:
            setattr(dataset, keyword, value)


def lie_about_syntax(content: bytes, chance: random.Random) -> bytes:
    """Another transfer syntax in the file meta, everything else as it was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            old = pydicom.filereader.read_file_meta_info(BytesIO(content)).TransferSyntaxUID
        except Exception:  # as above
            return truncate(content, chance)
    other = chance.choice(SYNTAXES)
    width = len(old) + len(old) % 2
    at = content.find(old.encode())
    new = other.encode()[:width].ljust(width, b"\0")
    return content[:at] + new + content[at + width :]


def nest(content: bytes, chance: random.Random) -> bytes:
    """A sequence nested up to a few thousand deep, of defined or undefined lengths."""
    depth, tag = chance.choice((3, 50, 400, 3000)), chance.choice((b"\x08\x00\x40\x11", b"\x00\x52\x30\x92"))
    if chance.random() < 0.5:
        inner = (tag + b"SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff") * depth
    else:
        inner = b""
        for _ in range(min(depth, 400)):
            item = b"\xfe\xff\x00\xe0" + struct.pack("<I", len(inner)) + inner
            inner = tag + b"SQ\0\0" + struct.pack("<I", len(item)) + item
    at = _pixels_start(content)
    return content[:at] + inner + content[at:]


def add_tables(content: bytes, chance: random.Random) -> bytes:
    """Lookup tables and palettes with descriptors and data that do not fit each other."""
    return _edited(content, chance, lambda dataset: _add_tables(dataset, chance))


def _add_tables(dataset: Dataset, chance: random.Random) -> None:
    item = Dataset()
    item.add_new("LUTDescriptor", chance.choice(("US", "SS")), [chance.choice((0, 1, 256, 30000)) for _ in range(3)])
    item.add_new("LUTData", "OW", chance.randbytes(2 * chance.choice((0, 1, 128, 256))))
    setattr(dataset, chance.choice(("ModalityLUTSequence", "VOILUTSequence")), [item])
    if chance.random() < 0.5:
        dataset.PhotometricInterpretation = "PALETTE COLOR"
        segmented = chance.choice(("", "Segmented"))
        for colour in ("Red", "Green", "Blue"):
            words = [chance.choice((0, 1, 2, 3, 65535)) for _ in range(chance.choice((0, 8, 256)))]
            dataset.add_new(
                f"{colour}PaletteColorLookupTableDescriptor", "US",
                [chance.choice((0, 1, 256, 65535)), chance.choice((0, 300)), chance.choice((8, 16, 0))],
            )  # fmt: skip
            data = struct.pack(f"<{len(words)}H", *words)
            dataset.add_new(f"{segmented}{colour}PaletteColorLookupTableData", "OW", data)


def _flipped(content: bytes, start: int, end: int, bits: int, chance: random.Random) -> bytes:
    found = bytearray(content)
    for _ in range(bits if end > start else 0):
        found[chance.randrange(start, end)] ^= 1 << chance.randrange(8)
    return bytes(found)


def _edited(content: bytes, chance: random.Random, edit: Callable[[Dataset], None]) -> bytes:
    """The file parsed, edited and written again; if that cannot be, with bits turned over instead."""
    buffer = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(BytesIO(content))
            edit(dataset)
            dataset.save_as(buffer)
        except Exception:  # pydicom refuses to write some lies
            return flip_header(content, chance)
    return buffer.getvalue()


MUTATORS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "header bits": flip_header,
    "pixel bits": flip_pixels,
    "codestream header bits": flip_codestream_header,
    "truncation": truncate,
    "splice": splice,
    "length": lie_about_length,
    "lie": lie,
    "syntax": lie_about_syntax,
    "nesting": nest,
    "tables": add_tables,
}
