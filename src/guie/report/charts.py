"""Charts as inline svg: lines, histograms, bars with intervals. Colours are variables of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from guie.report.numbers import css, title

MOST_POINTS = 300
# Told apart without colour, too: in print, and by those who do not see it.
DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 3", "10 4")
WIDTH, HEIGHT = 340, 200
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 10, 38

Points = Sequence[tuple[float, float]]
Range = tuple[float, float]


@dataclass(frozen=True)
class Axes:
    """How a chart is laid out: `log_x`, stated ranges (by default those of the data), what x is."""

    log_x: bool = False
    x_range: Range | None = None
    y_range: Range | None = None
    x_title: str = ""


@dataclass(frozen=True)
class Plane:
    """Where a point lies on the svg."""

    x: Range
    y: Range
    log_x: bool

    def across(self, x: float) -> float:
        """Return the place of x."""
        low, high, at = (math.log(v) if self.log_x else v for v in (*self.x, x))
        return round(LEFT + (at - low) / ((high - low) or 1.0) * (WIDTH - LEFT - RIGHT), 1)

    def up(self, y: float) -> float:
        """Return the place of y."""
        return round(HEIGHT - BOTTOM - (y - self.y[0]) / (self.y[1] - self.y[0]) * (HEIGHT - TOP - BOTTOM), 1)


def line_chart(
    series: Mapping[str, Points],
    axes: Axes | None = None,
    *,
    dots: bool = False,
    titles: Mapping[str, str] | None = None,
) -> Any:
    """Return an inline svg (markupsafe) of {key: [(x, y)]}; `titles` of the keys, by default a system's."""
    axes, named = axes or Axes(), {key: title(key) for key in series} | dict(titles or {})
    thinned = {key: _thinned(list(points)) for key, points in series.items()}
    xs = [x for points in thinned.values() for x, _ in points]
    y_range = axes.y_range or _padded([y for points in thinned.values() for _, y in points])
    plane = Plane(axes.x_range or (min(xs), max(xs)), y_range, axes.log_x)
    parts = [*_frame(plane, axes, sorted(set(xs)))]
    for number, (key, points) in enumerate(thinned.items()):
        places = [(plane.across(x), plane.up(y)) for x, y in points]
        corners = " ".join(f"{px},{py}" for px, py in places)
        drawn = f'<polyline points="{corners}"{_dash(number)}/>' if len(points) > 1 else ""
        if dots or len(points) == 1:
            said = (f"{named[key]} {tick(x)}: {tick(y)}" for x, y in points)
            drawn += "".join(_dot(*place, words) for place, words in zip(places, said, strict=True))
        parts.append(f"<g {_colour(key)}>{drawn}</g>")
    return _svg(parts, f"{', '.join(named.values())} by {axes.x_title or 'step'}")


def histogram(edges: np.ndarray, shares: Mapping[str, np.ndarray], x_title: str) -> Any:
    """Return an inline svg of {key: share of each bin (B,)} over bins between `edges` (B+1,)."""
    top = max(float(values.max(initial=0.0)) for values in shares.values()) or 1.0
    plane = Plane((float(edges[0]), float(edges[-1])), (0.0, 1.05 * top), False)
    parts = [*_frame(plane, Axes(x_title=x_title), edges.tolist())]
    for number, (key, values) in enumerate(shares.items()):
        corners = [(plane.across(edges[0]), plane.up(0.0))]
        for left, right, value in zip(edges[:-1], edges[1:], values, strict=True):
            corners += [(plane.across(side), plane.up(float(value))) for side in (left, right)]
        corners.append((plane.across(edges[-1]), plane.up(0.0)))
        shape = " ".join(f"{x},{y}" for x, y in corners)
        parts.append(f'<polygon class="area" {_colour(key)} points="{shape}"{_dash(number)}/>')
    return _svg(parts, f"share of pairs by {x_title}: {', '.join(shares)}")


def bars(cells: Sequence[Mapping[str, Any]]) -> Any:
    """Return an inline svg as wide as its place: a bar of 0 to 1 for each cell, its interval as a whisker."""
    from markupsafe import Markup, escape

    step, parts = 13, []
    for x in range(0, 101, 25):
        parts.append(f'<line class="grid" x1="{x}%" x2="{x}%" y1="0" y2="{step * len(cells)}"/>')
    for row, cell in enumerate(cells):
        said = escape(f"{cell['title']} {cell['value']} {cell['words']}")
        top = row * step + 2
        bar = f'<rect x="0" y="{top}" width="{cell["percent"]}%" height="{step - 4}" rx="1.5"/>'
        if cell["interval"]:
            low, high = (round(100 * min(max(side, 0.0), 1.0), 1) for side in cell["interval"])
            middle = top + (step - 4) / 2
            bar += f'<line class="sure" x1="{low}%" x2="{high}%" y1="{middle}" y2="{middle}"/>'
        parts.append(f"<g {_colour(cell['key'])}><title>{said}</title>{bar}</g>")
    label = escape(", ".join(f"{cell['title']} {cell['value']}" for cell in cells))
    size = f'width="100%" height="{step * len(cells)}"'
    return Markup(f'<svg class="bars" {size} role="img" aria-label="{label}">{"".join(parts)}</svg>')


def scale() -> Any:
    """Return the axis below `bars`."""
    from markupsafe import Markup

    ends = {0: "start", 100: "end"}
    marks = (
        f'<text x="{x}%" y="11" text-anchor="{ends.get(x, "middle")}">{tick(x / 100)}</text>'
        for x in range(0, 101, 25)
    )
    return Markup(f'<svg class="bars" width="100%" height="14" aria-hidden="true">{"".join(marks)}</svg>')


def legend(keys: Sequence[str], *, dashed: bool = True) -> list[dict[str, str]]:
    """Return what the template draws beside a chart of several series."""
    dashes = DASHES * len(keys) if dashed else [""] * len(keys)
    return [
        {"key": css(key), "title": title(key), "dash": dash} for key, dash in zip(keys, dashes, strict=False)
    ]


def _frame(plane: Plane, axes: Axes, xs: list[float]) -> list[str]:
    from markupsafe import escape

    parts = []
    for y in round_ticks(*plane.y):
        at = plane.up(y)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4}" text-anchor="end">{tick(y)}</text>')
    for x, anchor in _x_ticks(plane, xs):
        at = plane.across(x)
        parts.append(f'<text x="{at}" y="{HEIGHT - BOTTOM + 15}" text-anchor="{anchor}">{tick(x)}</text>')
    if axes.x_title:
        words = f"{axes.x_title} (log scale)" if plane.log_x else axes.x_title
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(words)}</text>')
    return parts


def _x_ticks(plane: Plane, xs: list[float]) -> list[tuple[float, str]]:
    low, high = plane.x
    if not plane.log_x:
        middle = (low + high) / 2
        middle = round(middle) if low == round(low) and high == round(high) and high - low > 1 else middle
        return [(low, "start"), *([(middle, "middle")] if high > low else []), (high, "end")]
    if len(xs) <= 8 and high / low < 10 ** len(xs):
        return [(x, "middle") for x in xs]
    powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    return [(10.0**power, "middle") for power in powers]


def _colour(key: str) -> str:
    from markupsafe import escape

    return f'style="--series: var(--{escape(css(key))})"'


def _dash(number: int) -> str:
    dash = DASHES[number % len(DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def _dot(x: float, y: float, words: str) -> str:
    from markupsafe import escape

    return f'<circle cx="{x}" cy="{y}" r="3"><title>{escape(words)}</title></circle>'


def _svg(parts: Sequence[str], words: str) -> Any:
    from markupsafe import Markup, escape

    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(words)}"'
    return Markup(f"<svg {box}>{''.join(parts)}</svg>")


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Average neighbours until at most MOST_POINTS are left, so that a long run stays a small file."""
    group = math.ceil(len(points) / MOST_POINTS)
    if group <= 1:
        return points
    chunks = [points[i : i + group] for i in range(0, len(points), group)]
    return [(chunk[-1][0], float(np.mean([y for _, y in chunk]))) for chunk in chunks]


def _padded(values: list[float]) -> Range:
    low, high = min(values), max(values)
    pad = 0.05 * (high - low) or abs(high) * 0.1 or 1.0
    return (0.0 if 0 <= low < 0.3 * high else low - pad), high + pad


def round_ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers between `low` and `high`, which is above it."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.10g}") for number in range(first, last + 1)]


def tick(value: float) -> str:
    """Return a number as an axis shows it."""
    if value == int(value) or abs(value) >= 100:
        shown = f"{value:,.0f}"
    elif abs(value) >= 0.01:
        shown = f"{value:.3g}"
    else:
        digits, exponent = f"{value:.1e}".split("e")
        shown = f"{digits.removesuffix('.0')}e{int(exponent)}"
    return shown.replace("-", "−")
