"""Fewer layers, neurons and heads, and a short training of what is left: a smaller dense model that transformers loads.

Which of them go follows from first derivatives over real rows (`importance`): every layer gives up the neurons that
matter least in it, and whole layers go that matter least. A layer and a neuron cannot be compared by a first-order
expansion (to take a layer away is no small change), so how much is taken in layers and how much in neurons is found by
short trainings of a few choices that all save the same work.
"""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from chainrule.compressors.base import Given, refused
from chainrule.compressors.importance import Importances, Measure, importances
from chainrule.compressors.recovery import begin, loss_of, recipe_of, trained_again, write_model
from chainrule.compressors.students import TRIAL_STEPS, trial_of
from chainrule.core.recipe import Section
from chainrule.core.task import LOWER_IS_BETTER
from chainrule.data.encode import Encoded
from chainrule.errors import Problem, RecipeError, Where
from chainrule.evaluation.handover import Written
from chainrule.evaluation.parity import Bound
from chainrule.exporters.graph import merged
from chainrule.inference.predict import Predictor
from chainrule.models.adapters import plain_model
from chainrule.models.folder import WEIGHTS
from chainrule.models.narrowing import (
    KNOWN,
    Anchors,
    Cut,
    Frame,
    allowed_groups,
    anchors_of,
    cut,
    frame_of,
    heads_can_go,
    kept_of,
    sizes_of,
)
from chainrule.system.files import atomic_folder
from chainrule.system.progress import Quiet
from chainrule.training.run import train_recipe

SEED = 0  # of the draw of rows that show what matters
CHOICES = 3  # numbers of layers that are tried


class Options(Section):
    """How much goes, and how what is left is trained.

    Attributes:
        share: of the work of the layers' matrix products, at the mean length of the training rows; embeddings and head
            do not count.
        importance: how derivatives become importance: their sizes ("taylor"), or their squares ("fisher").
        rows: so many training rows show what matters, at most.
        layers: how many layers go; null to find out by short trainings.
        trial_steps: of these; 0 to go by the first-order table instead.
        epochs: of the training afterwards; null for as many as the model had.
        settings: keys of that training's recipe, e.g. {training.batch_size: 64}.
    """

    share: float = Field(default=0.3, gt=0, lt=1)
    importance: Measure = "taylor"
    rows: int = Field(default=512, ge=1)
    layers: int | None = Field(default=None, ge=0)
    trial_steps: int = Field(default=TRIAL_STEPS, ge=0)
    epochs: float | None = Field(default=None, gt=0)
    settings: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A choice of what goes.

    Attributes:
        saved: the share of the work that it saves.
        change: what the first-order expansion says of the loss, summed over what goes.
        words: what stays, for a table.
    """

    made: Cut
    saved: float
    change: float
    words: str


class Prune:
    """Takes a model with one stack of layers of a known kind."""

    faster, exact = True, False

    def __init__(self, options: Options) -> None:
        self.options = options

    def refuse(self, predictor: Predictor) -> None:
        runtime, task = predictor.artifact.manifest.runtime, predictor.task
        if runtime != "torch":
            reason = f"one that was made for {runtime}"
            raise refused(predictor, reason, "Prune the artifact that it was made from.")
        if any(tensor.dtype.itemsize < 2 for tensor in predictor.forward.model.state_dict().values()):
            raise refused(predictor, "weights held in few bits", "Merge them first: chainrule export --to hf.")
        if task.target.kind == "preference":
            reason = "one that has learned preferences, beside a model that is no longer there"
            raise refused(predictor, reason, "Prune the model that it was made from.")
        model = plain_model(predictor.forward.model)
        if anchors_of(model) is None:
            kind = getattr(model.config, "model_type", "no known kind")
            two = getattr(model.config, "is_encoder_decoder", False)
            reason = f"a {kind}, which has two stacks of layers" if two else f"a {kind}, with layers of another kind"
            raise refused(predictor, reason, f"Layers like those of {KNOWN} can be pruned.")

    def write(self, predictor: Predictor, folder: Path, given: Given, bound: Bound) -> Written:
        if given.train is None or given.source is None:
            problem = Problem("training rows", "none", "Name data with a training split: --data DATA")
            raise RecipeError("What is left of a pruned model is trained again, on nothing.", [problem])
        place, start = given.place, given.place / "start"
        begin(predictor, self.options, given)
        if not start.is_dir():
            self._choose(predictor, given, given.train, start)
        learned = trained_again(
            recipe_of(predictor, given, start, self.options.epochs, self.options.settings),
            given,
            "Training what is left …",
        )
        loads_in = write_model(predictor, merged(learned), folder)
        shutil.rmtree(place / "trials", ignore_errors=True)
        return Written("torch", loads_in, WEIGHTS, bound=bound)

    def _choose(self, predictor: Predictor, given: Given, train: Encoded, start: Path) -> None:
        """Write what is left by the best choice."""
        model = merged(predictor)
        family = anchors_of(model)
        if family is None:
            raise ValueError("a model that was not refused has layers of a known kind")
        heads = heads_can_go(model, family)
        if not heads:
            kind = model.config.model_type
            given.display.say(f"Heads stay: transformers loads no {kind} with fewer heads of the same width.")
        found = self._importances(predictor, model, family, train)
        frame = frame_of(model, family, found.tokens)
        told = f"{found.tokens:.0f} tokens a row; derivatives of {found.rows:,} rows."
        given.display.say(f"Layers: {frame.layers}, {frame.neurons:,} neurons each; {told}")
        groups = allowed_groups(model, frame) if heads else [1]
        plans = plans_of(frame, found, self.options.share, groups, self.options.layers)
        if not plans:
            expected = "a share that leaves some neurons in a layer"
            problem = Problem(expected, f"{self.options.share:g}", "Ask for less.", Where(field="--prune"))
            raise RecipeError("So much cannot be pruned.", [problem])
        chosen = plans[self._best(predictor, model, family, plans, given)]
        given.display.say(f"Taken: {chosen.words}.")
        shutil.rmtree(given.place / "trials", ignore_errors=True)
        with atomic_folder(start) as made:
            write_model(predictor, _narrowed(model, family, chosen), made)

    def _importances(self, predictor: Predictor, model: Any, family: Anchors, train: Encoded) -> Importances:
        count = min(self.options.rows, len(train))
        rows = train.take(np.sort(np.random.default_rng(SEED).permutation(len(train))[:count]))
        objective = predictor.task.objective(loss_of(predictor), train.targets)
        groups = frame_of(model, family, 0).groups
        return importances(predictor, model, family, groups, rows, objective, self.options.importance)

    def _best(self, predictor: Predictor, model: Any, family: Anchors, plans: Sequence[Plan], given: Given) -> int:
        """The choice that is best after a short training, or by the first-order table; the table is told."""
        metric, steps = predictor.task.primary_metric, self.options.trial_steps
        trials = given.place / "trials"
        shutil.rmtree(trials, ignore_errors=True)
        scores = []
        for number, plan in enumerate(plans):
            narrow = _narrowed(model, family, plan)
            changed = replace(predictor, forward=replace(predictor.forward, model=narrow))
            found = predictor.task.measure(given.rows.targets, changed.predict(given.rows))[metric]
            told = f"{plan.words}: saves {100 * plan.saved:.1f} %; first order {plan.change:.3g}; {metric} {found:.4f}"
            if len(plans) > 1 and steps:
                start = trials / f"start{number}"
                start.mkdir(parents=True)
                write_model(predictor, narrow, start)
                recipe = trial_of(recipe_of(predictor, given, start, self.options.epochs, self.options.settings), steps)
                run = train_recipe(recipe, given.source, trials / f"run{number}", Quiet(), time.perf_counter())
                found = run.summary["metrics"][metric]
                told += f", {found:.4f} after {steps} steps"
            given.display.say(f"{told}.")
            scores.append(-found if metric in LOWER_IS_BETTER else found)
        changes = [plan.change for plan in plans]
        return scores.index(max(scores)) if steps else changes.index(min(changes))


def plans_of(
    frame: Frame, found: Importances, share: float, allowed: Sequence[int], layers: int | None = None
) -> list[Plan]:
    """Choices that save at least a share of the work, with as much left as that allows.

    Args:
        allowed: numbers of groups of heads that a layer may have.
        layers: how many layers go; None for some numbers, from none to as many as save the share alone.
    """
    most = min(frame.layers - 1, math.ceil(share * frame.layers - 1e-9))
    if layers is None:
        numbers = sorted({int(number) for number in np.linspace(0, most, min(CHOICES, most + 1)).round()})
    else:
        numbers = [layers] if layers < frame.layers else []
    plans = []
    for gone in numbers:
        for neurons, groups in _sizes(frame, frame.layers - gone, share, allowed):
            plans.append(_plan(frame, found, frame.layers - gone, neurons, groups))
    return plans


def _sizes(frame: Frame, layers: int, share: float, allowed: Sequence[int]) -> list[tuple[int, int]]:
    """Neurons and groups of heads of a layer: with all heads, and with about the same share of both."""
    step = 32 if frame.neurons % 32 == 0 and frame.neurons >= 256 else 1
    found = []
    for groups in allowed:
        each = ((1 - share) * frame.whole / layers - frame.fixed - groups * frame.group) / frame.neuron
        neurons = min(frame.neurons, int(each + 1e-9) // step * step)
        if neurons >= step:
            found.append((neurons, groups))
    whole = [sizes for sizes in found if sizes[1] == frame.groups]
    if any(neurons == frame.neurons for neurons, _ in whole):
        return whole  # fewer layers are enough
    fewer = [sizes for sizes in found if sizes[1] < frame.groups]
    even = sorted(fewer, key=lambda sizes: abs(sizes[0] / frame.neurons - sizes[1] / frame.groups))
    return [*whole, *even[:1]]


def _plan(frame: Frame, found: Importances, layers: int, neurons: int, groups: int) -> Plan:
    kept = kept_of(found.layers, layers)
    gone = torch.ones(frame.layers, dtype=torch.bool)
    gone[kept] = False
    change = float(found.layers[gone].sum())
    chosen = []
    for scores, count in ((found.neurons, neurons), (found.groups, groups)):
        chosen.append(tuple(kept_of(row, count) for row in scores))
        for place in kept.tolist():
            change += float(scores[place].sum() - scores[place][chosen[-1][place]].sum())
    places = tuple(kept.tolist())
    words = f"layers {', '.join(map(str, places))}; " + sizes_of((frame.neurons, neurons), (frame.groups, groups))
    saved = 1 - frame.work(layers, neurons, groups) / frame.whole
    return Plan(Cut(places, chosen[0], chosen[1]), saved, change, words)


def _narrowed(model: Any, family: Anchors, plan: Plan) -> Any:
    """A copy of the model with what stays."""
    narrow = copy.deepcopy(model)
    cut(narrow, family, plan.made)
    return narrow
