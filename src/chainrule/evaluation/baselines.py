"""What one could have for free: the most frequent class (or the mean), and TF-IDF with a linear model.

Both are fitted on the rows the model is trained on. The strength of the linear model's regularisation, and the better
of the two baselines, are chosen on validation by the task's primary metric.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save_file
from scipy import sparse
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge

from chainrule.core.report import Finding
from chainrule.core.task import LOWER_IS_BETTER, Predictions, Task
from chainrule.data.flaws import finding
from chainrule.evaluation import ngrams
from chainrule.evaluation.baseline_files import ARRAYS, FORMAT_VERSION, TEXT, constant_name, read_arrays, read_text
from chainrule.system.files import atomic_path, write_json

Inputs = Mapping[str, Sequence[str]]
UNTUNED = "untuned"  # the model before step one: the baseline of tasks where nothing cheap could do the work
MOST_CHARACTERS = 20_000_000  # of training texts; TF-IDF is then fitted within about a gigabyte (LOG.md, 2026-11-22)
_CHUNK_ROWS = 4096  # predicted at once
_SEARCH_ROWS = 10_000  # enough to choose C by; the chosen one is fitted on all rows
_FEWEST_PASSES = 6  # of dual coordinate descent over the rows; with many classes more cost minutes and change little
_MOST_PASSES = 200
_VISITS = 200_000_000  # nonzero features visited in one fit, over all passes and classes
_CERTAIN = 20.0  # the logit of a class that all or no training rows have


class _Constant(NamedTuple):
    """What is said of every row: a class index (1,), 0/1 (labels,) or the mean (1,), and the share of rows it fits."""

    values: np.ndarray
    shares: np.ndarray


class _Linear(NamedTuple):
    """Coefficients (outputs, features) and intercepts (outputs,), float32; one output for two classes and numbers."""

    coefficients: np.ndarray
    intercepts: np.ndarray


@dataclass(frozen=True)
class Baselines:
    """The two fitted baselines of a run.

    Attributes:
        kind: "class", "classes" or "number".
        fields: names of the input fields, in order.
        best: the baseline that was better on validation.
        strength: the C that was chosen (for numbers 1/alpha).
        scores: each baseline's primary metric on validation; empty where there was no validation.
        sample: how many of how many training rows TF-IDF was fitted on; None for all.
        constant: the constant prediction.
        grams: the n-grams of TF-IDF.
        linear: the linear model on them.
    """

    kind: str
    fields: tuple[str, ...]
    best: str
    strength: float
    scores: dict[str, float]
    sample: tuple[int, int] | None
    constant: _Constant
    grams: ngrams.NGrams
    linear: _Linear

    def predict(self, inputs: Inputs) -> dict[str, Predictions]:
        """Each baseline's predictions by its name: "majority" ("mean" for numbers) and "tfidf".

        Args:
            inputs: texts by input field, n each.

        Raises:
            KeyError: a field is missing.
        """
        columns = [inputs[field] for field in self.fields]
        rows = len(columns[0])
        pieces = []
        for start in range(0, max(rows, 1), _CHUNK_ROWS):
            features = ngrams.transform(self.grams, [list(texts[start : start + _CHUNK_ROWS]) for texts in columns])
            pieces.append(_decode(self.kind, _logits(features, self.linear)))
        linear = Predictions(*(np.concatenate([getattr(p, name) for p in pieces]) for name in ("values", "scores")))
        return {constant_name(self.kind): _constant_predictions(self.kind, self.constant, rows), "tfidf": linear}

    def findings(self) -> tuple[Finding, ...]:
        """What a reader of the comparison should know of the baselines."""
        if self.sample is None:
            return ()
        some, every = self.sample
        rows = f"{some:,} of the {every:,} training rows"
        message = f"TF-IDF was fitted on {rows}, drawn at random: more would fill the memory."
        return (finding("baseline-sample", "info", message, split="train"),)

    def save(self, folder: Path) -> None:
        """Write `baselines.json` and `baselines.safetensors` into `folder`, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / ARRAYS) as temporary:
            save_file(_arrays(self), temporary)
        text = {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "fields": list(self.fields),
            "best": self.best,
            "strength": self.strength,
            "scores": self.scores,
            "sample": self.sample,
            "outputs": len(self.linear.intercepts),
            "constants": len(self.constant.values),
            "words": list(self.grams.words),
            "characters": list(self.grams.characters),
        }
        write_json(folder / TEXT, text)

    @classmethod
    def load(cls, folder: Path) -> Baselines:
        """Read what `save` wrote. Nothing in the files is run, and sizes are checked before anything is allocated.

        Raises:
            ModelError: a file is missing, broken, or does not fit the other.
        """
        text = read_text(folder / TEXT)
        arrays = read_arrays(folder / ARRAYS, text)
        grams = ngrams.NGrams(
            words=tuple(text["words"]),
            characters=tuple(text["characters"]),
            word_idf=arrays["word_idf"],
            character_idf=arrays["character_idf"],
        )
        return cls(
            kind=text["kind"],
            fields=tuple(text["fields"]),
            best=text["best"],
            strength=float(text["strength"]),
            scores={name: float(score) for name, score in text["scores"].items()},
            sample=text["sample"] and tuple(text["sample"]),
            constant=_Constant(arrays["constant"], arrays["shares"]),
            grams=grams,
            linear=_Linear(arrays["coefficients"], arrays["intercepts"]),
        )


def fit_baselines(
    task: Task,
    labels: Sequence[str],
    train: tuple[Inputs, np.ndarray],
    validation: tuple[Inputs, np.ndarray],
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Baselines:
    """Fit both baselines on the training rows and choose between them on the validation rows.

    Of texts with more than MOST_CHARACTERS in all, TF-IDF sees rows drawn at random, as many as fit.

    Args:
        task: names the input fields, the kind of target, the metrics and the primary one.
        labels: names of the classes, in index order.
        train: texts by field, and targets: class indexes (n,), a 0/1 matrix (n, labels) or numbers (n,); n ≥ 1.
        validation: the same; without rows the middle strength is taken and TF-IDF counts as the better one.
        seed: of the order in which the linear model visits the rows.
        progress: is told what is being done, in one line each time.

    Raises:
        ValueError: no training rows.
    """
    tell = progress or (lambda line: None)
    kind, fields, every = task.target.kind, tuple(train[0]), np.asarray(train[1])
    (columns, targets), (others, truth) = _sample(train, seed), _sample(validation, seed)
    grams, features = ngrams.fit(columns, outputs_of(kind, len(labels)))
    judged = ngrams.transform(grams, others)
    tell(f"TF-IDF: {features.shape[1]:,} features of {features.shape[0]:,} rows")

    def fit(strength: float, features: sparse.csr_matrix, targets: np.ndarray) -> _Linear:
        return _fit(kind, features, targets, (strength, len(labels), seed))

    def score(predictions: Predictions) -> float:
        return float(task.measure(truth, predictions)[task.primary_metric])

    def attempt(strength: float) -> float:
        found = score(_decode(kind, _logits(judged, fit(strength, *few))))
        tell(f"TF-IDF: {task.primary_metric} {found:.4f} on validation with strength {strength:g}")
        return found

    some = np.random.default_rng(seed).permutation(len(targets))[:_SEARCH_ROWS]
    few = features[some], targets[some]
    strength = _search(task, attempt) if len(truth) else _middle(kind)
    linear = fit(strength, features, targets)
    constant = _constant(kind, every, len(labels))
    scores, other = {}, constant_name(kind)
    if len(truth):
        scores["tfidf"] = score(_decode(kind, _logits(judged, linear)))
        scores[other] = score(_constant_predictions(kind, constant, len(truth)))
    best = other if scores and not _better(task, scores["tfidf"], scores[other]) else "tfidf"
    sample = (len(targets), len(every)) if len(targets) < len(every) else None
    return Baselines(kind, fields, best, strength, scores, sample, constant, grams, linear)


def _sample(rows: tuple[Inputs, np.ndarray], seed: int) -> tuple[list[list[str]], np.ndarray]:
    """The texts of each field and the targets, of all rows or of as many as fit into MOST_CHARACTERS."""
    inputs, targets = rows[0].values(), np.asarray(rows[1])
    sizes = np.fromiter((sum(map(len, texts)) for texts in zip(*inputs, strict=True)), np.int64, len(targets))
    order = np.random.default_rng(seed).permutation(len(sizes))
    kept = np.zeros(len(sizes), dtype=bool)
    kept[order[np.cumsum(sizes[order]) <= MOST_CHARACTERS]] = True
    kept[order[:1]] = True
    return [list(compress(texts, kept)) for texts in inputs], targets[kept]


def _search(task: Task, attempt: Callable[[float], float]) -> float:
    """Walk from the middle strength in factors of four towards the better score: three attempts, four at most."""
    middle = _middle(task.target.kind)
    tried = {strength: attempt(strength) for strength in (middle, middle * 4)}
    step = 4.0 if _better(task, tried[middle * 4], tried[middle]) else 0.25
    strength = middle * 16 if step > 1 else middle / 4
    while len(tried) < 4:
        tried[strength] = attempt(strength)
        if not _better(task, tried[strength], tried[strength / step]):
            break
        strength *= step
    return next(s for s in sorted(tried) if not any(_better(task, other, tried[s]) for other in tried.values()))


def _middle(kind: str) -> float:
    """The strength that the search starts from."""
    return 0.25 if kind == "number" else 4.0


def _better(task: Task, score: float, than: float) -> bool:
    return score < than if task.primary_metric in LOWER_IS_BETTER else score > than


def outputs_of(kind: str, labels: int) -> int:
    """How many numbers the linear baseline gives of a row: two classes need one."""
    return 1 if kind == "number" or (kind == "class" and labels <= 2) else labels


def _constant(kind: str, targets: np.ndarray, labels: int) -> _Constant:
    if kind == "number":
        return _Constant(np.array([targets.mean(dtype=np.float64)]), np.ones(1))
    if kind == "class":
        counts = np.bincount(targets.astype(np.int64), minlength=labels)
        return _Constant(np.array([counts.argmax()], dtype=np.float64), np.array([counts.max() / len(targets)]))
    shares = targets.mean(axis=0, dtype=np.float64)
    return _Constant((shares > 0.5).astype(np.float64), np.maximum(shares, 1 - shares))


def _constant_predictions(kind: str, constant: _Constant, rows: int) -> Predictions:
    if kind == "classes":
        values = np.tile(constant.values.astype(np.uint8), (rows, 1))
        return Predictions(values=values, scores=np.tile(constant.shares, (rows, 1)))
    values = np.full(rows, constant.values[0], dtype=np.int64 if kind == "class" else np.float64)
    return Predictions(values=values, scores=np.full(rows, constant.shares[0]))


def _fit(kind: str, features: sparse.csr_matrix, targets: np.ndarray, settings: tuple[float, int, int]) -> _Linear:
    strength, labels, seed = settings
    if kind == "number":
        model = Ridge(alpha=1 / strength, solver="lsqr", tol=1e-3, max_iter=300)
        model.fit(features, np.asarray(targets, dtype=np.float64))
        coefficients, intercepts = model.coef_.reshape(1, -1), np.array([model.intercept_])
        return _Linear(coefficients.astype(np.float32), intercepts.astype(np.float32))
    outputs = outputs_of(kind, labels)
    wide = features.astype(np.float64)
    passes = min(_MOST_PASSES, max(_FEWEST_PASSES, _VISITS // max(1, wide.nnz * outputs)))
    coefficients = np.zeros((outputs, features.shape[1]), dtype=np.float32)
    intercepts = np.zeros(outputs, dtype=np.float32)
    for output in range(outputs):
        if kind == "classes":
            answers = np.asarray(targets)[:, output] > 0.5
        else:
            answers = np.asarray(targets) == (1 if outputs == 1 else output)
        if answers.all() or not answers.any():
            intercepts[output] = _CERTAIN if answers.all() else -_CERTAIN
            continue
        model = LogisticRegression(
            C=strength, solver="liblinear", dual=True, tol=0.1, max_iter=passes, random_state=seed
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a bounded number of passes is meant
            model.fit(wide, answers)
        coefficients[output], intercepts[output] = model.coef_[0], model.intercept_[0]
    return _Linear(coefficients, intercepts)


def _logits(features: sparse.csr_matrix, linear: _Linear) -> np.ndarray:
    logits: np.ndarray = features @ np.ascontiguousarray(linear.coefficients.T) + linear.intercepts
    return logits


def _decode(kind: str, logits: np.ndarray) -> Predictions:
    if kind == "number":
        values = logits[:, 0].astype(np.float64)
        return Predictions(values=values, scores=np.ones(len(values)))
    shares = expit(logits.astype(np.float64))
    if kind == "classes":
        values = (shares > 0.5).astype(np.uint8)
        return Predictions(values=values, scores=np.where(values == 1, shares, 1 - shares))
    if shares.shape[1] == 1:
        shares = np.concatenate([1 - shares, shares], axis=1)
    values = shares.argmax(axis=1)
    return Predictions(values=values, scores=shares.max(axis=1) / np.maximum(shares.sum(axis=1), 1e-12))


def _arrays(baselines: Baselines) -> dict[str, np.ndarray]:
    arrays = {
        "constant": baselines.constant.values,
        "shares": baselines.constant.shares,
        "word_idf": baselines.grams.word_idf,
        "character_idf": baselines.grams.character_idf,
        "coefficients": baselines.linear.coefficients,
        "intercepts": baselines.linear.intercepts,
    }
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}
