"""How much memory a row needs, and batches that are worked through in pieces where it is short."""

from __future__ import annotations

import contextlib
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

import chainrule
from chainrule.core.recipe import read_recipe
from chainrule.data.batch import Batch
from chainrule.errors import ShortageError
from chainrule.system import memory
from chainrule.training import resolve
from chainrule.training.memory import rows_that_fit, saved_bytes

pytestmark = pytest.mark.unit


class Squares:
    """An objective whose forward keeps two tensors of a batch for its backward: the input and its square."""

    def accumulate(self, model: Any, batch: Batch) -> tuple[torch.Tensor, int]:
        loss = (model(batch.inputs["x"]) ** 2).exp().sum()
        loss.backward()
        return loss.detach(), len(batch)


def row(width: int) -> Batch:
    return Batch({"x": torch.zeros(1, width)}, None, np.zeros(1, np.int64), width)


def test_what_a_forward_keeps_is_counted_and_weights_are_not() -> None:
    model = torch.nn.Linear(1000, 50, bias=False)
    kept = saved_bytes(model, Squares(), row(1000), contextlib.nullcontext)
    assert kept == 4 * (1000 + 50 + 50)  # the input, the product and the exponential
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("free", "rows"), [(5_000, 1), (40_000, 7), (2_000_000, 363)])
def test_as_many_rows_as_fit(free: int, rows: int) -> None:
    model = torch.nn.Linear(1000, 50, bias=False)
    assert rows_that_fit(model, Squares(), row(1000), contextlib.nullcontext, 0, free) == rows


def test_no_room_for_one_row_is_an_error() -> None:
    model = torch.nn.Linear(1000, 50, bias=False)
    with pytest.raises(ShortageError, match="not enough memory") as caught:
        rows_that_fit(model, Squares(), row(1000), contextlib.nullcontext, 10_000_000, 100 << 20)
    (problem,) = caught.value.problems
    assert problem.expected == (
        "190 MB for one row of 1,000 tokens, 10,000,000 trained parameters and the optimizer's state"
    )
    assert problem.got == "100 MB free"


def test_the_state_of_the_optimizer_takes_its_part() -> None:
    model = torch.nn.Linear(1000, 50, bias=False)
    assert rows_that_fit(model, Squares(), row(1000), contextlib.nullcontext, 50_000, 2_000_000) == 136


def test_free_memory_is_within_the_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = memory.free_memory()
    assert whole > 2**20
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2000000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 500000\n")
    monkeypatch.setattr(memory, "_GROUP", tmp_path)
    assert memory.free_memory() == 1_500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory() > 2**20
    monkeypatch.setattr(psutil.Process, "rlimit", lambda process, kind: (10, 10))
    assert memory.free_memory() == 0


def test_short_memory_makes_small_pieces_and_the_same_steps(
    reviews: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"training.steps": 4, "training.precision": "float32", "structure.dropout": 0.0}
    settings |= {"structure.attention_dropout": 0.0, "seed": 3}
    runs = {}
    for name, free in (("plenty", 2**40), ("little", 1_200_000)):
        monkeypatch.setattr(resolve, "free_bytes", lambda device, free=free: free)
        runs[name] = chainrule.train(str(reviews), model=str(tiny_bert), out=tmp_path / name, settings=settings)
    recipes = [read_recipe(runs[name].path / "resolved.yaml") for name in ("plenty", "little")]
    plenty, little = (recipe.training.micro_batch_tokens for recipe in recipes)
    assert plenty is not None
    assert little is not None
    assert plenty % 32 == 0
    assert 1 <= little < plenty
    losses = [runs[name].summary["metrics"]["loss"] for name in ("plenty", "little")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_kept_for_later_and_can_be_returned() -> None:
    """In a process of its own: the setting stays."""
    code = """
import numpy, psutil, resource
from chainrule.system.memory import keep_freed, return_freed
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        numpy.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
fresh = faults()
keep_freed()
faults()
kept = faults()
held = psutil.Process().memory_info().rss
return_freed()
print(fresh > 100, kept < 10, held - psutil.Process().memory_info().rss > 60_000_000)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "True"]
