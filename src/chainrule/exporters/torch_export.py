"""torch.export's archive, for programs with PyTorch and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from chainrule.evaluation.handover import Written
from chainrule.exporters.graph import inputs_of, refuse, traced
from chainrule.inference.predict import Predictor
from chainrule.inference.runtimes.graph import Graph, Runner

MODEL = "model.pt2"


class TorchExport:
    """One file, model.pt2: `torch.export.load(file).module()` is the model."""

    def refuse(self, predictor: Predictor) -> None:
        refuse(predictor, "torch-export")

    def write(self, predictor: Predictor, folder: Path) -> Written:
        torch.export.save(traced(predictor), folder / MODEL)

        def loaded() -> Graph:
            module = torch.export.load(folder / MODEL).module()

            def run(inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
                found = module(**{name: torch.from_numpy(array) for name, array in inputs.items()})
                return {name: tensor.numpy() for name, tensor in found.items()}

            return Graph(predictor.forward.model.config, Runner(inputs_of(predictor), run))

        return Written("none", ("torch",), MODEL, loaded)
