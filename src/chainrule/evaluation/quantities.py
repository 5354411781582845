"""Values as files hold them, and numbers for people: percentages, durations, sizes, in both languages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from chainrule.core.task import LOWER_IS_BETTER
from chainrule.evaluation.languages import Words, both, say

SHARES = frozenset(
    {
        *("accuracy", "macro_f1", "micro_f1", "f1", "exact_match", "precision", "recall"),
        *("token_accuracy", "reward_accuracy"),
        *("rouge1", "rouge2", "rougeL", "bleu", "chrf", "stop_rate"),
        *("ndcg@10", "mrr@10", "map", "recall@1", "recall@5", "recall@10"),
        *("hit_rate@10", "coverage@10"),
        *("HasAns_exact_match", "HasAns_f1", "NoAns_exact_match", "NoAns_f1"),
    }
)
NOTHING = "–"
THIN = "\u202f"
MINUS = "\u2212"


def finite(value: Any) -> float | None:
    """`value` as a float, or None when it is missing, not a number, or infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def mapping(value: Any) -> Mapping[str, Any]:
    """`value` if it is a mapping, else an empty one: files may be older or damaged."""
    return value if isinstance(value, Mapping) else {}


def listed(value: Any) -> list[Any]:
    """The items of `value` if it is a list, else none."""
    return list(value) if isinstance(value, list | tuple) else []


def metric_text(name: str, value: Any, *, unit: bool = True) -> str:
    """A metric as people write it: shares of one as percent, the rest to three digits."""
    number = finite(value)
    if number is None:
        return NOTHING
    if name in SHARES:
        return _minus(f"{number * 100:.1f}") + (f"{THIN}%" if unit else "")
    return _minus(f"{number:.3f}" if abs(number) < 10 else f"{number:.4g}")


def difference_text(name: str, value: Any, *, signed: bool = False) -> str:
    """A difference of two values of the metric, in points (hundredths) unless `in_points` says no, without its unit."""
    number = finite(value)
    if number is None:
        return NOTHING
    text = f"{number * 100:.1f}" if in_points(name) else f"{number:.3f}"
    text = text.removeprefix("-") if float(text) == 0 else text
    return _minus(f"+{text}" if signed and float(text) > 0 else text)


def in_points(name: str) -> bool:
    """Whether differences of the metric are told in points; the others have the target's own unit."""
    return name not in LOWER_IS_BETTER


def p_text(value: Any) -> str:
    """A p-value, never shown as zero: "p = 0.03", "p < 0.001"."""
    number = finite(value)
    if number is None:
        return ""
    return "p < 0.001" if number < 0.001 else f"p = {number:.2g}"


def count_text(value: Any) -> str:
    """A count with thousands separated, as in 12,345."""
    number = finite(value)
    return NOTHING if number is None else f"{number:,.0f}"


def quantity(value: Any) -> Words:
    """A large count in words: 22.7 million, 2270 万."""
    number = finite(value)
    if number is None:
        return both(NOTHING)
    if number < 100_000:
        return both(count_text(number))
    english = f"{number / 1e6:.3g} million" if number < 1e9 else f"{number / 1e9:.3g} billion"
    chinese = f"{_digits(number / 1e4)} 万" if number < 1e8 else f"{_digits(number / 1e8)} 亿"
    return Words(english, chinese)


def duration(seconds: Any) -> Words:
    """A length of time in the two largest units that matter."""
    number = finite(seconds)
    if number is None:
        return both(NOTHING)
    if number < 60:
        return say("time.seconds", seconds=f"{number:.1f}" if number < 10 else f"{number:.0f}")
    whole = round(number)
    if whole < 3600:
        return say("time.minutes", minutes=whole // 60, seconds=whole % 60)
    return say("time.hours", hours=whole // 3600, minutes=whole % 3600 // 60)


def memory(megabytes: Any) -> str:
    """An amount of memory in MB or GB."""
    number = finite(megabytes)
    if number is None:
        return NOTHING
    return f"{number:,.0f}{THIN}MB" if number < 1024 else f"{number / 1024:.1f}{THIN}GB"


def tick_text(value: float, step: float) -> str:
    """A tick of an axis whose ticks lie `step` apart, with as many decimals as the step needs."""
    if abs(value) < step * 1e-6:
        return "0"
    if abs(value) < 1e-3 or abs(value) >= 1e6:
        mantissa, exponent = f"{value:.1e}".split("e")
        return _minus(f"{mantissa.removesuffix('.0')}e{int(exponent)}")
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    return _minus(f"{value:,.{min(decimals, 6)}f}")


def _digits(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def _minus(text: str) -> str:
    return text.replace("-", MINUS)
