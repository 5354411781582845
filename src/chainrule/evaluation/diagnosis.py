"""What the record of a watched run says is wrong, and what to do about it: one entry of a table for each kind of fault.

The thresholds were set on healthy runs and on planted faults (LOG.md, "Which thresholds tell a fault?").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from chainrule.core.report import Finding
from chainrule.evaluation.sections import row_list
from chainrule.evaluation.trace import Series, Trace, typical

NAMED = 3  # parameters that a message names; the others are counted
CONTRAST = 10  # times the threshold that the layer which moved most must have gone for others to count as still
LITTLE = 0.1  # of the first losses, by which the last ones are lower where little is learned
FADED = 1e-3  # the gradient of the lowest layer over that of the highest
FEW = 10.0  # times as far as whole layers may those be moved of which adapters or less than half is trained
IN_VAIN = 0.1  # times as far may layers be moved that learn little
FEWEST = 20  # steps whose losses show a trend


@dataclass(frozen=True)
class Case:
    """What is judged.

    Attributes:
        losses: of every step, in the order in which they were made.
        strategy: its name; empty if that is not known.
    """

    trace: Trace
    losses: Sequence[float] = ()
    strategy: str = ""

    @property
    def layers(self) -> dict[str, Mapping[str, Series]]:
        """Those between embeddings and head, from the input up."""
        return {name: table for name, table in self.trace.layers.items() if name.startswith("layer ")}


Facts = Mapping[str, object]  # what the places of a message and of its advice hold
Find = Callable[[Case, float], Facts | None]


@dataclass(frozen=True)
class Detector:
    """One kind of fault.

    Attributes:
        measures: what is compared with the threshold.
        reason: why it lies where it lies.
    """

    kind: str
    severity: str
    measures: str
    threshold: float
    reason: str
    message: str
    todo: str
    find: Find


def diagnose(case: Case) -> tuple[Finding, ...]:
    """Every fault that the table finds in a case, in the order of the table."""
    found = []
    for detector in DETECTORS:
        facts = detector.find(case, detector.threshold)
        if facts is not None:
            message, todo = detector.message.format(**facts), detector.todo.format(**facts)
            found.append(Finding(kind=detector.kind, severity=detector.severity, message=message, todo=todo))
    return tuple(found)


def _non_finite(case: Case, threshold: float) -> Facts | None:
    first = next((each for each in case.trace.diverged if each.first_in), None)
    if first is None or first.first_in is None:
        return None
    layer = case.trace.layer_of(first.first_in)
    damaged = first.first_in.startswith("the parameter ")
    return {
        "step": f"{first.step:,}",
        "part": f"{first.first_in} ({layer})" if layer else first.first_in,
        "todo": "It stood in the weights before the step: look whether the file of the base model is damaged."
        if damaged
        else "Lower the learning rate (`chainrule find-lr` shows which suit), or set training.precision=float32.",
    }


def _no_gradient(case: Case, threshold: float) -> Facts | None:
    later = _later(case.trace.silent)
    names = sorted(frozenset.intersection(*later)) if later else []
    if not names:
        return None
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return {"parameters": ", ".join(names[:NAMED]) + more}


def _dead_units(case: Case, threshold: float) -> Facts | None:
    tables = {name: table for name, table in case.trace.layers.items() if name != "embeddings"}
    shares = {name: typical(_later(table["zeros"])) or 0.0 for name, table in tables.items()}
    dead = {name: share for name, share in shares.items() if threshold <= share < 1}
    return {"layers": _named(dead), "share": _percent(max(dead.values()))} if dead else None


def _vanishing(case: Case, threshold: float) -> Facts | None:
    ratio = _from_top_to_bottom(case)
    return _decay(case, ratio) if ratio is not None and ratio < threshold else None


def _exploding(case: Case, threshold: float) -> Facts | None:
    ratio = _from_top_to_bottom(case)
    return _decay(case, ratio) if ratio is not None and ratio > threshold else None


def _from_top_to_bottom(case: Case) -> float | None:
    """The gradient norm of the lowest trained layer over that of the highest: the median of the looks."""
    if len(case.layers) < 3:
        return None
    low, *_, high = (table["gradient_norm"] for table in case.layers.values())
    return typical(a / b if a and b else None for a, b in zip(low, high, strict=True))


def _decay(case: Case, ratio: float) -> Facts:
    names = list(case.layers)
    return {
        "low": names[0],
        "high": names[-1],
        "ratio": f"{ratio:.1e}",
        "factor": f"{ratio ** (1 / (len(names) - 1)):.2g}",
    }


def _unmoved(case: Case, threshold: float) -> Facts | None:
    """Layers that stood still while others moved; where all do, the learning rate is at fault."""
    moved = {name: _last(table["moved"]) for name, table in case.trace.layers.items()}
    furthest = max((way for name, way in moved.items() if name in case.layers and way is not None), default=0.0)
    reached = {name for name, table in case.trace.layers.items() if (typical(_later(table["gradient_norm"])) or 0) > 0}
    still = [name for name, way in moved.items() if name in reached and way is not None and way < threshold]
    if not still or furthest < CONTRAST * threshold:
        return None
    return {"layers": _named(still), "share": _percent(threshold), "todo": _cheaper(case, still)}


def _cheaper(case: Case, still: Sequence[str]) -> str:
    """The strategy that leaves out what did not move at the bottom, and the share of the arithmetic that it saves.

    A trained layer takes one part of arithmetic forward and two backward, a frozen one at the bottom the forward alone.
    """
    names, embeddings = list(case.layers), "embeddings" not in case.trace.layers or "embeddings" in still
    bottom = 0
    while bottom < len(names) and names[bottom] in still:
        bottom += 1
    if not (case.strategy in ("full", "partial") and embeddings and 0 < bottom < len(names)):
        return "They took their share of every step: leave them out of what is trained, or raise their learning rate."
    sizes = {name: whole for name, (whole, _) in case.trace.sizes.items() if name.startswith("layer ")}
    cost = sum(sizes.values()) + 2 * sum(sizes[name] for name in names)
    saved = 2 * sum(sizes[name] for name in names[:bottom]) / cost
    command = f"--strategy partial --set strategy.options.top={len(names) - bottom}"
    return f"`{command}` would have cost {_percent(saved)} less arithmetic in the layers."


def _too_high(case: Case, threshold: float) -> Facts | None:
    """Steps that are too large for weights that were pretrained, or for what was put beside them."""
    looks = zip(*(table["update_ratio"] for table in case.layers.values()), strict=True)
    largest = max((ratio for ratio in map(typical, looks) if ratio is not None), default=0.0)
    fall, limit = _fall(case.losses), threshold
    if not _trains_whole_layers(case):
        limit *= FEW
    elif fall is not None and fall < LITTLE and _vanishing(case, FADED) is None:  # nothing else keeps it from learning
        limit *= IN_VAIN
    if largest <= limit:
        return None
    learned = "" if fall is None else f"; the loss fell by {_percent(max(fall, 0.0))}"
    return {"ratio": _percent(largest), "rate": _rate(case), "learned": learned}


def _trains_whole_layers(case: Case) -> bool:
    sizes = [case.trace.sizes.get(name, (0, 0)) for name in case.layers]
    return all(trained > whole / 2 for whole, trained in sizes)


def _too_low(case: Case, threshold: float) -> Facts | None:
    ratios = [ratio for table in case.layers.values() if (ratio := typical(table["update_ratio"])) is not None]
    ratio, fall = max(ratios, default=1.0), _fall(case.losses)
    if ratio > threshold or fall is None or fall > LITTLE:
        return None
    return {"ratio": _percent(ratio), "rate": _rate(case), "fall": _percent(max(fall, 0.0))}


def _rate(case: Case) -> str:
    rates = [rate for group in case.trace.groups for rate in group["learning_rate"] if rate is not None]
    return f"{max(rates, default=0.0):.1e}"


def _fall(losses: Sequence[float]) -> float | None:
    """By which share of those of the first quarter the losses of the last are lower; None where there are too few."""
    part = len(losses) // 4
    return 1 - fmean(losses[-part:]) / fmean(losses[:part]) if len(losses) >= FEWEST else None


def _later(series: Sequence[Any]) -> Sequence[Any]:
    """The second half: what is so in the first steps alone is no fault."""
    return series[len(series) // 2 :] if len(series) > 1 else []


def _last(series: Series) -> float | None:
    return next((value for value in reversed(series) if value is not None), None)


def _named(names: Iterable[str]) -> str:
    """Layers from the input up, with runs joined: embeddings, layers 0–3, head."""
    wanted = list(names)
    numbers = [int(name.removeprefix("layer ")) for name in wanted if name.startswith("layer ")]
    joined = [f"{'layers' if len(numbers) > 1 else 'layer'} {row_list(numbers)}"] if numbers else []
    below, above = ([name for name in wanted if name in ends] for ends in (("embeddings",), ("head", "other")))
    return ", ".join([*below, *joined, *above])


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


DETECTORS: tuple[Detector, ...] = (
    Detector(
        kind="non-finite",
        severity="error",
        measures="loss and gradient of every step",
        threshold=0.0,
        reason="one number that is none spoils every weight it meets",
        message="Step {step} had no finite loss or gradient. The first number that was none is in {part}.",
        todo="{todo}",
        find=_non_finite,
    ),
    Detector(
        kind="learning-rate-too-high",
        severity="warning",
        measures="update over weight, the median of the layers, in the look where it is largest",
        threshold=2e-2,
        reason="healthy runs stay below 0.1 %; 4 % ruined pretrained weights within ten steps, and 0.5 % on two of "
        "three data sets, hence a tenth of it where the loss falls by less than 10 %. Adapters stay below 0.8 % and "
        "learn well at 4 %, hence ten times as much where less than half of a layer is trained",
        message="A step moved the layers by up to {ratio} of their length, at learning rates up to {rate}{learned}.",
        todo="Lower the learning rate, first to a tenth; `chainrule find-lr` shows which suit.",
        find=_too_high,
    ),
    Detector(
        kind="learning-rate-too-low",
        severity="warning",
        measures="update over weight, the median of the looks, of the layer where it is largest; where the loss falls "
        "by less than 10 %",
        threshold=1e-5,
        reason="healthy runs have 0.01 % and more; at 0.0003 % nothing was learned",
        message="A step moved no layer by more than {ratio} of its length, at learning rates up to {rate}; the loss "
        "fell by {fall}.",
        todo="Raise the learning rate, first tenfold; `chainrule find-lr` shows which suit.",
        find=_too_low,
    ),
    Detector(
        kind="exploding-gradient",
        severity="warning",
        measures="gradient norm of the lowest trained layer over that of the highest, the median of the looks",
        threshold=1e3,
        reason="healthy runs lie between 0.2 and 8; Bengio, Simard and Frasconi (1994) describe growth and decay",
        message="The gradient grows on its way down: in {low} it is {ratio} times that of {high}, {factor} per layer.",
        todo="Weights that are too large, or layers without norm, do this: lower the learning rate, or mend the model.",
        find=_exploding,
    ),
    Detector(
        kind="vanishing-gradient",
        severity="warning",
        measures="the same",
        threshold=FADED,
        reason="the same; Glorot and Bengio (2010) show it for sigmoids that are saturated",
        message="The gradient fades on its way down: in {low} it is {ratio} times that of {high}, {factor} per layer.",
        todo="Saturated activations, or layers without residual sum and norm, do this. If the model was sound before, "
        "a learning rate that is too high has done it.",
        find=_vanishing,
    ),
    Detector(
        kind="no-gradient",
        severity="warning",
        measures="the gradient of each trained parameter, in each look of the second half",
        threshold=0.0,
        reason="exactly zero means that the loss does not depend on it; adapters begin so, hence the second half",
        message="No gradient reaches {parameters}.",
        todo="They are cut off from the loss: detached, switched off or saturated. Mend that, or do not train them.",
        find=_no_gradient,
    ),
    Detector(
        kind="dead-units",
        severity="warning",
        measures="the share of a layer's gradient that is exactly zero, the median of the second half of the looks",
        threshold=0.8,
        reason="healthy layers have none with GELU and SiLU, at most half with ReLU; embeddings are left out, as most "
        "words do not occur in a batch",
        message="Up to {share} of the gradient is exactly zero in {layers}.",
        todo="Units that give zero for every row, as ReLU does below zero, learn no more: lower the learning rate, or "
        "take another activation or other first weights.",
        find=_dead_units,
    ),
    Detector(
        kind="unmoved-layers",
        severity="info",
        measures="distance of a layer's weights from the start over their length, in the last look",
        threshold=1e-4,
        reason="healthy layers go 0.2 % and more in a hundred steps; where none does, the learning rate is to blame",
        message="Moved less than {share} of their length, while others moved ten times as far: {layers}.",
        todo="{todo}",
        find=_unmoved,
    ),
)
