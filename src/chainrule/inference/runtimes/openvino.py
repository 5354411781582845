"""Graphs in OpenVINO's own format, run by OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chainrule.inference.runtimes.graph import Runner, require_files, unreadable
from chainrule.system.extras import require

MODEL, WEIGHTS = "openvino_model.xml", "openvino_model.bin"
FILES = (MODEL, WEIGHTS)
_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


def load(folder: Path, precision: str) -> Runner:
    """The graph of a folder.

    Raises:
        ModelError: a file is missing or damaged.
        MissingExtraError: OpenVINO is not installed.
    """
    library, model = read(folder)
    return compiled(library, model, precision)


def read(folder: Path) -> tuple[Any, Any]:
    """OpenVINO, and the graph of a folder as it has it.

    Raises:
        ModelError: a file is missing or damaged.
        MissingExtraError: OpenVINO is not installed.
    """
    library = require("openvino", extra="openvino", purpose="A model in OpenVINO's format")
    require_files(folder, FILES)
    try:
        return library, library.Core().read_model(folder / MODEL, folder / WEIGHTS)
    except RuntimeError as error:
        raise unreadable(folder / MODEL, str(error)) from error


def settings_of(precision: str) -> dict[str, Any]:
    """How a graph is run: for one who waits, with as many threads as torch has."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
    }


def compiled(library: Any, model: Any, precision: str) -> Runner:
    """A graph in memory, ready to run."""
    done = library.compile_model(model, "CPU", settings_of(precision))

    def run(inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        found = done(dict(inputs))
        return {output.get_any_name(): found[output] for output in done.outputs}

    return Runner(tuple(given.get_any_name() for given in done.inputs), run)
