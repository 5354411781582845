"""What a strategy is: which parameters are trained from which step on, at which learning rate, with which loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from chainrule.core.recipe import Optimizer, Section
from chainrule.core.task import Objective
from chainrule.errors import Problem, Where
from chainrule.models.inspect import depths_below_head

MEASURED_WIDTH = 384


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters, by name, that share a learning rate and a weight decay."""

    names: tuple[str, ...]
    learning_rate: float
    weight_decay: float


def as_it_is(objective: Objective) -> Objective:
    """The task's own loss and nothing else."""
    return objective


@dataclass(frozen=True)
class Phase:
    """From `start_step` (0-based) on, exactly the parameters of `groups` are trained.

    Attributes:
        wrap: makes the loss of this phase from the task's own.
    """

    start_step: int
    groups: tuple[ParameterGroup, ...]
    wrap: Callable[[Objective], Objective] = as_it_is

    @property
    def names(self) -> set[str]:
        """The parameters that it trains."""
        return {name for group in self.groups for name in group.names}


class Strategy(Protocol):
    """A way to fine-tune.

    Attributes:
        default_learning_rate: for AdamW on a model of MEASURED_WIDTH hidden numbers or fewer.
        width_exponent: how it falls in wider models, see `usual_rate`.
    """

    @property
    def options(self) -> Section: ...

    @property
    def default_learning_rate(self) -> float: ...

    @property
    def width_exponent(self) -> float: ...

    def prepare(self, model: Any, tell: Callable[[str], None]) -> Any:
        """Called once on the loaded model, before the kernels go on: put in what is to be trained besides its weights.

        Args:
            tell: takes what the user should know before step one.

        Returns:
            The model to train.
        """
        ...

    def phases(self, model: Any, optimizer: Optimizer, steps: int) -> list[Phase]:
        """What is trained and when; no two phases start at the same step, and the first starts at 0.

        `optimizer.learning_rate` is resolved; `steps` is the length of the run.
        """
        ...

    def finish(self, model: Any) -> Any:
        """Called once after training: merge, drop hooks. Returns the model to save."""
        ...


def usual_rate(strategy: type[Strategy] | Strategy, width: int) -> float:
    """The learning rate to begin with on a model of a width, for AdamW.

    Yang et al. (2021), Tensor Programs V, table 8: with Adam the best rate of a matrix falls as 1 / width, that of a
    vector does not. Adapters lie between: LOG.md, "Which learning rates do strategies begin with?"
    """
    narrower: float = min(1.0, MEASURED_WIDTH / width)
    rate: float = strategy.default_learning_rate * narrower**strategy.width_exponent  # type: ignore[operator]
    return float(f"{rate:.3g}")


def decayed_groups(model: Any, names: Sequence[str], optimizer: Optimizer) -> tuple[ParameterGroup, ...]:
    """Groups by learning rate, each with weight decay and without: norms and biases (vectors) are not decayed.

    With `optimizer.layer_decay` d, what lies k layers below the head is trained at d^k of the learning rate: Clark et
    al. (2020), ELECTRA, appendix A; Howard and Ruder (2018), ULMFiT, section 3.2, with d = 1 / 2.6.
    """
    if optimizer.learning_rate is None:
        raise ValueError("the learning rate must be resolved before the parameter groups are made")
    vectors = {name for name, parameter in model.named_parameters() if parameter.ndim < 2}
    depths = depths_below_head(model) if optimizer.layer_decay is not None else {}
    grouped: dict[tuple[int, bool], list[str]] = {}
    for name in names:
        grouped.setdefault((depths.get(name, 0), name in vectors), []).append(name)
    return tuple(
        ParameterGroup(
            names=tuple(group),
            learning_rate=optimizer.learning_rate * (optimizer.layer_decay or 1.0) ** depth,
            weight_decay=0.0 if is_vector else optimizer.weight_decay,
        )
        for (depth, is_vector), group in sorted(grouped.items())
    )


def too_many_layers(option: str, wanted: int, there: int) -> list[Problem]:
    """What is wrong with an option that counts layers, where the model has fewer."""
    if wanted <= there:
        return []
    problem = Problem(
        where=Where(field=f"strategy.options.{option}"),
        expected=f"at most {there}, the layers this model has",
        got=str(wanted),
        todo="Lower it, or use --strategy full.",
    )
    return [problem]
