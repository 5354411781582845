"""What a strategy is: which parameters are trained from which step on, at which learning rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from chainrule.core.recipe import Optimizer, Section


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters, by name, that share a learning rate and a weight decay."""

    names: tuple[str, ...]
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class Phase:
    """From `start_step` (0-based) on, exactly the parameters of `groups` are trained."""

    start_step: int
    groups: tuple[ParameterGroup, ...]


class Strategy(Protocol):
    """A way to fine-tune."""

    @property
    def options(self) -> Section: ...

    @property
    def default_learning_rate(self) -> float: ...

    def prepare(self, model: Any, tell: Callable[[str], None]) -> Any:
        """Called once on the loaded model, before the kernels go on: put in what is to be trained besides its weights.

        Args:
            tell: takes what the user should know before step one.

        Returns:
            The model to train.
        """
        ...

    def phases(self, model: Any, optimizer: Optimizer, steps: int) -> list[Phase]:
        """What is trained and when. `optimizer.learning_rate` is resolved; `steps` is the length of the run."""
        ...

    def finish(self, model: Any) -> Any:
        """Called once after training: merge, drop hooks. Returns the model to save."""
        ...


def decayed_groups(model: Any, names: Sequence[str], optimizer: Optimizer) -> tuple[ParameterGroup, ...]:
    """Two groups, with weight decay and without: norms and biases (vectors) are not decayed."""
    if optimizer.learning_rate is None:
        raise ValueError("the learning rate must be resolved before the parameter groups are made")
    shapes = {name: parameter.ndim for name, parameter in model.named_parameters()}
    decayed = tuple(name for name in names if shapes[name] >= 2)
    plain = tuple(name for name in names if shapes[name] < 2)
    groups = (
        ParameterGroup(decayed, optimizer.learning_rate, optimizer.weight_decay),
        ParameterGroup(plain, optimizer.learning_rate, 0.0),
    )
    return tuple(group for group in groups if group.names)
