"""Charts as inline SVG: small pure functions from numbers to markup, without a plotting library.

Colours come from the page's style sheet by class, so a chart follows light, dark and print. Every chart has a text
alternative in both languages (`aria-label`, `data-zh`). User text is escaped; nothing here uses a style attribute.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from chainrule.evaluation.languages import Words, both
from chainrule.evaluation.quantities import tick_text

WIDTH, HEIGHT = 400, 232  # narrow, so that a phone shows them nearly at full size
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 14, 42
MAX_POINTS = 1_000


@dataclass(frozen=True)
class Line:
    """A curve: points in order of x, drawn as `kind` ("raw", "smooth", "valid"), with a dot at each point if asked."""

    x: Sequence[float]
    y: Sequence[float]
    kind: str
    dots: bool = False


@dataclass(frozen=True)
class Interval:
    """A value with its interval, one row of an interval chart. `text` is the value as written at the right."""

    name: Words
    value: float
    low: float
    high: float
    text: str
    kind: str = "baseline"


@dataclass(frozen=True)
class Axis:
    """The x axis of curves: its name and its ends; with `powers`, x is the logarithm to base 10 of what ticks say."""

    name: Words
    ends: tuple[float, float]
    powers: bool = False


@dataclass(frozen=True)
class Frame:
    """Where data coordinates lie on the drawing."""

    x: tuple[float, float]
    y: tuple[float, float]
    box: tuple[float, float, float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The point on the drawing; y grows upwards in the data and downwards on the drawing."""
        left, top, right, bottom = self.box
        return (
            left + (x - self.x[0]) / (self.x[1] - self.x[0]) * (right - left),
            bottom - (y - self.y[0]) / (self.y[1] - self.y[0]) * (bottom - top),
        )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2, 5 × 10ⁿ apart) inside [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / max(count, 1)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next((m * magnitude for m in (1, 2, 5) if m * magnitude >= raw * 0.72), 10 * magnitude)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def smooth(values: Sequence[float], share: float = 0.05) -> list[float]:
    """The centred running mean over `share` of the curve (at least 5 points); at both ends the window is cut off."""
    array = np.asarray(values, dtype=np.float64)
    half = max(2, round(len(array) * share / 2))
    sums = np.concatenate([[0.0], np.cumsum(array)])
    index = np.arange(len(array))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(array))
    means = (sums[last] - sums[first]) / (last - first)
    return [float(value) for value in means]


def thin(x: Sequence[float], y: Sequence[float], limit: int = MAX_POINTS) -> tuple[list[float], list[float]]:
    """At most `limit` points of a curve: the lowest and the highest of each stretch, so that spikes stay visible."""
    if len(x) <= limit:
        return list(x), list(y)
    array = np.asarray(y, dtype=np.float64)
    kept: list[int] = []
    for part in np.array_split(np.arange(len(array)), limit // 2):
        kept += sorted({int(part[array[part].argmin()]), int(part[array[part].argmax()])})
    return [x[index] for index in kept], [y[index] for index in kept]


def line_chart(
    lines: Sequence[Line],
    *,
    about: Words,
    axis: Axis,
    scale: float = 1.0,
    mark: tuple[float, float, Words] | None = None,
    from_zero: bool = False,
) -> Markup:
    """Curves over steps, epochs or learning rates.

    Args:
        about: the text alternative.
        axis: charts that stand together share its ends.
        scale: what y is multiplied by before drawing (100 for percent).
        mark: a point (x, y) to ring, with a note beside it.
        from_zero: start the y axis at zero.
    """
    lines = [Line(line.x, [value * scale for value in line.y], line.kind, line.dots) for line in lines if line.x]
    if not lines:
        return Markup("")
    low, high = span([value for line in lines for value in line.y], pad=0.06, zero=from_zero)
    y_range = (low, high + (high - low) * 0.16) if mark else (low, high)  # room for the note above the ring
    frame = Frame(axis.ends, y_range, (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM))
    parts = [axes(frame, axis.name, powers=axis.powers)]
    for line in lines:
        points = [frame.at(x, y) for x, y in zip(*thin(line.x, line.y), strict=True)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        if len(points) > 1:
            parts.append(f'<polyline class="line {line.kind}" points="{path}"/>')
        if line.dots or len(points) == 1:
            parts += [f'<circle class="dot {line.kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points]
    if mark is not None:
        x, y = frame.at(mark[0], mark[1] * scale)
        parts.append(f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="6.5"/>')
        anchor = "start" if x < WIDTH * 0.3 else "end" if x > WIDTH * 0.75 else "middle"
        parts.append(written(x + {"start": -6, "middle": 0, "end": 6}[anchor], y - 14, mark[2], "note halo", anchor))
    return drawing(WIDTH, HEIGHT, about, parts)


def interval_chart(rows: Sequence[Interval], *, about: Words, x_name: Words, scale: float = 1.0) -> Markup:
    """Values with their intervals on one axis, one below the other."""
    if not rows:
        return Markup("")
    row_height, top = 46, 6
    height = top + row_height * len(rows) + 44
    x_range = span([v * scale for row in rows for v in (row.low, row.value, row.high)], pad=0.08)
    frame = Frame(x_range, (0, 1), (2, top, WIDTH - 6, height - 44))
    parts = [_x_axis(frame, x_name)]
    for index, row in enumerate(rows):
        y = top + row_height * index + 33
        low, value, high = (frame.at(v * scale, 0)[0] for v in (row.low, row.value, row.high))
        parts += _whisker(low, value, high, y, row.kind)
        parts.append(written(0, y - 15, clip(row.name, 40), f"name halo {row.kind}", "start"))
        parts.append(written(WIDTH, y - 15, both(row.text), f"value halo {row.kind}", "end"))
    return drawing(WIDTH, height, about, parts)


def difference_chart(row: Interval, *, about: Words, x_name: Words, sides: tuple[Words, Words], scale: float) -> Markup:
    """One difference with its interval, against the line of no difference.

    Args:
        sides: what it means to lie left and right of zero.
    """
    height = 142
    low, high = span([0.0, row.low * scale, row.high * scale, row.value * scale], pad=0.12)
    frame = Frame((low, high), (0, 1), (2, 34, WIDTH - 6, height - 44))
    zero = frame.at(0, 0)[0]
    y = 72.0
    left, value, right = (frame.at(v * scale, 0)[0] for v in (row.low, row.value, row.high))
    anchor = "start" if value < 110 else "end" if value > WIDTH - 110 else "middle"
    parts = [
        _x_axis(frame, x_name),
        f'<line class="zero" x1="{zero:.1f}" x2="{zero:.1f}" y1="22" y2="{height - 44}"/>',
        *_whisker(left, value, right, y, row.kind),
        written(value, y - 15, both(row.text), f"value halo {row.kind}", anchor),
    ]
    if zero > 150:
        parts.append(written(zero - 8, 18, Words(f"← {sides[0].en}", f"← {sides[0].zh}"), "tick halo", "end"))
    if zero < WIDTH - 150:
        parts.append(written(zero + 8, 18, Words(f"{sides[1].en} →", f"{sides[1].zh} →"), "tick halo", "start"))
    return drawing(WIDTH, height, about, parts)


def heat_map(
    matrix: Sequence[Sequence[float]], labels: Sequence[str], *, about: Words, names: tuple[Words, Words]
) -> Markup:
    """A confusion matrix: rows are the true classes, columns the predicted ones, shade is the share of the row.

    Args:
        names: of the rows and of the columns.
    """
    n = len(labels)
    if not n:
        return Markup("")
    cell = max(26.0, min(76.0, 440 / n))
    shown = [clip(both(label), 20).en for label in labels]
    widest = max(text_width(label, 12) for label in shown)
    slanted = widest > cell - 8
    left = 30 + widest
    top = 30 + (widest * 0.71 + 20 if slanted else 16)
    right = widest * 0.71 if slanted else 4
    width, height = left + n * cell + right, top + n * cell + 6
    parts = [
        f'<text class="tick" transform="translate(12 {top + n * cell / 2:.1f}) rotate(-90)" text-anchor="middle">'
        f"{names[0].markup('tspan')}</text>",
        written(left + n * cell / 2, 14, names[1], "tick", "middle"),
    ]
    for i, label in enumerate(shown):
        middle = (i + 0.5) * cell
        parts.append(written(left - 8, top + middle + 4, both(label), "label", "end"))
        x, y = left + middle, top - 8
        turn = f' transform="rotate(-45 {x:.1f} {y:.1f})" text-anchor="start"' if slanted else ' text-anchor="middle"'
        parts.append(f'<text class="label" x="{x:.1f}" y="{y:.1f}"{turn}>{escape(label)}</text>')
    for i, row in enumerate(matrix):
        total = sum(row) or 1
        for j, count in enumerate(row):
            x, y = left + j * cell, top + i * cell
            parts.append(_cell(x, y, cell, count, count / total, f"{labels[i]} → {labels[j]}: {count:,.0f}"))
    return drawing(width, height, about, parts, natural=True)


def scatter(true: Sequence[float], predicted: Sequence[float], *, about: Words, names: tuple[Words, Words]) -> Markup:
    """Predicted against true values, with the diagonal on which every prediction would be right."""
    if not true:
        return Markup("")
    size = WIDTH
    ends = span([*true, *predicted], pad=0.04)
    frame = Frame(ends, ends, (LEFT, TOP, size - RIGHT, size - BOTTOM))
    (x1, y1), (x2, y2) = frame.at(ends[0], ends[0]), frame.at(ends[1], ends[1])
    parts = [
        axes(frame, names[0]),
        f'<line class="zero" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>',
        written(LEFT + 6, TOP + 10, Words(f"↑ {names[1].en}", f"↑ {names[1].zh}"), "tick halo", "start"),
    ]
    for x, y in zip(true, predicted, strict=True):
        a, b = frame.at(x, y)
        parts.append(f'<circle class="speck" cx="{a:.1f}" cy="{b:.1f}" r="3"/>')
    return drawing(size, size, about, parts)


def bar(share: float, kind: str = "bar", width: int = 120) -> Markup:
    """A small horizontal bar for a table cell; the number stands beside it, so it is hidden from screen readers."""
    filled = max(0.0, min(1.0, share)) * width
    return Markup(
        f'<svg class="bar" viewBox="0 0 {width} 8" width="{width}" height="8" aria-hidden="true">'
        f'<rect class="track" width="{width}" height="8"/><rect class="{kind}" width="{filled:.1f}" height="8"/></svg>'
    )


def written(x: float, y: float, words: Words, kind: str, anchor: str) -> str:
    """Words on a drawing; `kind` is a class of the style sheet."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words.markup("tspan")}</text>'


def drawing(width: float, height: float, about: Words, parts: Sequence[str], *, natural: bool = False) -> Markup:
    """The parts as one drawing with its text alternative; a `natural` one keeps its size."""
    size = f' width="{width:.0f}" height="{height:.0f}"' if natural else ""
    kind = ("chart natural small" if width <= 520 else "chart natural") if natural else "chart"
    return Markup(
        f'<svg class="{kind}" viewBox="0 0 {width:.0f} {height:.0f}"{size} role="img"'
        f' aria-label="{escape(about.en)}" data-en="{escape(about.en)}" data-zh="{escape(about.zh)}">'
        + "".join(parts)
        + "</svg>"
    )


def clip(words: Words, limit: int) -> Words:
    """Words cut to about `limit` Latin letters (a Chinese character counts for two), with an ellipsis."""
    return Words(_clip(words.en, limit), _clip(words.zh, limit))


def text_width(text: str, size: float) -> float:
    """A fair guess at the drawn width of `text` in units of the drawing."""
    return size * sum(1.0 if unicodedata.east_asian_width(letter) in "WF" else 0.57 for letter in text)


def _clip(text: str, limit: int) -> str:
    text = " ".join(text.split())
    used = 0
    for index, letter in enumerate(text):
        used += 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if used > limit:
            return text[: max(index - 1, 1)].rstrip() + "…"
    return text


def span(values: Sequence[float], *, pad: float, zero: bool = False) -> tuple[float, float]:
    """The ends of an axis that has room for all values."""
    low, high = min(values), max(values)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        reach = abs(high) * 0.1 or 1.0
        return low - reach, high + reach
    room = (high - low) * pad
    return low if zero and low == 0 else low - room, high + room


def axes(frame: Frame, x_name: Words, *, powers: bool = False, names: Sequence[Words] = ()) -> str:
    """Both axes with their ticks, and the name of x; `names` stand at 0, 1, … of x in place of numbers."""
    left, _, right, _ = frame.box
    marks = ticks(*frame.y)
    step = marks[1] - marks[0] if len(marks) > 1 else abs(marks[0]) or 1
    parts = []
    for value in marks:
        y = frame.at(frame.x[0], value)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(written(left - 8, y + 4, both(tick_text(value, step)), "tick", "end"))
    return "".join(parts) + _x_axis(frame, x_name, powers=powers, names=names)


def _x_axis(frame: Frame, name: Words, *, powers: bool = False, names: Sequence[Words] = ()) -> str:
    left, _, right, bottom = frame.box
    marks = [float(place) for place in range(len(names))] or ticks(*frame.x)
    step = marks[1] - marks[0] if len(marks) > 1 else abs(marks[0]) or 1
    parts = [f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>']
    for place, value in enumerate(marks):
        x = frame.at(value, frame.y[0])[0]
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        shown = both(tick_text(10**value, 10**value) if powers else tick_text(value, step))
        parts.append(written(x, bottom + 18, names[place] if names else shown, "tick", "middle"))
    parts.append(written((left + right) / 2, bottom + 37, name, "tick", "middle"))
    return "".join(parts)


def _whisker(low: float, value: float, high: float, y: float, kind: str) -> list[str]:
    return [
        f'<line class="whisker {kind}" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>',
        *(f'<line class="cap {kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 5}" y2="{y + 5}"/>' for x in (low, high)),
        f'<circle class="point {kind}" cx="{value:.1f}" cy="{y}" r="5.5"/>',
    ]


def _cell(x: float, y: float, size: float, count: float, share: float, note: str) -> str:
    box = f'x="{x:.1f}" y="{y:.1f}" width="{size - 2:.1f}" height="{size - 2:.1f}"'
    parts = [f'<g><title>{escape(note)}</title><rect class="track" {box}/>']
    if count:
        parts.append(
            f'<rect class="cell" {box} fill-opacity="{0.08 + 0.92 * share:.2f}"/>'
            f'<text class="count{" on" if share > 0.5 else ""}" x="{x + size / 2 - 1:.1f}" y="{y + size / 2 + 3.5:.1f}"'
            f' text-anchor="middle">{count:,.0f}</text>'
        )
    return "".join(parts) + "</g>"
