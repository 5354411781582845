"""Adapters on a model, through PEFT: found, put on, merged, taken off, loaded."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from chainrule.errors import ModelError, Problem, RecipeError, Where
from chainrule.models.folder import refused, stored_shapes
from chainrule.system.extras import require
from chainrule.system.files import read_json

ADAPTERS = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_POOLERS = ("pooler",)
_OWN = (".lora_A.", ".lora_B.", ".lora_magnitude_vector.", ".ia3_l.", ".modules_to_save.", "prompt_encoder.")
# What the strategies set; everything else in an adapter_config.json has to be as PEFT has it by default.
_ALWAYS = {
    *("target_modules", "modules_to_save", "fan_in_fan_out", "task_type", "base_model_name_or_path"),
    *("inference_mode", "peft_type", "peft_version", "revision"),
}
_KINDS = {
    "LORA": ("LoraConfig", {"r", "lora_alpha", "lora_dropout", "bias", "use_dora"}),
    "IA3": ("IA3Config", {"feedforward_modules"}),
    "PROMPT_TUNING": (
        "PromptTuningConfig",
        {
            *("num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers"),
            *("prompt_tuning_init", "random_seed", "init_weights"),
        },
    ),
}


def peft_library(purpose: str) -> Any:
    """The PEFT library.

    Raises:
        MissingExtraError: it is not installed.
    """
    return require("peft", extra="peft", purpose=purpose)


def has_peft() -> bool:
    """Whether PEFT is installed."""
    return find_spec("peft") is not None


def has_adapters(model: Any) -> bool:
    """Whether the model is one of PEFT's, around a transformers model."""
    return hasattr(model, "get_base_model")


def plain_model(model: Any) -> Any:
    """The transformers model itself, with adapters in its layers where it has some: PEFT's wrapper is left off."""
    return model.get_base_model() if has_adapters(model) else model


def kind_of(model: Any) -> str | None:
    """PEFT's name for what a model does: CAUSAL_LM or SEQ_2_SEQ_LM where its output layer is one over the vocabulary.

    None for one that finds answers: what PEFT has for it does not hand on which tokens are the question's.
    """
    if model.get_output_embeddings() is not None:
        return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
    name = type(model).__name__
    if "ForQuestionAnswering" in name:
        return None
    if name == "Embedder":
        return "FEATURE_EXTRACTION"
    return "TOKEN_CLS" if name.endswith("ForTokenClassification") else "SEQ_CLS"


def linear_modules(model: Any) -> dict[str, nn.Module]:
    """The linear layers that may get an adapter, by name: those of the pretrained trunk, not of the head."""
    outside = [*head_modules(model), *_names_of(model, model.get_output_embeddings())]
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and not any(name == head or name.startswith(head + ".") for head in outside)
    }


def head_modules(model: Any) -> tuple[str, ...]:
    """The modules of a classifier that are trained whole beside adapters, because they may be fresh.

    They are the pooler and what stands outside the pretrained trunk. A language model has none.
    """
    if model.get_output_embeddings() is not None:
        return ()
    prefix = model.base_model_prefix
    outside = [name for name, child in model.named_children() if name != prefix and list(child.parameters())]
    inside = [f"{prefix}.{name}" for name, _ in model.base_model.named_children() if name in _POOLERS]
    return tuple(name for name in [*inside, *outside] if list(model.get_submodule(name).parameters()))


def check_adapters(folder: Path) -> None:
    """Refuse adapters of another kind than Chainrule makes, and sizes that the stored ones do not have.

    PEFT knows options that import modules, read further files, or build layers of any size: with them left at their
    defaults it does nothing of the kind.

    Raises:
        ModelError: they are not plain LoRA adapters, or their files are damaged.
    """
    name = str(folder)
    values = read_json(folder / ADAPTERS)
    kind = str(values.get("peft_type"))
    if kind not in _KINDS:
        todo = "Merge the adapters into their model with PEFT, if you trust where they come from, and use that."
        raise refused(name, f"adapters of one of the kinds {', '.join(_KINDS)}", f"peft_type {kind!r}", todo, ADAPTERS)
    config, own = _KINDS[kind]
    made = getattr(peft_library("A model with adapters"), config)()
    plain = json.loads(json.dumps(made.to_dict(), default=list))
    strange = sorted(key for key in plain.keys() & values.keys() - own - _ALWAYS if values[key] != plain[key])
    if strange:
        todo = "Merge the adapters into their model with PEFT, if you trust where they come from, and use that."
        raise refused(name, f"plain adapters of the kind {kind}", ", ".join(strange), todo, ADAPTERS)
    shapes = stored_shapes([folder / ADAPTER_WEIGHTS], name)
    if kind == "LORA":
        _check_rank(values, shapes, name)
    elif kind == "PROMPT_TUNING":
        _check_prompt(values, shapes, name)


def _check_rank(values: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
    ranks = {shape[0] if shape else None for key, shape in shapes.items() if ".lora_A." in key}
    if ranks != {values.get("r")} or not isinstance(values.get("target_modules"), list):
        got = f"r = {values.get('r')!r} with weights of rank {', '.join(map(str, ranks)) or 'none'}"
        raise refused(name, "a list of target_modules, and their rank as stored", got, "Train them again.", ADAPTERS)


def _check_prompt(values: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
    shape = shapes.get("prompt_embeddings")
    count = values.get("num_virtual_tokens")
    if values.get("prompt_tuning_init") not in ("RANDOM", "SAMPLE_VOCAB"):
        got = f"prompt_tuning_init {values.get('prompt_tuning_init')!r}"
        raise refused(name, "virtual tokens that begin as RANDOM or SAMPLE_VOCAB", got, "Train them again.", ADAPTERS)
    if shape is None or shape[:1] != (count,) or values.get("num_transformer_submodules") not in (None, 1):
        shown = f"{count:,}" if isinstance(count, int) else repr(count)
        got = f"{shown} virtual tokens, stored are {f'{shape[0]:,}' if shape else 'none'}"
        raise refused(name, "as many virtual tokens as stored", got, "Train them again.", ADAPTERS)


def add_saved(model: Any, folder: Path) -> Any:
    """Put the adapters of an artifact folder on their base model.

    Raises:
        MissingExtraError: PEFT is not installed.
        ModelError: they do not fit this model.
    """
    peft = peft_library("A model with adapters")
    try:
        with _quiet():
            return peft.PeftModel.from_pretrained(model, str(folder))
    except Exception as error:  # whatever the files make PEFT raise
        reason = str(error).strip().partition("\n")[0][:300] or type(error).__name__
        todo = "Use the base model that the adapters were trained on."
        problem = Problem("adapters that fit their base model", reason, todo, Where(file=str(folder)))
        raise ModelError("The adapters cannot be loaded.", [problem]) from error


def let_learn(model: Any) -> None:
    """Let the adapters of a loaded model, and what was trained whole beside them, need a gradient again."""
    model.set_adapter(model.active_adapter)


def refuse_alone(model: Any) -> None:
    """Make sure that adapters that are saved alone can be laid on a model by its name.

    Raises:
        RecipeError: the model was changed after it was loaded.
    """
    if not model.name_or_path:
        problem = Problem(
            where=Where(field="structure"),
            expected="the pretrained model as it is, since adapters that are saved alone need one with a name",
            got="changes that make another model of it",
            todo="Leave structure out, or merge: strategy lora with strategy.options.merge=true.",
        )
        raise RecipeError("Adapters alone could not be loaded again.", [problem])


def put_on(model: Any, config: Any) -> Any:
    """A model with fresh adapters, by a PEFT configuration."""
    with _quiet():
        return peft_library("A model with adapters").get_peft_model(model, config)


def adapter_parameters(model: Any) -> list[str]:
    """What is trained of a model with adapters, by name: theirs, and the modules that are saved whole beside them."""
    return [name for name, _ in model.named_parameters() if any(part in name for part in _OWN)]


def owner(name: str) -> str:
    """The parameter of the plain model that a parameter of a model with low-rank adapters belongs to."""
    plain, is_adapter, _ = name.removeprefix("base_model.model.").replace(".base_layer.", ".").partition(".lora_")
    return f"{plain}.weight" if is_adapter else plain


def merged(model: Any) -> Any:
    """The plain model with the adapters worked into its weights.

    Modules that were trained whole are put back first: PEFT can do so only for those that have a `weight` of their own.
    """
    plain = plain_model(model)
    children = {name: dict(module.named_children()) for name, module in plain.named_modules()}
    for name, inside in children.items():
        if {"original_module", "modules_to_save"} <= inside.keys():
            parent, _, child = name.rpartition(".")
            setattr(plain.get_submodule(parent), child, inside["modules_to_save"][model.active_adapter])
    return model.merge_and_unload()


def virtual_tokens(model: Any) -> int:
    """How many trained vectors stand before every row; 0 for a model without a trained prompt."""
    config = model.active_peft_config if has_adapters(model) else None
    return int(config.num_virtual_tokens) if config is not None and config.is_prompt_learning else 0


def with_prompt(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch for the plain model: the prompt before each row, as PEFT puts it; the batch itself where there is none.

    Positions are counted without the padding, so that a row is the same on whichever side it is padded.
    """
    count = virtual_tokens(model)
    if not count:
        return inputs
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    vectors = model.word_embeddings(ids)
    made = {"inputs_embeds": torch.cat([model.get_prompt(len(ids)).to(vectors.dtype), vectors], 1)}
    if mask is not None:
        made["attention_mask"] = torch.cat([mask.new_ones(len(ids), count), mask], 1)
        made["position_ids"] = (made["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return made


@contextmanager
def without_adapters(model: Any) -> Iterator[Any]:
    """Gives the base model, inside."""
    if virtual_tokens(model):
        yield plain_model(model)
        return
    with model.disable_adapter():
        yield model


def endings(names: Sequence[str]) -> tuple[str, ...]:
    """The last parts of module names, each once: how PEFT names targets."""
    return tuple(dict.fromkeys(name.rpartition(".")[2] for name in names))


@contextmanager
def _quiet() -> Iterator[None]:
    """PEFT asks transformers for something by a name that it is about to lose."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*is_gradient_checkpointing", category=FutureWarning)
        warnings.filterwarnings("error", message=r"Found missing adapter keys")
        yield


def _names_of(model: Any, wanted: nn.Module | None) -> Iterator[str]:
    return (name for name, module in model.named_modules() if wanted is not None and module is wanted)
