"""What an exporter is, and what it says no with."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from chainrule.errors import ModelError, Problem, Where
from chainrule.evaluation.handover import Written
from chainrule.inference.predict import Predictor


class Exporter(Protocol):
    """A format to write a model in."""

    def refuse(self, predictor: Predictor) -> None:
        """Say why this model cannot be written so, before anything is written.

        Raises:
            ModelError: it cannot.
        """
        ...

    def write(self, predictor: Predictor, folder: Path) -> Written:
        """Write the model and all that is needed to use it into an empty folder.

        Args:
            predictor: in float32.

        Raises:
            MissingExtraError: a package that it takes is not installed.
        """
        ...


def refused(predictor: Predictor, wanted: str, reason: str, todo: str) -> ModelError:
    """A model that a format cannot hold."""
    where = Where(file=str(predictor.artifact.path))
    return ModelError(f"This model cannot be exported to {wanted}.", [Problem("another model", reason, todo, where)])


def refuse_others(predictor: Predictor, wanted: str) -> None:
    """Refuse a model that is a graph already.

    Raises:
        ModelError: it is.
    """
    runtime = predictor.artifact.manifest.runtime
    if runtime != "torch":
        reason = f"one that was made for {runtime}"
        raise refused(predictor, wanted, reason, "Export the artifact that it was made from.")
