"""ONNX, which ONNX Runtime and many others run."""

from __future__ import annotations

from pathlib import Path

import torch

from chainrule.evaluation.handover import Written
from chainrule.exporters.examples import write_example
from chainrule.exporters.graph import TOKENS, outputs_of, quiet, refuse, traced
from chainrule.inference.predict import Predictor
from chainrule.inference.runtimes.onnx import MODEL
from chainrule.system.extras import require


class ONNX:
    """One file, model.onnx, with a free number of rows and of tokens."""

    def refuse(self, predictor: Predictor) -> None:
        refuse(predictor, "onnx")

    def write(self, predictor: Predictor, folder: Path) -> Written:
        library = require("onnx", extra="onnx", purpose="Export to ONNX")
        require("onnxscript", extra="onnx", purpose="Export to ONNX")
        graph = traced(predictor)
        names = [spec.arg.name for spec in graph.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
        with quiet():
            made = torch.onnx.export(
                graph, input_names=names, output_names=outputs_of(graph), dynamo=True, verbose=False
            )
        if made is None:
            raise RuntimeError("torch.onnx.export gave nothing")
        model = made.model_proto
        _name_dimensions(model)
        library.checker.check_model(model)
        library.save_model(model, folder / MODEL)
        write_example(predictor, folder, "onnx")
        return Written("onnx", ("onnxruntime",), MODEL)


def _name_dimensions(model: object) -> None:
    """Give the free dimensions of inputs and outputs the names that a person knows them by."""
    graph = model.graph  # type: ignore[attr-defined]
    for value in (*graph.input, *graph.output):
        free = [dimension for dimension in value.type.tensor_type.shape.dim if dimension.dim_param]
        for dimension, name in zip(free, ("rows", TOKENS), strict=False):
            dimension.dim_param = name
