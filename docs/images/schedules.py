"""Draws every schedule over a run: python docs/images/schedules.py, into schedules.svg beside it."""

from __future__ import annotations

from pathlib import Path

from chainrule.core.recipe import Schedule
from chainrule.training.schedules import SCHEDULES, make_schedule

STEPS, WARMUP = 200, 0.1
WAITS = [0, 0, 0, 1, 2, 0, 1, 2, 3, 4]  # a validation after every twentieth step, some of them no better than before
ACROSS, WIDTH, HEIGHT = 3, 240, 140
LEFT, TOP, RIGHT, BOTTOM = 12, 30, 228, 128  # of the drawing inside a panel


def panel(name: str) -> str:
    """One schedule: its name above the factor on the learning rate, from 0 to 1, over the steps of a run."""
    factor = make_schedule(Schedule(name=name, warmup=WARMUP), STEPS)
    values = [factor(step, WAITS[: step * len(WAITS) // STEPS]) for step in range(STEPS)]
    across, down = (RIGHT - LEFT) / (STEPS - 1), BOTTOM - TOP
    points = " ".join(f"{LEFT + across * step:.1f},{BOTTOM - down * value:.1f}" for step, value in enumerate(values))
    return (
        f'<text x="{LEFT}" y="18">{name}</text>'
        f'<path class="frame" d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}"/><polyline points="{points}"/>'
    )


def picture() -> str:
    """All of them, in the order of the shelf."""
    down = -(-len(SCHEDULES) // ACROSS)
    panels = [
        f'<g transform="translate({WIDTH * (number % ACROSS)} {HEIGHT * (number // ACROSS)})">{panel(name)}</g>'
        for number, name in enumerate(SCHEDULES)
    ]
    style = (
        "text{font:13px sans-serif;fill:#7d8590}.frame{stroke:#7d8590;stroke-width:1;fill:none}"
        "polyline{stroke:#2f81c7;stroke-width:2;fill:none;stroke-linejoin:round}"
    )
    size = f'width="{ACROSS * WIDTH}" height="{down * HEIGHT}" viewBox="0 0 {ACROSS * WIDTH} {down * HEIGHT}"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>', *panels, "</svg>"])


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(picture() + "\n", encoding="utf-8")
