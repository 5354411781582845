"""Made-up streams of counts, for control charts to be judged by: how often they cry wolf, how soon they see a surge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chainrule.monitoring.settings import Span
from chainrule.monitoring.windows import BEFORE, CYCLES, Chart, Look, surge

HOUR = Span(3600.0, False, "hour")
ROWS = Span(500.0, True, "500 rows")


def stream(
    windows: int, rate: float, *, change: int | None = None, factor: float = 1.0, seed: int = 0, size: float = np.inf
) -> np.ndarray:
    """(windows,) counts: Poisson around `rate`, and from window `change` on around `rate` times `factor`.

    Args:
        size: of a negative binomial instead, whose variance is rate + rate² / size.
    """
    generator = np.random.default_rng(seed)
    rates = np.full(windows, rate)
    if change is not None:
        rates[change:] *= factor
    if np.isfinite(size):
        rates = generator.gamma(size, rates / size)
    return generator.poisson(rates)


def alarms_of(
    counts: Sequence[int] | np.ndarray, share: float, span: Span = HOUR, name: str = "negative", period: int = 1
) -> list[int]:
    """The windows at whose ends one chart alarms, from the first on; full windows each.

    Args:
        share: false alarms that it may give in a window.
        period: windows of a cycle.
        name: decides what is drawn within the steps of the distribution.
    """
    seen, chart, found = np.asarray(counts), Chart(), list[int]()
    usual = np.ones(len(seen), bool)
    for number in range(1, len(seen)):
        first = max(0, number - max(BEFORE, CYCLES * period))
        part = slice(first, number + 1)
        places = np.arange(first, number + 1)
        exposures = np.full(len(places), span.size)
        look = Look(("label", name), number, places, exposures, seen[part], usual[part], period)
        if surge(look, chart, share, span) is not None:
            found.append(number)
        if chart.open:
            usual[number] = False
    return found
