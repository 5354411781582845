"""One batch shared out among processes: gradients are added up, and the first process keeps the run.

Every process makes the same model, plans the same batches, and takes its own rows of each. What it adds up is the
gradient of the summed loss and the count of rows or tokens, so that the mean over the batch is what one process alone
would have stepped on, however uneven the shares are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from chainrule.core.recipe import Recipe
from chainrule.core.task import Task
from chainrule.errors import ModelError, Problem, RecipeError, Where
from chainrule.kernels.embedding import coalesce, sum_by_row
from chainrule.system.processes import World
from chainrule.training.checkpoint import Found, Keeper, Standing
from chainrule.training.loop import Sums

BUCKET_NUMBERS = 2**22  # gradients are sent 16 MB at a time, so that their copies take little memory
_NONE, _WHOLE, _ROWS = 0, 1, 2  # the forms of a gradient


def adding_up(world: World) -> Callable[[Sequence[torch.nn.Parameter], Sums], Sums]:
    """What the loop does with the sums of a step before it makes their mean."""

    def add(parameters: Sequence[torch.nn.Parameter], sums: Sums) -> Sums:
        add_gradients(world, parameters)
        loss, count, tokens = world.add_up(sums)
        return loss, round(count), round(tokens)

    return add


def add_gradients(world: World, parameters: Sequence[torch.nn.Parameter]) -> None:
    """Give every parameter, in every process, the sum of its gradients over all processes.

    A process without rows has no gradients and takes part nevertheless. What no process has a gradient of keeps none.
    """
    forms = torch.tensor([_form(parameter) for parameter in parameters], dtype=torch.int32)
    forms = world.largest(forms)
    bucket: list[torch.nn.Parameter] = []
    for parameter, form in zip(parameters, forms.tolist(), strict=True):
        if form == _ROWS:
            _add_rows(world, parameter)
        elif form == _WHOLE:
            if bucket and _numbers([*bucket, parameter]) > BUCKET_NUMBERS:
                _add_whole(world, bucket)
                bucket = []
            bucket.append(parameter)
    if bucket:
        _add_whole(world, bucket)


def _form(parameter: torch.nn.Parameter) -> int:
    if parameter.grad is None:
        return _NONE
    return _ROWS if parameter.grad.is_sparse else _WHOLE


def _numbers(parameters: Sequence[torch.nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _add_whole(world: World, parameters: Sequence[torch.nn.Parameter]) -> None:
    """The sums of some gradients, sent as one in float32."""
    device = parameters[0].device
    sums = torch.zeros(_numbers(parameters), dtype=torch.float32, device=device)
    parts = torch.split(sums, [parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        if parameter.grad is not None:
            part.copy_(parameter.grad.reshape(-1))
    world.add_tensor(sums)
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view(parameter.shape).to(parameter.dtype)


def _add_rows(world: World, table: torch.nn.Parameter) -> None:
    """The sum of gradients that hold the rows of a table which a batch has used; each process has used others."""
    ids = torch.zeros(0, dtype=torch.int64)
    values = torch.zeros(0, *table.shape[1:])
    if table.grad is not None:
        own = coalesce(table.grad if table.grad.is_sparse else table.grad.to_sparse(1))
        ids, values = own.indices()[0].contiguous(), own.values().float().contiguous()
    used, sums = sum_by_row(world.joined(ids), world.joined(values))
    table.grad = torch.sparse_coo_tensor(used[None], sums, table.shape, is_coalesced=True, check_invariants=False)


class SharedKeeper:
    """The checkpoints of a run that several processes make: the first one writes, all read the same.

    Args:
        keeper: on the same folder in every process, so it must lie where all of them see it.
    """

    def __init__(self, keeper: Keeper, world: World) -> None:
        self.keeper, self.world = keeper, world
        self.run, self.events, self.decided = keeper.run, keeper.events, keeper.decided
        self.halve = bool(world.told(lambda: keeper.halve))

    def due(self, standing: Standing) -> bool:
        """Whether this process is to write a checkpoint now; the others need not know."""
        return self.world.first and self.keeper.due(standing)

    def write(self, model: Any, trained: Iterable[str], standing: Standing) -> None:
        """As `Keeper.write`, in the first process."""
        if self.world.first:
            self.keeper.write(model, trained, standing)
        standing.start.clear()

    def newest(self, tell: Callable[[str], None], step: int | None = None) -> Found | None:
        """As `Keeper.newest`: what the first process finds.

        Raises:
            ModelError: another process does not see that checkpoint.
        """
        found = self.keeper.newest(tell, step) if self.world.first else None
        told: int | None = self.world.told(lambda: None if found is None else found.step)
        with self.world.together():
            if found is None and told is not None:
                found = self.keeper.newest(tell, told)
                if found is None or found.step != told:
                    raise _unseen(self.run, told)
        return found


AnyKeeper = Keeper | SharedKeeper


def _unseen(run: Path, step: int) -> ModelError:
    problem = Problem(
        where=Where(file=str(run)),
        expected=f"the checkpoint of step {step:,}, which process 0 has found",
        got="none that is whole",
        todo="Give --out or --resume a folder that every machine sees under the same path.",
    )
    return ModelError("The processes of this training do not see the same run folder.", [problem])


def refuse_sharing(recipe: Recipe, task: Task, world: World) -> None:
    """Make sure that a training can be shared out among processes.

    Raises:
        RecipeError: it cannot.
    """
    if world.alone:
        return
    problems = []
    if task.whole_batches:
        expected = "a task whose rows can be learned apart"
        got, todo = f"{task.name}, where the rows of a batch are each other's examples", "Train it in one process."
        problems.append(Problem(expected, got, todo, Where(field="task.name")))
    if recipe.training.folds is not None:
        todo = "Leave --folds out, or train in one process."
        problems.append(Problem("one training", f"{recipe.training.folds} folds", todo, Where(field="training.folds")))
    if recipe.strategy.name == "auto":
        todo = "Let one process choose with --strategy auto, then train its resolved.yaml with several."
        problems.append(Problem("a strategy", "auto, which tries several", todo, Where(field="strategy.name")))
    if problems:
        raise RecipeError(f"This training cannot be shared out among {world.size} processes.", problems)
