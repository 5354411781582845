"""The calls that the modules of a model make in one forward, and each of them made again alone."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_map, tree_unflatten

from chainrule.errors import ModelError, Problem
from chainrule.system.seed import seed_processor


@dataclass
class Call:
    """One call of a module.

    Attributes:
        name: of the module in the model, "" for the model itself.
        number: which call of this module it is, from 1 on.
        arguments: (args, kwargs), with copies of their tensors.
        carried: for each leaf of `arguments`, whether it is a tensor that a gradient flows back to.
        outer: the place, among all calls, of the one inside which it was made; None for the model's own.
        last: the place of the last one that was made inside this one; its own where there is none.
        own: names of the trainable parameters that no module called inside this call holds.
        inside: names of those that one does.
    """

    name: str
    module: nn.Module
    number: int
    arguments: Any
    carried: list[bool]
    outer: int | None
    last: int
    own: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()


def record(model: nn.Module, batch: Mapping[str, Any] | Sequence[Any], seed: int) -> list[Call]:
    """Run a model in float64 once and keep what every module was given, in the order of the calls.

    Args:
        batch: the model's arguments, by name or in order.
        seed: of everything random.

    Raises:
        ModelError: it cannot be run on the batch.
    """
    calls: list[Call] = []
    begun: list[int] = []
    numbers: Counter[str] = Counter()

    def begin(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        numbers[name] += 1
        carried = [isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in tree_leaves((args, kwargs))]
        place, outer = len(calls), begun[-1] if begun else None
        calls.append(Call(name, module, numbers[name], tree_map(_copy, (args, kwargs)), carried, outer, place))
        begun.append(place)

    def end(module: nn.Module, args: Any, result: Any) -> None:
        calls[begun.pop()].last = len(calls) - 1

    handles = [
        handle
        for name, module in model.named_modules()
        for handle in (
            module.register_forward_pre_hook(partial(begin, name), with_kwargs=True),
            module.register_forward_hook(end),
        )
    ]
    given = ((), dict(batch)) if isinstance(batch, Mapping) else (tuple(batch), {})
    args, kwargs = tree_map(partial(_cast, dtype=torch.float64), given)
    try:
        seed_processor(seed)
        with torch.enable_grad(), _Wide():
            model(*args, **kwargs)
    except Exception as error:  # whatever the code of others raises
        problem = Problem(
            "a batch that the model can be run on", first_line(error), "Give it what it needs as `batch`."
        )
        raise ModelError(f"The {type(model).__name__} cannot be run.", [problem]) from error
    finally:
        for handle in handles:
            handle.remove()
    for place, call in enumerate(calls):
        _divide(call, calls[place + 1 : call.last + 1])
    return calls


class Replay:
    """A call made again: a function of tensors that may be moved in place.

    Attributes:
        inputs: by name, what the module was given and a gradient flows back to.
        own, inside: the parameters of the call by name.
    """

    def __init__(self, call: Call, module: nn.Module, dtype: torch.dtype, seed: int) -> None:
        """Copy what the call was given.

        Args:
            module: the call's own, or its like in another model.
            dtype: float64: what the module would make in less of its own accord is made in float64 too. float32, or
                bfloat16 for autocast on float32 tensors, as in training.
            seed: of everything random, before each call.
        """
        self._module, self._dtype, self._seed = module, dtype, seed
        found, self._form = tree_flatten_with_path(call.arguments)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        self._leaves = [_cast(leaf, wide) for _, leaf in found]
        names = _argument_names(module)
        self.inputs: dict[str, torch.Tensor] = {}
        for (path, _), leaf, carried in zip(found, self._leaves, call.carried, strict=True):
            if carried:
                self.inputs[_place_name(path, names)] = leaf.requires_grad_()
        parameters = dict(module.named_parameters())
        self.own = {name: parameters[name] for name in call.own}
        self.inside = {name: parameters[name] for name in call.inside}

    def __call__(self) -> list[torch.Tensor]:
        """The floating tensors that the module returns, with their graph."""
        # copies, as a module may change in place what it is given, though not a leaf
        args, kwargs = tree_unflatten([_copy(leaf, detached=False) for leaf in self._leaves], self._form)
        seed_processor(self._seed)
        with torch.enable_grad(), self._format():
            result = self._module(*args, **kwargs)
        found = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
        return [leaf.double() for leaf in found] if self._dtype == torch.float64 else found

    def pull_back(self, weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Autograd's vᵀJ: a tensor for each of `inputs`, `own` and `inside` in this order, zero where nothing arrives.

        Args:
            weights: v, one tensor for each that a call returns.
        """
        tensors = [*self.inputs.values(), *self.own.values(), *self.inside.values()]
        joined = [(out, v.to(out.dtype)) for out, v in zip(self(), weights, strict=True) if out.requires_grad]
        if not joined:
            return [torch.zeros_like(tensor) for tensor in tensors]
        outputs, directions = zip(*joined, strict=True)
        with self._format():
            found = torch.autograd.grad(outputs, tensors, directions, allow_unused=True)
        return [torch.zeros_like(t) if g is None else g.to_dense() for t, g in zip(tensors, found, strict=True)]

    def _format(self) -> AbstractContextManager[Any]:
        if self._dtype == torch.float64:
            return _Wide()
        return torch.autocast("cpu", torch.bfloat16) if self._dtype == torch.bfloat16 else nullcontext()


def first_line(error: Exception) -> str:
    """What an error says, as far as it fits a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class _Wide(TorchFunctionMode):
    """Inside, everything that is made in a narrower format of a module's own accord is made in float64."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16):
            return args[0].double()
        return function(*map(_widened, args), **{name: _widened(value) for name, value in (kwargs or {}).items()})


def _widened(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value


def _copy(leaf: Any, *, detached: bool = True) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return leaf.detach().clone() if detached else leaf.clone()


def _cast(leaf: Any, dtype: torch.dtype) -> Any:
    if not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point():
        return leaf
    limits = torch.finfo(dtype)
    # the least number of float64, which stands in masks, would be minus infinity
    return leaf.double().clamp(limits.min, limits.max).to(dtype, copy=True)


def _divide(call: Call, inner: Sequence[Call]) -> None:
    """Tell the parameters that the call uses itself from those that modules called by it use."""
    within = {id(parameter) for other in inner for parameter in other.module.parameters()}
    trainable = {name: p for name, p in call.module.named_parameters() if p.requires_grad}
    call.own = tuple(name for name, p in trainable.items() if id(p) not in within)
    call.inside = tuple(name for name, p in trainable.items() if id(p) in within)


def _argument_names(module: nn.Module) -> list[str]:
    """What a module's forward calls its arguments in order, as far as they have names of their own."""
    found = list(inspect.signature(type(module).forward).parameters.values())[1:]
    return [argument.name for argument in found if argument.kind is argument.POSITIONAL_OR_KEYWORD]


def _place_name(path: Sequence[Any], names: Sequence[str]) -> str:
    """The name of a leaf of (args, kwargs): an argument, and the place in it where it is more than a tensor."""
    by_name, first, rest = path[0].idx == 1, path[1], path[2:]
    in_order = names[first.idx] if not by_name and first.idx < len(names) else None
    return (str(first.key) if by_name else in_order or f"argument {first.idx + 1}") + keystr(tuple(rest))
