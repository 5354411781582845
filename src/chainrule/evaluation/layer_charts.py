"""A heat map of layers over steps, on a logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from chainrule.evaluation.charts import WIDTH, clip, drawing, text_width, written
from chainrule.evaluation.languages import Words, both, named, say
from chainrule.evaluation.quantities import count_text, tick_text
from chainrule.evaluation.trace import Series

COLUMNS = 60  # more looks than these share columns, each with the largest of its numbers
LEVELS = 10  # of the shade
DECADES = 8  # from the faintest to the strongest, at most

Box = tuple[float, float, float, float]  # left, top, width, height
Cells = dict[str, float | None]  # by layer; not a number where training broke, None where nothing was seen


@dataclass(frozen=True)
class Shades:
    """Shades of LEVELS steps that stand for numbers from 10^low to 10^high."""

    low: int
    high: int

    @classmethod
    def over(cls, values: Sequence[float]) -> Shades:
        """Those that tell positive numbers apart; what is far below the largest gets the faintest."""
        high = math.ceil(math.log10(max(values)))
        low = min(math.floor(math.log10(min(values))), high - 1)
        return cls(max(low, high - DECADES), high)

    def level(self, value: float) -> int:
        """0 for the faintest to LEVELS − 1."""
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return min(LEVELS - 1, max(0, int(share * LEVELS)))

    def text(self, level: int) -> str:
        """The numbers that a level stands for."""
        ends = (10 ** (self.low + (self.high - self.low) * (level + end) / LEVELS) for end in (0, 1))
        return " … ".join(f"{end:.2g}" for end in ends)


def layer_map(
    layers: Mapping[str, Series], steps: Sequence[int], broken: Sequence[tuple[int, str | None]], *, title: Words
) -> Markup:
    """Layers from the input at the bottom to the head at the top, steps from left to right.

    Args:
        layers: from the input to the head; series as long as `steps`.
        broken: for each time that training went back, the looks before it and the layer where it broke, None for all.
        title: what the numbers are.
    """
    columns = _columns(layers, steps, broken)
    numbers = [value for _, cells in columns for value in cells.values() if value is not None and value > 0]
    if not numbers:
        return Markup("")
    shades, names = Shades.over(numbers), [*layers][::-1]
    left = max(text_width(part_words(name).en, 12.5) for name in names) + 10
    wide, high = (WIDTH - left) / len(columns), 16.0 if len(names) <= 20 else 10.0
    bottom = 6 + high * len(names)
    parts = [
        written(left - 8, 6 + high * (row + 0.5) + 4, part_words(name), "tick", "end")
        for row, name in enumerate(names)
        if high > 12 or row % 2 == 0
    ]
    boxes = [
        (_kind(cells[name], shades), (left + wide * place, 6 + high * row, wide, high - 1))
        for place, (_, cells) in enumerate(columns)
        for row, name in enumerate(names)
    ]
    parts += _shapes(boxes, shades)
    every = max(1, len(columns) // 5)
    for place in range(0, len(columns), every):
        x = left + wide * (place + 0.5)
        parts.append(written(x, bottom + 15, both(count_text(columns[place][0])), "tick", "middle"))
    parts.append(written(left + (WIDTH - left) / 2, bottom + 33, say("chart.step"), "tick", "middle"))
    parts += _legend(shades, left, bottom + 46, {kind for kind, _ in boxes})
    about = say("alt.layers", title=title, layers=len(names), low=f"{min(numbers):.2g}", high=f"{max(numbers):.2g}")
    return drawing(WIDTH, bottom + 78, about, parts)


def _columns(
    layers: Mapping[str, Series], steps: Sequence[int], broken: Sequence[tuple[int, str | None]]
) -> list[tuple[int, Cells]]:
    """At most COLUMNS of (first step, cells)."""
    single: list[tuple[int, Cells]] = []
    for place in range(len(steps) + 1):
        for looks, layer in broken:
            if looks == place:
                step = steps[min(place, len(steps) - 1)]
                single.append((step, {name: math.nan if layer in (None, name) else None for name in layers}))
        if place < len(steps):
            single.append((steps[place], {name: series[place] for name, series in layers.items()}))
    size = math.ceil(len(single) / COLUMNS)
    groups = [single[start : start + size] for start in range(0, len(single), size)]
    return [(group[0][0], {name: _largest(cells[name] for _, cells in group) for name in layers}) for group in groups]


def _largest(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return next((value for value in known if math.isnan(value)), max(known, default=None))


def _kind(value: float | None, shades: Shades) -> int | str:
    """A level, or what stands in the place of one."""
    if value is None:
        return "track"
    if math.isnan(value):
        return "broken"
    return shades.level(value) if value > 0 else "still"


def _shapes(boxes: Sequence[tuple[int | str, Box]], shades: Shades) -> list[str]:
    """All boxes of a kind as one shape: a hundred looks at thirty layers would be a long page otherwise."""
    kinds: dict[int | str, list[Box]] = {}
    for kind, box in boxes:
        kinds.setdefault(kind, []).append(box)
    return [_shape(kind, places, shades) for kind, places in kinds.items()]


def _shape(kind: int | str, boxes: Sequence[Box], shades: Shades) -> str:
    path = "".join(f"M{x:.1f} {y:.1f}h{wide:.1f}v{high:.1f}h-{wide:.1f}z" for x, y, wide, high in boxes)
    if isinstance(kind, str):
        return f'<path class="{kind}" d="{path}"/>'
    faint = 0.06 + 0.94 * kind / (LEVELS - 1)
    return f'<path class="cell" fill-opacity="{faint:.2f}" d="{path}"><title>{escape(shades.text(kind))}</title></path>'


def _legend(shades: Shades, left: float, top: float, kinds: set[int | str]) -> list[str]:
    """The shades with the numbers at some of their ends, and what the other marks mean."""
    wide = 15.0
    parts = [_shape(level, [(left + wide * level, top, wide, 9.0)], shades) for level in range(LEVELS)]
    span = shades.high - shades.low
    for power in range(shades.low, shades.high + 1, max(1, math.ceil(span / 3))):
        x = left + wide * LEVELS * (power - shades.low) / span
        parts.append(written(x, top + 23, both(tick_text(10.0**power, 10.0**power)), "tick", "middle"))
    x = left + wide * LEVELS + 24
    for kind in ("still", "broken"):
        if kind in kinds:
            words = say(f"layers.{kind}")
            parts.append(_shape(kind, [(x, top, 12.0, 9.0)], shades))
            parts.append(written(x + 17, top + 9, words, "tick", "start"))
            x += 32 + text_width(words.en, 12.5)
    return parts


def part_words(name: str) -> Words:
    """What a part of a model, or a parameter group, is called in both languages."""
    kind, _, number = name.partition(" ")
    words = named("part", kind)
    return clip(Words(f"{words.en} {number}".strip(), f"{words.zh} {number}".strip()), 24)
