"""OpenVINO's own format, which is fast on Intel's processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chainrule.evaluation.handover import Written
from chainrule.exporters.decoder import converted_decoder, refuse_decoder, write_decoder
from chainrule.exporters.examples import write_example
from chainrule.exporters.graph import outputs_of, quiet, refuse, traced
from chainrule.inference.predict import Predictor
from chainrule.inference.runtimes.openvino import MODEL, WEIGHTS
from chainrule.system.extras import require


class OpenVINO:
    """openvino_model.xml and openvino_model.bin, with a free number of rows and of tokens.

    Of a language model the graph keeps what it has read.
    """

    def refuse(self, predictor: Predictor) -> None:
        if predictor.task.head == "language-model":
            refuse_decoder(predictor, "openvino")
        else:
            refuse(predictor, "openvino")

    def write(self, predictor: Predictor, folder: Path) -> Written:
        if predictor.task.head == "language-model":
            return write_decoder(predictor, converted_decoder(predictor), folder)
        save(converted(predictor), folder)
        write_example(predictor, folder, "openvino")
        return Written("openvino", ("openvino",), WEIGHTS)


def converted(predictor: Predictor) -> Any:
    """The model as OpenVINO's graph, its outputs by transformers' names.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    library = require("openvino", extra="openvino", purpose="Export to OpenVINO")
    graph = traced(predictor)
    with quiet():
        model = library.convert_model(graph)
    for output, name in zip(model.outputs, outputs_of(graph), strict=True):
        output.get_tensor().set_names({name})
    return model


def save(model: Any, folder: Path) -> None:
    """Write a graph with its weights in the formats that they have."""
    require("openvino", extra="openvino", purpose="Export to OpenVINO").save_model(
        model, folder / MODEL, compress_to_fp16=False
    )
