"""What is usual: counts and moments of rows, and no row itself. An artifact has those of its validation rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import gt
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator
from sklearn.isotonic import IsotonicRegression

from chainrule.core.artifact import REFERENCE
from chainrule.core.parsing import validation_problems
from chainrule.core.recipe import Section
from chainrule.errors import ModelError
from chainrule.monitoring.features import SIZE, Features
from chainrule.system.files import read_json

BINS = 10  # of lengths and scores, each with as many rows of the reference
UNKNOWN_EDGES = (0.0, 0.02, 0.1, 0.3)  # shares of unknown tokens: none, up to 2 %, …
LOWEST = 0.05  # the share of rows whose confidence counts as low
FARTHEST = 0.01  # the share of rows whose vectors count as unusual
MOST = 5_000  # rows that are measured
FEWEST = 30  # rows that make a reference
FEWEST_VECTORS = 100  # rows whose vectors have moments


Rows = Annotated[int, Field(ge=0, le=2**53)]


class Binned(Section):
    """Counts in bins: bin i holds what is above edges[i - 1] and at most edges[i]."""

    edges: tuple[float, ...] = Field(max_length=1_000)
    counts: tuple[Rows, ...]

    @model_validator(mode="after")
    def _whole(self) -> Binned:
        if len(self.counts) != len(self.edges) + 1 or sorted(self.edges) != list(self.edges):
            raise ValueError("edges in ascending order and one count more than edges")
        return self

    def bins(self, values: np.ndarray) -> np.ndarray:
        """(n,) the bin of each value."""
        found: np.ndarray = np.searchsorted(np.asarray(self.edges), values, side="left")
        return found


class Moments(Section):
    """Mean and covariance of the rows' vectors, and the squared distance beyond which few rows lie."""

    mean: tuple[float, ...] = Field(min_length=SIZE, max_length=SIZE)
    covariance: tuple[tuple[float, ...], ...] = Field(min_length=SIZE, max_length=SIZE)
    far: float

    @model_validator(mode="after")
    def _square(self) -> Moments:
        if any(len(row) != SIZE for row in self.covariance):
            raise ValueError(f"{SIZE} numbers in each row of the covariance")
        return self

    def distances(self, vectors: np.ndarray) -> np.ndarray:
        """(n,) squared Mahalanobis distances of rows."""
        values, axes = np.linalg.eigh(np.asarray(self.covariance))
        kept = values > max(values.max(), 0.0) * 1e-6
        away = (vectors - np.asarray(self.mean)) @ axes[:, kept] / np.sqrt(values[kept])
        found: np.ndarray = (away * away).sum(axis=1)
        return found


class Reference(Section):
    """What is usual for a model.

    Attributes:
        source: whose rows these were: "validation" of the training, or the first that were "served".
        labels: how often each label was predicted.
        correct: of the rows in each bin of `scores` how many were predicted correctly; None where that is not known.
        threshold: the confidence below which as large a share of rows lies as was predicted wrongly (the "average
            thresholded confidence" of Garg et al., 2022).
        low: the confidence below which the lowest few lie.
    """

    format_version: Literal[1] = 1
    source: Literal["validation", "served"]
    rows: int = Field(ge=1, le=2**53)
    labels: dict[str, Rows] = Field(default_factory=dict)
    lengths: Binned | None = None
    unknown: Binned | None = None
    scores: Binned | None = None
    correct: tuple[Rows, ...] | None = None
    threshold: float | None = None
    low: float | None = None
    vectors: Moments | None = None

    @model_validator(mode="after")
    def _fitting(self) -> Reference:
        counts = () if self.scores is None else self.scores.counts
        if self.correct is not None and (len(self.correct) != len(counts) or any(map(gt, self.correct, counts))):
            raise ValueError("as many numbers in `correct` as there are bins of scores, none above its count")
        return self

    def accuracies(self) -> np.ndarray | None:
        """(bins,) the accuracy at each level of confidence, rising with it."""
        if self.scores is None or self.correct is None:
            return None
        counts, right = np.asarray(self.scores.counts, float), np.asarray(self.correct, float)
        places = np.arange(len(counts))
        shares = (right + right.sum() / max(counts.sum(), 1.0)) / (counts + 1.0)  # one row more, of the usual accuracy
        fitted: np.ndarray = IsotonicRegression().fit(places, shares, sample_weight=counts + 1e-9).predict(places)
        return fitted


@dataclass(frozen=True)
class Said:
    """What a model says of n rows.

    Attributes:
        labels: of each row, none, one or several.
        scores: (n,) the confidence, or the number; None where there is neither.
        correct: (n,) which are right, where that is known.
        confident: whether scores are probabilities.
    """

    labels: Sequence[Sequence[str]]
    scores: np.ndarray | None = None
    correct: np.ndarray | None = None
    confident: bool = True


def reference_of(source: Literal["validation", "served"], said: Said, features: Features | None) -> Reference | None:
    """The reference that rows make; None of too few."""
    rows = len(said.labels)
    if rows < FEWEST:
        return None
    labels: dict[str, int] = {}
    for names in said.labels:
        for name in names:
            labels[name] = labels.get(name, 0) + 1
    scores = None if said.scores is None else _binned(said.scores)
    correct = threshold = None
    if scores is not None and said.scores is not None and said.correct is not None and said.confident:
        right = np.bincount(scores.bins(said.scores), said.correct.astype(float), len(scores.counts))
        correct = tuple(int(count) for count in right)
        threshold = float(np.quantile(said.scores, 1 - float(said.correct.mean())))
    confident = said.confident and said.scores is not None
    return Reference(
        source=source,
        rows=rows,
        labels=labels,
        lengths=None if features is None else _binned(features.lengths.astype(float)),
        unknown=None if features is None or features.unknown is None else _counted(UNKNOWN_EDGES, features.unknown),
        scores=scores,
        correct=correct,
        threshold=threshold,
        low=float(np.quantile(said.scores, LOWEST)) if confident and said.scores is not None else None,
        vectors=None if features is None or features.vectors is None else _moments(features.vectors),
    )


def read_reference(folder: Path) -> Reference | None:
    """What lies in an artifact's folder; None where nothing does.

    Raises:
        ModelError: it is damaged.
    """
    file = folder / REFERENCE
    if not file.is_file():
        return None
    try:
        return Reference.model_validate(read_json(file))
    except ValidationError as error:
        problems = validation_problems(error, Reference, str(file))
        raise ModelError(f"The reference {file} cannot be read.", problems) from None


def _binned(values: np.ndarray) -> Binned | None:
    if not np.isfinite(values).all():
        return None
    inner = np.quantile(values, np.arange(1, BINS) / BINS, method="inverted_cdf")
    edges = tuple(float(edge) for edge in np.unique(inner) if edge < values.max())
    return _counted(edges, values)


def _counted(edges: tuple[float, ...], values: np.ndarray) -> Binned:
    bins = np.searchsorted(np.asarray(edges), values, side="left")
    return Binned(edges=edges, counts=tuple(int(count) for count in np.bincount(bins, minlength=len(edges) + 1)))


def _moments(vectors: np.ndarray) -> Moments | None:
    if len(vectors) < FEWEST_VECTORS or not np.isfinite(vectors).all():
        return None
    mean, covariance = vectors.mean(axis=0), np.cov(vectors, rowvar=False)
    rough = Moments(mean=tuple(mean.tolist()), covariance=tuple(map(tuple, covariance.tolist())), far=0.0)
    return rough.model_copy(update={"far": float(np.quantile(rough.distances(vectors), 1 - FARTHEST))})
