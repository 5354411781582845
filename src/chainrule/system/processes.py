"""Several processes that do one piece of work together: what each of them takes, tells and adds up.

All of it is torch.distributed underneath, over gloo on CPUs and NCCL between GPUs. A process alone is a world of one,
in which nothing is sent and nothing costs anything. What is told travels as JSON, so that nothing is unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed

from chainrule.errors import ChainruleError, ElsewhereError, LostError, Problem, UserError, Where
from chainrule.system import rank as launched

T = TypeVar("T")
CPU = torch.device("cpu")
# How long a process waits for the others. One that has died is noticed at once; this is for one that no longer answers,
# and must be longer than the first process takes to judge a model.
PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class World:
    """The processes of one training, which call the same methods in the same order.

    Attributes:
        rank: this process's number, from 0. Process 0 alone writes files and decides by the clock.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that decides and writes."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there are no others."""
        return self.size == 1

    def share(self, rows: np.ndarray) -> np.ndarray:
        """This process's rows of a batch: every size-th, so that sorted rows are shared out evenly; maybe none."""
        return rows if self.alone else rows[self.rank :: self.size]

    def add_up(self, numbers: Sequence[float]) -> list[float]:
        """The sum of each number over all processes."""
        if self.alone:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64)
        self.add_tensor(total)
        return [float(number) for number in total]

    def add_tensor(self, values: torch.Tensor) -> None:
        """Put the sum over all processes in its place.

        Sums, never means: gloo has no mean of its own.
        """
        if not self.alone:
            with _others():
                distributed.all_reduce(values, op=distributed.ReduceOp.SUM)

    def largest(self, values: torch.Tensor) -> torch.Tensor:
        """The largest of each number over all processes."""
        if not self.alone:
            with _others():
                distributed.all_reduce(values, op=distributed.ReduceOp.MAX)
        return values

    def spread(self, tensors: Sequence[torch.Tensor]) -> None:
        """Give every process the values that the first one has."""
        if not self.alone:
            with _others():
                for tensor in tensors:
                    distributed.broadcast(tensor, src=0)
                    torch.autograd.graph.increment_version(tensor)  # what was made of the old values is known as such

    def joined(self, values: torch.Tensor) -> torch.Tensor:
        """The values (n, …) of all processes one after another; n may differ, the rest of the shape may not."""
        if self.alone:
            return values
        sizes = [torch.zeros(1, dtype=torch.int64, device=values.device) for _ in range(self.size)]
        with _others():
            distributed.all_gather(sizes, torch.tensor([len(values)], device=values.device))
            most = int(torch.cat(sizes).max())
            padded = values.new_zeros(most, *values.shape[1:])
            padded[: len(values)] = values
            found = [torch.empty_like(padded) for _ in range(self.size)]
            distributed.all_gather(found, padded)
        return torch.cat([part[: int(length)] for part, length in zip(found, sizes, strict=True)])

    def told(self, find: Callable[[], Any]) -> Any:
        """What the first process finds, in every process: something that JSON can hold, or the error that it raised.

        Raises:
            ElsewhereError: in the others, where the first one raised a ChainruleError.
        """
        if self.alone:
            return find()
        if not self.first:
            return self._heard()
        try:
            found = find()
        except ChainruleError as error:
            self._say({"error": _written(error)})
            raise
        self._say({"found": found})
        return found

    def _say(self, message: dict[str, Any]) -> None:
        text = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
        self.spread([torch.tensor([len(text)]), text])

    def _heard(self) -> Any:
        length = torch.zeros(1, dtype=torch.int64)
        self.spread([length])
        text = torch.zeros(int(length), dtype=torch.uint8)
        self.spread([text])
        message = json.loads(text.numpy().tobytes())
        if "error" in message:
            raise self._elsewhere(0, message["error"])
        return message["found"]

    def gathered(self, value: T) -> list[T]:
        """What each process has, in their order: something that JSON can hold."""
        if self.alone:
            return [value]
        line = torch.frombuffer(bytearray(json.dumps(value).encode() + b"\n"), dtype=torch.uint8)
        return [json.loads(found) for found in self.joined(line).numpy().tobytes().splitlines()]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Inside, an error of one process becomes an error of all, so that none waits for one that has given up.

        Nothing is told or added up inside.

        Raises:
            ElsewhereError: where another process raised a ChainruleError.
        """
        own: ChainruleError | None = None
        try:
            yield
        except ChainruleError as error:
            own = error
        errors = self.gathered(None if own is None else _written(own))
        if own is not None:
            raise own
        for rank, told in enumerate(errors):
            if told is not None:
                raise self._elsewhere(rank, told)

    def _elsewhere(self, rank: int, error: dict[str, Any]) -> ElsewhereError:
        problems = [
            Problem(told["expected"], told["got"], told["todo"], Where(**told["where"])) for told in error["problems"]
        ]
        return ElsewhereError(f"In process {rank} of {self.size}: {error['message']}", problems, error["exit_code"])

    def wait(self) -> None:
        """Go on when all have come here."""
        self.add_up([0.0])


ALONE = World()


def _written(error: ChainruleError) -> dict[str, Any]:
    told: dict[str, Any] = error.as_dict()["error"]
    return told | {"exit_code": error.exit_code}


@contextmanager
def launched_world() -> Iterator[World]:
    """The processes that torchrun, or Ray Train, has started side by side; a process of its own is alone.

    Raises:
        UserError: the others cannot be reached.
    """
    if distributed.is_available() and distributed.is_initialized():
        yield World(distributed.get_rank(), distributed.get_world_size())
        return
    if launched.size() == 1:
        yield ALONE
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    try:
        distributed.init_process_group(backend, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise _unreachable(error) from error
    try:
        yield World(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


@contextmanager
def _others() -> Iterator[None]:
    """Inside, what torch says when another process has gone becomes an error of ours."""
    try:
        yield
    except RuntimeError as error:
        problem = Problem(
            expected="an answer from every process of this training",
            got=f"{str(error).splitlines()[0][:200]}",
            todo="See why it ended; then go on with: chainrule train --resume, and the run folder",
        )
        raise LostError("Another process of this training is gone.", [problem]) from error


def _unreachable(error: Exception) -> UserError:
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    problem = Problem(
        where=Where(field="MASTER_ADDR"),
        expected=f"{launched.size()} processes that meet at {address}",
        got=f"{str(error).splitlines()[0][:200]}",
        todo="Start all of them with torchrun, with the same --rdzv-endpoint on every machine.",
    )
    return UserError("The processes of this training do not find each other.", [problem])
