"""Control charts for counts, with a false-alarm rate that holds whatever the usual rate is.

The usual rate is not known beforehand, so a count is compared with the counts of earlier windows, given their sum.
Given that sum, what falls into the latest window has a known distribution, free of the unknown rate: binomial for
counts over time (the conditional test of Przyborowski and Wilenski, 1940), hypergeometric for counts among rows
(Fisher's exact test). Made uniform by a draw within the step, these probabilities are independent from window to
window while nothing changes (Quesenberry, "SPC Q charts for a Poisson parameter", 1991), so a CUSUM of their normal
scores has the run length of the textbook, without an error from estimating the rate.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, chi2, hypergeom, nbinom, norm

SLACK = 0.5  # of the CUSUM: it finds shifts of one standard deviation soonest
FEWEST = 10  # windows from which on their spread is looked at
CLEAR = 0.05  # the probability that Poisson numbers are taken for others
STATES = 160  # pieces of the CUSUM's range in the Markov chain that gives its run length


@dataclass(frozen=True)
class Count:
    """How often something was seen in a window, and in the windows before it.

    Attributes:
        exposure: seconds, or rows, of the window; `exposure_before` of the windows before.
        of_rows: whether exposures are rows, each of which counts at most once.
        spread: the variance of the counts over that of a Poisson number; above 1 for events that come in bursts. They
            are then taken for negative binomial, with the mean and the spread of the windows before: no exact test.
    """

    seen: int
    exposure: float
    before: int
    exposure_before: float
    of_rows: bool = False
    spread: float = 1.0

    @property
    def expected(self) -> float:
        """How many the windows before make one expect; nan where there are none."""
        return self.before * self.exposure / self.exposure_before if self.exposure_before > 0 else math.nan

    def surprise(self) -> float:
        """The probability of as many or more if nothing has changed; 1 where there is nothing to compare with."""
        if self.exposure <= 0 or self.exposure_before <= 0:
            return 1.0
        return self._more_than(self.seen - 1)

    def score(self, draw: float) -> float:
        """A standard normal number while nothing changes, large where there are many.

        Args:
            draw: uniform in (0, 1), which says where in the step of the discrete distribution it lies.
        """
        if self.exposure <= 0 or self.exposure_before <= 0:
            return 0.0
        more, at_least = self._more_than(self.seen), self._more_than(self.seen - 1)
        return float(norm.isf(min(max(more + draw * (at_least - more), 1e-12), 1 - 1e-12)))

    def _more_than(self, seen: int) -> float:
        total = self.seen + self.before
        if self.spread > 1 and self.before:
            spread = self.spread * (1 + self.exposure / self.exposure_before)  # the mean is known so well only
            return float(nbinom.sf(seen, self.expected / (spread - 1), 1 / spread))
        if self.of_rows:
            rows = round(self.exposure)
            return float(hypergeom.sf(seen, rows + round(self.exposure_before), total, rows))
        return float(binom.sf(seen, total, self.exposure / (self.exposure + self.exposure_before)))


def spread_of(seen: np.ndarray, exposures: np.ndarray, of_rows: bool) -> float:
    """The variance of counts over that of Poisson numbers of these exposures; 1 where it is not clearly larger.

    An estimate from few windows is taken one standard error higher.

    Args:
        of_rows: the variance that rows would have instead, each of which counts or does not.
    """
    there = exposures > 0
    seen, exposures = seen[there], exposures[there]
    freedom = len(seen) - 1
    if len(seen) < FEWEST or seen.sum() < 2 * FEWEST:
        return 1.0
    rate = seen.sum() / exposures.sum()
    alone = 1 - min(rate, 1.0) if of_rows else 1.0
    square = float((((seen - rate * exposures) ** 2) / (rate * exposures)).sum())
    if square <= chi2.isf(CLEAR, freedom) * alone:
        return 1.0
    return max(1.0, square / freedom * (1 + math.sqrt(2 / freedom)))


def draw_of(*names: object) -> float:
    """A number in (0, 1) that depends on the names alone, so that a restart draws the same."""
    digest = hashlib.blake2b("\x1f".join(map(str, names)).encode("utf-8", "backslashreplace"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") + 0.5) / 2**64


def run_length(limit: float, slack: float = SLACK, shift: float = 0.0) -> float:
    """Windows until max(0, S + z - slack) exceeds `limit`, on average, from S = 0, for z normal around `shift`.

    By a Markov chain over pieces of [0, limit] (Brook and Evans, 1972).
    """
    width = 2 * limit / (2 * STATES - 1)
    middles = np.arange(STATES) * width
    ends = middles + width / 2
    below = norm.cdf(ends[None, :] - middles[:, None] + slack - shift)
    steps = np.diff(below, axis=1, prepend=0.0)
    return float(np.linalg.solve(np.eye(STATES) - steps, np.ones(STATES))[0])


@lru_cache(maxsize=256)
def limit_for(windows: float, slack: float = SLACK) -> float:
    """The limit with which a CUSUM gives one false alarm in so many windows on average."""
    if run_length(0.05, slack) >= windows:
        return 0.05
    highest = 1.0
    while run_length(highest, slack) < windows:
        highest += 1.0
    return float(brentq(lambda limit: math.log(run_length(limit, slack) / windows), 0.05, highest, xtol=1e-4))
