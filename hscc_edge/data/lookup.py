"""Lookup tables of a data set: modality, VOI and palette (PS3.3 C.11.1, C.11.2, C.7.6.3.1.5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

MOST_ENTRIES = 1 << 16
COLOURS = ("Red", "Green", "Blue")
DISCRETE, LINEAR, INDIRECT = range(3)  # kinds of segments, PS3.3 table C.7.9.2


@dataclass(frozen=True, slots=True)
class Lut:
    """A table: the value for input `first`, `first + 1`, ...; inputs beyond either end take the end's value.

    `bits` is the depth of the values, each in 0..2**bits - 1.
    """

    first: int
    bits: int
    values: tuple[int, ...] = field(repr=False)

    def __call__(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Values for inputs of any shape; what lies between two entries is rounded to the nearer."""
        table = np.asarray(self.values, dtype=np.float32)
        if inputs.dtype.kind == "f":
            inputs = np.rint(inputs)
        index = np.clip(inputs.astype(np.int64) - self.first, 0, len(table) - 1)
        return np.asarray(table[index], dtype=np.float32)

    def mirrored(self, total: float) -> Lut:
        """The table for inputs `total - x` instead of x, dark and bright exchanged as well."""
        top = (1 << self.bits) - 1
        first = round(total) - (self.first + len(self.values) - 1)
        return Lut(first, self.bits, tuple(top - value for value in reversed(self.values)))


def lut_of(item: Dataset, *, little_endian: bool = True, signed: bool = False) -> Lut:
    """The table in an item of ModalityLUTSequence or VOILUTSequence.

    Raises:
        ValueError, TypeError, AttributeError: if it is malformed.
    """
    count, first, bits = _descriptor(item.LUTDescriptor, signed)
    return Lut(first, bits, tuple(_entries(item.LUTData, count, little_endian).tolist()))


def palette_of(dataset: Dataset, *, little_endian: bool = True) -> tuple[Lut, Lut, Lut]:
    """Tables for red, green and blue, plain or segmented (PS3.3 C.7.9.2); values in 0..2**bits - 1.

    `bits` is 8 where no value needs more, since writers give 16 for tables of 8 bits.

    Raises:
        ValueError, TypeError, AttributeError: if one is missing or malformed.
    """
    signed = bool(dataset.get("PixelRepresentation"))
    tables = []
    for colour in COLOURS:
        count, first, bits = _descriptor(dataset[f"{colour}PaletteColorLookupTableDescriptor"].value, signed)
        if (data := dataset.get(f"{colour}PaletteColorLookupTableData")) is not None:
            values = _entries(data, count, little_endian)
        else:
            data = dataset[f"Segmented{colour}PaletteColorLookupTableData"].value
            cell = 8 if bits <= 8 else 16
            values = _expanded(_words(data, cell, little_endian).tolist(), cell, count)
        tables.append((first, values))
    bits = 8 if max(int(values.max()) for _, values in tables) < 256 else 16
    red, green, blue = (Lut(first, bits, tuple(values.tolist())) for first, values in tables)
    return red, green, blue


def _descriptor(value: Sequence[Any], signed: bool) -> tuple[int, int, int]:
    count, first, bits = (int(part) for part in value)
    count = count or MOST_ENTRIES
    if not (0 < count <= MOST_ENTRIES and 1 <= bits <= 16):
        raise ValueError(f"a lookup table of {count} entries of {bits} bits")
    return count, first - (1 << 16) if signed and first > 0x7FFF else first, bits


def _entries(data: Any, count: int, little_endian: bool) -> NDArray[np.int64]:
    if not isinstance(data, bytes):  # VR US: the words are integers already, each of two entries where those are bytes
        data, little_endian = np.atleast_1d(np.asarray(data, dtype="<u2")).tobytes(), True
    values = _words(data, 8 if len(data) < 2 * count else 16, little_endian)
    if len(values) < count:
        raise ValueError(f"a lookup table of {len(values)} entries instead of {count}")
    return values[:count]


def _words(data: bytes, bits: int, little_endian: bool) -> NDArray[np.int64]:
    kind = "u1" if bits <= 8 else "<u2" if little_endian else ">u2"
    usable = len(data) - len(data) % np.dtype(kind).itemsize
    return np.frombuffer(data[:usable], dtype=kind).astype(np.int64)


def _expanded(words: Sequence[int], bits: int, count: int) -> NDArray[np.int64]:
    """Discrete, linear and indirect segments laid out (PS3.3 C.7.9.2), at most `count` entries."""
    found: list[int] = []
    at = 0
    while len(found) < count and at + 1 < len(words):
        if words[at] != INDIRECT:
            at = _lay_out(words, at, found, count)
            continue
        there, parts = words[at + 2 :], 4 if bits == 8 else 2
        offset = sum(part << (bits * place) for place, part in enumerate(there[:parts])) // (bits // 8)
        for _ in range(min(words[at + 1], count)):
            offset = _lay_out(words, offset, found, count)
        at += 2 + parts
    if len(found) < count:
        raise ValueError(f"a segmented lookup table of {len(found)} entries instead of {count}")
    return np.asarray(found[:count], dtype=np.int64)


def _lay_out(words: Sequence[int], at: int, found: list[int], count: int) -> int:
    """Append the discrete or linear segment at `at`; returns where the next one starts."""
    kind, length = words[at], words[at + 1]
    if kind == DISCRETE:
        found += words[at + 2 : at + 2 + length]
        return at + 2 + length
    if kind != LINEAR:
        raise ValueError(f"a segment of a lookup table of the unknown kind {kind}")
    line = np.linspace(found[-1], words[at + 2], length + 1)[1:]
    found += np.rint(line[: max(count - len(found), 0)]).astype(int).tolist()
    return at + 3
