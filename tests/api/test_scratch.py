"""A model made from the training rows does everything that a pretrained one does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import chainrule
from chainrule.core.artifact import Run
from chainrule.errors import DataError, ModelError, RecipeError
from chainrule.models import recurrent
from chainrule.system.files import sha256
from chainrule.system.progress import Quiet
from chainrule.testing.data import pairs, rated, sentences, tagged, write_csv
from chainrule.testing.models import tiny_model
from chainrule.training import building

pytestmark = pytest.mark.unit

SMALL = {"model": "lstm", "model.options.hidden_size": 32, "model.options.embedding_size": 16}
SETTINGS = {**SMALL, "training.precision": "float32", "training.threads": 1}
CHINESE = [
    {"text": f"{place}{'很好' if n % 3 else '太差'}", "label": "好" if n % 3 else "差"}
    for n in range(12)
    for place in "店房菜"
]


class Told(Quiet):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture(scope="module")
def told() -> Told:
    return Told()


@pytest.fixture(scope="module")
def made(reviews: Path, told: Told, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with the defaults of such a model but for its size."""
    out = tmp_path_factory.mktemp("runs") / "lstm"
    return chainrule.train(str(reviews), out=out, settings={**SETTINGS, "optimizer.learning_rate": 5e-3}, display=told)


def test_it_learns_and_says_what_it_is(made: Run, told: Told) -> None:
    assert made.summary["metrics"]["accuracy"] > 0.9
    assert made.summary["trained_parameters"] == made.summary["parameters"]
    size = len(PreTrainedTokenizerFast.from_pretrained(made.artifact.path))
    said = [line for line in told.lines if line.startswith(("Vocabulary", "The artifact"))]
    assert said == [
        f"Vocabulary: {size} entries (words) from the training rows; 0.0 % of the validation tokens are unknown.",
        "The artifact will load in Chainrule alone, because transformers has no such LSTM; its tokenizer will load "
        "with transformers' PreTrainedTokenizerFast.",
    ]
    manifest = made.artifact.manifest
    assert (manifest.loads_in, manifest.base_model, manifest.base_sha256) == (("chainrule",), "lstm", None)
    card = (made.artifact.path / "README.md").read_text(encoding="utf-8")
    assert "# lstm, trained from scratch for text classification" in card
    assert "without pretrained weights: vocabulary word; vocabulary\\_size 30000; " in card
    assert "licence of the base model" not in card
    assert "PreTrainedTokenizerFast" in card
    assert "AutoModel" not in card


def test_what_it_leaves_open_is_its_own_default(reviews: Path, tmp_path: Path) -> None:
    settings = {"model": "lstm", "training.steps": 1, "training.threads": 1}
    run = chainrule.train(str(reviews), out=tmp_path / "run", settings=settings)
    recipe = chainrule.core.recipe.read_recipe(run.path / "resolved.yaml")
    assert recipe.optimizer.learning_rate == recurrent.LEARNING_RATE
    assert recipe.training.epochs == recurrent.EPOCHS
    assert recipe.model.options == recurrent.Options(vocabulary="word", embedding_size=128).model_dump(mode="json")


def test_evaluate_predict_and_show(made: Run, reviews: Path, tmp_path: Path) -> None:
    report = chainrule.evaluate(made, split="validation")
    for name in ("accuracy", "loss"):
        assert report.metrics[name].value == pytest.approx(made.summary["metrics"][name], abs=1e-5)
    texts = ["a great film", "unheard-of words, 不", "bad"]
    found = chainrule.predict(made, text=texts)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in made.artifact.path.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    assert chainrule.predict(moved, text=texts) == found
    assert chainrule.predict(moved, text=texts[2]) == [pytest.approx(found[2])]  # type: ignore[index]
    assert chainrule.show(moved)["artifact"]["base_model"] == "lstm"
    row = next(row for row in chainrule.show("catalog")["models"] if row["name"] == "lstm")
    assert row["options"]["vocabulary"] == "auto"
    assert chainrule.check(str(reviews), model="lstm").splits["train"].lengths["tokens_mean"] > 2


@pytest.mark.parametrize(
    ("task", "rows"),
    [
        ("text-classification", pairs(60)),
        ("text-classification", CHINESE),
        ("multi-label-classification", tagged(60)),
        ("regression", rated(60, mean=500.0, scale=100.0)),
    ],
)
def test_every_task_of_texts(task: str, rows: list[dict[str, str]], tmp_path: Path) -> None:
    data = write_csv(tmp_path / "data.csv", rows)
    settings = {**SETTINGS, "training.steps": 16, "optimizer.learning_rate": 1e-2}
    run = chainrule.train(str(data), task=task, out=tmp_path / "run", settings=settings)
    losses = [event["loss"] for event in run.events() if event["event"] == "step"]
    assert sum(losses[-4:]) < sum(losses[:4])
    report = chainrule.evaluate(run, split="validation")
    assert report.metrics["loss"].value == pytest.approx(run.summary["metrics"]["loss"], rel=1e-3)
    unit = run.artifact.manifest.recipe["model"]["options"]["vocabulary"]
    assert unit == ("character" if rows is CHINESE else "word")


def test_the_vocabulary_is_that_of_the_training_rows(tmp_path: Path) -> None:
    rows = sentences(60)
    for name, word in (("train", ""), ("validation", "onlyvalidation"), ("test", "onlytest")):
        write_csv(tmp_path / "data" / f"{name}.csv", [{**row, "text": f"{row['text']} {word} {word}"} for row in rows])
    settings = {**SETTINGS, "training.steps": 1, "model.options.min_count": 1}
    run = chainrule.train(str(tmp_path / "data"), out=tmp_path / "run", settings=settings)
    vocabulary = PreTrainedTokenizerFast.from_pretrained(run.artifact.path).get_vocab()
    assert {word for row in rows for word in row["text"].lower().replace(".", " .").split()} <= vocabulary.keys()
    assert not {"onlyvalidation", "onlytest"} & vocabulary.keys()


def test_each_fold_has_the_vocabulary_of_its_own_training_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": f"{row['text']} word{number}", "label": row["label"]} for number, row in enumerate(sentences(40))]
    data = write_csv(tmp_path / "data.csv", rows)
    real, seen = building.make_job, list[tuple[set[str], set[str]]]()

    def spy(recipe: Any, prepared: Any, display: Any) -> Any:
        texts = " ".join(prepared.dataset.splits["train"].inputs["text"]).split()
        own = {word for word in prepared.tokenizer.get_vocab() if word.startswith("word")}
        seen.append((own, {word for word in texts if word.startswith("word")}))
        return real(recipe, prepared, display)

    monkeypatch.setattr(chainrule.hpo.folds, "make_job", spy)
    settings = {**SETTINGS, "training.folds": 2, "training.steps": 1, "model.options.min_count": 1}
    chainrule.train(str(data), out=tmp_path / "run", settings=settings)
    assert len(seen) == 3
    assert all(own == there for own, there in seen)
    assert seen[0] != seen[1]


def test_reproduced_to_the_bit(reviews: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "training.steps": 6}
    run = chainrule.train(str(reviews), out=tmp_path / "run", settings=settings)
    assert chainrule.reproduce(run, out=tmp_path / "again").same


def test_an_lstm_reads_another_models_tokens_and_begins_with_its_embeddings(reviews: Path, tmp_path: Path) -> None:
    bert, told = tiny_model(tmp_path / "bert"), Told()
    settings = {"model": "lstm", "training.steps": 2, "training.threads": 1, "training.precision": "float32"}
    settings |= {"model.options.pieces": str(bert), "optimizer.learning_rate": 1e-9, "optimizer.weight_decay": 0.0}
    run = chainrule.train(str(reviews), out=tmp_path / "run", settings=settings, display=told)
    table = load_file(run.artifact.path / "model.safetensors")["lstm.embed_tokens.weight"]
    before = load_file(bert / "model.safetensors")
    (wanted,) = (before[name] for name in before if name.endswith("word_embeddings.weight"))
    assert torch.allclose(table, wanted[: len(table)], atol=1e-6)
    assert not any(line.startswith("Vocabulary: ") for line in told.lines)  # it is not of these rows
    assert f"Embeddings: {len(table):,} of {bert}, {table.shape[1]} numbers each." in told.lines
    tokenizer = PreTrainedTokenizerFast.from_pretrained(run.artifact.path)
    text = "a good film, and a very long one"
    assert tokenizer(text)["input_ids"] == AutoTokenizer.from_pretrained(bert)(text)["input_ids"]
    assert "token_type_ids" not in tokenizer(text)
    assert run.artifact.manifest.recipe["model"]["options"]["pieces"] == "bert"
    assert run.artifact.manifest.base_sha256 == sha256(bert / "model.safetensors")
    moved = Path(shutil.copytree(run.artifact.path, tmp_path / "moved"))
    shutil.rmtree(bert)  # the artifact stands by itself
    assert chainrule.predict(moved, str(reviews)) == chainrule.predict(run, str(reviews))
    for change, match in (
        ({"model.options.vectors": "x.txt"}, "no vectors and no vocabulary beside pieces, which have both"),
        ({"model.options.vocabulary": "word"}, "no vectors and no vocabulary beside pieces, which have both"),
    ):
        with pytest.raises(RecipeError, match=match):
            chainrule.train(str(reviews), out=tmp_path / "other", settings=settings | change)
    with pytest.raises(ModelError, match=r"expected a model folder, a catalog name or a hub name, got no such folder"):
        chainrule.train(str(reviews), out=tmp_path / "other", settings=settings)


def test_vectors_begin_the_embeddings(reviews: Path, tmp_path: Path) -> None:
    vectors, told = tmp_path / "vectors.txt", Told()
    vectors.write_text("good 1 0 2 0\nnowhere 0 0 0 1\nbad -1 0 -2 0\n", encoding="utf-8")
    settings = {"model": "lstm", "training.steps": 2, "training.threads": 1, "training.precision": "float32"}
    settings |= {"model.options.vectors": str(vectors), "optimizer.learning_rate": 1e-9, "optimizer.weight_decay": 0.0}
    run = chainrule.train(str(reviews), out=tmp_path / "run", settings=settings, display=told)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(run.artifact.path)
    assert f"Vectors: {vectors} has 2 of the {len(tokenizer) - 3} entries of the vocabulary." in told.lines
    table = load_file(run.artifact.path / "model.safetensors")["lstm.embed_tokens.weight"]
    assert table.shape == (len(tokenizer), 4)
    assert table[tokenizer.convert_tokens_to_ids("bad")].tolist() == pytest.approx([-1, 0, -2, 0], abs=1e-6)
    assert run.artifact.manifest.recipe["model"]["options"]["vectors"] == "vectors.txt"
    assert run.artifact.manifest.base_sha256 == json.loads((run.path / "inputs.json").read_text())["base_sha256"]
    vectors.write_text("good 1 0 2 1\n", encoding="utf-8")
    with pytest.raises(DataError, match="expected the word vectors that the run began with, got other weights"):
        chainrule.reproduce(run, out=tmp_path / "again")
    settings["training.steps"] = 1
    for change, error, match in (
        ({"model.options.embedding_size": 8}, RecipeError, "expected 4, the size of the vectors, got 8"),
        ({"model.options.vectors": str(reviews)}, ModelError, "expected a word and its numbers"),
    ):
        with pytest.raises(error, match=match):
            chainrule.train(str(reviews), out=tmp_path / "other", settings=settings | change)
    vectors.write_text("nowhere 0 1\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="These vectors are of no use here"):
        chainrule.train(str(reviews), out=tmp_path / "other", settings=settings)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("strategy", ["head", "lora", "contrastive", "auto"])
def test_other_strategies_are_refused_before_anything_is_read(strategy: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        chainrule.train("no-such-file.csv", model="lstm", strategy=strategy, out=tmp_path / "run")
    assert str(caught.value) == (
        "The model 'lstm' is trained from scratch.\n  - field 'strategy.name': expected full, as nothing of this model "
        f"is pretrained, got {strategy!r}. Leave --strategy out."
    )


def test_with_another_head_with_layer_rates_and_with_regularisers(reviews: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "training.steps": 4, "structure.pooling": "attention", "structure.head": "cnn"}
    settings |= {"model.options.layers": 2, "optimizer.layer_decay": 0.9, "training.averaging": "ema"}
    settings |= {"regularisers": {"r-drop": {}, "fgm": {}, "l2": {"strength": 0.1}}, "training.watch_gradients": True}
    run = chainrule.train(str(reviews), out=tmp_path / "run", settings=settings)
    report = chainrule.evaluate(run, split="validation")
    assert report.metrics["loss"].value == pytest.approx(run.summary["metrics"]["loss"], abs=1e-5)
    assert {"layer 0", "layer 1"} <= set(chainrule.show("gradients", run)["middle"])


@pytest.mark.parametrize("strategy", ["full", "gradual", "bitfit"])
def test_once_trained_it_is_trained_on_like_a_pretrained_model(
    strategy: str, made: Run, reviews: Path, tmp_path: Path
) -> None:
    settings = {"model": str(made.artifact.path), "training.steps": 2, "training.threads": 1}
    run = chainrule.train(str(reviews), strategy=strategy, out=tmp_path / "run", settings=settings)
    assert run.summary["metrics"]["accuracy"] > 0.9
    assert run.artifact.manifest.loads_in == ("chainrule",)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("lora", "expected a model with linear layers below its head, got none. Use --strategy full."),
        (
            "prompt",
            "expected a model with attention, whose tokens all see the prompt, got an LSTM. Use --strategy full",
        ),
    ],
)
def test_what_needs_other_layers_is_refused(
    strategy: str, expected: str, made: Run, reviews: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError) as caught:
        chainrule.train(str(reviews), model=str(made.artifact.path), strategy=strategy, out=tmp_path / "run")
    assert expected in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("sst2", 0.72), ("chnsenticorp", 0.8)])
def test_real_rows_are_learned(name: str, least: float, shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    run = chainrule.train(str(shared_data(name)), model="lstm", epochs=3, out=tmp_path / "run")
    assert run.summary["metrics"]["accuracy"] > least
