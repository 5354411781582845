"""Matrix products of integers of eight bits: post-training quantisation by NNCF, run by OpenVINO.

Of a language model the weights alone (`weight_only`).

Weights by channel, activations by tensor with ranges from real rows (Jacob et al., 2018; Nagel et al., 2021, A White
Paper on Neural Network Quantization). Where the score on validation falls by more than it may, the layers that hurt
most go back to floating point, one after another, until it does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from chainrule.compressors.base import Given, fall
from chainrule.compressors.weight_only import silent, write_int8
from chainrule.core.recipe import Section
from chainrule.core.task import LOWER_IS_BETTER, Predictions
from chainrule.data.batch import collate
from chainrule.data.encode import Encoded
from chainrule.evaluation.handover import Written
from chainrule.evaluation.parity import Bound
from chainrule.exporters.decoder import refuse_decoder
from chainrule.exporters.examples import write_example
from chainrule.exporters.graph import refuse
from chainrule.exporters.openvino import converted, save
from chainrule.inference.predict import Predictor, said_of
from chainrule.inference.runtimes.graph import MASK, Graph, Runner
from chainrule.inference.runtimes.openvino import WEIGHTS, compiled
from chainrule.system.extras import require


class Options(Section):
    """How a model is quantised.

    Attributes:
        rows: so many rows show which values activations take, at most.
        restore: give layers their floating-point numbers back where the score falls by more than it may.
    """

    rows: int = Field(default=300, ge=1)
    restore: bool = True


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
        whole = converted(predictor)
        names = tuple(port.get_any_name() for port in whole.inputs)
        count = min(self.options.rows, len(given.rows))
        seen = nncf.Dataset(list(_rows(predictor, given.rows.take(np.arange(count)), names)))
        how = {"model_type": nncf.ModelType.TRANSFORMER, "subset_size": count}
        how["preset"] = nncf.QuantizationPreset.MIXED
        given.display.say(f"Quantising, with the activations of {count:,} rows …")
        with silent(nncf):
            small = nncf.quantize(whole, seen, **how)
        before, after = (_score(predictor, _run(predictor, graph), given.rows) for graph in (whole, small))
        metric = predictor.task.primary_metric
        given.display.say(
            f"{metric} on {len(given.rows):,} rows of validation: {before:.4f} before, {after:.4f} after."
        )
        if self.options.restore and fall(metric, before, after) > given.loss:
            given.display.say("Looking for the layers that hurt …")
            small = self._restored(nncf, predictor, whole, seen, given, names, how)
            after = _score(predictor, _run(predictor, small), given.rows)
            given.display.say(f"{metric} with these in floating point: {after:.4f}.")
        save(small, folder)
        write_example(predictor, folder, "openvino")
        return Written("openvino", ("openvino",), WEIGHTS, bound=bound)

    def _restored(
        self,
        nncf: Any,
        predictor: Predictor,
        whole: Any,
        seen: Any,
        given: Given,
        names: tuple[str, ...],
        how: dict[str, Any],
    ) -> Any:
        metric = predictor.task.primary_metric
        sign = -1.0 if metric in LOWER_IS_BETTER else 1.0

        def score(model: Any, rows: Iterable[Any]) -> tuple[float, None]:
            def run(inputs: Any) -> Any:
                found = model(dict(inputs))
                return {output.get_any_name(): found[output] for output in model.outputs}

            graph = Graph(predictor.forward.model.config, Runner(names, run))
            return sign * _score(predictor, graph, given.rows), None

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


def _run(predictor: Predictor, graph: Any) -> Graph:
    """An OpenVINO graph in memory as a model."""
    library = require("openvino", extra="openvino", purpose="Quantisation to int8")
    return Graph(predictor.forward.model.config, compiled(library, graph, "float32"))


def _score(predictor: Predictor, model: Graph, rows: Encoded) -> float:
    said: Predictions = said_of(replace(predictor.forward, model=model), rows, predictor.task)
    return float(predictor.task.measure(rows.targets, said)[predictor.task.primary_metric])
