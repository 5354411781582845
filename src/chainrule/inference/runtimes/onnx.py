"""Graphs in the ONNX format, run by ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from chainrule.inference.runtimes.graph import Runner, require_files, unreadable
from chainrule.system.extras import require

MODEL = "model.onnx"
FILES = (MODEL,)


def load(folder: Path, precision: str) -> Runner:
    """The graph of a folder. It computes in the formats that it was written in; `precision` changes nothing.

    Raises:
        ModelError: the file is missing or damaged.
        MissingExtraError: ONNX Runtime is not installed.
    """
    library = require("onnxruntime", extra="onnx", purpose="A model in the ONNX format")
    require_files(folder, FILES)
    options = library.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = library.InferenceSession(str(folder / MODEL), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own exceptions have no common parent
        raise unreadable(folder / MODEL, str(error)) from error
    outputs = [output.name for output in session.get_outputs()]

    def run(inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        return dict(zip(outputs, session.run(outputs, dict(inputs)), strict=True))

    return Runner(tuple(given.name for given in session.get_inputs()), run)
