"""What processes side by side take, tell and add up: three real ones over gloo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed

from chainrule.errors import DataError, ElsewhereError
from chainrule.system.processes import ALONE, World, launched_world
from chainrule.testing.processes import prepared
from chainrule.training.data_parallel import add_gradients

pytestmark = pytest.mark.unit
SIZE = 3


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of three processes has found."""
    folder = tmp_path_factory.mktemp("processes")
    context = prepared()
    processes = [context.Process(target=_process, args=(rank, folder)) for rank in range(SIZE)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * SIZE
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(SIZE)]


def _process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=SIZE)
    with launched_world() as world:
        told = {"said": _said(world), "gradients": _gradients(world)}
        (folder / f"{rank}.json").write_text(json.dumps(told), encoding="utf-8")
    distributed.destroy_process_group()


def _said(world: World) -> dict[str, Any]:
    def fail() -> None:
        raise DataError("no rows")

    found: dict[str, Any] = {"share": world.share(np.arange(7)).tolist(), "none": world.share(np.arange(1)).tolist()}
    found["sum"] = world.add_up([world.rank + 0.5, 1.0])
    found["largest"] = world.largest(torch.tensor([world.rank, -world.rank])).tolist()
    found["joined"] = world.joined(torch.full((world.rank, 2), float(world.rank))).tolist()
    found["told"] = world.told(lambda: {"rank": world.rank, "rest": [1.5, "é", None]})
    own = torch.full((2,), float(world.rank + 7))
    world.spread([own])
    found["spread"] = own.tolist()
    try:
        world.told(fail)
    except (DataError, ElsewhereError) as error:
        found["first fails"] = [type(error).__name__, error.message, error.exit_code]
    try:
        with world.together():
            if world.rank == 1:
                fail()
    except (DataError, ElsewhereError) as error:
        found["second fails"] = [type(error).__name__, error.message, error.exit_code]
    with world.together():
        pass
    return found


def test_what_three_processes_say_to_each_other(found: list[dict[str, Any]]) -> None:
    zero, one, two = [told["said"] for told in found]
    assert [told.pop("share") for told in (zero, one, two)] == [[0, 3, 6], [1, 4], [2, 5]]
    assert [told.pop("none") for told in (zero, one, two)] == [[0], [], []]
    assert zero.pop("first fails") == ["DataError", "no rows", 2]
    for told in (one, two):
        assert told.pop("first fails") == ["ElsewhereError", "In process 0 of 3: no rows", 2]
    assert one.pop("second fails") == ["DataError", "no rows", 2]
    for told in (zero, two):
        other = ["ElsewhereError", "In process 1 of 3: no rows", 2]
        assert told.pop("second fails") == other
    assert zero == one == two
    assert zero == {
        "sum": [4.5, 3.0],
        "largest": [2, 0],
        "joined": [[1.0, 1.0], [2.0, 2.0], [2.0, 2.0]],
        "told": {"rank": 0, "rest": [1.5, "é", None]},
        "spread": [7.0, 7.0],
    }


def _table(rows: dict[int, float]) -> torch.Tensor:
    values = torch.tensor([[value, -value] for value in rows.values()])
    return torch.sparse_coo_tensor(torch.tensor([list(rows)]), values, (6, 2))


def _gradients(world: World) -> list[Any]:
    """A matrix, a bias that the last process has no gradient of, a table, one unused weight, a half one."""
    shapes: tuple[tuple[int, ...], ...] = ((2, 3), (2,), (6, 2), (4,), (3,))
    matrix, bias, table, unused, half = (torch.nn.Parameter(torch.zeros(shape)) for shape in shapes)
    half.data = half.data.bfloat16()
    if world.rank < 2:
        matrix.grad = torch.arange(6.0).reshape(2, 3) + world.rank
        bias.grad = torch.tensor([1.0, 2.0])
        half.grad = torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16)
        table.grad = _table({0: 1.0, 3: 2.0}) if world.rank else _table({3: 5.0, 5: 1.0})
    add_gradients(world, [matrix, bias, table, unused, half])
    assert table.grad is not None
    assert unused.grad is None
    assert half.grad is not None
    assert table.grad.is_sparse
    assert half.grad.dtype == torch.bfloat16
    dense = [gradient for gradient in (matrix.grad, bias.grad, half.grad) if gradient is not None]
    return [
        [gradient.tolist() for gradient in dense],
        table.grad.indices()[0].tolist(),
        table.grad.values()[:, 0].tolist(),
    ]


def test_gradients_are_sums_whoever_has_them(found: list[dict[str, Any]]) -> None:
    """With a mean in place of the sum, all of these would be a third."""
    zero, one, two = [told["gradients"] for told in found]
    assert zero == one == two
    assert zero == [[[[1.0, 3.0, 5.0], [7.0, 9.0, 11.0]], [2.0, 4.0], [2.0, 4.0, 6.0]], [0, 3, 5], [1.0, 7.0, 1.0]]


def test_a_process_alone_needs_no_others() -> None:
    rows, values = np.arange(4), torch.ones(2)
    assert ALONE.share(rows) is rows
    assert ALONE.joined(values) is values
    assert ALONE.add_up([1.0]) == [1.0]
    assert ALONE.told(lambda: rows) is rows
    ALONE.wait()
