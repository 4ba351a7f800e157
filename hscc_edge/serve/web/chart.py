"""Lines over time as inline SVG, drawn here since matplotlib is not on the device; colours are the style sheet's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from hscc_edge.errors import extra

with extra("device"):
    from markupsafe import Markup, escape

WIDTH, HEIGHT = 480, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 14, 24
MOST_DOTS = 24
FORMS = (("%H:%M:%S", 600.0), ("%H:%M", 86_400.0), ("%m-%d %H:%M", 604_800.0), ("%Y-%m-%d", math.inf))


@dataclass(frozen=True, slots=True)
class Line:
    """One line: `points` are (seconds since 1970, value), in order of time; None breaks it.

    Attributes:
        bars: drawn as bars, for what is counted.
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    bars: bool = False

    def values(self) -> list[float]:
        """What there is of it."""
        return [value for _, value in self.points if value is not None]


@dataclass(frozen=True, slots=True)
class Limit:
    """A level that matters, such as the one at which an alarm begins."""

    name: str
    value: float


def draw(title: str, unit: str, lines: Sequence[Line], limits: Sequence[Limit] = ()) -> Markup:
    """The chart, with a sentence for those who cannot see it; "" if no line has two points."""
    values = [value for line in lines for value in line.values()]
    times = [at for line in lines for at, value in line.points if value is not None]
    if len(times) < 2 or min(times) == max(times):
        return Markup("")
    top = _nice(max([*values, *(limit.value for limit in limits)]))
    scale = _Scale(min(times), max(times), top)
    parts = [*_grid(scale, unit), *_dates(scale)]
    for limit in limits:
        y = scale.y(limit.value)
        place = f'x="{WIDTH - RIGHT}" y="{y - 4:.1f}" text-anchor="end"'
        parts.append(f'<path class="limit" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" {place}>{escape(limit.name)}</text>')
    for number, line in enumerate(lines, start=1):
        parts += _bars(line, scale) if line.bars else _line(line, scale, number)
    said = escape(f"{title}. {' '.join(_said(line, unit) for line in lines)}")
    body = "".join(parts)
    return Markup(f'<svg class="chart" role="img" aria-label="{said}" viewBox="0 0 {WIDTH} {HEIGHT}">{body}</svg>')


@dataclass(frozen=True, slots=True)
class _Scale:
    first: float
    last: float
    top: float

    def x(self, at: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (at - self.first) / (self.last - self.first)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(value, self.top) / self.top


def _nice(value: float) -> float:
    """The next of 1, 2, 2.5, 5, 10 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1.0, 2.0, 2.5, 5.0, 10.0) if step * power >= value * 0.999)


def _grid(scale: _Scale, unit: str) -> list[str]:
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = scale.y(share * scale.top)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        label = f"{share * scale.top:g}{f' {unit}' if share == 1.0 and unit else ''}"
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>')
    return parts


def _dates(scale: _Scale) -> list[str]:
    length = scale.last - scale.first
    form = next(form for form, longest in FORMS if length < longest)
    parts = []
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        at = scale.first + share * (scale.last - scale.first)
        label = datetime.fromtimestamp(at).strftime(form)
        parts.append(f'<text class="tick" x="{scale.x(at):.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{label}</text>')
    return parts


def _bars(line: Line, scale: _Scale) -> list[str]:
    step = (WIDTH - LEFT - RIGHT) / len(line.points)
    return [
        f'<rect class="bar" x="{LEFT + number * step + 0.6:.1f}" y="{scale.y(value):.1f}" '
        f'width="{step - 1.2:.1f}" height="{scale.y(0.0) - scale.y(value):.1f}"/>'
        for number, (_, value) in enumerate(line.points)
        if value
    ]


def _line(line: Line, scale: _Scale, number: int) -> list[str]:
    dots = [
        f'<circle class="dot dot-{number}" cx="{scale.x(at):.1f}" cy="{scale.y(value):.1f}" r="2.2"/>'
        for at, value in line.points
        if value is not None and len(line.points) <= MOST_DOTS
    ]
    return [f'<path class="line line-{number}" d="{_path(line, scale)}"/>', *dots]


def _path(line: Line, scale: _Scale) -> str:
    steps, pen = [], "M"
    for at, value in line.points:
        if value is None:
            pen = "M"
            continue
        steps.append(f"{pen}{scale.x(at):.1f} {scale.y(value):.1f}")
        pen = "L"
    return "".join(steps)


def _said(line: Line, unit: str) -> str:
    values = line.values()
    if not values:
        return f"{line.name}: no figures."
    return f"{line.name}: from {min(values):.3g} to {max(values):.3g}, last {values[-1]:.3g} {unit}.".replace(" .", ".")
