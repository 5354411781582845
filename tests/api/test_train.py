"""`train` from rows to a run folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

import chainrule
from chainrule.core.artifact import Run
from chainrule.errors import DivergedError, OutputError, RecipeError
from chainrule.inference.predict import load_predictor
from chainrule.testing.data import pairs, rated, sentences, tagged, write_csv
from chainrule.testing.processes import Command

pytestmark = pytest.mark.unit

PLAIN_TRANSFORMERS = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
for line in sys.stdin:
    folder, texts = json.loads(line)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    assert "chainrule" not in sys.modules
    with torch.no_grad():
        logits = model(**tokenizer(texts, padding=True, truncation=True, return_tensors="pt")).logits
    print(json.dumps([logits.tolist(), model.config.id2label, tokenizer.model_max_length]), flush=True)
"""


def settings(model: Path, **more: Any) -> dict[str, Any]:
    plain = {"model": str(model), "training.precision": "float32", "training.threads": 1}
    return plain | {"optimizer.learning_rate": 5e-3} | more


PlainLogits = Callable[[Path, list[str]], tuple[np.ndarray, dict[str, str], int]]


@pytest.fixture(scope="module")
def plain_logits() -> Iterator[PlainLogits]:
    """Logits by plain transformers in a process that has never imported Chainrule."""
    command = [sys.executable, "-c", PLAIN_TRANSFORMERS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        asked, answered = process.stdin, process.stdout
        assert asked is not None
        assert answered is not None

        def ask(folder: Path, texts: list[str]) -> tuple[np.ndarray, dict[str, str], int]:
            asked.write(json.dumps([str(folder), texts]) + "\n")
            asked.flush()
            logits, labels, length = json.loads(answered.readline())
            return np.array(logits), labels, length

        yield ask
    assert process.returncode == 0


def test_a_run_folder_holds_all_that_is_promised(trained: Run) -> None:
    names = {entry.name for entry in trained.path.iterdir()}
    assert names == {
        "artifact", "baselines", "check.json", "environment.json", "evaluations", "events.jsonl", "inputs.json",
        "recipe.yaml", "report.html", "resolved.yaml", "started.json", "summary.json", ".lock",
    }  # fmt: skip
    assert {
        "run", "artifact", "strategy", "trained_parameters", "metrics", "primary_metric", "seconds", "seconds_total",
        "peak_memory_mb",
    } <= set(trained.summary)  # fmt: skip
    assert trained.summary["metrics"]["accuracy"] > 0.9
    assert 0 < trained.summary["seconds"] < trained.summary["seconds_total"]


def test_every_step_is_an_event_once(trained: Run) -> None:
    events = list(trained.events())
    steps = [event["step"] for event in events if event["event"] == "step"]
    assert steps == list(range(1, trained.summary["steps"] + 1))
    evaluations = [event for event in events if event["event"] == "evaluation"]
    assert len(evaluations) == 6
    assert any(event["best"] and event["step"] == trained.summary["best_step"] for event in evaluations)
    assert events[0]["event"] == "start"
    assert events[-1]["event"] == "finish"


def test_the_resolved_recipe_leaves_nothing_open(trained: Run) -> None:
    resolved = chainrule.read_recipe(trained.path / "resolved.yaml")
    assert resolved.training.steps == trained.summary["steps"]
    assert resolved.training.precision == "float32"
    assert resolved.optimizer.learning_rate == 5e-3
    assert resolved.model.max_length == 64
    assert (resolved.optimizer.options, resolved.schedule.options) == (
        {"betas": [0.9, 0.999], "eps": 1e-8},
        {"end": 0.0},
    )
    assert resolved.loss.name == "cross-entropy"
    assert resolved.loss.options == {"label_smoothing": 0.0, "class_weights": "none"}
    assert resolved.training.early_stopping_metric == "accuracy"


def test_the_artifact_names_no_absolute_path(trained: Run) -> None:
    for name in ("chainrule.json", "config.json", "README.md", "tokenizer_config.json"):
        text = (trained.artifact.path / name).read_text(encoding="utf-8")
        assert str(trained.path.parent) not in text
        assert "/tmp" not in text


def test_plain_transformers_gives_the_same_logits(trained: Run, plain_logits: PlainLogits) -> None:
    texts = [row["text"] for row in sentences(20, seed=5)] + ["a " * 200]
    logits, labels, length = plain_logits(trained.artifact.path, texts)
    predictor = load_predictor(trained.artifact)
    predictions = predictor.predict(predictor.encode({"text": texts}))
    odds = np.log(predictions.scores / (1 - predictions.scores))
    assert labels == {"0": "negative", "1": "positive"}
    assert length == 64
    assert logits.argmax(-1).tolist() == predictions.values.tolist()
    assert np.allclose(np.abs(logits[:, 1] - logits[:, 0]), odds, atol=1e-5)


def test_the_same_recipe_gives_the_same_bits(tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    runs = [
        chainrule.train(str(reviews), out=tmp_path / name, settings=settings(tiny_bert, seed=seed))
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
    weights = [load_file(run.artifact.path / "model.safetensors") for run in runs]
    assert all(np.array_equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not all(np.array_equal(weights[0][key], weights[2][key]) for key in weights[0])


def test_a_resolved_recipe_trains_again_to_the_same_bits(trained: Run, tmp_path: Path) -> None:
    again = chainrule.train(recipe=trained.path / "resolved.yaml", out=tmp_path / "again")
    assert again.artifact.manifest.weights_sha256 == trained.artifact.manifest.weights_sha256


@pytest.mark.parametrize(("mean", "scale"), [(3.0, 1.0), (250_000.0, 40_000.0), (0.0, 1e-3)])
def test_regression_learns_targets_of_any_size(
    tiny_bert: Path, tmp_path: Path, plain_logits: PlainLogits, mean: float, scale: float
) -> None:
    data = write_csv(tmp_path / "prices.csv", rated(400, mean=mean, scale=scale))
    run = chainrule.train(
        str(data), out=tmp_path / "run", settings=settings(tiny_bert, task="regression", **{"training.epochs": 6})
    )
    assert run.summary["metrics"]["pearson"] > 0.9
    assert run.summary["metrics"]["rmse"] < 0.5 * scale
    texts = ["good great film", "bad awful film"]
    logits, labels, _ = plain_logits(run.artifact.path, texts)
    predicted = chainrule.predict(run, text=texts)
    assert isinstance(predicted, list)
    assert np.allclose(logits[:, 0], [row["predicted_score"] for row in predicted], rtol=1e-5, atol=1e-6 * scale)
    assert labels == {"0": "score"}


def test_pairs(tiny_bert: Path, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "pairs.csv", pairs(200))
    run = chainrule.train(str(data), out=tmp_path / "run", settings=settings(tiny_bert, **{"training.epochs": 1}))
    assert run.artifact.manifest.inputs == ("text_a", "text_b")
    predicted = chainrule.predict(run, text={"text_a": ["good film"], "text_b": ["bad film"]})
    assert isinstance(predicted, list)
    assert predicted[0]["predicted_label"] in ("same", "different")


def test_several_labels(tiny_bert: Path, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "tags.csv", tagged(400))
    task = {"task": "multi-label-classification", "training.epochs": 8}
    run = chainrule.train(str(data), out=tmp_path / "run", settings=settings(tiny_bert, **task))
    assert run.summary["metrics"]["micro_f1"] > 0.8
    report = chainrule.evaluate(run, str(data))
    assert {"exact_match", "micro_f1", "macro_f1", "loss"} <= set(report.metrics)


def test_another_family(tmp_path: Path, plain_logits: PlainLogits) -> None:
    from chainrule.testing.models import tiny_model

    data = write_csv(tmp_path / "data.csv", sentences(200))
    for family in ("distilbert", "roberta", "llama"):
        model = tiny_model(tmp_path / family, family)
        made = settings(model, strategy="partial", **{"strategy.options.top": 1, "training.epochs": 2})
        run = chainrule.train(str(data), out=tmp_path / f"run-{family}", settings=made)
        texts = ["good film", "bad book and a very cold room"]
        logits, _, _ = plain_logits(run.artifact.path, texts)
        predicted = chainrule.predict(run, text=texts)
        assert isinstance(predicted, list)
        assert [row["predicted_label"] for row in predicted] == [
            ("negative", "positive")[index] for index in logits.argmax(-1)
        ]


def test_minutes_are_a_ceiling(tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    made = settings(tiny_bert, **{"training.epochs": 100_000, "training.minutes": 0.02})
    run = chainrule.train(str(reviews), out=tmp_path / "run", settings=made)
    resolved = chainrule.read_recipe(run.path / "resolved.yaml")
    assert resolved.training.steps == run.summary["steps"]
    assert 1 <= run.summary["steps"] < 10_000


def test_patience_stops_and_the_best_weights_are_kept(tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    made = settings(tiny_bert, **{"training.epochs": 30, "training.patience": 2, "optimizer.learning_rate": 3e-2})
    run = chainrule.train(str(reviews), out=tmp_path / "run", settings=made)
    evaluations = [event for event in run.events() if event["event"] == "evaluation"]
    assert len(evaluations) < 30
    assert "no better validation accuracy in 2 evaluations" in run.summary["stopped"]
    kept = next(event for event in evaluations if event["step"] == run.summary["best_step"])
    assert kept["metrics"] == run.summary["metrics"]


def test_a_loss_that_is_no_number_stops_with_advice(tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    made = settings(tiny_bert, **{"optimizer.learning_rate": 1e30, "schedule.warmup": 0.0})
    with pytest.raises(DivergedError, match="Training has diverged") as caught:
        chainrule.train(str(reviews), out=tmp_path / "run", settings=made)
    assert "Lower the learning rate (1e+30)" in caught.value.problems[0].todo
    assert (tmp_path / "run" / "recipe.yaml").is_file()
    assert not (tmp_path / "run" / "artifact").exists()


def test_an_existing_output_is_refused_before_anything_is_read(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="exists already"):
        chainrule.train("no-such-file.csv", out=tmp_path, settings=settings(tiny_bert))


def test_flags_are_settings_by_a_short_name(tiny_bert: Path, tmp_path: Path) -> None:
    rows = [{"review": row["text"], "stars": row["label"]} for row in sentences(120)]
    frame = pytest.importorskip("pandas").DataFrame(rows)
    fields = {"text": "review", "label": "stars"}
    run = chainrule.train(
        frame, model=str(tiny_bert), task="text-classification", strategy="head", fields=fields, epochs=1, seed=9,
        out=tmp_path / "run",
    )  # fmt: skip
    resolved = chainrule.read_recipe(run.path / "resolved.yaml")
    assert (resolved.seed, resolved.strategy.name, resolved.data.fields) == (9, "head", fields)
    assert resolved.data.source is None


def test_a_misspelt_setting_is_refused(reviews: Path) -> None:
    with pytest.raises(TypeError, match=r"train\(\) has no stratgy; it has task, model, strategy"):
        chainrule.train(str(reviews), stratgy="head")  # type: ignore[call-arg]


def test_no_data_at_all(tiny_bert: Path) -> None:
    with pytest.raises(RecipeError, match="does not say where the rows are"):
        chainrule.train(settings=settings(tiny_bert))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_leaves_its_recipe_and_no_artifact(
    tiny_bert: Path, reviews: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "run"
    words = ["train", str(reviews), "--model", str(tiny_bert), "--out", str(out)]
    words += ["--epochs", "100000", "--set", "training.threads=1", "--set", "training.precision=float32"]
    process = Command(words)
    try:
        deadline = time.monotonic() + 120
        while not (out / "events.jsonl").exists() and time.monotonic() < deadline:
            assert process.poll() is None
            assert not out.exists() or (out / "recipe.yaml").is_file()
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(60) == code
    finally:
        process.kill()
    assert (out / "recipe.yaml").is_file()
    assert not (out / "artifact").exists()
    assert not chainrule.show(out)["finished"]
    assert all(event["event"] in ("start", "step", "evaluation") for event in Run(out).events())


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="only root may mount a small disk")
@pytest.mark.parametrize("size", ["16k", "64k", "160k"])
def test_a_full_disk_is_one_clear_error(tiny_bert: Path, reviews: Path, tmp_path: Path, size: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("this machine does not let the test mount a small disk")
    try:
        with pytest.raises(OutputError, match="full or read-only") as caught:
            chainrule.train(str(reviews), out=disk / "run", settings=settings(tiny_bert, **{"training.epochs": 1}))
        assert caught.value.problems[0].todo == "Free some space or choose another --out."
        assert not (disk / "run" / "artifact").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_weights_that_are_no_numbers_after_the_last_step(tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    wild = {"optimizer.learning_rate": 1e30, "schedule.warmup": 0.0, "training.steps": 1}
    with pytest.raises(DivergedError, match="Training has diverged") as caught:
        chainrule.train(str(reviews), out=tmp_path / "run", settings=settings(tiny_bert, **wild))
    assert caught.value.problems[0].got == "a validation loss that is not a number after step 1"
