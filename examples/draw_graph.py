"""Draw the small network of autodiff.py as a graph, with every value and every gradient on it.

python examples/draw_graph.py docs/images/chain-rule.svg
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from autodiff import SMALL, Node, by_autodiff

WIDTH, HEIGHT = 1254, 352
BOX, GAP, LINE, TOP, BOTTOM = 166, 98, 21, 24, 208
UPPER = TOP + 3.9 * LINE  # where the boxes of the upper row end
# The colours follow the reader's theme, and the ground is drawn, so that it can be read on any page.
STYLE = """
  .ground { fill: #ffffff } .box { fill: #f6f8fa; stroke: #8c959f }
  text { font: 15px ui-monospace, Menlo, Consolas, monospace; text-anchor: middle; white-space: pre; fill: #1f2328 }
  .name { font-weight: bold } .value { fill: #0550ae } .gradient { fill: #b3261e; font-style: italic }
  .forward { stroke: #0550ae; marker-end: url(#forward) }
  .backward { stroke: #b3261e; stroke-dasharray: 6 4; marker-end: url(#backward) }
  line { stroke-width: 2 } #forward { fill: #0550ae } #backward { fill: #b3261e }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #0d1117 } .box { fill: #161b22; stroke: #6e7681 } text { fill: #e6edf3 }
    .value { fill: #79c0ff } .gradient { fill: #ff9492 }
    .forward { stroke: #79c0ff } .backward { stroke: #ff9492 } #forward { fill: #79c0ff } #backward { fill: #ff9492 }
  }
"""
HEADS = "".join(
    f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto" '
    'markerUnits="userSpaceOnUse"><path d="M0 0 L8 4 L0 8 z"/></marker>'
    for name in ("forward", "backward")
)


def draw(nodes: dict[str, Node]) -> str:
    """The picture as SVG."""
    places = {"x": 0, "z1": 1, "h": 2, "z2": 3, "L": 4}
    titles = {"x": "x", "z1": "z₁ = xW₁ + b₁", "h": "h = gelu(z₁)", "z2": "z₂ = hW₂ + b₂", "L": "L = −log p₂(z₂)"}
    parts = [box(title, *both(nodes[name]), across(places[name]), TOP) for name, title in titles.items()]
    pulls = ("g W₁ᵀ", "g ∘ gelu′", "g W₂ᵀ", "p − y")
    for place, pull in enumerate(pulls):
        left, right = across(place) + BOX, across(place + 1)
        parts += [arrow("forward", (left + 3, TOP + 30), (right - 3, TOP + 30))]
        parts += [arrow("backward", (right - 3, TOP + 58), (left + 3, TOP + 58))]
        parts += [label(pull, (left + right) / 2, TOP + 79, "gradient")]
    for layer, place, before in (("1", 1, "x"), ("2", 3, "h")):
        for name, side, pull in (("W", -1, f"{before}ᵀ g"), ("b", 1, "g")):
            left = across(place) + side * 0.56 * (BOX + 12)
            end = across(place) + BOX / 2 + side * 50
            middle = end + side * 22
            title = name + {"1": "₁", "2": "₂"}[layer]
            parts.append(box(title, *both(nodes[name + layer]), left, BOTTOM))
            parts.append(arrow("forward", (middle - 9, BOTTOM - 3), (end - 9, UPPER + 3)))
            parts.append(arrow("backward", (end + 9, UPPER + 3), (middle + 9, BOTTOM - 3)))
            parts.append(label(pull, middle + 50, (UPPER + BOTTOM) / 2 + 5, "gradient"))
    parts.append(label("→ a", across(4) + BOX / 2, BOTTOM + 2 * LINE, "value"))
    parts.append(label("← ∂L/∂a = g", across(4) + BOX / 2, BOTTOM + 3.2 * LINE, "gradient"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">\n'
        f"<style>{STYLE}</style>\n<defs>{HEADS}</defs>\n"
        f'<rect class="ground" width="{WIDTH}" height="{HEIGHT}" rx="8"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def across(place: int) -> float:
    """The left edge of a box of the upper row."""
    return 16 + place * (BOX + GAP)


def both(node: Node) -> tuple[list[str], list[str]]:
    """The numbers of a value and of its gradient, row by row."""
    value, gradient = (
        ["  ".join(f"{number:7.4f}".replace("-", "−") for number in row) for row in np.atleast_2d(array)]
        for array in (node.value, node.gradient)
    )
    return value, gradient


def box(title: str, value: Sequence[str], gradient: Sequence[str], left: float, top: float) -> str:
    """A box with a name, a value, and below a line its gradient."""
    lines = [(title, "name"), *((row, "value") for row in value), *((row, "gradient") for row in gradient)]
    height, between = (len(lines) + 0.9) * LINE, top + (len(value) + 1.5) * LINE
    drawn = [f'<rect class="box" x="{left:.0f}" y="{top}" width="{BOX}" height="{height:.0f}" rx="6"/>']
    drawn += [f'<path class="box" d="M{left:.0f} {between:.0f} h{BOX}"/>']
    places = [top + (number + 1.1) * LINE + (6 if kind == "gradient" else 0) for number, (_, kind) in enumerate(lines)]
    drawn += [label(text, left + BOX / 2, y, kind) for (text, kind), y in zip(lines, places, strict=True)]
    return "\n".join(drawn)


def label(text: str, x: float, y: float, kind: str) -> str:
    """Text centred at x."""
    return f'<text class="{kind}" x="{x:.0f}" y="{y:.0f}">{text}</text>'


def arrow(kind: str, start: tuple[float, float], end: tuple[float, float]) -> str:
    """A line with a head."""
    return f'<line class="{kind}" x1="{start[0]:.0f}" y1="{start[1]:.0f}" x2="{end[0]:.0f}" y2="{end[1]:.0f}"/>'


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(draw(by_autodiff(SMALL)), encoding="utf-8")
