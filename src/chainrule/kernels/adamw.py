"""AdamW for float32 parameters on a CPU: one pass over memory, clipping and the rounding of weights folded in, late
updates for unused rows.

Loshchilov and Hutter (2019), Decoupled Weight Decay Regularization, algorithm 2. A table of embeddings gets a sparse
gradient; of its other rows nothing is read. Dense AdamW would still move those rows, by momentum and by decay: these
updates are made up for when a row is next read (`catch_up`), one by one, so that the result is that of dense AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from chainrule.kernels import native
from chainrule.kernels.embedding import coalesce
from chainrule.kernels.linear import is_rounded, rounded, set_rounded


class NativeAdamW(torch.optim.Optimizer):
    """AdamW in compiled code; the same numbers as torch.optim.AdamW up to rounding.

    `gradient_scale` multiplies every gradient in the next step.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": 1e-3, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.gradient_scale = 1.0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        dense = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if parameter.grad.is_sparse:
                    self._update_rows(parameter, state, group)
                else:
                    dense.append((parameter, state, group))
        self._update(dense)
        self.gradient_scale = 1.0

    def _update(self, dense: list[tuple[torch.Tensor, dict[str, Any], dict[str, Any]]]) -> None:
        """All parameters with a dense gradient, in one call."""
        tensors, numbers, kept = [], [], []
        for parameter, state, group in dense:
            if not state:
                state |= {"step": 0, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
            compute = rounded(parameter) if is_rounded(parameter) else None
            parts = (parameter, state["exp_avg"], state["exp_avg_sq"], _contiguous(parameter.grad), compute)
            kept.append(parts)
            tensors.append((*map(native.address, parts), parameter.numel(), native.is_half(parts[3])))
            numbers.append(_numbers(group, state["step"]))
        if not dense:
            return
        native.call("adam", torch.tensor(tensors), torch.tensor(numbers), len(tensors), self.gradient_scale)
        for (parameter, state, _), (*_, compute) in zip(dense, kept, strict=True):
            state["step"] += 1
            torch.autograd.graph.increment_version(parameter)
            if compute is not None:
                set_rounded(parameter, compute)

    def _update_rows(self, parameter: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
            state |= {"last": torch.full((len(parameter),), -1, dtype=torch.int32), "past": torch.zeros(3, 1024)}
        history = RowHistory(parameter, state, group)
        parameter.catch_up = history.catch_up
        gradient = coalesce(parameter.grad)
        used = gradient.indices()[0].contiguous()
        history.catch_up(used)
        numbers = _numbers(group, state["step"])
        state["step"] += 1
        native.call(
            "adam_rows", parameter, state["exp_avg"], state["exp_avg_sq"], state["last"],
            gradient.values(), used, len(used), parameter.shape[1], state["step"], *numbers, self.gradient_scale,
        )  # fmt: skip
        history.note(state["step"] - 1, numbers)
        torch.autograd.graph.increment_version(parameter)


class RowHistory:
    """When each row of one table was last updated, and with which numbers every step was made.

    Both are kept in the optimizer's state of the table: `last` (entries,) int32, the number of updates a row has had,
    −n − 1 for n updates of a row that has never had a gradient; `past` (3, room) float32, learning rate and both bias
    corrections of each step so far.
    """

    def __init__(self, parameter: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        self.parameter, self.state, self.group = parameter, state, group

    @torch.no_grad()
    def catch_up(self, rows: torch.Tensor | None = None) -> None:
        """Make up for the updates that rows have missed.

        Args:
            rows: distinct row numbers (n,) int64; None for every row.
        """
        first, second = self.group["betas"]
        native.call(
            "adam_late", self.parameter, self.state["exp_avg"], self.state["exp_avg_sq"], self.state["last"],
            None if rows is None else rows.contiguous(), len(self.parameter) if rows is None else len(rows),
            self.parameter.shape[1], self.state["step"], *self.state["past"].unbind(), first, second, self.group["eps"],
            self.group["weight_decay"],
        )  # fmt: skip

    def note(self, step: int, numbers: tuple[float, ...]) -> None:
        """Remember the numbers of the 0-based step."""
        past = self.state["past"]
        if step == past.shape[1]:
            past = self.state["past"] = torch.cat([past, torch.zeros_like(past)], 1)
        past[:, step] = torch.tensor([numbers[0], *numbers[-2:]])


def checked_state(parameter: torch.Tensor, state: dict[str, Any]) -> dict[str, Any]:
    """The state of one parameter as it was read from a file; compiled code goes by its pointers and asks no more.

    Raises:
        ValueError: sizes, types or counts are not those that belong to the parameter.
    """
    step, rows = int(state["step"]), len(parameter) if parameter.ndim else 0
    shapes = {"exp_avg": parameter.shape, "exp_avg_sq": parameter.shape, "last": (rows,)}
    types = {"last": torch.int32}
    own = {name: state[name] for name in ("exp_avg", "exp_avg_sq", "last", "past", "step") if name in state}
    for name, value in own.items():
        if name == "past":
            fits = value.ndim == 2 and len(value) == 3 and value.shape[1] >= step
        else:
            fits = name == "step" or tuple(value.shape) == tuple(shapes[name])
        if not fits or (name != "step" and value.dtype != types.get(name, parameter.dtype)):
            raise ValueError(f"{name} of the optimizer does not fit a parameter of the shape {list(parameter.shape)}")
    late = state.get("last")
    if step < 0 or (late is not None and not bool(((late >= -step - 1) & (late <= step)).all())):
        raise ValueError("the optimizer counts steps that were never made")
    if ("last" in state) != ("past" in state) or not {"exp_avg", "exp_avg_sq"} <= state.keys():
        raise ValueError("a part of the optimizer's state is missing")
    return state


def catch_up(parameter: torch.Tensor, ids: torch.Tensor | None = None) -> None:
    """Bring rows of a parameter up to date before they are read; nothing to do where none are ever late.

    Args:
        ids: row numbers of any shape, repeats allowed; None for every row.
    """
    late = getattr(parameter, "catch_up", None)
    if late is not None:
        late(None if ids is None else torch.unique(ids))


def forget_rows(parameter: torch.Tensor) -> None:
    """Let no optimizer catch up on this parameter any more."""
    parameter.__dict__.pop("catch_up", None)


def gradient_norm(gradients: list[torch.Tensor]) -> float:
    """The Euclidean norm of all gradients together."""
    dense = [gradient.values() if gradient.is_sparse else gradient for gradient in gradients]
    if not all(native.usable(gradient) for gradient in dense):
        return float(torch.nn.utils.get_total_norm(dense))
    kept = [part.contiguous() for part in dense]
    table = [(native.address(part), part.numel(), native.is_half(part)) for part in kept]
    return math.sqrt(native.call("squares", torch.tensor(table), len(table))) if table else 0.0


def _contiguous(gradient: torch.Tensor | None) -> torch.Tensor:
    if gradient is None:
        raise ValueError("a dense update needs a gradient")
    return gradient.contiguous()


def _numbers(group: dict[str, Any], step: int) -> tuple[float, ...]:
    """Learning rate, both betas, epsilon, decay, and both bias corrections of the 0-based step."""
    first, second = group["betas"]
    rate, decay = group["lr"], group["weight_decay"]
    return rate, first, second, group["eps"], decay, 1 - first ** (step + 1), 1 - second ** (step + 1)
