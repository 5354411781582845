"""What a compressor is, and what it says no with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from chainrule.core.task import LOWER_IS_BETTER
from chainrule.data.encode import Encoded
from chainrule.errors import ModelError, Problem, Where
from chainrule.evaluation.handover import Written
from chainrule.evaluation.parity import Bound
from chainrule.inference.predict import Predictor
from chainrule.system.progress import Display


@dataclass(frozen=True)
class Given:
    """What a compressor may look at.

    Attributes:
        rows: of validation, as the model reads them, with targets; never those that the result is judged by.
        train: the training rows, or None where they are not at hand.
        loss: what the score may fall by.
        display: tells what goes on.
        source: where the rows are, or an object that holds them: what a training is given.
        place: a folder for what a training leaves behind, so that the same command goes on after a kill; it is removed
            once the result is in place or was refused.
    """

    rows: Encoded
    train: Encoded | None
    loss: float
    display: Display
    source: Any
    place: Path


class Compressor(Protocol):
    """A way to make a model smaller or faster.

    Attributes:
        faster: whether that is the aim, so that what is no faster is refused.
        exact: whether what both models read alike gets the same outputs.
    """

    @property
    def faster(self) -> bool: ...

    @property
    def exact(self) -> bool: ...

    def refuse(self, predictor: Predictor) -> None:
        """Say why this model cannot be made smaller so, before anything is computed.

        Raises:
            ModelError: it cannot.
        """
        ...

    def write(self, predictor: Predictor, folder: Path, given: Given, bound: Bound) -> Written:
        """Write the smaller model into an empty folder.

        Args:
            predictor: in float32.
            bound: what it may lose, where it is not to be exactly the same.
        """
        ...


def refused(predictor: Predictor, reason: str, todo: str) -> ModelError:
    """A model that cannot be made smaller so."""
    where = Where(file=str(predictor.artifact.path))
    return ModelError("This model cannot be compressed like this.", [Problem("another model", reason, todo, where)])


def fall(metric: str, before: float, after: float) -> float:
    """How much worse a score has become."""
    return after - before if metric in LOWER_IS_BETTER else before - after
