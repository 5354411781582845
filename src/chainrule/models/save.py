"""An artifact folder: a plain Hugging Face model folder that plain transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

WEIGHTS = "model.safetensors"


def save_model(folder: Path, model: Any, tokenizer: Any, *, max_length: int) -> None:
    """Write config.json, model.safetensors and the tokenizer's files into an existing folder.

    The tokenizer remembers `max_length`, so that plain transformers cuts rows where training did.
    """
    tokenizer.model_max_length = max_length
    transformers_logging.disable_progress_bar()
    model.save_pretrained(folder, safe_serialization=True, max_shard_size="100GB")
    tokenizer.save_pretrained(folder)
    readable = (folder / "config.json").stat().st_mode
    (folder / WEIGHTS).chmod(readable)  # safetensors makes it readable by its owner alone
