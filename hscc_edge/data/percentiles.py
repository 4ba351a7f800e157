"""Percentiles of many pixels, as numpy gives them, in a third of the time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

CHUNK = 1 << 17
SHIFT, KEYS = 16, 1 << 16


def percentiles(values: NDArray[np.float32], shares: Sequence[float]) -> list[float]:
    """What `np.percentile` returns by default, to the bit: linear between the two values around each share.

    Values are counted by the upper half of their bits, and only those that share it with the value that is wanted are
    sorted. Time grows with the values; memory beside them with how many share the upper half, at worst all.

    Args:
        values: finite, of any shape, at least one.
        shares: 0 to 100.
    """
    flat = values.reshape(-1)
    chunks = [np.ascontiguousarray(flat[start : start + CHUNK]) for start in range(0, flat.size, CHUNK)]
    ends = np.cumsum(sum(np.bincount(_keys(chunk), minlength=KEYS) for chunk in chunks))

    @cache
    def alike(key: int) -> NDArray[np.float32]:
        found = np.concatenate([np.compress(_keys(chunk) == key, chunk) for chunk in chunks])
        return np.sort(found) if found.min() < found.max() else found  # air, all equal, takes longest to sort

    def ranked(rank: int) -> np.float32:
        key = int(np.searchsorted(ends, rank, side="right"))
        return np.float32(alike(key)[rank - ends[key]])

    found = []
    for share in shares:
        place = share / 100 * (flat.size - 1)
        below = int(place)
        found.append(_between(ranked(below), ranked(min(below + 1, flat.size - 1)), place - below))
    return found


def _keys(chunk: NDArray[np.float32]) -> NDArray[np.int32]:
    """0 to KEYS - 1, rising with the value: its sign, its exponent and the first bits of its fraction (IEEE 754)."""
    bits = chunk.view(np.int32)
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (rising >> SHIFT) + KEYS // 2


def _between(low: np.float32, high: np.float32, part: float) -> float:
    step = np.float64(high - low)
    return float(low + step * part if part < 0.5 else high - step * (1 - part))
