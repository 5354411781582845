"""What one could have for little of ranking: TF-IDF, and of what users did popularity and matrix factorisation.

tfidf-cosine          the cosine of the query's and the item's n-grams, weighted by TF-IDF.
popularity            how many users liked the item in train.
matrix-factorisation  the truncated singular value decomposition of who liked what in train: PureSVD of Cremonesi,
                      Koren and Turrin (2010), Performance of Recommender Algorithms on Top-N Recommendation Tasks,
                      section 3.2.2. How many factors is chosen on validation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import sparse
from sklearn.decomposition import TruncatedSVD

from chainrule.core.lists import Lists, starts_of
from chainrule.core.report import Finding
from chainrule.core.task import Predictions, Task
from chainrule.data.flaws import finding
from chainrule.data.lists import ITEM, QUERY, USER, candidates_of
from chainrule.errors import ModelError, Problem, Where
from chainrule.evaluation import ngrams
from chainrule.evaluation.baseline_files import ARRAYS, FORMAT_VERSION, TEXT
from chainrule.evaluation.baselines import MOST_CHARACTERS
from chainrule.system.files import atomic_path, read_json, write_json

TFIDF, POPULARITY, FACTORS = "tfidf-cosine", "popularity", "matrix-factorisation"
SIZES = (4, 8, 16, 32, 64)  # numbers of factors that are tried
_CHUNK = 1024  # lists whose candidates are looked at together
_FACTORS = ("of_users", "of_items")
_NAMES = ("words", "characters", "users", "items")
Inputs = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Rankers:
    """The fitted baselines of a run.

    Attributes:
        grams: the n-grams of TF-IDF.
        users, items: ids that train has; none where rows are queries.
        counts: (items,) float32 users who liked it.
        factors: of users (users, f) and of items (items, f), float32; None where there are too few to find any.
        scores: the primary metric of each on validation; empty where there was no validation.
        sample: of how many of how many training texts the n-grams are; None for all.
    """

    grams: ngrams.NGrams
    users: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    factors: tuple[np.ndarray, np.ndarray] | None = None
    scores: dict[str, float] = field(default_factory=dict)
    sample: tuple[int, int] | None = None

    @property
    def best(self) -> str:
        """The baseline that was better on validation."""
        return max(self.scores, key=lambda name: self.scores[name], default=POPULARITY if self.users else TFIDF)

    @classmethod
    def fit(cls, task: Task, train: tuple[Inputs, Lists], validation: tuple[Inputs, Lists], seed: int) -> Rankers:
        """Fit on training lists, choose the number of factors on validation, and score all there.

        Of texts with more than MOST_CHARACTERS in all, the n-grams are those of texts drawn at random.
        """
        inputs, targets = train
        texts = dict.fromkeys(inputs[QUERY])
        for cell in inputs[ITEM]:
            texts |= dict.fromkeys(candidates_of(cell)[1])
        some = _some(list(texts), seed)
        made = cls(ngrams.fit([some], 1)[0], sample=(len(some), len(texts)) if len(some) < len(texts) else None)

        def score(found: Rankers, *names: str) -> dict[str, float]:
            if not len(validation[1]):
                return {}
            said = found._said(validation[0], names)
            return {name: task.measure(validation[1], each)[task.primary_metric] for name, each in said.items()}

        if USER not in inputs:
            return replace(made, scores=score(made, TFIDF))
        users, items, liked = _liked(inputs, targets)
        made = replace(made, users=users, items=items, counts=np.asarray(liked.sum(axis=0), np.float32).ravel())
        tried = [replace(made, factors=_factors(liked, size, seed)) for size in SIZES if size < min(liked.shape)]
        judged = [replace(each, scores=score(each, FACTORS)) for each in tried] or [made]
        best = max(judged, key=lambda each: each.scores.get(FACTORS, 0.0))
        return replace(best, scores=score(best, TFIDF, POPULARITY) | best.scores)

    def predict(self, inputs: Inputs) -> dict[str, Predictions]:
        """The score of each candidate, by the baseline's name."""
        by_user = (POPULARITY,) if self.factors is None else (POPULARITY, FACTORS)
        return self._said(inputs, (TFIDF, *by_user) if self.users else (TFIDF,))

    def _said(self, inputs: Inputs, names: Sequence[str]) -> dict[str, Predictions]:
        found: dict[str, list[np.ndarray]] = {name: [np.zeros(0)] for name in names}
        counts: list[int] = []
        for start in range(0, len(inputs[QUERY]), _CHUNK):
            few = {name: list(inputs[name][start : start + _CHUNK]) for name in (QUERY, ITEM, USER) if name in inputs}
            candidates = [candidates_of(cell) for cell in few[ITEM]]
            own = [len(ids) for ids, _ in candidates]
            counts += own
            rows = np.repeat(np.arange(len(own)), own)
            ids, texts = ([each for pair in candidates for each in pair[place]] for place in (0, 1))
            for name in names:
                scores = (
                    self._cosines(few[QUERY], rows, texts) if name == TFIDF else self._of(name, few[USER], rows, ids)
                )
                found[name].append(scores)
        offsets, sure = starts_of(np.array(counts, np.int64)), np.ones(len(counts))
        joined = {name: np.concatenate(scores).astype(np.float32) for name, scores in found.items()}
        return {name: Predictions(Lists(offsets, scores), sure) for name, scores in joined.items()}

    def _cosines(self, queries: list[str], rows: np.ndarray, texts: list[str]) -> np.ndarray:
        places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        columns = np.array([places[text] for text in texts], np.int64)
        one, two = (ngrams.transform(self.grams, [each]) for each in (queries, list(places)))
        return np.asarray(one[rows].multiply(two[columns]).sum(axis=1), np.float64).ravel()

    def _of(self, name: str, users: list[str], rows: np.ndarray, ids: list[str]) -> np.ndarray:
        """What popularity, or the factors, say of a user's items; 0 of users and items that train lacks."""
        items = {item: place for place, item in enumerate(self.items)}
        columns = np.array([items.get(item, -1) for item in ids], np.int64)
        if name == POPULARITY or self.factors is None:
            return np.append(self.counts, np.float32(0))[columns]
        known = {user: place for place, user in enumerate(self.users)}
        of_users = np.array([known.get(user, -1) for user in users], np.int64)[rows]
        first, second = (np.concatenate([each, np.zeros((1, each.shape[1]), np.float32)]) for each in self.factors)
        scores: np.ndarray = np.einsum("nf,nf->n", first[of_users], second[columns])
        return scores

    def findings(self) -> tuple[Finding, ...]:
        """What a reader of the comparison should know of the baselines."""
        if self.sample is None:
            return ()
        some, every = self.sample
        message = f"TF-IDF has the n-grams of {some:,} of the {every:,} training texts, drawn at random."
        return (finding("baseline-sample", "info", message, split="train"),)

    def save(self, folder: Path) -> None:
        """Write `baselines.json` and `baselines.safetensors` into `folder`, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / ARRAYS) as temporary:
            save_file({name: np.ascontiguousarray(array) for name, array in self._arrays().items()}, temporary)
        names = {
            "words": self.grams.words,
            "characters": self.grams.characters,
            "users": self.users,
            "items": self.items,
        }
        document = {name: list(each) for name, each in names.items()} | {"scores": self.scores, "sample": self.sample}
        write_json(folder / TEXT, {"format_version": FORMAT_VERSION, "kind": "relevances", **document})

    def _arrays(self) -> dict[str, np.ndarray]:
        idf = {"word_idf": self.grams.word_idf, "character_idf": self.grams.character_idf}
        factors = {} if self.factors is None else dict(zip(_FACTORS, self.factors, strict=True))
        return idf | {"counts": self.counts} | factors

    @classmethod
    def load(cls, folder: Path) -> Rankers:
        """Read what `save` wrote.

        Raises:
            ModelError: a file is missing, broken, or does not fit the other.
        """
        text = read_json(folder / TEXT)
        good = (text.get("format_version"), text.get("kind")) == (FORMAT_VERSION, "relevances")
        good = good and all(_is_names(text.get(name)) for name in _NAMES) and _is_scores(text.get("scores"))
        good = good and _is_sample(text.get("sample"))
        if not good:
            raise _broken(folder / TEXT, "names and scores of rankers", "something else")
        try:
            arrays = load_file(folder / ARRAYS)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise _broken(folder / ARRAYS, "a safetensors file", str(error)[:200]) from error
        words, characters, users, items = (tuple(text[name]) for name in _NAMES)
        lengths = {"word_idf": words, "character_idf": characters, "counts": items}
        lengths |= dict(zip(_FACTORS, (users, items), strict=True)) if _FACTORS[0] in arrays else {}
        for name, names in lengths.items():
            array = arrays.get(name)
            wide = (2 if name in _FACTORS else 1, np.dtype(np.float32), len(names))
            if array is None or (array.ndim, array.dtype, len(array)) != wide or not np.isfinite(array).all():
                raise _broken(folder / ARRAYS, f"{len(names)} finite numbers under {name}", "something else")
        factors = (arrays[_FACTORS[0]], arrays[_FACTORS[1]]) if _FACTORS[0] in arrays else None
        if factors is not None and factors[0].shape[1] != factors[1].shape[1]:
            raise _broken(folder / ARRAYS, "as many factors of users as of items", "another number")
        grams = ngrams.NGrams(words, characters, arrays["word_idf"], arrays["character_idf"])
        return cls(
            grams,
            users,
            items,
            arrays["counts"],
            factors,
            dict(text["scores"]),
            text["sample"] and tuple(text["sample"]),
        )


def _liked(inputs: Inputs, targets: Lists) -> tuple[tuple[str, ...], tuple[str, ...], sparse.csr_matrix]:
    """The users and items of training lists, and a 1 where a user liked an item (users, items)."""
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    pairs: set[tuple[int, int]] = set()
    for user, cell, relevances in zip(inputs[USER], inputs[ITEM], targets.each(), strict=True):
        row = users.setdefault(user, len(users))
        for name, relevance in zip(candidates_of(cell)[0], relevances.tolist(), strict=True):
            column = items.setdefault(name, len(items))
            if relevance > 0:
                pairs.add((row, column))
    rows, columns = np.array(sorted(pairs), np.int64).reshape(-1, 2).T
    matrix = sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=(len(users), len(items)))
    return tuple(users), tuple(items), matrix


def _factors(liked: sparse.csr_matrix, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    model = TruncatedSVD(size, random_state=seed)
    of_users = model.fit_transform(liked)
    return of_users.astype(np.float32), np.ascontiguousarray(model.components_.T, np.float32)


def _some(texts: list[str], seed: int) -> list[str]:
    """All texts, or as many drawn at random as fit into MOST_CHARACTERS."""
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    order = np.random.default_rng(seed).permutation(len(texts))
    fit = max(1, int((np.cumsum(sizes[order]) <= MOST_CHARACTERS).sum()))
    return [texts[place] for place in np.sort(order[:fit]).tolist()]


def _is_sample(value: Any) -> bool:
    return value is None or (isinstance(value, list) and len(value) == 2 and all(type(item) is int for item in value))


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value) and len(set(value)) == len(value)


def _is_scores(value: Any) -> bool:
    names = (TFIDF, POPULARITY, FACTORS)
    return isinstance(value, dict) and all(key in names and type(score) is float for key, score in value.items())


def _broken(path: Path, expected: str, got: str) -> ModelError:
    todo = "Train the run again, or take a copy of it that is whole."
    problem = Problem(expected, got, todo, Where(file=str(path)))
    return ModelError(f"Cannot read the baselines in {path.parent}.", [problem])
