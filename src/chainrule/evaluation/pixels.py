"""What one could have for free of images: logistic regression on small pictures of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from chainrule.core.report import Finding
from chainrule.core.task import Predictions, Task
from chainrule.errors import ModelError, Problem, Where
from chainrule.evaluation.baseline_files import ARRAYS, FORMAT_VERSION, TEXT
from chainrule.system.files import read_json, write_json
from chainrule.system.images import open_image

NAME, MAJORITY = "pixels", "majority"
SIDE = 16  # of the small pictures
MOST_IMAGES = 20_000  # that it is fitted on
STRENGTHS = (0.001, 0.01, 0.1, 1.0)
Inputs = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class PixelModel:
    """The fitted baselines of a run.

    Attributes:
        arrays: "mean" and "deviation" (features,) of the training pixels, "coefficients" (classes, features),
            "intercepts" (classes,) and "shares" (classes,) of the training rows.
        strength: the inverse of the regularisation, chosen on validation.
        scores: each baseline's primary metric on validation; empty where there was no validation.
        sample: the number of images it was fitted on, and of all, where they were too many.
    """

    arrays: dict[str, np.ndarray]
    strength: float
    scores: dict[str, float]
    sample: tuple[int, int] | None
    best: str = NAME

    @classmethod
    def fit(
        cls, task: Task, classes: int, train: tuple[Inputs, Any], validation: tuple[Inputs, Any], seed: int
    ) -> PixelModel:
        """Fit on training images with every strength, and keep what is best on validation; of no rows the middle one.

        Args:
            train, validation: one column of images, and class indexes (n,).
        """
        targets = np.asarray(train[1])
        chosen = np.sort(np.random.default_rng(seed).permutation(len(targets))[:MOST_IMAGES])
        features, judged = _features(train[0], chosen), _features(validation[0])
        shares = np.bincount(targets, minlength=classes) / len(targets)
        base = {"mean": features.mean(0), "deviation": features.std(0) + 1e-3, "shares": shares}
        sample = (len(chosen), len(targets)) if len(chosen) < len(targets) else None
        found: list[PixelModel] = []
        for strength in STRENGTHS if len(judged) else STRENGTHS[1:2]:
            linear = _fit((features - base["mean"]) / base["deviation"], targets[chosen], classes, strength)
            made = cls(base | linear, strength, {}, sample)
            if len(judged):
                said = made._predict(judged)
                scores = {name: task.measure(validation[1], each)[task.primary_metric] for name, each in said.items()}
                made = replace(made, scores=scores, best=max(scores, key=lambda name: scores[name]))
            found.append(made)
        return max(found, key=lambda made: made.scores.get(NAME, 0.0))

    def predict(self, inputs: Inputs) -> dict[str, Predictions]:
        """Each baseline's predictions of images, by its name."""
        return self._predict(_features(inputs))

    def _predict(self, features: np.ndarray) -> dict[str, Predictions]:
        arrays = self.arrays
        logits = (features - arrays["mean"]) / arrays["deviation"] @ arrays["coefficients"].T + arrays["intercepts"]
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        most = int(arrays["shares"].argmax())
        rows = len(features)
        return {
            NAME: Predictions(shares.argmax(1), shares.max(1)),
            MAJORITY: Predictions(np.full(rows, most), np.full(rows, arrays["shares"][most])),
        }

    def findings(self) -> tuple[Finding, ...]:
        """What a reader of the comparison should know: whether it was fitted on some of the images."""
        if self.sample is None:
            return ()
        message = f"The baseline {NAME} was fitted on {self.sample[0]:,} of {self.sample[1]:,} training images."
        return (Finding(kind="baseline-sample", severity="info", message=message),)

    def save(self, folder: Path) -> None:
        """Write `baselines.json` and `baselines.safetensors` into `folder`, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        document = {"strength": self.strength, "scores": self.scores, "sample": self.sample, "best": self.best}
        write_json(folder / TEXT, {"format_version": FORMAT_VERSION, "kind": NAME, **document})
        save_file(
            {name: np.ascontiguousarray(array, np.float64) for name, array in self.arrays.items()}, folder / ARRAYS
        )

    @classmethod
    def load(cls, folder: Path, classes: int) -> PixelModel:
        """Read what `save` wrote.

        Raises:
            ModelError: a file is missing or broken, or is of another number of classes.
        """
        text = read_json(folder / TEXT)
        scores, sample, strength = text.get("scores"), text.get("sample"), text.get("strength")
        good = (text.get("format_version"), text.get("kind")) == (FORMAT_VERSION, NAME)
        good = good and isinstance(scores, dict) and all(type(score) is float for score in scores.values())
        good = good and text.get("best") in (NAME, MAJORITY) and type(strength) is float
        good = good and (sample is None or (isinstance(sample, list) and [type(each) for each in sample] == [int, int]))
        try:
            arrays = load_file(folder / ARRAYS) if good else {}
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            arrays = {}
        features = 3 * SIDE * SIDE
        shapes = {
            **dict.fromkeys(("mean", "deviation"), (features,)),
            **dict.fromkeys(("intercepts", "shares"), (classes,)),
            "coefficients": (classes, features),
        }
        if {name: array.shape for name, array in arrays.items()} != shapes or not all(
            array.dtype == np.float64 and np.isfinite(array).all() for array in arrays.values()
        ):
            where = Where(file=str(folder))
            todo = "Train the run again, or take a copy of it that is whole."
            problem = Problem(f"a linear model of {classes} classes over pixels", "something else", todo, where)
            raise ModelError(f"Cannot read the baselines in {folder}.", [problem])
        return cls(arrays, float(strength), dict(scores), None if sample is None else tuple(sample), str(text["best"]))  # type: ignore[arg-type]


def _features(inputs: Inputs, rows: np.ndarray | None = None) -> np.ndarray:
    """(n, features) float64 between 0 and 1: all values of small pictures."""
    (cells,) = inputs.values()
    places = range(len(cells)) if rows is None else rows.tolist()
    values = np.empty((len(places), 3 * SIDE * SIDE))
    for row, place in enumerate(places):
        small = open_image(cells[place]).resize((SIDE, SIDE), Image.Resampling.BOX)
        values[row] = np.asarray(small, np.float64).ravel() / 255
    return values


def _fit(features: np.ndarray, targets: np.ndarray, classes: int, strength: float) -> dict[str, np.ndarray]:
    """Coefficients and intercepts; a class without a row is as good as never said."""
    coefficients, intercepts = np.zeros((classes, features.shape[1])), np.full(classes, -30.0)
    model = LogisticRegression(C=strength, max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a bounded number of passes is meant
        model.fit(features, targets)
    if len(model.classes_) == 2:
        low, high = model.classes_
        coefficients[high], intercepts[high], intercepts[low] = model.coef_[0], model.intercept_[0], 0.0
    else:
        coefficients[model.classes_], intercepts[model.classes_] = model.coef_, model.intercept_
    return {"coefficients": coefficients, "intercepts": intercepts}
