"""Where the time of a step goes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import chainrule
from chainrule.training.loop import Step
from chainrule.training.profile import PRODUCTS, PROFILED, SKIPPED, Profile, profiled

pytestmark = pytest.mark.unit


def products(count: int) -> Iterator[Step]:
    """Steps of one product each."""
    first, second = torch.ones(64, 256), torch.ones(256, 32)
    for number in range(count):
        torch.mm(first, second)
        yield Step(number + 1, 0.0, 0.0, 0.0, 1, 1, 0.0)


@pytest.mark.parametrize("count", [1, SKIPPED + 2, SKIPPED + PROFILED + 4])
def test_no_step_is_lost_and_some_are_looked_at(count: int) -> None:
    seen: list[Profile] = []
    steps = list(profiled(products(count), "float32", seen.append))
    assert [step.step for step in steps] == list(range(1, count + 1))
    looked_at = min(max(count - SKIPPED, 0), PROFILED)
    assert [profile.steps for profile in seen] == ([looked_at] if looked_at else [])
    for profile in seen:
        assert profile.seconds[PRODUCTS] > 0
        assert profile.floor_seconds > 0
        assert sum(profile.seconds.values()) == pytest.approx(profile.step_seconds, rel=0.01)


def test_a_training_can_be_profiled(reviews: Path, tiny_bert: Path, tmp_path: Path) -> None:
    settings = {"training.steps": SKIPPED + PROFILED, "training.profile": True, "training.batch_size": 4}
    run = chainrule.train(str(reviews), model=str(tiny_bert), out=tmp_path / "run", settings=settings)
    events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    (profile,) = [event for event in events if event["event"] == "profile"]
    assert profile["steps"] == PROFILED
    assert {PRODUCTS, "optimizer", "norms and residual sums"} <= profile["seconds"].keys()
    assert len([event for event in events if event["event"] == "step"]) == SKIPPED + PROFILED
