"""The baselines of ranking: what they say, that they are kept, and that damaged files are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from chainrule.core.lists import Lists
from chainrule.core.recipe import Data
from chainrule.core.task import Task
from chainrule.data.load import Split, load
from chainrule.errors import ModelError
from chainrule.evaluation.rankers import FACTORS, POPULARITY, TFIDF, Inputs, Rankers
from chainrule.tasks import find_task
from chainrule.testing.data import tastes

pytestmark = pytest.mark.unit
TASK: Task = find_task("ranking")


def rows(split: Split) -> tuple[Inputs, Lists]:
    return split.inputs, split.targets


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Split]:
    return load(tastes(tmp_path_factory.mktemp("tastes"), users=200), Data(), TASK).splits


@pytest.fixture(scope="module")
def fitted(splits: dict[str, Split]) -> Rankers:
    return Rankers.fit(TASK, rows(splits["train"]), rows(splits["validation"]), seed=0)


def queries(*pairs: tuple[str, list[str]]) -> Inputs:
    return {"query": [query for query, _ in pairs], "item": [json.dumps(texts) for _, texts in pairs]}


def test_popularity_counts_users_and_factors_are_those_of_the_matrix(fitted: Rankers, splits: dict[str, Split]) -> None:
    train = splits["train"]
    liked = np.zeros((len(fitted.users), len(fitted.items)))
    for user, cell in zip(train.inputs["user"], train.inputs["item"], strict=True):
        liked[fitted.users.index(user), fitted.items.index(json.loads(cell)[0][0])] = 1
    assert fitted.counts.tolist() == liked.sum(axis=0).tolist()
    assert fitted.factors is not None
    of_users, of_items = fitted.factors
    size = of_users.shape[1]
    left, values, right = np.linalg.svd(liked)
    best = (left[:, :size] * values[:size]) @ right[:size]
    distance = np.linalg.norm(of_users @ of_items.T - liked)
    assert distance == pytest.approx(np.linalg.norm(best - liked), rel=0.02)
    np.testing.assert_allclose(of_users, liked @ of_items, atol=1e-4)  # PureSVD's scores: a user's row times V Vᵀ


def test_users_of_one_taste_are_told_from_the_others(fitted: Rankers, splits: dict[str, Split]) -> None:
    assert set(fitted.scores) == {TFIDF, POPULARITY, FACTORS}
    assert fitted.scores[FACTORS] > fitted.scores[POPULARITY]
    said = fitted.predict(splits["test"].inputs)
    scores = {name: TASK.measure(splits["test"].targets, each) for name, each in said.items()}
    assert scores[FACTORS]["auc"] > 0.6 > scores[POPULARITY]["auc"]


def test_unknown_users_and_items_are_worth_nothing(fitted: Rankers) -> None:
    cell = json.dumps([["i999", "a film"], [fitted.items[0], "a book"]])
    said = fitted.predict({"query": ["x"], "item": [cell], "user": ["nobody"]})
    assert said[FACTORS].values.numbers.tolist() == [0, 0]
    assert said[POPULARITY].values.numbers[0] == 0


def test_cosine_ranks_the_text_that_shares_words() -> None:
    train = queries(("a good film", ["the film was good", "a room"]), ("cold room", ["a cold room", "it is"]))
    targets = Lists(np.array([0, 2, 4]), np.array([1, 0, 1, 0], np.float32))
    made = Rankers.fit(TASK, (train, targets), (queries(), targets[np.zeros(0, np.int64)]), seed=0)
    assert made.best == TFIDF
    assert made.scores == {}
    said = made.predict(queries(("room that is cold", ["the cold room", "a good film", "room that is cold"])))
    first, second, third = said[TFIDF].values.numbers.tolist()
    assert second < first < third == pytest.approx(2)  # of words and of characters, each at most 1
    assert list(said) == [TFIDF]


def test_kept_and_read_again(fitted: Rankers, splits: dict[str, Split], tmp_path: Path) -> None:
    fitted.save(tmp_path)
    again = Rankers.load(tmp_path)
    inputs = splits["validation"].inputs
    for name, said in fitted.predict(inputs).items():
        assert np.array_equal(said.values.numbers, again.predict(inputs)[name].values.numbers)
    assert (again.best, again.scores, again.sample) == (fitted.best, fitted.scores, None)
    sampled = replace(fitted, sample=(3, 5))
    sampled.save(tmp_path)
    (told,) = Rankers.load(tmp_path).findings()
    assert told.message == "TF-IDF has the n-grams of 3 of the 5 training texts, drawn at random."


@pytest.mark.parametrize("damage", ["kind", "items", "scores", "sample", "of_users", "counts", "missing"])
def test_damaged_files_are_refused(damage: str, fitted: Rankers, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    file, arrays = tmp_path / "baselines.json", load_file(tmp_path / "baselines.safetensors")
    text = json.loads(file.read_text(encoding="utf-8"))
    if damage in ("of_users", "counts"):
        arrays[damage] = arrays[damage][1:] if damage == "counts" else arrays[damage][:, 1:].copy()
        save_file(arrays, tmp_path / "baselines.safetensors")
    elif damage == "missing":
        (tmp_path / "baselines.safetensors").unlink()
    else:
        text[damage] = {"kind": "answers", "items": ["a", "a"], "scores": {"best": 1.0}, "sample": [1]}[damage]
        file.write_text(json.dumps(text), encoding="utf-8")
    with pytest.raises(ModelError, match="Cannot read the baselines"):
        Rankers.load(tmp_path)
