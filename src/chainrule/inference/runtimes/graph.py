"""A graph that another engine runs, as something that is called like a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import ModelOutput

from chainrule.errors import ModelError, Problem, Where

MASK = "attention_mask"


@dataclass(frozen=True)
class Runner:
    """What an engine makes of a graph.

    Attributes:
        inputs: the names it takes.
        run: name -> array in, name -> array out.
    """

    inputs: tuple[str, ...]
    run: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


class Graph(torch.nn.Module):
    """Takes and gives tensors of a CPU by the names that transformers' models have for them."""

    def __init__(self, config: Any, runner: Runner) -> None:
        super().__init__()
        self.config = config
        self.runner = runner

    def forward(self, **inputs: torch.Tensor) -> ModelOutput:
        """The outputs for inputs (b, …); a mask that is left out is all ones."""
        arrays = {name: tensor.cpu().numpy() for name, tensor in inputs.items() if name in self.runner.inputs}
        if MASK in self.runner.inputs and MASK not in arrays:
            arrays[MASK] = np.ones_like(arrays["input_ids"])
        found = self.runner.run(arrays)
        return ModelOutput({name: torch.from_numpy(np.array(array)) for name, array in found.items()})


def require_files(folder: Path, names: tuple[str, ...]) -> None:
    """Refuse a folder without the files of a graph.

    Raises:
        ModelError: one is missing.
    """
    for name in names:
        if not (folder / name).is_file():
            raise unreadable(folder / name, "no such file")


def unreadable(file: Path, got: str) -> ModelError:
    """What is said of a graph that its engine does not read."""
    todo = "Take a copy of the artifact that is whole, or export it again."
    problem = Problem("a graph that its engine reads", got[:300], todo, Where(file=str(file)))
    return ModelError("The model cannot be loaded.", [problem])
