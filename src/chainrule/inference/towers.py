"""Scores of a model that reads queries and items apart: a text is read once, however many rows have it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from chainrule.data.encode import encode
from chainrule.inference.predict import Predictor, predict_encoded
from chainrule.tasks.vectors import read

MOST_TEXTS = 100_000  # whose vectors are remembered; of 384 numbers each they take 150 MB


@dataclass
class Towers:
    """A model with the vectors of the texts that it has read.

    Attributes:
        vectors: text -> (d,) float32 of length one.
        longer: the texts among them that it read in part.
    """

    predictor: Predictor
    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    longer: set[str] = field(default_factory=set)

    def scores(self, queries: Sequence[str], items: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(n,) cosines of queries with their items, and a mask of the pairs of which a text was read in part."""
        pairs = list(zip(queries, items, strict=True))
        self._learn(dict.fromkeys(text for pair in pairs for text in pair))
        cosines = np.array([self.vectors[query] @ self.vectors[item] for query, item in pairs], np.float32)
        cut = np.array([query in self.longer or item in self.longer for query, item in pairs], bool)
        return cosines, cut

    def _learn(self, texts: dict[str, None]) -> None:
        missing = [text for text in texts if text not in self.vectors]
        if len(self.vectors) + len(missing) > MOST_TEXTS:
            self.vectors, self.longer, missing = {}, set(), list(texts)
        if not missing:
            return
        predictor = self.predictor
        encoded = encode(predictor.tokenizer, {"text": missing}, None, predictor.artifact.manifest.max_length)
        found = predict_encoded(predictor.forward, encoded, read).values[:, 0]
        self.vectors |= dict(zip(missing, found, strict=True))
        self.longer |= {missing[place] for place in np.flatnonzero(encoded.cut).tolist()}
