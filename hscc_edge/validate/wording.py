"""Figures as text: the report and the terminal say them alike; a dash stands for what the data leave undefined."""

from __future__ import annotations

import math

from hscc_edge.validate.intervals import Estimate, Proportion
from hscc_edge.validate.latency import Percentile

NONE = "-"


def share(value: Proportion) -> str:
    """A proportion in per cent with its interval."""
    if value.value is None or value.low is None or value.high is None:
        return "no case"
    return f"{100 * value.value:.1f} % ({100 * value.low:.1f} to {100 * value.high:.1f})"


def naive(value: Proportion) -> str:
    """The interval that takes a patient's cases as independent."""
    if value.naive_low is None or value.naive_high is None:
        return NONE
    return f"{100 * value.naive_low:.1f} to {100 * value.naive_high:.1f}"


def estimate(value: Estimate | None, digits: int = 3) -> str:
    """A figure with its interval."""
    if value is None or value.value is None:
        return NONE
    if value.low is None or value.high is None:
        return decimal(value.value, digits)
    return f"{value.value:.{digits}f} ({value.low:.{digits}f} to {value.high:.{digits}f})"


def ratio(value: Estimate) -> str:
    """A likelihood ratio with its interval; its value and upper end may be infinite."""
    if value.low is None:
        return NONE
    shown, low, high = ("infinite" if part is None else _few(part) for part in (value.value, value.low, value.high))
    return f"{shown} ({low} to {high})"


def _few(value: float) -> str:
    """Three digits at most, without an exponent."""
    return f"{value:.{3 if value < 0.095 else 2 if value < 10 else 1 if value < 100 else 0}f}"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * value:+.1f}"


def span(value: float, low: float | None, high: float | None, digits: int = 3) -> str:
    """A difference with its sign and interval."""
    if low is None or high is None:
        return f"{value:+.{digits}f}"
    return f"{value:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def p_value(value: float | None) -> str:
    """A p-value, or a dash."""
    return NONE if value is None else "below 0.001" if value < 0.001 else f"{value:.3f}"


def ms(value: float) -> str:
    """Milliseconds with three digits."""
    return f"{value:.3g} ms"


def percentile(value: Percentile) -> str:
    """A percentile with its interval, or how many calls it would need."""
    if value.ms is None:
        return f"not enough calls: {value.needed:,} needed"
    low, high = ("?" if end is None else f"{end:.3g}" for end in (value.low_ms, value.high_ms))
    return f"{ms(value.ms)} ({low} to {high})"


def decimal(value: float | None, digits: int = 4) -> str:
    """A number with so many decimals, or a dash for what is undefined or not finite."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def count(value: int | None) -> str:
    """An integer with thin grouping, or a dash."""
    return NONE if value is None else f"{value:,}"
