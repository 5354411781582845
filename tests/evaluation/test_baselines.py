from __future__ import annotations

import csv
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chainrule.core.task import Predictions, Task
from chainrule.errors import ModelError
from chainrule.evaluation import baselines, ngrams
from chainrule.evaluation.baselines import Baselines, fit_baselines
from chainrule.tasks import multi_label_classification, regression, text_classification

pytestmark = pytest.mark.unit

Rows = tuple[dict[str, list[str]], np.ndarray]
GOOD, BAD = ["好吃", "great", "lovely", "喜欢", "works"], ["难吃", "awful", "boring", "讨厌", "broken"]
FILL = ["the", "film", "soup", "这个", "菜", "phone", "was", "really", "again", "today"]


def reviews(rows: int, seed: int, *, pairs: bool = False) -> Rows:
    generator = np.random.default_rng(seed)
    targets = (generator.random(rows) < 0.6).astype(np.int64)

    def sentence(words: list[str]) -> str:
        return " ".join(generator.permutation([*generator.choice(FILL, 4), generator.choice(words)]))

    texts = [sentence(GOOD if target else BAD) for target in targets]
    if not pairs:
        return {"text": texts}, targets
    others = [text if target else sentence(BAD) for text, target in zip(texts, targets, strict=True)]
    return {"text_a": texts, "text_b": others}, targets


def rows_of(kind: str, seed: int, rows: int = 200, *, pairs: bool = False) -> Rows:
    inputs, targets = reviews(rows, seed, pairs=pairs)
    if kind == "number":
        return inputs, targets + 0.1 * np.random.default_rng(seed).normal(size=rows)
    if kind == "classes":
        return inputs, np.stack([targets, 1 - targets, np.zeros_like(targets)], axis=1).astype(np.float32)
    return inputs, targets


TASKS = {"class": text_classification.TASK, "classes": multi_label_classification.TASK, "number": regression.TASK}
NAMES = {"class": ["bad", "good"], "classes": ["a", "b", "c"], "number": ["score"]}


def fitted(kind: str, *, pairs: bool = False) -> Baselines:
    train, validation = rows_of(kind, 0, pairs=pairs), rows_of(kind, 1, 60, pairs=pairs)
    return fit_baselines(TASKS[kind], NAMES[kind], train, validation)


def score(task: Task, rows: Rows, predictions: Predictions) -> float:
    return task.measure(rows[1], predictions)[task.primary_metric]


@pytest.mark.parametrize("kind", ["class", "classes", "number"])
@pytest.mark.parametrize("pairs", [False, True])
def test_tfidf_learns_what_the_constant_cannot(kind: str, pairs: bool) -> None:
    found = fitted(kind, pairs=pairs)
    test = rows_of(kind, 2, 80, pairs=pairs)
    predictions = found.predict(test[0])
    constant = "mean" if kind == "number" else "majority"
    assert set(predictions) == {constant, "tfidf"} == set(found.scores)
    assert found.best == "tfidf"
    assert score(TASKS[kind], test, predictions["tfidf"]) > score(TASKS[kind], test, predictions[constant]) + 0.1
    for item in predictions.values():
        assert item.values.shape == test[1].shape == item.scores.shape
        assert item.losses is None
        assert item.scores.min() >= 0
        assert item.scores.max() <= 1


@pytest.mark.parametrize("kind", ["class", "classes", "number"])
@pytest.mark.parametrize("pairs", [False, True])
def test_loading_gives_exactly_the_same_predictions(kind: str, pairs: bool, tmp_path: Path) -> None:
    found = fitted(kind, pairs=pairs)
    inputs = rows_of(kind, 3, 50, pairs=pairs)[0]
    found.save(tmp_path / "baselines")
    again = Baselines.load(tmp_path / "baselines")
    assert sorted(path.suffix for path in (tmp_path / "baselines").iterdir()) == [".json", ".safetensors"]
    for one, two in zip(found.predict(inputs).values(), again.predict(inputs).values(), strict=True):
        assert np.array_equal(one.values, two.values)
        assert np.array_equal(one.scores, two.scores)
    assert (again.best, again.strength, again.scores) == (found.best, found.strength, found.scores)


def test_fitting_is_the_same_each_time_and_tells_its_progress() -> None:
    lines: list[str] = []
    one, two = (
        fit_baselines(TASKS["class"], NAMES["class"], rows_of("class", 0), rows_of("class", 1), 3, lines.append)
        for _ in range(2)
    )
    assert np.array_equal(one.linear.coefficients, two.linear.coefficients)
    assert lines[0].startswith("TF-IDF: ")
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]


def test_more_than_two_classes_and_one_that_never_appears() -> None:
    inputs, targets = reviews(150, 0)
    task = TASKS["class"]
    found = fit_baselines(task, ["a", "b", "never"], (inputs, targets), reviews(50, 1))
    test = reviews(50, 2)
    predictions = found.predict(test[0])
    assert score(task, test, predictions["tfidf"]) > 0.9
    assert predictions["majority"].values.tolist() == [1] * 50


def test_without_validation_tfidf_counts_as_the_better_one() -> None:
    none: Rows = ({"text": []}, np.zeros(0, dtype=np.int64))
    found = fit_baselines(TASKS["class"], NAMES["class"], rows_of("class", 0), none)
    assert found.best == "tfidf"
    assert found.scores == {}


def test_noise_leaves_the_majority_as_the_better_one() -> None:
    generator = np.random.default_rng(5)
    texts = ["😀", "🙃", "…"]

    def noise(rows: int) -> Rows:
        return {"text": list(generator.choice(texts, rows))}, (generator.random(rows) < 0.8).astype(np.int64)

    found = fit_baselines(TASKS["class"], NAMES["class"], noise(100), noise(60))
    assert found.best == "majority"


@pytest.mark.parametrize("texts", [["", " ", ""], ["\ud800", "a\ud800", "b"], ["\x00", "a", "\u200b"]])
def test_strange_texts_are_no_obstacle(texts: list[str], tmp_path: Path) -> None:
    rows: Rows = ({"text": texts}, np.array([0, 1, 0]))
    found = fit_baselines(TASKS["class"], NAMES["class"], rows, rows)
    found.save(tmp_path / "b")
    assert len(Baselines.load(tmp_path / "b").predict(rows[0])["tfidf"]) == 3


def test_width_is_what_transform_gives() -> None:
    for inputs in ([["a b", "b c"]], [["a b", "b c"], ["a", "c"]]):
        grams, features = ngrams.fit(inputs, 2)
        again = ngrams.transform(grams, inputs)
        assert features.shape == again.shape == (2, ngrams.width(len(grams), len(inputs)))
        assert abs(features - again).max() == 0
        assert features.dtype == np.float32


def test_what_is_fitted_is_bounded_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, validation = rows_of("class", 0, pairs=True), rows_of("class", 1, 60, pairs=True)
    whole = fit_baselines(TASKS["class"], NAMES["class"], train, validation)
    assert (whole.sample, whole.findings()) == (None, ())
    size = sum(map(len, [*train[0]["text_a"], *train[0]["text_b"]]))
    monkeypatch.setattr(baselines, "MOST_CHARACTERS", size // 2)
    found = fit_baselines(TASKS["class"], NAMES["class"], train, validation)
    assert found.sample is not None
    assert 90 < found.sample[0] < 110
    assert found.sample[1] == 200
    assert found.findings()[0].message == (
        f"TF-IDF was fitted on {found.sample[0]} of the 200 training rows, drawn at random: more would fill the memory."
    )
    assert np.array_equal(found.constant.shares, whole.constant.shares)
    assert score(TASKS["class"], validation, found.predict(validation[0])["tfidf"]) > 0.9
    found.save(tmp_path / "b")
    assert Baselines.load(tmp_path / "b").sample == found.sample
    text = json.loads((tmp_path / "b" / "baselines.json").read_text(encoding="utf-8"))
    del text["sample"]  # as older versions wrote it
    (tmp_path / "b" / "baselines.json").write_text(json.dumps(text), encoding="utf-8")
    assert Baselines.load(tmp_path / "b").sample is None
    monkeypatch.setattr(baselines, "MOST_CHARACTERS", 1)
    assert fit_baselines(TASKS["class"], NAMES["class"], train, validation).sample == (1, 200)


def test_predicting_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found, rows = fitted("classes", pairs=True), rows_of("classes", 4, 50, pairs=True)[0]
    whole = found.predict(rows)
    monkeypatch.setattr(baselines, "_CHUNK_ROWS", 7)
    for one, two in zip(whole.values(), found.predict(rows).values(), strict=True):
        assert np.array_equal(one.values, two.values)
        assert np.array_equal(one.scores, two.scores)


def test_ngrams_are_chosen_from_some_of_the_texts_and_counted_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = reviews(400, 0)[0]["text"]
    whole, _ = ngrams.fit([texts], 2)
    monkeypatch.setattr(ngrams, "_ENOUGH", sum(map(len, texts)) // 2)
    grams, features = ngrams.fit([texts], 2)
    assert features.shape == (400, len(grams))
    assert set(grams.words) < set(whole.words)
    assert {*GOOD, *BAD} <= set(grams.words)
    idf = dict(zip(whole.words, whole.word_idf, strict=True))
    assert [idf[word] for word in grams.words] == grams.word_idf.tolist()
    assert abs(features - ngrams.transform(grams, [texts])).max() == 0


def edit(**changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "baselines.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")

    return apply


def overwrite(name: str, content: bytes) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return apply


HUGE = b'{"coefficients":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}'


@pytest.mark.parametrize(
    "spoil",
    [
        edit(outputs=10**6),
        edit(outputs=-1),
        edit(constants=2),
        edit(words=["a", "a"]),
        edit(words=[1]),
        edit(words=[]),
        edit(fields=["a", "b", "c"]),
        edit(kind="pickle"),
        edit(best="other"),
        edit(strength=float("nan")),
        edit(scores={"tfidf": "1"}),
        edit(format_version=99),
        overwrite("baselines.json", b"[" * 100_000),
        overwrite("baselines.json", b"[1]"),
        overwrite("baselines.json", b"\xff\xfe"),
        overwrite("baselines.safetensors", b""),
        overwrite("baselines.safetensors", b"\xff" * 64),
        overwrite("baselines.safetensors", struct.pack("<Q", len(HUGE)) + HUGE),
        overwrite("baselines.safetensors", bytes(50_000_000)),
        lambda folder: (folder / "baselines.json").unlink(),
        lambda folder: (folder / "baselines.safetensors").unlink(),
    ],
)
def test_hostile_files_are_refused(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    rows: Rows = ({"text": ["one two", "three", "two one"]}, np.array([0, 1, 0]))
    fit_baselines(TASKS["class"], NAMES["class"], rows, rows).save(tmp_path / "b")
    spoil(tmp_path / "b")
    with pytest.raises(ModelError, match="baselines"):
        Baselines.load(tmp_path / "b")


def test_a_majority_class_that_is_no_class_is_refused(tmp_path: Path) -> None:
    rows: Rows = ({"text": ["one two", "three", "two one"]}, np.array([0, 1, 0]))
    found = fit_baselines(TASKS["class"], NAMES["class"], rows, rows)
    found.constant.values[0] = 7
    found.save(tmp_path / "b")
    with pytest.raises(ModelError, match="constant"):
        Baselines.load(tmp_path / "b")


def test_real_chinese_reviews(shared_data: Callable[[str], Path]) -> None:
    with (shared_data("chnsenticorp") / "train.csv").open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))[::6]
    names = sorted({row["label"] for row in read})
    texts, targets = [row["text"] for row in read], np.array([names.index(row["label"]) for row in read])
    task = TASKS["class"]
    found = fit_baselines(
        task, names, ({"text": texts[:1000]}, targets[:1000]), ({"text": texts[1000:1200]}, targets[1000:1200])
    )
    test: Rows = ({"text": texts[1200:]}, targets[1200:])
    assert score(task, test, found.predict(test[0])["tfidf"]) > 0.8
