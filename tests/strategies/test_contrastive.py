"""The contrastive loss against plain loops, what learns from it in which model, and what it cannot learn from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import chainrule
from chainrule.core.artifact import Run
from chainrule.core.recipe import Optimizer, Spec, Structure
from chainrule.data.batch import Batch, collate
from chainrule.data.encode import encode
from chainrule.errors import RecipeError
from chainrule.models.accelerate import accelerate
from chainrule.models.adapters import head_modules
from chainrule.models.load import load_classifier, load_tokenizer
from chainrule.models.pooling import mean
from chainrule.strategies import make_strategy, refuse_misfit
from chainrule.strategies.contrastive import ContrastiveObjective
from chainrule.tasks import find_task
from chainrule.tasks.objectives import class_objective
from chainrule.tasks.similarity import contrastive_loss
from chainrule.testing.data import sentences, write_csv
from chainrule.testing.models import tiny_model
from chainrule.training import trainer

pytestmark = pytest.mark.unit
LABELS = torch.tensor([0, 2, 0, 1, 2, 0, 3])  # 1 and 3 are alone
CPU = torch.device("cpu")
MEAN = Structure(pooling="mean", head="linear")
STEPS = {"training.steps": 6, "training.precision": "float32", "training.threads": 1, "training.batch_size": 16}


def features(rows: int = len(LABELS)) -> torch.Tensor:
    return torch.randn(rows, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)


def reference(vectors: np.ndarray, labels: list[int], temperature: float) -> float:
    """Equation 2 of Khosla et al., row by row."""
    units = [vector / math.sqrt(float(vector @ vector)) for vector in vectors]
    total = 0.0
    for i, own in enumerate(units):
        others = [a for a in range(len(units)) if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        below = sum(math.exp(float(own @ units[a]) / temperature) for a in others)
        for p in positives:
            total -= math.log(math.exp(float(own @ units[p]) / temperature) / below) / len(positives)
    return total


@pytest.mark.parametrize("temperature", [0.05, 0.5, 2.0])
def test_the_loss_is_that_of_the_paper_and_its_gradient_too(temperature: float) -> None:
    vectors = features()
    found = contrastive_loss(vectors, LABELS, temperature)
    assert float(found.detach()) == pytest.approx(
        reference(vectors.detach().numpy(), LABELS.tolist(), temperature), rel=1e-12
    )
    assert torch.autograd.gradcheck(lambda values: contrastive_loss(values, LABELS, temperature), (vectors,))


@pytest.mark.parametrize("labels", [[0], [0, 1, 2], [0, 1, 2, 3, 4, 5]])
def test_without_two_rows_of_a_class_there_is_nothing_to_learn(labels: list[int]) -> None:
    vectors = features(len(labels))
    loss = contrastive_loss(vectors, torch.tensor(labels), 0.1)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0
    assert vectors.grad is not None
    assert not vectors.grad.any()


def test_a_row_that_is_alone_is_only_kept_away_from() -> None:
    """It gives no loss of its own, but stands among those that the others are compared with."""
    vectors, labels = features(3).detach(), torch.tensor([0, 0, 1])
    with_it, without = contrastive_loss(vectors, labels, 0.5), contrastive_loss(vectors[:2], labels[:2], 0.5)
    assert float(without) == 0
    assert float(with_it) > 0


def model_and_batch(folder: Path, family: str, structure: Structure) -> tuple[Any, Any]:
    """Rows of different lengths, so that some are padded."""
    name = str(tiny_model(folder / "model", family))
    tokenizer = load_tokenizer(name)
    model = load_classifier(name, tokenizer, ["a", "b"], "single_label_classification", structure, seed=0)
    rows = [row["text"] for row in sentences(12)]
    rows[0] = " ".join(rows[:3])
    encoded = encode(tokenizer, {"text": rows}, np.arange(12, dtype=np.int64) % 2, 32)
    left = tokenizer.padding_side == "left"
    return model, collate(encoded, np.arange(12), pad_id=tokenizer.pad_token_id, left=left, device=CPU)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {
        name: parameter.grad.to_dense() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(
    ("family", "structure"),
    [
        ("bert", Structure()),
        ("bert", MEAN),
        ("bert", Structure(pooling="attention")),
        ("roberta", Structure()),
        ("distilbert", Structure()),
        ("llama", Structure()),
    ],
)
def test_the_trunk_learns_from_its_mean_states_and_the_head_from_the_tasks_loss(
    family: str, structure: Structure, fast: bool, tmp_path: Path
) -> None:
    model, batch = model_and_batch(tmp_path, family, structure)
    model.eval()  # without dropout two forwards give the same
    task = class_objective(Spec(name="default"), batch.targets.numpy())
    states = model.base_model(**batch.inputs).last_hidden_state
    pairs = contrastive_loss(mean(states, batch.inputs.get("attention_mask")), batch.targets, 0.1)
    pairs.backward()  # type: ignore[no-untyped-call]
    trunk = gradients(model)
    alone, count = task.accumulate(model, batch)
    whole = gradients(model)
    if fast:
        accelerate(model, CPU)
    kept = [module.__dict__.get("forward") for module in model.modules()]

    total, rows = ContrastiveObjective(task, 0.1).accumulate(model, batch)
    found = gradients(model)

    assert rows == count
    assert float(total) == pytest.approx(float(alone + pairs.detach()), rel=1e-4)
    above = tuple(f"{name}." for name in head_modules(model))
    assert any(name.startswith(above) for name in found)
    for name, gradient in found.items():
        wanted = whole[name] if name.startswith(above) else trunk[name]
        scale = float(wanted.abs().max())
        assert torch.allclose(gradient, wanted, rtol=1e-3, atol=1e-4 * scale + 1e-7), name
    assert {name for name, gradient in whole.items() if gradient.any()} <= set(found)
    assert [module.__dict__.get("forward") for module in model.modules()] == kept
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_forward_that_fails_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model, batch = model_and_batch(tmp_path, "bert", Structure())
    accelerate(model, CPU)
    kept = [module.__dict__.get("forward") for module in model.modules()]
    task = class_objective(Spec(name="default"), batch.targets.numpy())
    wrong = Batch(batch.inputs, batch.targets[:-1], batch.rows, 1)
    with pytest.raises(RuntimeError, match="size of tensor"):
        ContrastiveObjective(task, 0.1).accumulate(model, wrong)
    assert [module.__dict__.get("forward") for module in model.modules()] == kept
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_micro_batch_has_its_own_pairs(tmp_path: Path) -> None:
    model, batch = model_and_batch(tmp_path, "bert", Structure())
    task = class_objective(Spec(name="default"), batch.targets.numpy())
    one = Batch({name: value[:1] for name, value in batch.inputs.items()}, batch.targets[:1], batch.rows[:1], 8)
    model.eval()
    loss, count = ContrastiveObjective(task, 0.1).accumulate(model, one)
    above = tuple(f"{name}." for name in head_modules(model))
    found = gradients(model)
    alone = functional.cross_entropy(model(**one.inputs).logits, batch.targets[:1])
    assert count == 1
    assert float(loss) == pytest.approx(float(alone.detach()))
    assert {name for name, gradient in found.items() if gradient.any()} == {
        name for name in found if name.startswith(above)
    }


@pytest.mark.parametrize(
    ("steps", "share", "starts"),
    [(10, 0.5, [0, 5]), (10, 0.9, [0, 9]), (10, 1.0, [0]), (3, 0.1, [0, 1]), (1, 0.5, [0])],
)
def test_the_head_is_trained_from_the_start_and_alone_in_the_end(
    steps: int, share: float, starts: list[int], tiny_bert: Path
) -> None:
    strategy = make_strategy(Spec(name="contrastive", options={"share": share, "head_factor": 500.0}))
    name = str(tiny_bert)
    model = load_classifier(name, load_tokenizer(name), ["a", "b"], "single_label_classification", Structure(), seed=0)
    phases = strategy.phases(model, Optimizer(learning_rate=1e-3), steps)
    head = {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"}
    assert [phase.start_step for phase in phases] == starts
    assert phases[0].names == {name for name, _ in model.named_parameters()}
    assert all(phase.names == head for phase in phases[1:])
    rates = {name: group.learning_rate for group in phases[0].groups for name in group.names}
    assert {name for name, rate in rates.items() if rate == 0.5} == head
    assert set(rates.values()) == {0.5, 1e-3}


@pytest.mark.parametrize(
    "regularisers", [{"r-drop": {}}, {"fgm": {}}, {"mixout": {"probability": 0.3}, "l2-sp": {"strength": 0.1}}]
)
def test_regularisers_go_inside(regularisers: dict[str, Any], tiny_bert: Path, tmp_path: Path) -> None:
    settings = {**STEPS, "strategy": "contrastive", "structure.dropout": 0.1, "regularisers": regularisers}
    run = chainrule.train(
        str(write_csv(tmp_path / "rows.csv", sentences(60))),
        model=str(tiny_bert),
        out=tmp_path / "run",
        settings=settings,
    )
    assert len(losses(run)) == 6
    assert all(math.isfinite(loss) for loss in losses(run))


def losses(run: Run) -> list[float]:
    return [event["loss"] for event in run.events() if event["event"] == "step"]


class PowerFailureError(Exception):
    pass


@pytest.mark.parametrize("last", [2, 5])
def test_a_stopped_run_goes_on_in_either_phase(
    last: int, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = str(write_csv(tmp_path / "rows.csv", sentences(60)))
    settings = {**STEPS, "strategy": "contrastive", "training.checkpoint_minutes": 1e-9}
    real = trainer._record_step

    def record(made: Any, *rest: Any) -> None:
        real(made, *rest)
        if made.step == last:
            raise PowerFailureError

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_record_step", record)
        with pytest.raises(PowerFailureError):
            chainrule.train(data, model=str(tiny_bert), out=tmp_path / "run", settings=settings)
    resumed = chainrule.resume(tmp_path / "run")
    alone = chainrule.train(data, model=str(tiny_bert), out=tmp_path / "alone", settings=settings)
    assert losses(resumed) == losses(alone)
    weights = [(run.artifact.path / "model.safetensors").read_bytes() for run in (resumed, alone)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("task", ["multi-label-classification", "regression", "text-generation"])
def test_rows_without_one_class_are_refused(task: str) -> None:
    with pytest.raises(RecipeError) as caught:
        refuse_misfit("contrastive", find_task(task))
    assert caught.value.problems[0].got == (
        "'contrastive': it needs rows of exactly one class each, to draw those of a class together"
    )
