"""Long texts in windows: nothing is cut off, and the mean over a row's windows is what is learned and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import chainrule
from chainrule.core.recipe import Spec, Structure
from chainrule.data.batch import collate
from chainrule.errors import RecipeError
from chainrule.models.load import load_classifier, load_tokenizer
from chainrule.strategies import refuse_misfit
from chainrule.tasks.suited import suited
from chainrule.tasks.windows import Windowed, mean_of
from chainrule.testing.data import BAD, GOOD, PLAIN, sentences, write_csv
from chainrule.testing.models import tiny_model

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "bert")


def far(rows: int, *, seed: int = 0) -> list[dict[str, str]]:
    """Texts of 40 words whose telling ones come last."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(rows):
        side = int(generator.integers(2))
        plain, telling = generator.choice(PLAIN, 34), generator.choice((BAD, GOOD)[side], 6)
        made.append({"text": " ".join([*plain, *telling]), "label": ("bad", "good")[side]})
    return made


def test_windows_share_a_quarter_and_leave_nothing_out(bert: Path) -> None:
    tokenizer = load_tokenizer(str(bert))
    texts = ["film " * 30 + "good", "bad"]
    encoded = Windowed()(tokenizer, {"text": texts}, np.array([1, 0]), 16)
    assert encoded.sequences is not None
    assert np.diff(encoded.sequences).tolist() == [3, 1]
    good = tokenizer.convert_tokens_to_ids("good")
    assert int((encoded.ids == good).sum()) == 1
    windows = [encoded.ids[a:b] for a, b in zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True)]
    assert all(len(window) <= 16 for window in windows)
    assert sum(len(window) - 2 for window in windows[:3]) == 31 + 2 * 3  # two overlaps of a quarter of 14
    assert encoded.full_lengths.tolist() == encoded.lengths.tolist()


def test_the_mean_over_windows_and_its_gradient() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    counts = np.array([1, 3, 2])
    expected = torch.stack([logits[:1].mean(0), logits[1:4].mean(0), logits[4:].mean(0)])
    assert torch.allclose(mean_of(logits, counts), expected)
    assert torch.autograd.gradcheck(lambda given: mean_of(given, counts), (logits,))


def test_a_batch_in_pieces_learns_what_the_whole_does(bert: Path) -> None:
    task = suited("text-classification", {"windows": True}, str(bert))
    tokenizer = load_tokenizer(str(bert))
    rows = far(6)
    targets = np.array([row["label"] == "good" for row in rows], dtype=np.int64)
    encoded = task.encode(tokenizer, {"text": [row["text"] for row in rows]}, targets, 16)
    model = load_classifier(str(bert), tokenizer, ["bad", "good"], "", Structure(dropout=0.0), seed=0).eval()
    objective = task.objective(Spec(name="default"), targets)
    grads = []
    for parts in ([np.arange(6)], [np.arange(2), np.arange(2, 6)]):
        model.zero_grad()
        for part in parts:
            batch = collate(encoded, part, pad_id=0, left=False, device=torch.device("cpu"))
            objective.accumulate(model, batch)
        grads.append(model.classifier.weight.grad.clone())
    assert torch.allclose(grads[0], grads[1], atol=1e-6)
    model.zero_grad()
    batch = collate(encoded, np.arange(6), pad_id=0, left=False, device=torch.device("cpu"))
    assert batch.counts is not None
    assert batch.targets is not None
    logits = mean_of(model(**batch.inputs).logits, batch.counts)
    losses = functional.cross_entropy(logits, batch.targets, reduction="none")
    torch.autograd.backward(losses.sum())
    assert torch.allclose(model.classifier.weight.grad, grads[0], atol=1e-6)
    with torch.inference_mode():
        read = task.read(model, batch, encoded)
    assert read.losses == pytest.approx(losses.detach().numpy(), abs=1e-5)


def settings(bert: Path, **more: Any) -> dict[str, Any]:
    base = {"task": "text-classification", "model": str(bert), "model.max_length": 16, "training.threads": 1}
    return {**base, "training.precision": "float32", **more}


def test_what_comes_last_is_read(bert: Path, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "rows.csv", far(240))
    found = {}
    for windows in (True, False):
        more = {"task.options.windows": windows, "training.epochs": 6, "optimizer.learning_rate": 1e-3}
        run = chainrule.train(str(data), out=tmp_path / f"run{windows}", settings=settings(bert, **more))
        found[windows] = run.summary["metrics"]["accuracy"]
    assert found[True] > 0.9
    assert found[False] < 0.75
    report = chainrule.evaluate(tmp_path / "runTrue", split="validation")
    assert report.metrics["accuracy"].value == pytest.approx(found[True])
    said = chainrule.predict(tmp_path / "runTrue", text=[row["text"] for row in far(3, seed=5)])
    assert isinstance(said, list)
    assert [row["predicted_label"] for row in said] == [row["label"] for row in far(3, seed=5)]


@pytest.mark.parametrize("task", ["multi-label-classification", "regression"])
def test_other_tasks_of_texts(task: str, bert: Path, tmp_path: Path) -> None:
    rows = [
        {"text": row["text"], "label": row["label"] if task.startswith("multi") else str(float(row["label"] == "good"))}
        for row in far(60)
    ]
    data = write_csv(tmp_path / "rows.csv", rows)
    more = {"task": task, "task.options.windows": True, "training.steps": 4, "strategy": "partial"}
    more |= {
        "strategy.options.top": 1,
        "data.fields.labels" if task.startswith("multi") else "data.fields.score": "label",
    }
    run = chainrule.train(str(data), out=tmp_path / "run", settings=settings(bert, **more))
    report = chainrule.evaluate(run, split="validation")
    assert report.metrics["loss"].value == pytest.approx(run.summary["metrics"]["loss"], abs=1e-5)


def test_it_is_told_and_refused_by_name(bert: Path, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "rows.csv", far(60))
    cut = chainrule.check(str(data), task="text-classification", model=str(bert), max_length=16)
    told = {finding.kind: finding for finding in cut.findings}
    assert told["too-long"].todo.endswith("Or let them be read in windows: --set task.options.windows=true.")
    more = {"task.options.windows": True}
    whole = chainrule.check(str(data), task="text-classification", model=str(bert), max_length=16, settings=more)
    told = {finding.kind: finding for finding in whole.findings}
    assert told["windowed"].message.endswith("nothing is cut off, as such rows are read in windows that overlap.")
    assert "too-long" not in told
    pairs = [{"text_a": row["text"], "text_b": "a", "label": row["label"]} for row in sentences(40)]
    with pytest.raises(RecipeError, match="Pairs of texts are not read in windows"):
        chainrule.train(
            str(write_csv(tmp_path / "pairs.csv", pairs)), out=tmp_path / "run", settings=settings(bert, **more)
        )
    with pytest.raises(RecipeError, match="has no one vector"):
        refuse_misfit("contrastive", suited("text-classification", {"windows": True}, str(bert)))
