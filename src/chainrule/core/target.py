"""A target for a smaller or faster model, and what a search for one found. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from chainrule.core.artifact import Parity, Speed
from chainrule.errors import Problem, RecipeError, Where

Quantity = Literal["latency", "speed", "size"]
EXAMPLE = '"latency 4x, loss 1pt"'
_UNITS = {"latency": ("x", "ms"), "speed": ("x",), "size": ("x", "mb")}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Wish(_Frozen):
    """One quantity and what it is to be: so many times as good as the model's own, or so many milliseconds or MB.

    Attributes:
        quantity: "latency" of one row at a time, "speed" with many rows, or "size".
        unit: "x", "ms" or "mb".
    """

    quantity: Quantity
    value: float
    unit: str

    def missing(self, found: Candidate) -> float:
        """How many times better it would have to be; 1 or less where it is good enough."""
        if self.unit == "ms":
            return found.milliseconds / self.value
        if self.unit == "mb":
            return found.megabytes / self.value
        got = {"latency": found.single, "speed": found.many, "size": found.smaller}[self.quantity]
        return self.value / max(got, 1e-9)


class Target(_Frozen):
    """What is wished for, and what the score may fall by.

    Attributes:
        loss: of the score, at most.
        worst: at the worse end of the 95 % interval of the difference.
    """

    text: str
    wishes: tuple[Wish, ...]
    loss: float
    worst: float

    def missing(self, found: Candidate) -> float:
        """How many times better the worst of the quantities would have to be."""
        return max(wish.missing(found) for wish in self.wishes)

    @property
    def times(self) -> float:
        """How many times as fast it is to be, as far as it says so in these words."""
        return max((wish.value for wish in self.wishes if wish.unit == "x" and wish.quantity != "size"), default=1.0)

    @property
    def is_of_size(self) -> bool:
        """Whether size is among the wishes."""
        return any(wish.quantity == "size" for wish in self.wishes)


class Candidate(_Frozen):
    """A model on the way.

    Attributes:
        name: the steps, such as "prune 50% + int8"; "as it is" for the model itself.
        parent: the name of what it was made from.
        folder: of the artifact, within the target's folder; None where none was made.
        score: on the validation rows; `difference`, `low`, `high`: from the model itself, such that higher is better,
            paired.
        milliseconds, p95: of one row at a time: the median row, and the slow end.
        rows_per_second: with many rows.
        single, many, smaller: how many times as good as the model itself, which took turns with it.
        memory_mb: the most that a process of its own took that loads it and predicts.
        seconds: that it took to make.
        holds: whether its score is within the limits.
        note: why it was not made.
    """

    name: str
    parent: str | None = None
    folder: str | None = None
    score: float = 0.0
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    milliseconds: float = 0.0
    p95: float = 0.0
    rows_per_second: float = 0.0
    single: float = 1.0
    many: float = 1.0
    smaller: float = 1.0
    megabytes: float = 0.0
    memory_mb: float | None = None
    seconds: float = 0.0
    holds: bool = False
    note: str = ""

    @property
    def quality(self) -> float:
        """The difference from the model itself; higher is better."""
        return 0.0 if self.difference is None else self.difference


class Expected(_Frozen):
    """A step that may be taken, before it is.

    Attributes:
        seconds: that it may take; None where nothing says how long the model's own training took.
    """

    name: str
    seconds: float | None = None
    note: str = ""


class TargetReport(_Frozen):
    """What a search for a target found.

    Attributes:
        candidates: in the order in which they were made, the model itself first.
        frontier: names of those that none beats in quality, latency and size together.
        chosen: the name of what reached the target on validation rows; None for none.
        nearest: where none did, or the test rows said otherwise: of those whose score holds, the nearest.
        cheapest: where none did: what reached all but the quality, with the least loss.
        test, speed: of the chosen one, beside the model itself, on test rows.
        reached: whether the target is reached on the test rows, too.
        artifact: the folder of the model that was put in place; None for none.
    """

    target: Target
    metric: str
    rows: int
    candidates: tuple[Candidate, ...]
    frontier: tuple[str, ...]
    chosen: str | None
    nearest: str | None
    cheapest: str | None
    test: Parity | None
    speed: Speed | None
    reached: bool
    artifact: str | None
    seconds: float

    def named(self, name: str | None) -> Candidate | None:
        """The candidate of that name."""
        return next((found for found in self.candidates if found.name == name), None)


def parse_target(text: str) -> Target:
    """Read "latency 4x, loss 1pt": latency, speed and size in times (x), ms or MB; loss and worst in points.

    Raises:
        RecipeError: it cannot be read, or nothing is wished for.
    """
    wishes, limits = [], {}
    for part in text.split(","):
        found = re.fullmatch(r"\s*([a-z]+)\s+(\d+(?:\.\d+)?)\s*(x|ms|mb|pt|pts|points?)\s*", part.lower())
        name, unit = (found[1], found[3]) if found else ("", "")
        value = float(found[2]) if found else 0.0
        if name in ("loss", "worst") and unit.startswith("p"):
            limits[name] = value / 100
        elif unit in _UNITS.get(name, ()) and value > 0:
            wishes.append(Wish.model_validate({"quantity": name, "value": value, "unit": unit}))
        else:
            raise _unread("latency 4x, latency 5ms, speed 4x, size 4x, size 25MB, loss 1pt or worst 2pt", part.strip())
    if not wishes:
        raise _unread("a latency, a speed or a size among them", text)
    loss = limits.get("loss", 0.005)
    return Target(text=text, wishes=tuple(wishes), loss=loss, worst=limits.get("worst", 2 * loss))


def frontier_of(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """The names of those that no other is at least as good as in quality, latency and size, and better in one.

    Latency is how many times as fast a candidate was as the model itself, in turn: milliseconds of different sittings
    on a shared machine cannot be compared.
    """
    made = [found for found in candidates if not found.note]

    def numbers(found: Candidate) -> tuple[float, float, float]:
        return found.quality, found.single, -found.megabytes

    def is_beaten(found: Candidate) -> bool:
        mine = numbers(found)
        return any(
            numbers(other) != mine and all(its >= own for its, own in zip(numbers(other), mine, strict=True))
            for other in made
        )

    return tuple(found.name for found in made if not is_beaten(found))


def _unread(expected: str, got: str) -> RecipeError:
    problem = Problem(expected, repr(got)[:80], f"For example --target {EXAMPLE}", Where(field="--target"))
    return RecipeError("The target cannot be read.", [problem])
