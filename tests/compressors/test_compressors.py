"""Smaller models: as good as before, or not put in place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import chainrule
from chainrule.api.exporting import rows_of_split
from chainrule.cli import main
from chainrule.compressors.base import Given
from chainrule.compressors.int8 import Int8, Options
from chainrule.compressors.vocabulary import cut, tokens_to_keep
from chainrule.core.artifact import Artifact, Run, Speed
from chainrule.errors import GateError, ModelError, RecipeError
from chainrule.evaluation.parity import Bound
from chainrule.evaluation.speed import require_faster
from chainrule.inference.predict import load_predictor
from chainrule.system.progress import Quiet
from chainrule.testing.data import WORDS, sentences, write_csv
from chainrule.testing.runs import short_run

pytestmark = pytest.mark.unit


class Told(Quiet):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return short_run("text-classification", tmp_path_factory.mktemp("run") / "x", training__steps=60)


def test_int8_is_a_model_of_openvino(run: Run, tmp_path: Path) -> None:
    limits: Any = {"allow_slower": True, "loss": 5.0, "worst": 100.0}
    artifact, step = chainrule.compress(run, tmp_path / "small", to="int8", **limits)
    assert artifact.manifest.runtime == "openvino"
    assert step.parity.metric == "accuracy"
    assert step.parity.difference is not None
    assert step.parity.difference >= -0.05
    assert step.speed is not None
    assert min(*step.speed.rows_per_second, *step.speed.milliseconds) > 0
    sizes = [
        sum(f.stat().st_size for f in folder.glob("*.[bs][ia][nf]*"))
        for folder in (run.path / "artifact", artifact.path)
    ]
    assert sizes[1] < sizes[0]
    kinds = {element for element in (artifact.path / "openvino_model.xml").read_text().split('"') if element == "i8"}
    assert kinds == {"i8"}  # weights of eight bits
    rows = chainrule.predict(tmp_path / "small", text=["a good film", "a bad room"])
    assert isinstance(rows, list)
    assert [set(row) for row in rows] == [{"predicted_label", "predicted_score"}] * 2


@pytest.mark.slow
@pytest.mark.parametrize("task", ["token-classification", "image-classification", "regression"])
def test_int8_of_other_tasks(task: str, tmp_path: Path) -> None:
    made = short_run(task, tmp_path / "x")
    limits: Any = {"allow_slower": True, "loss": 100.0, "worst": 1000.0}
    _, step = chainrule.compress(made, tmp_path / "small", to="int8", options={"rows": 16}, **limits)
    assert step.parity.distance < 0.5 * step.parity.largest


def test_where_rounding_costs_too_much_the_model_is_trained_with_it(run: Run, tmp_path: Path) -> None:
    """Too much is here whatever is no point better; killed, the training goes on."""
    parent, told = load_predictor(run.artifact, device="cpu", precision="float32"), Told()
    seen, train = (rows_of_split(parent, None, split) for split in ("validation", "train"))
    source = str(run.path.parent / "rows" / "rows.csv")
    given = Given(seen.encoded, train.encoded, -0.01, told, source, tmp_path / "training")
    options = Options(rows=16, restore=False, settings={"training.threads": 1})
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        assert Int8(options).write(parent, tmp_path / folder, given, Bound()).runtime == "openvino"
        (tmp_path / "training" / "run" / "summary.json").unlink()  # as if it had been killed before its last file
    recipe = chainrule.read_recipe(tmp_path / "training" / "run" / "resolved.yaml")
    assert recipe.regularisers == {"rounding": {"bits": 8, "inputs": True}}
    assert recipe.distillation.teachers == (str(run.artifact.path),)
    assert recipe.training.epochs == 1.0
    assert not recipe.training.accelerate
    after = [line for line in told.lines if line.startswith("accuracy after training with rounding: ")]
    assert len(after) == 2
    assert after[0] == after[1]
    assert f"Going on with what was begun in {tmp_path / 'training'}." in told.lines


def test_what_loses_too_much_is_not_put_in_place(laconic: Run, tmp_path: Path) -> None:
    """It would have to be a point better."""
    limits: Any = {"loss": -1.0}
    with pytest.raises(GateError, match="compress --to vocabulary gave another model; it was not put in place") as told:
        chainrule.compress(laconic, tmp_path / "small", to="vocabulary", **limits)
    assert told.value.problems[0].expected.startswith("accuracy at most -0.01 lower than")
    assert not (tmp_path / "small").exists()


@pytest.fixture(scope="module")
def laconic(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trained on rows of few words; "phone" stands in two of them."""
    folder = tmp_path_factory.mktemp("laconic")
    rows = [
        {"text": f"{word} {thing} {number}", "label": label}
        for number in range(40)
        for word, label in (("good", "positive"), ("bad", "negative"))
        for thing in ("film", "room")
    ]
    rows += [{"text": "good phone", "label": "positive"}, {"text": "good phone 7", "label": "positive"}]
    data = write_csv(folder / "rows.csv", rows)
    return short_run("text-classification", folder / "x", rows=data, training__steps=30)


def test_a_smaller_vocabulary_says_the_same(laconic: Run, tmp_path: Path) -> None:
    run = laconic
    artifact, step = chainrule.compress(run, tmp_path / "small", to="vocabulary")
    assert step.parity.covered == 1.0
    assert step.parity.agreement == 1.0
    assert step.parity.distance <= 1e-4 * step.parity.largest
    tokenizer = AutoTokenizer.from_pretrained(artifact.path)
    model = AutoModelForSequenceClassification.from_pretrained(artifact.path).eval()
    before = len(AutoTokenizer.from_pretrained(run.path / "artifact"))
    assert len(tokenizer) == model.config.vocab_size == len(model.get_input_embeddings().weight) < before
    text = "good film 3"
    found = model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1).max().item()
    (row,) = chainrule.predict(run, text=text)  # type: ignore[misc]
    assert found == pytest.approx(row["predicted_score"], abs=1e-3)
    again, _ = chainrule.compress(
        artifact, tmp_path / "smaller", to="int8", data=_data(tmp_path), allow_slower=True, worst=100
    )
    assert [done.step for done in again.manifest.lineage] == ["compress --to vocabulary", "compress --to int8"]
    assert again.manifest.parent == artifact.manifest.weights_sha256


def _data(folder: Path) -> str:
    data = folder / "new"
    data.mkdir()
    for seed, name in enumerate(("train", "validation", "test")):
        write_csv(data / f"{name}.csv", sentences(60, seed=seed))
    return str(data)


TEXTS = st.lists(st.sampled_from([*WORDS, "unheard", "of", "你好", "2024", "!"]), min_size=1, max_size=8).map(" ".join)


def _tokenizers() -> dict[str, Tokenizer]:
    texts = [" ".join(WORDS), "low lower lowest new newer newest wide wider widest 你好 2024 !"] * 8
    made = {}
    for name, model, trainer in (
        ("WordPiece", models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer),
        ("BPE", models.BPE(unk_token="[UNK]"), trainers.BpeTrainer),
        ("Unigram", models.Unigram(), trainers.UnigramTrainer),
    ):
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        how: dict[str, Any] = {"special_tokens": ["[UNK]", "[PAD]"], "vocab_size": 300, "show_progress": False}
        how |= {"unk_token": "[UNK]"} if name == "Unigram" else {}
        tokenizer.train_from_iterator(texts, trainer(**how))
        made[name] = tokenizer
    return made


@pytest.mark.parametrize("kind", ["WordPiece", "BPE", "Unigram"])
@settings(max_examples=60)
@given(kept=st.lists(TEXTS, min_size=1, max_size=5), others=st.lists(TEXTS, max_size=5))
def test_covered_texts_are_cut_into_the_same_tokens(kind: str, kept: list[str], others: list[str]) -> None:
    tokenizer = _TOKENIZERS[kind]
    stored = json.loads(tokenizer.to_str())
    numbers = tokens_to_keep(stored, {number for text in kept for number in tokenizer.encode(text).ids})
    smaller = Tokenizer.from_str(json.dumps(cut(stored, sorted(numbers))))
    names = {tokenizer.id_to_token(number) for number in numbers}
    assert smaller.get_vocab_size() == len(numbers)
    for text in (*kept, *others):
        tokens = tokenizer.encode(text).tokens
        if text in kept or set(tokenizer.encode(text).ids) <= numbers:
            assert smaller.encode(text).tokens == tokens
        assert set(smaller.encode(text).tokens) <= names | {"[UNK]"} | set(text)


_TOKENIZERS = _tokenizers()


def test_only_a_faster_model_passes() -> None:
    def speed(many: float, single: float) -> Speed:
        return Speed(rows_per_second=(100.0, 100.0 * many), milliseconds=(10.0, 10.0 / single), threads=1)

    require_faster(speed(1.5, 1.0), "this")
    require_faster(speed(1.0, 1.2), "this")
    for slow in (speed(1.02, 1.03), speed(0.6, 2.0), speed(2.0, 0.5)):
        with pytest.raises(GateError, match="this gave no faster model on this machine; it was not put in place"):
            require_faster(slow, "this")


def test_what_cannot_be_compressed_is_refused(run: Run, tmp_path: Path) -> None:
    chat = short_run("text-generation", tmp_path / "chat")
    with pytest.raises(ModelError) as told:
        chainrule.compress(chat, tmp_path / "out", to="vocabulary")
    assert told.value.problems[0].got == "one that writes text, and may need any token"
    with pytest.raises(RecipeError, match="int2"):
        chainrule.compress(run, tmp_path / "out", to="int2")
    chainrule.export(run, "hf", tmp_path / "alone")
    with pytest.raises(RecipeError, match="There are no rows to choose by, or none to judge by"):
        chainrule.compress(tmp_path / "alone", tmp_path / "out")
    one = write_csv(tmp_path / "one.csv", sentences(50, seed=3))
    with pytest.raises(RecipeError) as other:
        chainrule.compress(tmp_path / "alone", tmp_path / "out", data=str(one))
    assert other.value.problems[0].got == "none, or only one of them"
    assert not (tmp_path / "out").exists()


def test_the_command(laconic: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["compress", str(laconic.path), "--to", "vocabulary", "--out", str(tmp_path / "out"), "--json"])
    assert stop.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["parity"]["covered"] == 1.0
    assert len(printed["speed"]["rows_per_second"]) == 2
    with pytest.raises(SystemExit) as stop:
        main(
            ["compress", str(laconic.path), "--to", "vocabulary", "--out", str(tmp_path / "words"), "--set", "least=2"]
        )
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "compress --to vocabulary:" in shown
    assert "Measured in turn on this machine with 1 threads." in shown
    assert len(AutoTokenizer.from_pretrained(tmp_path / "words")) <= len(
        AutoTokenizer.from_pretrained(tmp_path / "out")
    )
    assert np.isfinite(Artifact.read(tmp_path / "words").manifest.lineage[0].parity.distance)
