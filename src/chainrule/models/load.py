"""Pretrained models and tokenizers from a catalog name, a folder or a hub name. Safetensors only, no remote code."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from chainrule.core.recipe import Structure
from chainrule.core.task import Head
from chainrule.errors import ChainruleError, ModelError, Problem, Where
from chainrule.models.adapters import ADAPTERS, add_saved
from chainrule.models.catalog import MODELS, model_folder
from chainrule.models.quantized import hold
from chainrule.models.save import WEIGHTS
from chainrule.system.files import sha256
from chainrule.system.hub import hub_error, unreachable

LONGEST = 512
_FACTORIES: dict[Head, Any] = {
    "classifier": AutoModelForSequenceClassification,
    "language-model": AutoModelForCausalLM,
}

# What the families call the same two probabilities.
_DROPOUT = ("hidden_dropout_prob", "dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop")
_ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")


def locate(name: str) -> str:
    """The folder of a catalog name or a local folder; any other name is returned as it is: a hub name.

    Raises:
        ModelError: `name` looks like a path and there is no model folder.
    """
    folder = model_folder(name)
    if folder is not None:
        return str(folder)
    path = Path(name).expanduser()
    if _is_folder(path):
        if not (path / "config.json").is_file():
            raise _unusable(name, "a folder with config.json", "a folder without", "Give a Hugging Face model folder.")
        return str(path)
    is_there = os.path.exists(path)  # noqa: PTH110
    if is_there or name.startswith((".", "/", "~")) or name.count("/") > 1:
        got = "a file" if is_there else "no such folder"
        raise _unusable(name, "a model folder, a catalog name or a hub name", got, "See `chainrule show catalog`.")
    return name


def load_tokenizer(name: str) -> Any:
    """The tokenizer that belongs to a model; it always has a padding token.

    Raises:
        ModelError: there is none, or it cannot be reached.
    """
    place = locate(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **_reach(place))
    except (OSError, ValueError, KeyError) as error:
        raise _load_error(name, place, error) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def token_limit(name: str, tokenizer: Any, wanted: int | None, reserved: int = 0) -> int:
    """The number of tokens a row may have: what the recipe says, else what the model allows, at most 512.

    Args:
        reserved: positions that something else takes.

    Raises:
        ModelError: the recipe wants more than the model has positions.
    """
    config = _config(name, locate(name))
    positions = getattr(config, "max_position_embeddings", None) or LONGEST
    if getattr(config, "model_type", "") in ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl"):
        positions -= 2  # their positions start after the padding index
    positions -= reserved
    if wanted is not None and wanted > positions:
        raise _unusable(
            name, f"max_length of at most {positions}", str(wanted), f"Set model.max_length to {positions}."
        )
    return wanted or min(positions, int(min(tokenizer.model_max_length, LONGEST)), LONGEST)


def load_classifier(
    name: str, tokenizer: Any, labels: Sequence[str], problem_type: str, structure: Structure, *, seed: int
) -> Any:
    """A pretrained model with a sequence-classification head for `labels`, in float32.

    The head is fresh unless the model already has one for as many labels; `seed` decides its values.

    Raises:
        ModelError: the model cannot be found, is not in safetensors, or has no such head.
    """
    place = locate(name)
    config = _config(name, place)
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    config.problem_type = problem_type
    _set_first(config, _DROPOUT, structure.dropout)
    _set_first(config, _ATTENTION_DROPOUT, structure.attention_dropout)
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(seed)
    return _load(AutoModelForSequenceClassification, name, place, config=config, ignore_mismatched_sizes=True)


def load_language_model(name: str, structure: Structure) -> Any:
    """A pretrained causal language model in float32.

    Raises:
        ModelError: the model cannot be found, is not in safetensors, or is of a family that writes no text.
    """
    place = locate(name)
    config = _config(name, place)
    _set_first(config, _DROPOUT, structure.dropout)
    _set_first(config, _ATTENTION_DROPOUT, structure.attention_dropout)
    return _load(AutoModelForCausalLM, name, place, config=config)


def load_saved(folder: Path, head: Head, base: str, *, held_on: torch.device | None = None) -> Any:
    """A fine-tuned model from an artifact folder, in float32.

    Args:
        base: the model under the adapters, where the artifact is adapters.
        held_on: where that is to be held in few bits, as it was while the adapters were trained; None for as it is.

    Raises:
        ModelError: the files are damaged, or the base model cannot be found.
    """
    factory = _FACTORIES[head]
    if not (folder / ADAPTERS).is_file():
        return _load(factory, str(folder), str(folder))
    config = _config(str(folder), str(folder))
    model = _load(factory, base, locate(base), config=config, ignore_mismatched_sizes=True)
    if held_on is not None:
        hold(model.to(held_on))
    return add_saved(model, folder)


def weights_hash(name: str) -> str | None:
    """The SHA-256 of a model's weights where they lie in a single file on this machine; None for a hub name."""
    file = Path(locate(name)) / WEIGHTS
    return sha256(file) if file.is_file() else None


def _load(factory: Any, name: str, place: str, **options: Any) -> Any:
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # a fresh head is expected, not worth a table of missing keys
    transformers_logging.disable_progress_bar()
    try:
        return factory.from_pretrained(place, dtype=torch.float32, use_safetensors=True, **_reach(place), **options)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _load_error(name, place, error) from error
    finally:
        transformers_logging.set_verbosity(level)


def _config(name: str, place: str) -> Any:
    try:
        return AutoConfig.from_pretrained(place, **_reach(place))
    except (OSError, ValueError, KeyError) as error:
        raise _load_error(name, place, error) from error


def _set_first(config: Any, names: Sequence[str], value: float | None) -> None:
    if value is None:
        return
    found = [name for name in names if hasattr(config, name)]
    if not found:
        raise _unusable(
            str(config.model_type), f"a model with one of {', '.join(names)}", "none", "Remove it from `structure`."
        )
    for name in found:
        setattr(config, name, value)


def _is_folder(place: str | Path) -> bool:
    return os.path.isdir(place)  # noqa: PTH112  (unlike Path.is_dir it takes a name too long for no folder)


def _reach(place: str) -> dict[str, bool]:
    """For a hub name when the hub cannot be reached: only what was loaded before, without minutes of retries."""
    return {"local_files_only": True} if not _is_folder(place) and unreachable() else {}


def _load_error(name: str, place: str, error: Exception) -> ChainruleError:
    if not _is_folder(place):
        return hub_error(name, error, tuple(MODELS))
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return _unusable(name, "a Hugging Face model folder with safetensors weights", reason, "Check the folder's files.")


def _unusable(name: str, expected: str, got: str, todo: str) -> ModelError:
    problem = Problem(where=Where(field="model.name", file=name), expected=expected, got=got, todo=todo)
    return ModelError(f"The model {name!r} cannot be used.", [problem])
