"""Pruned models: what matters is a derivative, what goes saves what was asked, what comes of it loads and is judged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import chainrule
from chainrule.api.compressing import place_of
from chainrule.cli import main
from chainrule.compressors.importance import Importances, Measure, importances
from chainrule.compressors.pruning import plans_of
from chainrule.compressors.sparse import pattern_mask, share_mask
from chainrule.core.artifact import Run
from chainrule.core.recipe import Spec
from chainrule.data.encode import Encoded
from chainrule.errors import GateError, ModelError, RecipeError
from chainrule.exporters.graph import merged
from chainrule.inference.predict import Predictor, load_predictor
from chainrule.models.inspect import layer_stack
from chainrule.models.narrowing import Frame, anchors_of, linear_of
from chainrule.system.progress import Quiet
from chainrule.testing.models import tiny_model
from chainrule.testing.runs import ROWS, short_run

pytestmark = pytest.mark.unit
SETTINGS = {"training.threads": 1, "training.precision": "float32"}
QUICK: dict[str, Any] = {"share": 0.4, "epochs": 0.2, "trial_steps": 0, "settings": SETTINGS}
FREE: Any = {"loss": 1e9, "worst": 1e9, "allow_slower": True}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return short_run("text-classification", tmp_path_factory.mktemp("run") / "x", training__steps=60)


@pytest.fixture(scope="module")
def known(run: Run) -> tuple[Predictor, Any, Encoded]:
    predictor = load_predictor(run.artifact, device="cpu", precision="float32")
    texts = ["a good film", "this was a very bad room and we are cold", "it is warm", "bad"]
    encoded = predictor.encode({"text": texts}, np.array([0, 1, 1, 0]))
    return predictor, merged(predictor), encoded


def _found(known: tuple[Predictor, Any, Encoded], rows: Encoded, measure: Measure = "taylor") -> Importances:
    predictor, model, _ = known
    family = anchors_of(model)
    assert family is not None
    objective = predictor.task.objective(Spec(name="default"), rows.targets)
    return importances(predictor, model, family, 1, rows, objective, measure)


def test_importance_is_the_size_of_a_derivative(known: tuple[Predictor, Any, Encoded]) -> None:
    """Against the loss with a little more, and a little less, of a neuron, and of what a layer adds."""
    predictor, model, rows = known
    row = rows.take(np.array([1]))
    found = _found(known, row)
    objective = predictor.task.objective(Spec(name="default"), row.targets)
    family = anchors_of(model)
    assert family is not None

    def loss() -> float:
        logits = model(input_ids=torch.from_numpy(row.ids[None].astype(np.int64))).logits.double()
        return float(objective.row_loss(logits, torch.from_numpy(np.asarray(row.targets)))[0])  # type: ignore[attr-defined]

    def slope(change: Callable[[float], Any]) -> float:
        said = []
        for factor in (1.01, 0.99):
            undo = change(factor)
            with torch.no_grad():
                said.append(loss())
            undo()
        return (said[0] - said[1]) / 0.02

    for layer, neuron in ((0, 3), (0, 40), (1, 0), (1, 63)):
        column = linear_of(layer_stack(model)[layer], family.down).weight[:, neuron]

        def scale(factor: float, column: torch.Tensor = column) -> Callable[[], Any]:
            before = column.clone()
            column.mul_(factor)
            return lambda: column.copy_(before)

        assert float(found.neurons[layer, neuron]) == pytest.approx(abs(slope(scale)), rel=2e-2, abs=2e-5)
    for place, block in enumerate(layer_stack(model)):

        def stretch(factor: float, block: Any = block) -> Any:
            def hook(module: Any, given: Any, made: Any) -> Any:
                values = made[0] if isinstance(made, tuple) else made
                more = given[0] + factor * (values - given[0])
                return (more, *made[1:]) if isinstance(made, tuple) else more

            return block.register_forward_hook(hook).remove

        assert float(found.layers[place]) == pytest.approx(abs(slope(stretch)), rel=2e-2, abs=2e-5)


def test_every_row_has_a_derivative_of_its_own(known: tuple[Predictor, Any, Encoded]) -> None:
    """Together they give the mean of what each gives alone, by their sizes and by their squares."""
    rows = known[2]
    alone = [_found(known, rows.take(np.array([row]))) for row in range(len(rows))]
    for measure, power in (("taylor", 1), ("fisher", 2)):
        together = _found(known, rows, measure)  # type: ignore[arg-type]
        assert together.rows == len(rows)
        for name in ("layers", "neurons"):
            wanted = torch.stack([getattr(each, name) ** power for each in alone]).mean(0)
            torch.testing.assert_close(getattr(together, name), wanted, rtol=1e-3, atol=1e-7)
    assert together.tokens == pytest.approx(np.diff(rows.offsets).mean())


FRAMES = st.builds(
    Frame,
    layers=st.integers(1, 12),
    neurons=st.sampled_from([7, 64, 256, 1536]),
    groups=st.sampled_from([1, 2, 9]),
    fixed=st.floats(1e2, 1e6),
    neuron=st.floats(1, 1e4),
    group=st.floats(1, 1e5),
)


@given(frame=FRAMES, share=st.floats(0.01, 0.95), seed=st.integers(0, 99))
def test_plans_save_what_was_asked_and_no_more_than_they_must(frame: Frame, share: float, seed: int) -> None:
    if frame.groups == 1:
        frame = replace(frame, group=0.0)
    draw = torch.Generator().manual_seed(seed)
    shapes = ((frame.layers,), (frame.layers, frame.neurons), (frame.layers, frame.groups))
    layers, neurons, groups = (torch.rand(shape, generator=draw, dtype=torch.float64) for shape in shapes)
    found = Importances(layers, neurons, groups, 9.0, 1)
    step = 32 if frame.neurons >= 256 else 1
    for plan in plans_of(frame, found, share, range(frame.groups, 0, -1)):
        cut = plan.made
        kept, size = len(cut.layers), len(cut.neurons[0])
        assert plan.saved >= share - 1e-9
        assert size == frame.neurons or frame.work(kept, size + step, len(cut.groups[0])) > (1 - share) * frame.whole
        least_kept = min(float(layers[place]) for place in cut.layers)
        assert all(float(layers[place]) <= least_kept for place in set(range(frame.layers)) - set(cut.layers))
        for place, stays in enumerate(cut.neurons):
            assert len(stays) == size
            gone = np.setdiff1d(np.arange(frame.neurons), stays.numpy())
            assert not len(gone) or float(neurons[place][gone].max()) <= float(neurons[place][stays].min())
        assert plan.change >= 0


@pytest.mark.parametrize("task", ROWS)
def test_every_task(task: str, tmp_path: Path) -> None:
    """Pruned, trained again, loaded and judged; or refused with a reason before anything is computed."""
    made = short_run(task, tmp_path / "x")
    reasons = {
        "seq2seq": "a t5, which has two stacks of layers",
        "preference": "one that has learned preferences, beside a model that is no longer there",
    }
    if task in reasons:
        with pytest.raises(ModelError) as told:
            chainrule.compress(made, tmp_path / "small", to="prune", options=QUICK, **FREE)
        assert told.value.problems[0].got == reasons[task]
        return
    artifact, step = chainrule.compress(made, tmp_path / "small", to="prune", options=QUICK, **FREE)
    assert step.step == "compress --to prune"
    assert artifact.manifest.lineage == (step,)
    assert artifact.manifest.parent == made.artifact.manifest.weights_sha256
    assert step.speed is not None
    assert "transformers" in artifact.manifest.loads_in
    sizes = [(each.path / "model.safetensors").stat().st_size for each in (made.artifact, artifact)]
    assert sizes[1] < sizes[0]
    config = json.loads((artifact.path / "config.json").read_text(encoding="utf-8"))
    assert config["num_hidden_layers"] < 2 or config["intermediate_size"] < 64
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("token-classification", {"loss": "crf"}),
        ("text-classification", {"strategy": "lora"}),
        ("text-classification", {"structure__pooling": "attention", "structure__head": "cnn"}),
        ("text-classification", {"task__options__windows": True, "model__max_length": 8}),
    ],
)
def test_other_forms(task: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """A chain over tags, adapters, a head of ours, and long texts in windows, which no teacher helps."""
    made = short_run(task, tmp_path / "x", **settings)
    artifact, step = chainrule.compress(made, tmp_path / "small", to="prune", options=QUICK, **FREE)
    assert step.parity.rows > 0
    assert chainrule.evaluate(artifact, str(next((tmp_path / "x" / "rows").iterdir()))).rows > 0


def test_transformers_alone_loads_it(run: Run, tmp_path: Path) -> None:
    """Layers and neurons are tried; the teacher helps."""
    said: list[str] = []

    class Listening(Quiet):
        def say(self, message: str) -> None:
            said.append(message)

    options = QUICK | {"trial_steps": 2, "epochs": 6}
    artifact, step = chainrule.compress(
        run, tmp_path / "small", to="prune", options=options, display=Listening(), allow_slower=True, loss=15, worst=40
    )
    assert said[0] == "Heads stay: transformers loads no bert with fewer heads of the same width."
    tables = [line for line in said if "first order" in line]
    assert len(tables) == 2
    assert all("after 2 steps" in line for line in tables)
    assert step.parity.before is not None
    assert step.parity.after is not None
    assert step.parity.after >= step.parity.before - 0.15
    model = AutoModelForSequenceClassification.from_pretrained(artifact.path).eval()
    tokenizer = AutoTokenizer.from_pretrained(artifact.path)
    found = model(**tokenizer("a good film", return_tensors="pt")).logits.softmax(-1).max().item()
    (row,) = chainrule.predict(artifact, text="a good film")  # type: ignore[misc]
    assert found == pytest.approx(row["predicted_score"], abs=1e-3)


def test_heads_of_a_llama_go(tmp_path: Path) -> None:
    chat = short_run("text-generation", tmp_path / "x")
    artifact, _ = chainrule.compress(
        chat, tmp_path / "small", to="prune", options=QUICK | {"share": 0.55, "layers": 0}, **FREE
    )
    model = AutoModelForCausalLM.from_pretrained(artifact.path)
    assert model.config.num_hidden_layers == 2
    assert model.config.num_key_value_heads == model.config.num_attention_heads == 1
    assert model.config.head_dim == 16
    assert model.config.intermediate_size < 64


def test_what_is_worse_leaves_nothing_behind(run: Run, tmp_path: Path) -> None:
    """It would have to be a point better; and what another command has left is not gone on with."""
    stale = place_of(tmp_path / "small")
    (stale / "start").mkdir(parents=True)
    limits: Any = {"loss": -1.0, "allow_slower": True}
    with pytest.raises(GateError, match="compress --to prune gave another model; it was not put in place"):
        chainrule.compress(run, tmp_path / "small", to="prune", options=QUICK, **limits)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_pruned_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="So much cannot be pruned"):
        chainrule.compress(run, tmp_path / "out", to="prune", options=QUICK | {"share": 0.99})
    with pytest.raises(RecipeError, match="So much cannot be pruned"):
        chainrule.compress(run, tmp_path / "out", to="prune", options=QUICK | {"layers": 2})
    made = short_run("text-classification", tmp_path / "lstm", model="lstm")
    with pytest.raises(ModelError) as told:
        chainrule.compress(made, tmp_path / "out", to="prune", options=QUICK)
    assert "with layers of another kind" in told.value.problems[0].got
    chainrule.export(run, "openvino", tmp_path / "graph")
    with pytest.raises(ModelError) as told:
        chainrule.compress(tmp_path / "graph", tmp_path / "out", to="prune", options=QUICK)
    assert told.value.problems[0].got == "one that was made for openvino"
    assert not (tmp_path / "out").exists()


@given(st.integers(1, 9), st.integers(1, 33), st.floats(0.01, 0.99), st.integers(0, 99))
def test_the_smallest_weights_go(rows: int, columns: int, share: float, seed: int) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    keep = share_mask(matrix, share)
    assert int((~keep).sum()) == int(share * matrix.numel())
    if (~keep).any():
        assert float(matrix[~keep].abs().max()) <= float(matrix[keep].abs().min())
    four = pattern_mask(matrix, "2:4")
    whole = columns // 4 * 4
    groups, sizes = four[:, :whole].reshape(rows, -1, 4), matrix[:, :whole].abs().reshape(rows, -1, 4)
    assert (groups.sum(-1) == 2).all()
    assert four[:, whole:].all()
    for kept, values in zip(groups.flatten(0, 1), sizes.flatten(0, 1), strict=True):
        assert values[~kept].max() <= values[kept].min()


def test_a_sparse_model(run: Run, tmp_path: Path) -> None:
    artifact, _ = chainrule.compress(run, tmp_path / "small", to="sparse", options={"pattern": "2:4"}, **FREE)
    model = AutoModelForSequenceClassification.from_pretrained(artifact.path)
    for layer in layer_stack(model):
        assert (linear_of(layer, "intermediate.dense").weight.view(64, 8, 4) == 0).sum(-1).eq(2).all()
    for bad in ("4:2", "2-4", "2:2"):
        with pytest.raises(RecipeError) as told:
            chainrule.compress(run, tmp_path / "out", to="sparse", options={"pattern": bad})
        assert "a pattern such as 2:4, the first number smaller" in str(told.value.problems[0])


def test_the_command(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compress", str(run.path), "--prune", "40%", "--epochs", "0.2", "--set", "trial_steps=0"]
    command += ["--set", "settings={training.threads: 1}", "--loss", "100", "--worst", "1000", "--allow-slower"]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--out", str(tmp_path / "out"), "--json"])
    assert stop.value.code == 0
    assert json.loads(capsys.readouterr().out)["loads_in"] == ["transformers"]
    for wrong in ("130%", "x"):
        with pytest.raises(SystemExit) as stop:
            main(["compress", str(run.path), "--prune", wrong, "--out", str(tmp_path / "other")])
        assert stop.value.code == 2
        assert "a share such as 30% or 0.3" in capsys.readouterr().err
    other = tiny_model(tmp_path / "plain")
    with pytest.raises(SystemExit) as stop:
        main(["compress", str(other), "--prune", "30%", "--out", str(tmp_path / "other")])
    assert stop.value.code == 2
