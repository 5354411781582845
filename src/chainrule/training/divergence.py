"""A loss that is no number any more, or far above where it began: how it is noticed, and where it came from."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import torch

from chainrule.data.batch import Batch
from chainrule.system.seed import kept_generators

MOST_RETREATS = 3
RATE_FACTOR = 0.5  # of the learning rate, at each retreat
BEGINNING, LATELY = 10, 5  # steps


class DivergenceError(ArithmeticError):
    """Training cannot go on from here.

    Attributes:
        step: 1-based, the one in which it was noticed.
        rows: row positions of its batch.
    """

    def __init__(self, what: str, step: int, rows: np.ndarray | None = None) -> None:
        super().__init__(what)
        self.step, self.rows = step, rows


@dataclass
class Losses:
    """The first losses of a run, which say where it began, and the last ones."""

    first: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)

    def note(self, loss: float) -> None:
        """Take the loss of one more step."""
        if len(self.first) < BEGINNING:
            self.first.append(loss)
        else:
            self.last = [*self.last, loss][-LATELY:]

    @property
    def limit(self) -> float:
        """Above this the mean of the last losses is an explosion: far more than the untrained model had."""
        return 3 * fmean(self.first) + 10 * pstdev(self.first)

    @property
    def exploded(self) -> bool:
        return self._above(self.limit)

    @property
    def alarming(self) -> bool:
        """On the way to an explosion, so that these weights are not to be gone back to."""
        return self._above(self.limit / 2)

    def _above(self, limit: float) -> bool:
        return len(self.last) == LATELY and fmean(self.last) > limit


def _plain(model: Any, batch: Batch) -> Any:
    return model(**batch.inputs)


class _FoundError(Exception):
    """The rest of the model need not run."""


def first_bad_part(
    model: Any, batch: Batch, autocast: Callable[[], Any], run: Callable[[Any, Batch], Any] = _plain
) -> str:
    """The first parameter, or else the first module in the order of the computation, with a number that is none.

    Args:
        run: gives the model the batch.
    """
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return f"the parameter {name}"
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def look(module: Any, inputs: Any, output: Any) -> None:
            if not _is_finite(output):
                found.append(name)
                raise _FoundError

        return look

    handles = [module.register_forward_hook(watch(name or "the model")) for name, module in model.named_modules()]
    try:
        with suppress(_FoundError), kept_generators(), torch.no_grad(), autocast():
            run(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return f"the output of {found[0]}" if found else "the gradient"


def _is_finite(output: Any) -> bool:
    if isinstance(output, torch.Tensor):
        return not output.is_floating_point() or bool(torch.isfinite(output).all())
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ()
    return all(_is_finite(part) for part in parts)
