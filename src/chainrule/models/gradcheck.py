"""Whether the backward of a model is the derivative of its forward, module by module, by central differences.

Every call of a module is a function of the tensors that it was given and of its parameters. Made again alone, with
random directions v on what it returns and u on one of the things it depends on, autograd's vᵀJ · u must be how fast
v · outputs changes along u. So a wrong module fails by itself, wherever in the model it sits, and with it those around.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from chainrule.core.report import Derivative
from chainrule.models.accelerate import accelerate
from chainrule.models.adapters import plain_model
from chainrule.models.replay import Call, Replay, first_line, record
from chainrule.system.progress import Display
from chainrule.system.seed import kept_generators

Batch = Mapping[str, Any] | Sequence[Any]

DIRECTIONS = 2
# In units of the root mean square of what is moved. The first that agrees with its half is taken.
STEPS = (1e-4, 1e-5, 1e-3, 1e-6)
INSIDE = "the parameters inside"
# Where the derivative is near zero, as of the bias of attention's keys, errors are measured by the outputs.
_OF_OUTPUTS = 0.1
_LARGEST = 1e30  # but not by what stands for minus infinity in a mask


@dataclass(frozen=True)
class Format:
    """A number format in which autograd works, and the error that its derivatives may have."""

    name: str
    dtype: torch.dtype
    tolerance: float


# Right backwards came to 2e-10, 7e-6 and 0.09 at most, on models of 2 to 30 layers (LOG.md, 2026-11-22). So bfloat16
# shows a wrong sign or a missing term, not a wrong percent.
FLOAT64 = Format("float64", torch.float64, 1e-6)
FLOAT32 = Format("float32", torch.float32, 1e-4)
BFLOAT16 = Format("bfloat16", torch.bfloat16, 0.25)


@dataclass(frozen=True)
class _Sample:
    """The derivative in one direction.

    Attributes:
        autograd: vᵀJ · u.
        slope: how fast v · outputs changes along u; it may be off by `doubt`.
        typical: what autograd's is in a random direction.
        size: of v · outputs, were their signs random.
    """

    autograd: float
    slope: float
    doubt: float
    typical: float
    size: float

    @property
    def unit(self) -> float:
        """What an error is told in; never zero."""
        return max(abs(self.slope), self.typical) + _OF_OUTPUTS * self.size or 1.0

    @property
    def error(self) -> float:
        """Of autograd's; infinite if that is no number."""
        return abs(self.autograd - self.slope) / self.unit if math.isfinite(self.autograd) else math.inf

    def is_wrong(self, format: Format) -> bool:
        """Whether the error is too great beyond doubt."""
        return math.isfinite(self.slope) and not self.error <= format.tolerance + self.doubt / self.unit

    def is_sharp(self, format: Format, factor: float = 1.0) -> bool:
        """Whether the slope is known well enough to judge by; not if it is no number."""
        return self.doubt <= factor * format.tolerance * self.unit


def compare_gradients(model: nn.Module, batch: Batch, *, seed: int, display: Display) -> list[Derivative]:
    """Compare the derivatives of every module in float64, in training mode. The model stays as it is.

    They are those with respect to its trainable parameters, and to what a gradient flows through on its way to any.

    Args:
        batch: the model's arguments, by name or in order.
        seed: of the directions and of all that is random in the model: dropout drops the same in every call.

    Raises:
        ModelError: the model cannot be run on the batch.
    """
    reference = _copy(model, torch.float64).train()
    return list(_compare(reference, reference, (FLOAT64,), batch, seed, display))


def compare_kernels(model: nn.Module, batch: Batch, *, seed: int, display: Display) -> list[Derivative]:
    """The same for a model with the CPU kernels, in float32 and in bfloat16 autocast, without dropout.

    The differences are of the same modules in float64, where the kernels are plain torch.
    """
    reference, fast = _copy(model, torch.float64).eval(), _copy(model, torch.float32).eval()
    for accelerated in (reference, fast):
        accelerate(plain_model(accelerated), torch.device("cpu"))
    return list(_compare(reference, fast, (FLOAT32, BFLOAT16), batch, seed, display))


def responsible(derivatives: Sequence[Derivative]) -> list[Derivative]:
    """The wrong ones in whose calls nothing smaller is wrong in the same format, in the order of the calls."""
    wrong = sorted((d for d in derivatives if d.outcome == "wrong"), key=lambda d: d.place[0])

    def is_wrong_inside(outer: Derivative) -> bool:
        first, last = outer.place
        return any(first < other.place[0] <= last and other.format == outer.format for other in wrong)

    return [derivative for derivative in wrong if not is_wrong_inside(derivative)]


def _copy(model: nn.Module, dtype: torch.dtype) -> Any:
    copied: Any = copy.deepcopy(model).to("cpu", dtype)
    if hasattr(getattr(copied, "config", None), "use_cache"):
        copied.config.use_cache = False  # a cache would grow from call to call
    return copied


def _compare(
    reference: nn.Module, model: nn.Module, formats: Sequence[Format], batch: Batch, seed: int, display: Display
) -> Iterator[Derivative]:
    """Autograd of `model` in the formats against differences of `reference`.

    What is inside a call is moved as a whole only where the call around it was not right: if the whole is right, so is
    what joins its parts.
    """
    with kept_generators():
        calls = record(reference, batch, seed)
        with display.bar("Checking gradients", len(calls) * len(formats)) as bar:
            for format in formats:
                settled: set[int | None] = set()
                for place, call in enumerate(calls):
                    module = model.get_submodule(call.name)
                    whole = call.outer not in settled
                    found = list(_compare_call(call, module, format, (seed, place), whole=whole))
                    yield from found
                    if not whole or any(d.wrt == INSIDE and d.outcome == "right" for d in found):
                        settled.add(place)
                    bar.advance(1, call.name)


def _compare_call(
    call: Call, module: nn.Module, format: Format, seeds: tuple[int, int], *, whole: bool
) -> Iterator[Derivative]:
    """The comparisons of one call.

    Args:
        module: what autograd works on; the differences are of the call's own.
        seeds: of everything random in the module, and the call's place.
        whole: also move all that is inside it at once.
    """
    seed, place = seeds
    tell = partial(
        Derivative,
        place=(place, call.last),
        module=call.name,
        kind=type(module).__name__,
        call=call.number,
        format=format.name,
    )
    reference = Replay(call, call.module, torch.float64, seed)
    tested = reference if module is call.module else Replay(call, module, format.dtype, seed)
    groups = {name: [tensor] for name, tensor in (reference.inputs | reference.own).items()}
    if whole and reference.inside:
        groups[INSIDE] = list(reference.inside.values())
    if not groups:
        return
    try:
        here, again = ([output.detach().clone() for output in reference()] for _ in range(2))
    except Exception as error:  # whatever the code of others raises
        yield tell(wrt="", error=None, outcome="undecided", reason=f"it cannot be called alone: {first_line(error)}")
        return
    if not all(torch.allclose(*pair, rtol=1e-12, atol=0.0, equal_nan=True) for pair in zip(here, again, strict=True)):
        yield tell(wrt="", error=None, outcome="undecided", reason="it returns other numbers each time it is called")
        return
    generator = torch.Generator().manual_seed(seed + place)
    rows = {id(m.weight): m.padding_idx for m in call.module.modules() if isinstance(m, nn.Embedding)}
    samples: dict[str, list[_Sample]] = {wrt: [] for wrt in groups}
    for _ in range(DIRECTIONS if here else 0):
        outputs = _Outputs(reference, here, [_normal(output, generator) for output in here])
        try:
            gradients = iter(tested.pull_back(outputs.weights))
        except Exception as error:
            yield tell(wrt="", error=None, outcome="wrong", reason=f"backward fails: {first_line(error)}")
            return
        for wrt, tensors in groups.items():
            pulled = [next(gradients).double() for _ in tensors]
            moves = [_move(tensor, rows.get(id(tensor)), generator) for tensor in tensors]
            samples[wrt].append(_sample(outputs, tensors, moves, pulled, format))
    for wrt, directions in samples.items():
        if directions:
            yield tell(wrt=wrt, **_judge(directions, format))


@dataclass(frozen=True)
class _Outputs:
    """v · outputs of a call, to be differentiated.

    Attributes:
        function: the call.
        here: what it returns where it stands; `weights` is v.
    """

    function: Replay
    here: Sequence[torch.Tensor]
    weights: Sequence[torch.Tensor]

    def size(self) -> float:
        """Of v · outputs, were their signs random."""
        parts = zip(self.here, self.weights, strict=True)
        return math.hypot(*(float((weight * output)[output.abs() < _LARGEST].norm()) for output, weight in parts))

    def slope(self, tensors: Sequence[torch.Tensor], moves: Sequence[torch.Tensor], step: float) -> tuple[float, float]:
        """How fast they change as the tensors move, and how far that may be off.

        Richardson (1911): of the central differences with a step and with its half, a combination is free of the error
        of second order. Where the function is smooth, their distance bounds what is left. Where an output has a corner,
        what its slopes ahead and behind differ by does not shrink with the step, and no slope between them is wrong.
        """
        slopes, bends = [], []
        with _moving(tensors, moves) as move_by:
            for length in (step, step / 2):
                ahead, behind = self._slopes(move_by, length), self._slopes(move_by, -length)
                slopes.append(sum(float((a + b).sum()) / 2 for a, b in zip(ahead, behind, strict=True)))
                bends.append([a - b for a, b in zip(ahead, behind, strict=True)])
        corners = sum(float((half - whole / 2).abs().sum()) for whole, half in zip(*bends, strict=True))
        doubt = abs(slopes[0] - slopes[1]) + corners
        return (4 * slopes[1] - slopes[0]) / 3, doubt if math.isfinite(doubt) else math.inf

    def _slopes(self, move_by: Callable[[float], None], length: float) -> list[torch.Tensor]:
        """Of v · each output on the way to that length. One that is infinite and stays so has none."""
        move_by(length)
        found = zip(self.function(), self.here, self.weights, strict=True)
        return [v * (there.detach() - here).masked_fill(there == here, 0.0) / length for there, here, v in found]


@contextmanager
def _moving(tensors: Sequence[torch.Tensor], moves: Sequence[torch.Tensor]) -> Iterator[Callable[[float], None]]:
    """A function that puts each tensor so many times its move away from where it was; at the end they are back."""
    origins = [tensor.detach().clone() for tensor in tensors]

    def move_by(length: float) -> None:
        with torch.no_grad():
            for tensor, origin, move in zip(tensors, origins, moves, strict=True):
                torch.add(origin, move, alpha=length, out=tensor)

    try:
        yield move_by
    finally:
        move_by(0.0)


def _sample(
    outputs: _Outputs,
    tensors: Sequence[torch.Tensor],
    moves: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    format: Format,
) -> _Sample:
    pairs = list(zip(gradients, moves, strict=True))
    autograd = sum(_dot(gradient, move) for gradient, move in pairs)
    typical = math.hypot(*(float(gradient.norm()) * _root_mean_square(move) for gradient, move in pairs))
    size = outputs.size()
    tried: list[_Sample] = []
    for step in STEPS:
        tried.append(_Sample(autograd, *outputs.slope(tensors, moves, step), typical, size))
        if tried[-1].is_sharp(format, 0.1):
            break
    return min(tried, key=lambda sample: sample.doubt)


def _move(tensor: torch.Tensor, padding: int | None, generator: torch.Generator) -> torch.Tensor:
    """A random direction, as large as the tensor. The row of padding stays: torch lets no gradient through to it."""
    move = _normal(tensor, generator) * (_root_mean_square(tensor.detach()) or 1.0)
    if padding is not None:
        move[padding] = 0.0
    return move


def _judge(samples: Sequence[_Sample], format: Format) -> dict[str, Any]:
    """Error, outcome and reason."""
    sharp = [sample.error for sample in samples if sample.is_sharp(format)]
    if any(sample.is_wrong(format) for sample in samples):
        return {"error": max(sample.error for sample in samples), "outcome": "wrong", "reason": _reason(samples)}
    if not sharp:
        return {"error": None, "outcome": "undecided", "reason": "its outputs have a jump or a corner here"}
    return {"error": max(sharp), "outcome": "right"}


def _reason(samples: Sequence[_Sample]) -> str:
    """What the derivative is, where the true ones times a number come near to it."""
    squares = sum(sample.slope**2 for sample in samples)
    ratio = sum(sample.autograd * sample.slope for sample in samples) / squares if squares else math.inf
    rest = math.hypot(*(sample.autograd - ratio * sample.slope for sample in samples))
    if not any(sample.autograd or sample.typical for sample in samples):
        return "no gradient arrives: it is cut off"
    if not rest <= 0.02 * abs(ratio - 1) * math.sqrt(squares):
        return "it is not the derivative: a term is wrong, missing or too many"
    return "it has the wrong sign" if abs(ratio + 1) < 0.005 else f"it is {ratio:.4g} times what it should be"


def _normal(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random numbers in float64 that are exact in every format."""
    return torch.randn(like.shape, generator=generator).bfloat16().double()


def _root_mean_square(values: torch.Tensor) -> float:
    return float(values.norm()) / math.sqrt(max(values.numel(), 1))


def _dot(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(torch.dot(first.flatten(), second.flatten()))
