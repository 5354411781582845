"""A plain Hugging Face folder: adapters merged into their model."""

from __future__ import annotations

from pathlib import Path

from chainrule.evaluation.handover import Written
from chainrule.exporters.base import refuse_others
from chainrule.exporters.graph import merged
from chainrule.inference.predict import Predictor
from chainrule.models.folder import WEIGHTS
from chainrule.models.save import save_model


class Transformers:
    """config.json, model.safetensors and the tokenizer's files."""

    def refuse(self, predictor: Predictor) -> None:
        refuse_others(predictor, "hf")

    def write(self, predictor: Predictor, folder: Path) -> Written:
        manifest, task = predictor.artifact.manifest, predictor.task
        limit = None if task.head == "language-model" or task.sees else manifest.max_length
        model = merged(predictor)
        loads_in = save_model(folder, model, predictor.tokenizer, max_length=limit, base=manifest.base_model)
        return Written("torch", loads_in, WEIGHTS)
