"""What one could have for free of answers: of the sentence most like the question, the words that the question lacks.

And where training rows may have no answer: to say so of every row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from chainrule.core.report import Finding
from chainrule.core.spans import Answers, Span, Spans
from chainrule.core.task import Predictions
from chainrule.data.entities import words_of
from chainrule.errors import ModelError, Problem, Where
from chainrule.evaluation.baseline_files import FORMAT_VERSION, TEXT
from chainrule.metrics.answers import tally
from chainrule.system.files import read_json, write_json

NAME, SILENT = "sentence-overlap", "no-answer"
LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # of an answer in words, of which the best on training rows is taken
FITTED_ON = 5_000  # rows, the first: one number is fitted
_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
Inputs = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class SentenceOverlap:
    """The fitted baselines of a run.

    Attributes:
        words: the longest answer.
        silent: whether training rows may have no answer, so that saying so always is a baseline, too.
        scores: the primary metric of each on validation; empty where there was no validation.
    """

    words: int
    silent: bool
    scores: dict[str, float]

    @property
    def best(self) -> str:
        """The baseline that was better on validation."""
        return max(self.scores, key=lambda name: self.scores[name], default=NAME)

    @classmethod
    def fit(cls, inputs: Inputs, targets: Answers) -> SentenceOverlap:
        """Choose the length of answers by F1 on the training rows that have one.

        Args:
            inputs: texts under "question" and "context".
        """
        rows = np.flatnonzero(targets.answered)[:FITTED_ON]
        few, right = {name: inputs[name][rows] for name in ("question", "context")}, targets[rows]  # type: ignore[call-overload]
        found = list(_runs(few))
        scores = {words: float(tally(right, _cut(found, words))[:, 1].sum()) for words in LENGTHS}
        best = max(LENGTHS, key=lambda words: scores[words])
        return cls(best, not bool(targets.answered.all()), {})

    def predict(self, inputs: Inputs) -> dict[str, Predictions]:
        """The answer of each row, by the baseline's name."""
        said = _cut(list(_runs(inputs)), self.words)
        sure = np.ones((len(said), 2))
        found = {NAME: Predictions(said, sure)}
        return found | ({SILENT: Predictions(Spans.of([[]] * len(said)), sure)} if self.silent else {})

    def findings(self) -> tuple[Finding, ...]:
        """What a reader of the comparison should know: nothing."""
        return ()

    def save(self, folder: Path) -> None:
        """Write `baselines.json` into `folder`, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        document = {"words": self.words, "silent": self.silent, "scores": self.scores}
        write_json(folder / TEXT, {"format_version": FORMAT_VERSION, "kind": "answers", **document})

    @classmethod
    def load(cls, folder: Path) -> SentenceOverlap:
        """Read what `save` wrote.

        Raises:
            ModelError: the file is missing, broken, or says something else.
        """
        text = read_json(folder / TEXT)
        words, silent, scores = (text.get(name) for name in ("words", "silent", "scores"))
        good = (text.get("format_version"), text.get("kind")) == (FORMAT_VERSION, "answers")
        good = good and type(words) is int and words >= 1 and type(silent) is bool and isinstance(scores, dict)
        names = (NAME, SILENT) if silent is True else (NAME,)
        if not good or not all(name in names and type(score) is float for name, score in scores.items()):  # type: ignore[union-attr]
            where = Where(file=str(folder / TEXT))
            todo = "Train the run again, or take a copy of it that is whole."
            problem = Problem("the length of answers and scores", "something else", todo, where)
            raise ModelError(f"Cannot read the baselines in {folder}.", [problem])
        return cls(words, silent, dict(scores))  # type: ignore[arg-type]


def _runs(inputs: Inputs) -> Iterator[list[tuple[int, int]]]:
    """Of each context the longest run of words, in the sentence most like the question, that the question has not."""
    for question, context in zip(inputs["question"], inputs["context"], strict=True):
        asked = {question[start:end].lower() for start, end in words_of(question)}
        sentences = [_words(context, start, end) for start, end in sentences_of(context)]
        shared = [len(asked & {context[a:b].lower() for a, b in words}) for words in sentences]
        chosen = sentences[shared.index(max(shared))] if sentences else []
        runs: list[list[tuple[int, int]]] = [[]]
        for start, end in chosen:
            word = context[start:end].lower()
            if word in asked or not word[0].isalnum():
                runs.append([])
            else:
                runs[-1].append((start, end))
        yield max(runs, key=len)


def sentences_of(context: str) -> list[tuple[int, int]]:
    """Where the sentences of a text, or its lines, begin and end."""
    edges = [0, *(match.end() for match in _END.finditer(context)), len(context)]
    return [(start, end) for start, end in pairwise(edges) if context[start:end].strip()]


def _words(context: str, start: int, end: int) -> list[tuple[int, int]]:
    return [(a + start, b + start) for a, b in words_of(context[start:end])]


def _cut(runs: Sequence[Sequence[tuple[int, int]]], words: int) -> Spans:
    """The first so many words of each run as its answer."""
    rows: list[list[Span]] = [[(run[0][0], run[min(words, len(run)) - 1][1], 0)] if run else [] for run in runs]
    return Spans.of(rows)
