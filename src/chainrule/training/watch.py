"""What gradients, updates and activations do in each layer, looked at in some steps of a run.

Looking changes nothing: it hooks into the steps it looks at, and reads. What it needs of earlier steps is the
optimizer's own state, so a run that goes on from a checkpoint sees what it would have seen without the interruption.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from chainrule.kernels.adamw import catch_up, gradient_norm
from chainrule.models.inspect import Part
from chainrule.training.events import Sink
from chainrule.training.loop import Progress, Step

EVERY = 10  # steps at least from one look to the next
LOOKS = 200  # in a run, about
ENTRIES = 2**15  # of a tensor that are read where a sample will do
DIGITS = 5  # of a number that are recorded

Sums = dict[str, float]


@dataclass(frozen=True)
class Watch:
    """What is looked at, and when: the first and the last step, and every so many between them.

    Attributes:
        layers: trained parameter -> name of its layer, in the order of the layers.
        names: trained parameter -> its own name.
        modules: name of a layer -> the module whose output is its own.
        start: trained parameter -> a sample of its rows before step one.
        about: name of a layer, frozen ones included -> its module and how many parameters it has, and trains.
        steps: the length of the run.
        every: steps from one look to the next.
    """

    layers: Mapping[nn.Parameter, str]
    names: Mapping[nn.Parameter, str]
    modules: Mapping[str, nn.Module]
    start: Mapping[nn.Parameter, torch.Tensor]
    about: Mapping[str, Mapping[str, Any]]
    steps: int
    every: int

    def is_due(self, step: int) -> bool:
        """Whether the 1-based step is one to look at."""
        return step in (1, self.steps) or step % self.every == 0

    def as_event(self) -> dict[str, Any]:
        """For events.jsonl."""
        return {"event": "watch", "step": 0, "every": self.every, "layers": self.about}


def make_watch(model: nn.Module, parts: Sequence[Part], trained: Iterable[str], steps: int) -> Watch:
    """Watch what is trained of a model whose weights are those before step one.

    Args:
        parts: of the model, bottom first.
        trained: names of the parameters that any phase trains; those that are in no part are the layer "other".
        steps: the length of the run.
    """
    named = dict(model.named_parameters())
    names = {named[name]: name for name in sorted(trained)}
    layers = {named[name]: part.name for part in parts for name in part.parameters if named[name] in names}
    layers |= {parameter: "other" for parameter in names if parameter not in layers}
    about = {
        part.name: {
            "module": part.module,
            "parameters": sum(named[name].numel() for name in part.parameters),
            "trained": sum(named[name].numel() for name in part.parameters if named[name] in names),
        }
        for part in parts
    }
    return Watch(
        layers=layers,
        names=names,
        modules={part.name: model.get_submodule(part.module) for part in parts if part.module},
        start={parameter: sampled_rows(parameter).clone() for parameter in layers},
        about=about,
        steps=steps,
        every=max(EVERY, math.ceil(steps / LOOKS)),
    )


def watched(steps: Iterator[Step], watch: Watch, progress: Progress, record: Sink) -> Iterator[Step]:
    """The same steps; those that are due are looked at, and what was seen is recorded before they are passed on."""
    while True:
        look = Look(watch) if watch.is_due(progress.step + 1) else None
        with look.looking() if look else ExitStack():
            step = next(steps, None)
        if step is None:
            return
        if look:
            record(look.as_event(step))
        yield step


class Look:
    """What one step shows, as sums for each parameter and for the output of each layer.

    Sums over a sample of a tensor's rows are scaled to all of them.
    """

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.sums: dict[nn.Parameter, Sums] = {}
        self.outputs: dict[str, Sums] = {name: defaultdict(float) for name in watch.layers.values()}
        self.groups: list[dict[str, Any]] = []
        self.before: dict[nn.Parameter, tuple[Any, float, torch.Tensor]] = {}
        self.silent: list[str] = []
        self.depth = 0  # of updates: a class and its parent may both be hooked

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Inside, the step that is made is looked at."""
        with ExitStack() as hooks:
            for name, module in self.watch.modules.items():
                if name in self.outputs:
                    hooks.callback(module.register_forward_hook(self._output_reader(name)).remove)
            hooks.callback(register_optimizer_step_pre_hook(self._before_update).remove)
            hooks.callback(register_optimizer_step_post_hook(self._after_update).remove)
            yield

    def as_event(self, step: Step) -> dict[str, Any]:
        """For events.jsonl."""
        whole = _total(self.sums.values())
        norm = math.sqrt(whole["gradient"])
        scale = step.gradient_norm / norm if norm else 0.0  # from the gradient of the sum to that of the mean
        layers: dict[str, list[Sums]] = {}
        for parameter, name in self.watch.layers.items():
            if parameter in self.sums:
                layers.setdefault(name, []).append(self.sums[parameter])
        return {
            "event": "gradients",
            "step": step.step,
            "rows": step.rows,
            "all": _told(whole, scale),
            "layers": {
                name: _told(_total(members), scale) | _output_told(self.outputs[name])
                for name, members in layers.items()
            },
            "groups": [
                {"learning_rate": _short(group["lr"]), "weight_decay": group["weight_decay"]}
                | _told(_total(self.sums[parameter] for parameter in group["params"]), scale)
                for group in self.groups
            ],
            "silent": self.silent,
        }

    def _output_reader(self, layer: str) -> Any:
        def read(module: nn.Module, inputs: Any, output: Any) -> None:
            values = output[0] if isinstance(output, tuple) else output
            if isinstance(values, torch.Tensor):
                part = sampled_rows(values.flatten(0, -2))
                seen = {"output": part.square().sum(), "output_zeros": (part == 0).sum(), "outputs": part.numel()}
                _add(self.outputs[layer], seen, values.numel() / part.numel())

        return read

    @torch.no_grad()
    def _before_update(self, optimizer: Any, *arguments: Any) -> None:
        self.depth += 1
        if self.depth > 1:
            return
        self.groups = [dict(group) for group in optimizer.param_groups]
        for group in self.groups:
            for parameter in group["params"]:
                self._read_gradient(parameter, optimizer, group)

    def _read_gradient(self, parameter: nn.Parameter, optimizer: Any, group: Mapping[str, Any]) -> None:
        """Norm, zeros, and agreement with the mean gradient of the steps before; and the weights before the update."""
        sums, gradient = self.sums.setdefault(parameter, defaultdict(float)), parameter.grad
        sums["gradient"] = 0.0 if gradient is None else gradient_norm([gradient]) ** 2
        if sums["gradient"] == 0:
            self.silent.append(self.watch.names[parameter])
        if gradient is None:
            sums["entries"] = sums["zeros"] = parameter.numel()
            return
        values = gradient.values() if gradient.is_sparse else gradient
        part = sampled_rows(values)
        times = values.numel() / part.numel()
        rows = gradient.indices()[0][_thinned(values)] if gradient.is_sparse else _thinned(values)
        _add(sums, {"entries": part.numel(), "zeros": (part == 0).sum()}, times)
        mean = _mean_before(optimizer.state.get(parameter, {}), group, rows)
        if mean is not None:
            taken = part * getattr(optimizer, "gradient_scale", 1.0)  # torch's own get what is scaled already
            _add(sums, {"own": taken.square().sum(), "agreed": (taken * mean).sum()}, times)
        self.before[parameter] = rows, times, sampled_rows(parameter, rows).clone()

    @torch.no_grad()
    def _after_update(self, optimizer: Any, *arguments: Any) -> None:
        self.depth -= 1
        if self.depth > 0:
            return
        for parameter, sums in self.sums.items():
            if parameter in self.before:
                rows, times, before = self.before.pop(parameter)
                update = sampled_rows(parameter, rows) - before
                _add(sums, {"update": update.square().sum(), "weight": before.square().sum()}, times)
            start = self.watch.start[parameter]
            if hasattr(parameter, "catch_up"):
                catch_up(parameter, torch.arange(len(parameter))[_thinned(parameter)])
            way = sampled_rows(parameter) - start
            _add(sums, {"way": way.square().sum(), "start": start.square().sum()}, parameter.numel() / start.numel())


def _mean_before(state: Mapping[str, Any], group: Mapping[str, Any], rows: Any) -> torch.Tensor | None:
    """The running mean of the gradients of the steps before, where the optimizer is an Adam and keeps one.

    Kingma and Ba (2015), Adam, algorithm 1: the first moment without its bias.
    """
    if not {"step", "exp_avg", "exp_avg_sq"} <= state.keys():
        return None
    correction: float = 1 - group["betas"][0] ** float(state["step"])
    return sampled_rows(state["exp_avg"], rows) / correction


def _told(sums: Sums, scale: float) -> dict[str, float | None]:
    """One row of the record."""
    return {
        "gradient_norm": _short(math.sqrt(sums["gradient"]) * scale),
        "update_ratio": _root(sums["update"], sums["weight"]),
        "signal": _short(sums["agreed"] / sums["own"]) if sums["own"] else None,
        "zeros": _short(sums["zeros"] / sums["entries"]),
        "moved": _root(sums["way"], sums["start"]),
    }


def _output_told(sums: Sums) -> dict[str, float | None]:
    """The same of a layer's output."""
    zeros = _short(sums["output_zeros"] / sums["outputs"]) if sums["outputs"] else None
    return {"activation_rms": _root(sums["output"], sums["outputs"]), "activation_zeros": zeros}


def _root(part: float, whole: float) -> float | None:
    return _short(math.sqrt(part / whole)) if whole else None


def _short(number: float) -> float | None:
    """A few digits of it; None for what JSON has no name for."""
    return float(f"{number:.{DIGITS}g}") if math.isfinite(number) else None


def _total(parts: Iterable[Sums]) -> Sums:
    total: Sums = defaultdict(float)
    for part in parts:
        _add(total, part)
    return total


def _add(sums: Sums, seen: Mapping[str, Any], times: float = 1.0) -> None:
    for key, value in seen.items():
        sums[key] += float(value) * times


def sampled_rows(tensor: torch.Tensor, rows: Any = None) -> torch.Tensor:
    """Rows of a tensor in float32: the given ones, or an even sample."""
    values = tensor.detach().reshape(1) if tensor.ndim == 0 else tensor.detach()
    picked: torch.Tensor = values[_thinned(tensor) if rows is None else rows]
    return picked.float()


def _thinned(tensor: torch.Tensor) -> slice:
    """So many rows, evenly spread, that they hold about ENTRIES entries."""
    return slice(None, None, max(1, tensor.numel() // ENTRIES))
