"""Matrix products of integers of eight bits: post-training quantisation by NNCF, run by OpenVINO.

Of a language model the weights alone (`weight_only`).

Weights by channel, activations by tensor with ranges from real rows (Jacob et al., 2018; Nagel et al., 2021, A White
Paper on Neural Network Quantization). Where the score on validation falls by more than it may, the model is trained for
a while with rounded weights and inputs (quantisation-aware training), and if that is not enough, the layers that hurt
most go back to floating point, one after another, until it does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from chainrule.compressors.base import Given, fall
from chainrule.compressors.recovery import begin, recipe_of, trained_again, write_model
from chainrule.compressors.weight_only import silent, write_int8
from chainrule.core.recipe import Section
from chainrule.core.task import LOWER_IS_BETTER, Predictions
from chainrule.data.batch import collate
from chainrule.data.encode import Encoded
from chainrule.evaluation.handover import Written
from chainrule.evaluation.parity import Bound
from chainrule.exporters.decoder import refuse_decoder
from chainrule.exporters.examples import write_example
from chainrule.exporters.graph import merged, refuse
from chainrule.exporters.openvino import converted, save
from chainrule.inference.predict import Predictor, said_of
from chainrule.inference.runtimes.graph import MASK, Graph, Runner
from chainrule.inference.runtimes.openvino import WEIGHTS, compiled
from chainrule.models.adapters import plain_model
from chainrule.system.extras import require
from chainrule.system.files import atomic_folder
from chainrule.training.regularisers.rounding import linear_layers

AWARE: dict[str, Any] = {"regularisers": {"rounding": {}}, "training.accelerate": False}  # kernels join layers


class Options(Section):
    """How a model is quantised.

    Attributes:
        rows: so many rows show which values activations take, at most.
        restore: give layers their floating-point numbers back where the score falls by more than it may.
        epochs: of training with rounding where the score falls by more than it may, before that; 0 for none.
        settings: keys of that training's recipe.
    """

    rows: int = Field(default=300, ge=1)
    restore: bool = True
    epochs: float = Field(default=1.0, ge=0)
    settings: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class _Attempt:
    """A graph in floating point, the same in eight bits, and what that scores on validation."""

    whole: Any
    small: Any
    score: float


class Int8:
    """Takes a model that OpenVINO can run."""

    faster, exact = True, False

    def __init__(self, options: Options) -> None:
        self.options = options

    def refuse(self, predictor: Predictor) -> None:
        if predictor.task.head == "language-model":
            refuse_decoder(predictor, "int8")
        else:
            refuse(predictor, "int8")

    def write(self, predictor: Predictor, folder: Path, given: Given, bound: Bound) -> Written:
        if predictor.task.head == "language-model":
            return write_int8(predictor, folder, given, bound)
        nncf = require("nncf", extra="int8", purpose="Quantisation to int8")
        given.display.say("Converting to OpenVINO …")
        attempt = self._attempt(nncf, predictor, converted(predictor), given)
        metric, before = predictor.task.primary_metric, _score(predictor, attempt.whole, given.rows)
        given.display.say(
            f"{metric} on {len(given.rows):,} rows of validation: {before:.4f} before, {attempt.score:.4f} after."
        )
        if fall(metric, before, attempt.score) > given.loss and self._learns(predictor, given):
            attempt = self._better(nncf, predictor, attempt, given)
        if fall(metric, before, attempt.score) > given.loss and self.options.restore:
            given.display.say("Looking for the layers that hurt …")
            small = self._restored(nncf, predictor, attempt.whole, given)
            attempt = replace(attempt, small=small, score=_score(predictor, small, given.rows))
            given.display.say(f"{metric} with these in floating point: {attempt.score:.4f}.")
        save(attempt.small, folder)
        write_example(predictor, folder, "openvino")
        return Written("openvino", ("openvino",), WEIGHTS, bound=bound)

    def _attempt(self, nncf: Any, predictor: Predictor, whole: Any, given: Given) -> _Attempt:
        """Quantise, without a training."""
        seen, how = self._seen(nncf, predictor, whole, given)
        given.display.say(f"Quantising, with the activations of {how['subset_size']:,} rows …")
        with silent(nncf):
            small = nncf.quantize(whole, seen, **how)
        return _Attempt(whole, small, _score(predictor, small, given.rows))

    def _learns(self, predictor: Predictor, given: Given) -> bool:
        """Whether there is something to round, and to train it on."""
        known = self.options.epochs > 0 and given.train is not None and given.source is not None
        return known and bool(linear_layers(plain_model(predictor.forward.model)))

    def _better(self, nncf: Any, predictor: Predictor, attempt: _Attempt, given: Given) -> _Attempt:
        """The same after a training with rounding; as it was, where that is no better."""
        begin(predictor, self.options, given)
        start = given.place / "start"
        if not start.is_dir():
            with atomic_folder(start) as made:
                write_model(predictor, merged(predictor), made)
        recipe = recipe_of(predictor, given, start, self.options.epochs, {**AWARE, **self.options.settings})
        learned = trained_again(recipe, given, "That is too little: training with rounded weights and inputs …")
        found = self._attempt(nncf, predictor, converted(replace(learned, artifact=predictor.artifact)), given)
        metric = predictor.task.primary_metric
        given.display.say(f"{metric} after training with rounding: {found.score:.4f}.")
        return found if fall(metric, attempt.score, found.score) < 0 else attempt

    def _seen(self, nncf: Any, predictor: Predictor, whole: Any, given: Given) -> tuple[Any, dict[str, Any]]:
        """Rows to see activations of, and how NNCF is told to quantise."""
        count = min(self.options.rows, len(given.rows))
        rows = _rows(predictor, given.rows.take(np.arange(count)), _names(whole))
        how = {"model_type": nncf.ModelType.TRANSFORMER, "subset_size": count}
        return nncf.Dataset(list(rows)), how | {"preset": nncf.QuantizationPreset.MIXED}

    def _restored(self, nncf: Any, predictor: Predictor, whole: Any, given: Given) -> Any:
        names, (seen, how) = _names(whole), self._seen(nncf, predictor, whole, given)
        metric = predictor.task.primary_metric
        sign = -1.0 if metric in LOWER_IS_BETTER else 1.0

        def score(model: Any, rows: Iterable[Any]) -> tuple[float, None]:
            def run(inputs: Any) -> Any:
                found = model(dict(inputs))
                return {output.get_any_name(): found[output] for output in model.outputs}

            graph = Graph(predictor.forward.model.config, Runner(names, run))
            return sign * _measured(predictor, graph, given.rows), None

        rows = nncf.Dataset(list(_rows(predictor, given.rows, names)))
        with silent(nncf):
            return nncf.quantize_with_accuracy_control(
                whole, seen, rows, score, max_drop=given.loss, drop_type=nncf.DropType.ABSOLUTE, **how
            )


def _rows(predictor: Predictor, encoded: Encoded, names: tuple[str, ...]) -> Iterator[dict[str, np.ndarray]]:
    """Row by row what the graph is given."""
    forward = predictor.forward
    for row in range(len(encoded)):
        place = np.array([row])
        inputs = collate(
            encoded, place, pad_id=forward.pad_id, left=forward.pad_left, device=torch.device("cpu")
        ).inputs
        arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
        if MASK in names:
            arrays.setdefault(MASK, np.ones_like(arrays["input_ids"]))
        yield {name: arrays[name] for name in names}


def _names(graph: Any) -> tuple[str, ...]:
    """What a graph is given."""
    return tuple(port.get_any_name() for port in graph.inputs)


def _score(predictor: Predictor, graph: Any, rows: Encoded) -> float:
    """Of an OpenVINO graph in memory."""
    library = require("openvino", extra="openvino", purpose="Quantisation to int8")
    model = Graph(predictor.forward.model.config, compiled(library, graph, "float32"))
    return _measured(predictor, model, rows)


def _measured(predictor: Predictor, model: Graph, rows: Encoded) -> float:
    said: Predictions = said_of(replace(predictor.forward, model=model), rows, predictor.task)
    return float(predictor.task.measure(rows.targets, said)[predictor.task.primary_metric])
