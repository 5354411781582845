"""What one could have for free of entities: each word gets the tag it had most often in the training rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chainrule.core.report import Finding
from chainrule.core.spans import Spans
from chainrule.core.task import Predictions
from chainrule.data.entities import TOKENS, spans_of, tags_of, units_of
from chainrule.errors import ModelError, Problem, Where
from chainrule.evaluation.baseline_files import FORMAT_VERSION, TEXT
from chainrule.system.files import read_json, write_json

NAME = "word-tags"
Inputs = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class WordTags:
    """The fitted baseline of a run.

    Attributes:
        labels: the types of entities.
        tags: word -> its most frequent tag (`tags_of`), where that is not "outside".
        scores: its primary metric on validation; empty where there was no validation.
    """

    labels: tuple[str, ...]
    tags: dict[str, int]
    scores: dict[str, float]
    best: str = NAME

    @classmethod
    def fit(cls, labels: Sequence[str], inputs: Inputs, targets: Spans) -> WordTags:
        """Count the tags of every word. Of tags that are as frequent the lowest number is taken.

        Args:
            inputs: JSON that `units_of` reads, under "tokens".
        """
        counts: defaultdict[str, Counter[int]] = defaultdict(Counter)
        for cell, spans in zip(inputs[TOKENS], targets.each(), strict=True):
            text, units = units_of(cell)
            for (start, end), tag in zip(units, tags_of(spans, units).tolist(), strict=True):
                counts[text[start:end]][tag] += 1
        tags = {word: min(seen, key=lambda tag: (-seen[tag], tag)) for word, seen in counts.items()}
        return cls(tuple(labels), {word: tag for word, tag in tags.items() if tag}, {})

    def predict(self, inputs: Inputs) -> dict[str, Predictions]:
        """The entities of each row, under the baseline's name."""
        rows = []
        for cell in inputs[TOKENS]:
            text, units = units_of(cell)
            rows.append(spans_of([self.tags.get(text[start:end], 0) for start, end in units], units))
        return {NAME: Predictions(Spans.of(rows), np.ones(len(rows)))}

    def findings(self) -> tuple[Finding, ...]:
        """What a reader of the comparison should know: nothing."""
        return ()

    def save(self, folder: Path) -> None:
        """Write `baselines.json` into `folder`, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        document = {"labels": list(self.labels), "tags": self.tags, "scores": self.scores}
        write_json(folder / TEXT, {"format_version": FORMAT_VERSION, "kind": "spans", **document})

    @classmethod
    def load(cls, folder: Path) -> WordTags:
        """Read what `save` wrote.

        Raises:
            ModelError: the file is missing, broken, or says something else than words and their tags.
        """
        text = read_json(folder / TEXT)
        labels, tags, scores = (text.get(name) for name in ("labels", "tags", "scores"))
        good = (text.get("format_version"), text.get("kind")) == (FORMAT_VERSION, "spans")
        good = good and isinstance(labels, list) and all(isinstance(label, str) for label in labels)
        good = good and isinstance(tags, dict) and isinstance(scores, dict)
        good = good and all(type(score) is float for score in scores.values())  # type: ignore[union-attr]
        if not good or not all(type(tag) is int and 0 < tag <= 2 * len(labels) for tag in tags.values()):  # type: ignore[arg-type,union-attr]
            where = Where(file=str(folder / TEXT))
            todo = "Train the run again, or take a copy of it that is whole."
            problem = Problem("words and their tags", "something else", todo, where)
            raise ModelError(f"Cannot read the baselines in {folder}.", [problem])
        return cls(tuple(labels), dict(tags), dict(scores))  # type: ignore[arg-type]
