"""Charts as inline SVG text: lines with bands, histograms, bars, intervals. Colours are classes c0..c7."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = 8
BINS = 18


@dataclass(frozen=True)
class Series:
    """One curve: points (x, y), a colour 0..7."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 1
    bounds: Sequence[tuple[float, float]] = ()


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, that reach from ``low`` to ``high``."""
    if not high > low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def number(value: float) -> str:
    """A figure at most four characters or so wide: 0.05, 3.2, 410, 12.5k, 2e-5."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 10000:
        return f"{value / 1000:.3g}k"
    return f"{value:.2g}".replace("e-0", "e-") if size < 0.001 else f"{value:.4g}"


@dataclass(frozen=True)
class Frame:
    """The drawing area of a chart and its scales, from data to pixels."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: float
    height: float
    left: float = 44
    right: float = 14
    top: float = 26
    bottom: float = 30

    def px(self, x: float) -> float:
        """Pixel of a data x."""
        share = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1)
        return round(self.left + share * (self.width - self.left - self.right), 1)

    def py(self, y: float) -> float:
        """Pixel of a data y; up is small."""
        share = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1)
        return round(self.height - self.bottom - share * (self.height - self.top - self.bottom), 1)

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        """An open path through data points."""
        return "M" + "L".join(f"{self.px(x)} {self.py(y)}" for x, y in points)


def picture(width: float, height: float, body: Sequence[str], label: str) -> str:
    """An ``<svg>`` of a fixed shape that scales with its box; ``label`` is what a screen reader says."""
    head = f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img"'
    return f'{head} aria-label="{escape(label)}">{"".join(body)}</svg>'


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> str:
    """One line of escaped text."""
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{style}>{escape(words)}</text>'


Ticks = Sequence[tuple[float, str]]  # place, label


def _axes(f: Frame, xs: Ticks, ys: Sequence[float], title: str, x_name: str) -> list[str]:
    right, floor = f.width - f.right, f.height - f.bottom
    parts = [text(2, 13, title, kind="title")]
    for y in ys:
        parts.append(f'<path class="grid" d="M{f.left} {f.py(y)}H{right}"/>')
        parts.append(text(f.left - 6, f.py(y) + 3.5, number(y), "end"))
    parts.append(f'<path class="axis" d="M{f.left} {floor}H{right}"/>')
    for x, label in xs:
        parts.append(text(f.px(x), floor + 14, label, "middle"))
    if x_name:
        parts.append(text(right, f.height - 3, x_name, "end"))
    return parts


def lines(
    title: str,
    series: Sequence[Series],
    *,
    x_name: str = "",
    log2: bool = False,
    width: float = 300,
    height: float = 190,
) -> str:
    """Curves over one x axis. With ``log2`` doublings of x are equally far apart, and every x is a tick."""
    scale = math.log2 if log2 else float
    drawn = [s for s in series if s.points]
    if not drawn:
        return ""
    xs = sorted({x for s in drawn for x, _ in s.points})
    ys = [y for s in drawn for _, y in s.points] + [b for s in drawn for pair in s.bounds for b in pair]
    marks = ticks(min(ys), max(ys), 4)
    x_marks = [(scale(x), number(x)) for x in xs] if log2 else _whole_ticks(xs)
    f = Frame((scale(xs[0]), scale(xs[-1])), (marks[0], marks[-1]), width, height)
    parts = _axes(f, x_marks, marks, title, x_name)
    for s in drawn:
        points = [(scale(x), y) for x, y in s.points]
        if s.bounds:
            edge = [(x, high) for (x, _), (_, high) in zip(points, s.bounds, strict=True)]
            edge += [(x, low) for (x, _), (low, _) in reversed(list(zip(points, s.bounds, strict=True)))]
            parts.append(f'<path class="band c{s.colour % COLOURS}" d="{f.path(edge)}Z"/>')
        parts.append(f'<path class="curve c{s.colour % COLOURS}" d="{f.path(points)}"/>')
        if len(points) <= 16:
            for (x, y), (raw, _) in zip(points, s.points, strict=True):
                parts.append(_dot(f.px(x), f.py(y), s.colour, f"{s.name} at {raw:g}: {y:.4g}"))
    return picture(width, height, parts, title)


def _dot(x: float, y: float, colour: int, tip: str, radius: float = 3) -> str:
    circle = f'<circle class="dot c{colour % COLOURS}" cx="{x}" cy="{y}" r="{radius:g}">'
    return f"{circle}<title>{escape(tip)}</title></circle>"


@dataclass(frozen=True)
class Point:
    """A value with its interval (None where unknown) at a place of the x axis; ``tip`` is told to a pointer."""

    x: float
    value: float
    low: float | None = None
    high: float | None = None
    colour: int = 1
    tip: str = ""


def points(
    title: str,
    drawn: Sequence[Point],
    *,
    x: tuple[float, float],
    x_marks: Ticks,
    notes: Ticks = (),
    y: tuple[float, float] = (0, 1),
    guide: Sequence[tuple[float, float]] = (),
    counts: Sequence[tuple[float, float, float]] = (),
    x_name: str = "",
    width: float = 480,
    height: float = 260,
) -> str:
    """Values as dots on their intervals.

    Args:
        title: stands above.
        drawn: the dots; none makes no picture.
        x, y: bounds of the axes.
        x_marks: (place, label) below the axis, ``notes`` the same in a second line.
        guide: a dotted line to compare with.
        counts: (from, to, share of the tallest, 0..1) of pale bars on the floor: how many there are of each.
        x_name: the x axis's name.
        width, height: in pixels.
    """
    if not drawn:
        return ""
    f = Frame(x, y, width, height, bottom=20 + (13 if notes else 0) + (15 if x_name else 0))
    parts = _axes(f, x_marks, [t for t in ticks(*y, 5) if y[0] <= t <= y[1]], title, x_name)
    floor = height - f.bottom
    parts += [text(f.px(at), floor + 27, words, "middle", "note") for at, words in notes]
    for start, end, share in counts:
        tall = share * 0.18 * (floor - f.top)
        parts.append(_rect(f.px(start) + 1, round(floor - tall, 1), f.px(end) - f.px(start) - 2, tall, 0, "pale"))
    if guide:
        parts.append(f'<path class="mean" fill="none" d="{f.path(guide)}"/>')
    for p in drawn:
        if p.low is not None and p.high is not None:
            span = f"M{f.px(p.x)} {f.py(p.low)}V{f.py(p.high)}"
            parts.append(f'<path class="curve span c{p.colour % COLOURS}" d="{span}"/>')
        parts.append(_dot(f.px(p.x), f.py(p.value), p.colour, p.tip, 4))
    return picture(width, height, parts, title)


def _whole_ticks(xs: Sequence[float]) -> list[tuple[float, str]]:
    inside = [t for t in ticks(xs[0], xs[-1], 4) if xs[0] <= t <= xs[-1] and t == round(t)]
    return [(t, number(t)) for t in inside or [xs[0]]]


def bins(values: Sequence[float], bounds: tuple[float, float], count: int = BINS) -> list[float]:
    """Shares of the values in ``count`` equal bins of the bounds; the last bin holds the upper bound too."""
    (low, high), found = bounds, [0] * count
    for v in values:
        place = int((v - low) / (high - low) * count) if high > low else 0
        found[min(max(place, 0), count - 1)] += 1
    return [n / max(len(values), 1) for n in found]


def histogram(
    title: str,
    values: Sequence[float],
    *,
    ghost: Sequence[float] = (),
    bounds: tuple[float, float],
    tallest: float,
    colour: int = 1,
    width: float = 300,
    height: float = 150,
) -> str:
    """A distribution as bars, the outline of another one (``ghost``) over it, and its mean as a dotted line.

    ``bounds`` (of the values) and ``tallest`` (a share) fix the axes, so that several charts compare.
    """
    f = Frame(bounds, (0, tallest), width, height, left=8, top=24)
    x_marks = [(t, number(t)) for t in ticks(*bounds, 5) if bounds[0] <= t <= bounds[1]]
    parts = _axes(f, x_marks, [], title, "")
    step = (bounds[1] - bounds[0]) / BINS
    for i, share in enumerate(bins(values, bounds)):
        left, right, top = f.px(bounds[0] + i * step), f.px(bounds[0] + (i + 1) * step), f.py(share)
        if share:
            parts.append(_rect(left + 0.5, top, max(right - left - 1, 0.5), f.py(0) - top, colour))
    if ghost:
        shares = enumerate(bins(ghost, bounds))
        steps = [(bounds[0] + (i + j) * step, share) for i, share in shares for j in (0, 1)]
        parts.append(f'<path class="ghost" d="{f.path(steps)}"/>')
    if values:
        x = f.px(sum(values) / len(values))
        parts.append(f'<path class="mean" d="M{x} {f.top}V{height - f.bottom}"/>')
    return picture(width, height, parts, title)


def _rect(x: float, y: float, width: float, height: float, colour: int, kind: str = "bar") -> str:
    area = f'x="{x:g}" y="{y:g}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect class="{kind} c{colour % COLOURS}" {area}/>'


def interval(
    value: float,
    low: float,
    high: float,
    *,
    middle: float = 50,
    bounds: tuple[float, float] = (0, 100),
    colour: int = 1,
) -> str:
    """A point and its interval on a small line with a mark in the middle, for a cell of a table."""
    f = Frame(bounds, (0, 1), 96, 14, left=3, right=3, top=0, bottom=0)
    parts = [
        f'<path class="grid" d="M{f.px(bounds[0])} 7H{f.px(bounds[1])}"/>',
        f'<path class="axis" d="M{f.px(middle)} 2V12"/>',
        f'<path class="curve c{colour % COLOURS}" d="M{f.px(low)} 7H{f.px(high)}"/>',
        f'<circle class="dot c{colour % COLOURS}" cx="{f.px(value)}" cy="7" r="3.4"/>',
    ]
    return picture(96, 14, parts, f"{value:.1f}, interval {low:.1f} to {high:.1f}")


def bars(rows: Sequence[tuple[str, float, str]], *, width: float = 760, row: float = 20) -> str:
    """Horizontal bars: (name, length, what stands behind the bar)."""
    longest = max((v for _, v, _ in rows), default=0) or 1
    height, left, room = row * len(rows) + 4, 210.0, width - 210 - 90
    parts = []
    for i, (name, value, note) in enumerate(rows):
        y, size = i * row + 3, value / longest * room
        parts.append(text(left - 8, y + row * 0.62, name, "end"))
        parts.append(_rect(left, y, max(size, 1), row - 6, 1))
        parts.append(text(left + max(size, 1) + 6, y + row * 0.62, note))
    return picture(width, height, parts, "seconds by stage")
