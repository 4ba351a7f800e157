"""Which part of an image's range its header says to show: window, its function, table (PS3.3 C.11.2)."""

from __future__ import annotations

from typing import Any, Literal

from pydicom import Dataset
from pydicom.multival import MultiValue

from hscc_edge.data.lookup import Lut, lut_of

Function = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]
FUNCTIONS: dict[str, Function] = {"LINEAR": "LINEAR", "LINEAR_EXACT": "LINEAR_EXACT", "SIGMOID": "SIGMOID"}


def voi_function(dataset: Dataset) -> Function:
    """VOILUTFunction; LINEAR where it is absent or unknown."""
    return FUNCTIONS.get(str(dataset.get("VOILUTFunction") or "").strip().upper(), "LINEAR")


def first_window(dataset: Dataset) -> tuple[float, float] | None:
    """The first centre and width; None where a width is not allowed: under 1 if LINEAR, not over 0 otherwise.

    Raises:
        ValueError: if a value is no number.
    """
    centre, width = (_first(dataset.get(keyword)) for keyword in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None:
        return None
    allowed = width >= 1 if voi_function(dataset) == "LINEAR" else width > 0
    return (centre, width) if allowed and abs(centre) + width < float("inf") else None


def voi_lut(dataset: Dataset, *, little_endian: bool = True) -> Lut | None:
    """The first table of VOILUTSequence, whose inputs are values after the modality LUT; None if there is none.

    Raises:
        ValueError, TypeError, AttributeError: if it is malformed.
    """
    items = dataset.get("VOILUTSequence")
    return lut_of(items[0], little_endian=little_endian) if items else None


def mirrored_window(window: tuple[float, float], function: Function, total: float) -> tuple[float, float]:
    """The window for values `total - x` instead of x, dark and bright exchanged as well.

    LINEAR is symmetric about its centre less a half (PS3.3 C.11.2.1.2.1), the others about their centre.
    """
    centre, width = window
    return total - centre + (1.0 if function == "LINEAR" else 0.0), width


def _first(value: Any) -> float | None:
    if isinstance(value, (list, MultiValue)):
        value = value[0] if value else None
    return None if value is None or value == "" else float(value)
