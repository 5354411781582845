"""A small program that runs an exported graph with the engine, a tokenizer and NumPy alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from chainrule.inference.predict import Predictor
from chainrule.inference.runtimes import FILES
from chainrule.system.files import write_text

EXAMPLE = "example.py"
_KINDS = {"class": "class", "classes": "classes", "number": "number", "spans": "tags", "answers": "answer"}


def write_example(predictor: Predictor, folder: Path, engine: Literal["onnx", "openvino"]) -> None:
    """Write example.py, which takes its input from the command line."""
    task, config = predictor.task, predictor.forward.model.config
    kind = "image" if task.sees else "vector" if task.makes_vectors else _KINDS.get(task.target.kind, "number")
    options = getattr(predictor.tokenizer, "model_input_names", ())
    scale, shift, height, width = [1.0], [0.0], 0, 0
    if task.sees:
        processor = predictor.tokenizer
        plain = [np.full((8, 8, 3), value, np.uint8) for value in (0, 255)]
        pixels = processor(images=plain, return_tensors="np")["pixel_values"]
        (black, white), (height, width) = pixels[:, :, 0, 0], pixels.shape[2:]
        scale, shift = ((white - black) / 255).tolist(), black.tolist()
    write_text(
        folder / EXAMPLE,
        _template().render(
            engine=engine,
            file=FILES[engine][0],
            kind=kind,
            pair=kind == "answer"
            or (
                kind != "vector" and (len(predictor.artifact.manifest.inputs) == 2 or task.target.kind == "relevances")
            ),
            types="token_type_ids" in options,
            pad=predictor.forward.pad_id,
            longest=predictor.artifact.manifest.max_length,
            labels=[config.id2label[place] for place in range(config.num_labels)] if task.has_labels else [],
            threshold=getattr(config, "null_score_diff_threshold", None),
            tokens=getattr(config, "max_answer_tokens", 30),
            height=height,
            width=width,
            scale=scale,
            shift=shift,
        ),
    )


def _template() -> Any:
    loader = PackageLoader("chainrule.exporters", "templates")
    environment = Environment(
        loader=loader, autoescape=False, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["python"] = repr
    return environment.get_template("example.py.txt")
