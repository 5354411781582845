"""What is recorded of a layer is what plain torch says of it; looking changes nothing; a resumed run sees the same."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import chainrule
from chainrule.core.artifact import Run
from chainrule.core.recipe import Optimizer
from chainrule.evaluation.trace import Trace, noise_scale
from chainrule.models import forwards
from chainrule.testing.chains import ROWS, WIDTH, Chain, case_of, watch_training
from chainrule.training import trainer, watch
from chainrule.training.optimizers import OPTIMIZERS

pytestmark = pytest.mark.unit
SETTINGS = {"training.threads": 1, "training.precision": "bfloat16", "training.watch_gradients": True}


def looks(run: Path | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events of the looks, without the clock."""
    events = list(Run(run).events()) if isinstance(run, Path) else run
    return [{key: event[key] for key in event if key != "time"} for event in events if event["event"] == "gradients"]


@pytest.fixture
def every_second_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "EVERY", 2)


def test_the_first_the_last_and_every_tenth_step_are_looked_at() -> None:
    assert [event["step"] for event in looks(watch_training(Chain(), steps=34))] == [1, 10, 20, 30, 34]
    model = Chain()
    long = watch.make_watch(model, model.parts, [], steps=20_000)
    assert sum(long.is_due(step) for step in range(1, 20_001)) == watch.LOOKS + 1


def test_the_numbers_are_those_of_plain_torch_in_float64() -> None:
    model = Chain(torch.relu, depth=3)
    reference = copy.deepcopy(model).double()
    events = watch_training(model, steps=1, optimizer=Optimizer(max_gradient_norm=0.1))
    (look,) = looks(events)
    generator = np.random.default_rng(0)
    values = torch.from_numpy(generator.normal(size=(ROWS, WIDTH)).astype(np.float32))
    rows = generator.permutation(ROWS)[:16]
    outputs: dict[str, torch.Tensor] = {}
    for number, layer in enumerate(reference.stack):
        layer.register_forward_hook(
            lambda _, __, output, name=f"layer {number}": outputs.update({name: output.detach()})
        )
    logits = reference(input_ids=values[rows].double()).logits
    torch.nn.functional.cross_entropy(logits, (values[rows, 0] > 0).long()).backward()  # type: ignore[no-untyped-call]
    trained = dict(model.named_parameters())
    for part in reference.parts[:-1]:
        told, named = look["layers"][part.name], dict(reference.named_parameters())
        gradients = torch.cat([named[name].grad.flatten() for name in part.parameters])  # type: ignore[union-attr]
        before = torch.cat([named[name].detach().flatten() for name in part.parameters])
        after = torch.cat([trained[name].detach().double().flatten() for name in part.parameters])
        moved = float((after - before).norm() / before.norm())
        assert told["gradient_norm"] == pytest.approx(float(gradients.norm()), rel=1e-4)
        assert told["update_ratio"] == pytest.approx(moved, rel=1e-3)
        assert told["moved"] == pytest.approx(moved, rel=1e-3)
        assert told["zeros"] == pytest.approx(float((gradients == 0).double().mean()), rel=1e-4)
        assert told["activation_rms"] == pytest.approx(float(outputs[part.name].square().mean().sqrt()), rel=1e-4)
        assert told["signal"] is None
    assert look["all"]["gradient_norm"] ** 2 == pytest.approx(
        sum(values["gradient_norm"] ** 2 for values in look["layers"].values()), rel=1e-3
    )
    assert (look["rows"], look["silent"], len(look["groups"])) == (16, [], 1)


def test_a_sample_of_a_large_tensor_tells_what_the_whole_does(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = looks(watch_training(Chain(), steps=20))
    monkeypatch.setattr(watch, "ENTRIES", WIDTH * WIDTH // 4)
    thinned = looks(watch_training(Chain(), steps=20))
    for first, second in zip(whole, thinned, strict=True):
        for name, values in first["layers"].items():
            assert second["layers"][name]["gradient_norm"] == values["gradient_norm"]
            assert second["layers"][name]["update_ratio"] == pytest.approx(values["update_ratio"], rel=0.3)
            assert second["layers"][name]["moved"] == pytest.approx(values["moved"], rel=0.3)


def test_the_noise_scale_is_the_true_one() -> None:
    """Of rows with gradients drawn around a known mean: |G|² = 2, variance 1 in each of 256 numbers, so 128 rows."""
    generator = torch.Generator().manual_seed(0)
    model = Chain(depth=1)
    weight = model.stack[0].linear.weight
    mean = torch.full((WIDTH * WIDTH,), math.sqrt(2 / WIDTH**2))

    class Drawn:
        def accumulate(self, model: Any, batch: Any) -> tuple[torch.Tensor, int]:
            drawn = mean + torch.randn(len(batch), WIDTH * WIDTH, generator=generator)
            loss = (weight.flatten() * drawn.sum(0)).sum() + 0.0 * model(**batch.inputs).logits.sum()
            loss.backward()
            return loss.detach(), len(batch)

    events = watch_training(model, steps=400, rates={"": 1e-6}, objective=Drawn(), batch_size=32)
    trace = case_of(events).trace
    found = noise_scale(trace.layers["layer 0"], trace.rows)
    assert found == pytest.approx(WIDTH**2 / 2, rel=0.2)


def test_no_signal_and_no_noise_have_no_scale() -> None:
    table: Any = {"signal": [None, -0.5], "gradient_norm": [1.0, 1.0]}
    assert noise_scale(table, [8, 8]) is None
    table = {"signal": [1.0, 1.5], "gradient_norm": [1.0, 1.0]}
    assert noise_scale(table, [8, 8]) is None
    table = {"signal": [0.5, 0.5], "gradient_norm": [1.0, 2.0]}
    assert noise_scale(table, [8, 8]) == pytest.approx(8.0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_seen(name: str) -> None:
    events = watch_training(Chain(depth=3), steps=10, rates={"": 1e-3}, optimizer=Optimizer(name=name))
    first, last = looks(events)
    for look in (first, last):
        assert 0 < look["all"]["update_ratio"] < 1
        assert all(0 < values["update_ratio"] < 1 for values in look["layers"].values())
        assert look["silent"] == []
    assert (last["all"]["signal"] is not None) == (name in ("adam", "adamw"))


def test_what_a_later_phase_trains_is_there_from_then_on(
    tiny_bert: Path, reviews: Path, tmp_path: Path, every_second_step: None
) -> None:
    settings = {**SETTINGS, "strategy": "gradual", "training.steps": 8}
    chainrule.train(str(reviews), model=str(tiny_bert), out=tmp_path / "run", settings=settings)
    found = looks(tmp_path / "run")
    assert set(found[0]["layers"]) < set(found[-1]["layers"])
    trace = Trace()
    for event in Run(tmp_path / "run").events():
        trace.add(event)
    assert list(trace.layers) == ["embeddings", "layer 0", "layer 1", "head"]
    assert trace.layers["embeddings"]["gradient_norm"][0] is None


class PowerFailureError(Exception):
    pass


@pytest.mark.parametrize("strategy", ["full", "lora"])
def test_looking_changes_nothing_and_a_resumed_run_sees_the_same(
    strategy: str,
    tiny_bert: Path,
    reviews: Path,
    tmp_path: Path,
    every_second_step: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a table of embeddings whose rows are updated late: a checkpoint brings them up to date at other steps."""
    monkeypatch.setattr(forwards, "SPARSE_FROM_ENTRIES", 8)
    settings = {**SETTINGS, "strategy": strategy, "training.steps": 9, "strategy.options": {}}
    names = ("seen", "unseen", "stopped")
    for name in names[:2]:
        watched = {"training.watch_gradients": name == "seen"}
        chainrule.train(str(reviews), model=str(tiny_bert), out=tmp_path / name, settings=settings | watched)
    record = trainer._record_step

    def fail(step: Any, *rest: Any) -> None:
        record(step, *rest)
        if step.step == 5:
            raise PowerFailureError

    often = {**settings, "training.checkpoint_minutes": 1e-9}
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_record_step", fail)
        with pytest.raises(PowerFailureError):
            chainrule.train(str(reviews), model=str(tiny_bert), out=tmp_path / "stopped", settings=often)
    chainrule.resume(tmp_path / "stopped")
    weights = {name: (tmp_path / name / "artifact" / "model.safetensors").read_bytes() for name in names}
    assert len(set(weights.values())) == 1
    assert [look["step"] for look in looks(tmp_path / "seen")] == [1, 2, 4, 6, 8, 9]
    assert looks(tmp_path / "seen") == looks(tmp_path / "stopped")
    assert looks(tmp_path / "unseen") == []


def test_the_record_of_a_real_model_in_pieces(
    tiny_bert: Path, reviews: Path, tmp_path: Path, every_second_step: None
) -> None:
    settings = {**SETTINGS, "training.steps": 4, "training.micro_batch_tokens": 64}
    chainrule.train(str(reviews), model=str(tiny_bert), out=tmp_path / "run", settings=settings)
    events = list(Run(tmp_path / "run").events())
    (about,) = [event for event in events if event["event"] == "watch"]
    assert about["layers"]["layer 1"]["module"] == "bert.encoder.layer.1"
    assert all(layer["trained"] == layer["parameters"] > 0 for layer in about["layers"].values())
    norms = {event["step"]: event["gradient_norm"] for event in events if event["event"] == "step"}
    for look in looks(tmp_path / "run"):
        assert look["all"]["gradient_norm"] == pytest.approx(norms[look["step"]], rel=1e-4)
        assert list(look["layers"]) == ["embeddings", "layer 0", "layer 1", "head"]
        assert all(0.2 < values["activation_rms"] < 5 for values in look["layers"].values())
        assert [group["weight_decay"] for group in look["groups"]] == [0.01, 0.0]
        assert json.dumps(look, allow_nan=False)
