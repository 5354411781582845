"""An artifact folder: a plain Hugging Face model folder, or a PEFT folder of adapters, that plain libraries load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from chainrule.models.adapters import ADAPTER_WEIGHTS, has_adapters, plain_model
from chainrule.models.classifier import PooledClassifier
from chainrule.models.crf import Tagger
from chainrule.models.embedder import Embedder, describe
from chainrule.models.folder import WEIGHTS

OURS = "chainrule"


def save_model(folder: Path, model: Any, tokenizer: Any, *, max_length: int | None, base: str) -> tuple[str, ...]:
    """Write config.json, the weights and the tokenizer's files into an existing folder.

    Args:
        max_length: what the tokenizer is to remember, so that plain transformers cuts rows where training did.
        base: what adapters name as the model they belong to.

    Returns:
        The libraries that load the folder whole.
    """
    if max_length is not None:
        tokenizer.model_max_length = max_length
    transformers_logging.disable_progress_bar()
    if has_adapters(model):
        for config in model.peft_config.values():
            config.base_model_name_or_path = base
        # PEFT would ask the hub whether the base model's vocabulary has grown; where it has, adapters are merged
        model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
        model.config.save_pretrained(folder)
    else:
        whole = model.base_model if isinstance(model, Embedder) else model
        whole.save_pretrained(folder, safe_serialization=True, max_shard_size="100GB")
    tokenizer.save_pretrained(folder)
    readable = (folder / "config.json").stat().st_mode
    weights_file(folder).chmod(readable)  # safetensors makes it readable by its owner alone
    if isinstance(model, Embedder):
        describe(folder, model.config, max_length)
        return ("sentence-transformers", "transformers")
    if isinstance(plain_model(model), PooledClassifier | Tagger | Embedder):
        return (OURS,)
    return ("peft",) if has_adapters(model) else ("transformers",)


def save_reader(folder: Path, config: Any, tokenizer: Any, max_length: int | None) -> None:
    """Write config.json and the tokenizer's files beside a model in another format than transformers'.

    Args:
        max_length: as in `save_model`.
    """
    if max_length is not None:
        tokenizer.model_max_length = max_length
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def weights_file(folder: Path) -> Path:
    """The file that holds an artifact's weights: the whole model's, or its adapters'."""
    adapters = folder / ADAPTER_WEIGHTS
    return adapters if adapters.is_file() else folder / WEIGHTS
