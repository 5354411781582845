"""For few rows: rows of one class are drawn together first, then a head learns to tell the classes apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pydantic import Field

from chainrule.core.recipe import Optimizer, Section
from chainrule.core.task import Objective, Task
from chainrule.models.accelerate import every_token
from chainrule.models.adapters import head_modules, plain_model
from chainrule.models.pooling import mean
from chainrule.strategies.base import Phase, decayed_groups
from chainrule.tasks.objectives import backward
from chainrule.tasks.similarity import contrastive_loss
from chainrule.tasks.windows import Windowed


def misfit(task: Task) -> str | None:
    """Why the targets of a task do not tell which rows are alike; None where they do."""
    if isinstance(task.encode, Windowed):
        return "a text that is read in windows has no one vector to compare"
    if task.target.kind == "class":
        return None
    return "it needs rows of exactly one class each, to draw those of a class together"


class Options(Section):
    """How the encoder is tuned (defaults: LOG.md, "Does contrastive tuning help with few rows?").

    Attributes:
        temperature: cosines are divided by it; the lower, the more the most similar rows of other classes count.
        share: of the steps, those that tune the encoder; the rest train the head alone.
        head_factor: how many times the encoder's learning rate the head's is, in all steps.
    """

    temperature: float = Field(default=0.1, gt=0)
    share: float = Field(default=0.5, gt=0, le=1)
    head_factor: float = Field(default=5.0, gt=0)


class Contrastive:
    """Contrastive tuning, then a head on frozen features: Tunstall et al. (2022), SetFit, section 3.

    In place of a list of pairs, each batch gives its own: the loss is `contrastive_loss` of the mean of each row's
    token states, as sentence encoders pool them, whatever the head reads. While the encoder is tuned the head learns
    beside it from states through which no gradient flows, so that validation has something to go by.
    """

    default_learning_rate = 2e-4
    width_exponent = 1.0

    def __init__(self, options: Options) -> None:
        self.options = options

    def prepare(self, model: Any, tell: Callable[[str], None]) -> Any:
        return model

    def phases(self, model: Any, optimizer: Optimizer, steps: int) -> list[Phase]:
        """The encoder with the head beside it, then the head alone; one phase where no steps are left for that."""
        above = tuple(f"{name}." for name in head_modules(model))
        names = [name for name, _ in model.named_parameters()]
        rate = {"learning_rate": (optimizer.learning_rate or 0.0) * self.options.head_factor}
        head = decayed_groups(
            model, [name for name in names if name.startswith(above)], optimizer.model_copy(update=rate)
        )
        encoder = decayed_groups(model, [name for name in names if not name.startswith(above)], optimizer)
        tuning = Phase(0, (*encoder, *head), partial(ContrastiveObjective, temperature=self.options.temperature))
        last = max(1, round(self.options.share * steps))
        return [tuning] if last >= steps else [tuning, Phase(last, head)]

    def finish(self, model: Any) -> Any:
        return model


@dataclass(frozen=True)
class ContrastiveObjective:
    """`contrastive_loss` for the trunk, and another objective for the head alone. The pairs are those of a micro-batch.

    The trunk's backward runs as soon as its states are there, so that whatever the other objective does around its
    forward (mixed weights, moved embeddings, every row twice) holds for it too.
    """

    inner: Objective
    temperature: float

    def accumulate(self, model: Any, batch: Any) -> tuple[torch.Tensor, int]:
        """Gradients of both sums over rows; the loss is the sum of both."""
        base = plain_model(model).base_model
        losses: list[torch.Tensor] = []

        def learn(module: Any, inputs: Any, output: Any) -> Any:
            states = output.last_hidden_state
            output.last_hidden_state = states.detach()
            copies, mask = len(states) // len(batch), batch.inputs.get("attention_mask")
            with torch.autocast(states.device.type, enabled=False):
                features = mean(states.float(), None if mask is None else mask.repeat(copies, 1))
                loss = contrastive_loss(features, batch.targets.repeat(copies), self.temperature)
                losses.append(backward(loss / copies))
            return output

        handles = [base.register_forward_hook(learn)]
        if getattr(base, "pooler", None) is not None:
            handles.append(base.pooler.register_forward_pre_hook(_detach))
        try:
            with every_token(model):
                loss, count = self.inner.accumulate(model, batch)
        finally:
            for handle in handles:
                handle.remove()
        return torch.stack([loss, *losses]).sum(), count


def _detach(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(value.detach() for value in inputs)
