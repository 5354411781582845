"""Training that diverges goes back and on with a lower learning rate, and says where it came from when that fails."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import chainrule
from chainrule.data.batch import Batch
from chainrule.errors import DivergedError
from chainrule.testing.models import tiny_language_model
from chainrule.training import loop
from chainrule.training.divergence import Losses, first_bad_part

pytestmark = pytest.mark.unit
SETTINGS = {"training.precision": "float32", "training.threads": 1, "training.steps": 6, "schedule.warmup": 0.0}


def spoil(calls: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the gradients of some steps, counted as they are made, be no numbers."""
    real, made = loop.mean_and_clip, 0

    def norm_and_factor(*arguments: Any) -> tuple[float, float]:
        nonlocal made
        made += 1
        norm, factor = real(*arguments)
        return (float("nan") if made in calls else norm), factor

    monkeypatch.setattr(loop, "mean_and_clip", norm_and_factor)


@pytest.mark.parametrize(("minutes", "back_to"), [(60, 0), (1e-9, 3)])
def test_goes_back_and_on_with_half_the_learning_rate(
    minutes: float, back_to: int, tiny_bert: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SETTINGS, "training.checkpoint_minutes": minutes}
    plain = chainrule.train(str(reviews), model=str(tiny_bert), out=tmp_path / "plain", settings=settings)
    spoil({4}, monkeypatch)
    run = chainrule.train(str(reviews), model=str(tiny_bert), out=tmp_path / "run", settings=settings)
    steps = [event for event in run.events() if event["event"] == "step"]
    (diverged,) = [event for event in run.events() if event["event"] == "diverged"]
    assert (diverged["step"], diverged["back_to"], diverged["rate_factor"]) == (4, back_to, 0.5)
    assert diverged["reason"].startswith("loss ")
    assert [event["step"] for event in steps] == [1, 2, 3, *range(back_to + 1, 7)]
    rates = [event["learning_rate"] for event in plain.events() if event["event"] == "step"]
    assert [event["learning_rate"] for event in steps] == [*rates[:3], *(rate / 2 for rate in rates[back_to:])]
    first = next(event["loss"] for event in steps[3:] if event["step"] == back_to + 1)
    assert first == next(e["loss"] for e in plain.events() if e["event"] == "step" and e["step"] == back_to + 1)


def test_after_three_times_it_stops_and_says_where(
    tiny_bert: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil({2, 3, 4, 5, 6, 7}, monkeypatch)
    with pytest.raises(DivergedError, match="Training has diverged") as caught:
        chainrule.train(str(reviews), model=str(tiny_bert), out=tmp_path / "run", settings=SETTINGS)
    got = caught.value.problems[0].got
    assert "gradient norm nan" in got
    rows = re.search(r"; first in the gradient; rows of train: ([\d, ]+)$", got)
    assert rows is not None
    numbers = [int(number) for number in rows[1].split(", ")]
    assert numbers == sorted(numbers)
    assert max(numbers) > 2 * len(numbers)  # of the file, not places among the training rows of a batch
    events = [event for event in chainrule.Run(tmp_path / "run").events() if event["event"] == "diverged"]
    assert [event["rate_factor"] for event in events] == [0.5, 0.25, 0.125]


def test_the_first_bad_part() -> None:
    model = tiny_language_model()
    batch = Batch({"input_ids": torch.arange(6)[None]}, None, np.arange(1), 6)
    assert first_bad_part(model, batch, contextlib.nullcontext) == "the gradient"
    layer = model.model.layers[1]
    with torch.no_grad():
        layer.mlp.up_proj.weight.fill_(1e38)
    assert first_bad_part(model, batch, contextlib.nullcontext) == "the output of model.layers.1.mlp.up_proj"
    with torch.no_grad():
        layer.self_attn.q_proj.weight[0, 0] = float("nan")
    assert (
        first_bad_part(model, batch, contextlib.nullcontext) == "the parameter model.layers.1.self_attn.q_proj.weight"
    )


def test_an_explosion_is_far_above_the_beginning() -> None:
    losses = Losses()
    for _ in range(10):
        losses.note(1.0)
    for value in (1.2, 0.1, 2.9, 3.5, 2.0, 4.0):
        losses.note(value)
    before = losses.exploded
    for _ in range(3):
        losses.note(9.0)
    assert (before, losses.exploded) == (False, True)
    quiet = Losses()
    for value in (0.01, 0.0, 0.03, 0.0, 0.02, 0.0, 0.01, 0.0, 0.0, 0.05, *[0.08] * 5):
        quiet.note(value)
    assert not quiet.exploded
