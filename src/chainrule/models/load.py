"""Pretrained models and tokenizers from a catalog name, a folder or a hub name. Safetensors only, no remote code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from chainrule.core.recipe import Structure
from chainrule.core.task import Head
from chainrule.models.adapters import ADAPTERS, add_saved, check_adapters, head_modules
from chainrule.models.classifier import PooledClassifier, choose_form, is_own, refuse_form
from chainrule.models.crf import Tagger, choose_chain
from chainrule.models.embedder import Embedder, choose_pooling
from chainrule.models.folder import CONFIG, check_depth, check_fit, check_loaded, refused, stored_shapes, weight_files
from chainrule.models.place import Place, fetch_weights, find, loading, read_config
from chainrule.models.quantized import hold
from chainrule.models.surgery import change_layers
from chainrule.models.vocabulary import extend_embeddings, extend_tokenizer, pieces_of

LONGEST, FEWEST = 512, 4  # tokens of a row
_FACTORIES: dict[Head, Any] = {
    "classifier": AutoModelForSequenceClassification,
    "token-classifier": AutoModelForTokenClassification,
    "answer-finder": AutoModelForQuestionAnswering,
    "encoder": Embedder,
    "language-model": AutoModelForCausalLM,
    "encoder-decoder": AutoModelForSeq2SeqLM,
    "image-classifier": AutoModelForImageClassification,
}

_OWN: dict[Head, Any] = {"classifier": PooledClassifier, "token-classifier": Tagger}

# What the families call the same two probabilities and the same function.
_DROPOUT = ("hidden_dropout_prob", "dropout", "dropout_rate", "hidden_dropout", "resid_pdrop", "embd_pdrop")
_HEAD_DROPOUT = ("classifier_dropout", "seq_classif_dropout")  # where a family has one of its own
_ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")
_ACTIVATION = ("hidden_act", "hidden_activation", "activation", "activation_function")


def load_tokenizer(name: str, add_tokens: Sequence[str] = ()) -> Any:
    """The tokenizer that belongs to a model; it always has a padding token.

    Args:
        add_tokens: what it is to read as one token each from now on.

    Raises:
        ModelError: there is none, or it cannot be reached.
        RecipeError: tokens that cannot be added.
    """
    place = find(name)
    with loading(place):
        tokenizer = AutoTokenizer.from_pretrained(place.path, **place.options)
        if not isinstance(tokenizer.model_max_length, int | float) or not tokenizer.model_max_length >= FEWEST:
            raise ValueError(f"model_max_length is {tokenizer.model_max_length!r}")
        tokenizer(["a b"], ["c"], truncation=True, max_length=FEWEST)  # a template may name what the vocabulary lacks
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if add_tokens:
        extend_tokenizer(tokenizer, add_tokens)
    return tokenizer


def load_processor(name: str) -> Any:
    """The image processor that belongs to a model: it brings images to the size and the numbers that the model reads.

    Raises:
        ModelError: there is none, or it cannot be reached.
    """
    place = find(name)
    with loading(place):
        return AutoImageProcessor.from_pretrained(place.path, backend="pil", **place.options)


def token_limit(name: str, tokenizer: Any, wanted: int | None, reserved: int = 0) -> int:
    """The number of tokens a row may have: what the recipe says, else what the model allows, at most 512.

    Args:
        reserved: positions that something else takes.

    Raises:
        ModelError: the recipe wants more than the model has positions.
    """
    config = read_config(find(name))
    positions = getattr(config, "max_position_embeddings", None) or LONGEST
    if getattr(config, "model_type", "") in ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl"):
        positions -= 2  # their positions start after the padding index
    if positions < FEWEST:
        todo = "Correct max_position_embeddings, or choose another model."
        raise refused(name, f"positions for at least {FEWEST} tokens", str(positions), todo, CONFIG)
    positions -= reserved
    if wanted is not None and wanted > positions:
        todo = f"Set model.max_length to {positions}."
        raise refused(name, f"max_length of at most {positions}", str(wanted), todo)
    return wanted or min(positions, int(min(tokenizer.model_max_length, LONGEST)), LONGEST)


def load_classifier(
    name: str,
    tokenizer: Any,
    labels: Sequence[str],
    problem_type: str,
    structure: Structure,
    *,
    seed: int,
    head: Head = "classifier",
) -> Any:
    """A pretrained model with a head for `labels`, for rows, for their tokens, for images or for vectors, in float32.

    The head is fresh unless the model already has one for as many labels; `seed` decides its values, and those of
    layers that are initialised anew.

    Args:
        tokenizer: with the tokens that the structure adds; of images their processor.

    Raises:
        ModelError: the model cannot be found, is not in safetensors, has other weights than its configuration says, or
            has no such head.
        RecipeError: the structure asks for what this model does not have.
    """
    place = find(name)
    config = read_config(place)
    if head != "encoder":
        config.num_labels = len(labels)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    config.problem_type = problem_type or None
    _set_numbers(config, structure)
    if head == "classifier":
        choose_form(config, structure)
    elif head == "token-classifier":
        choose_chain(config, structure)
    elif head == "encoder":
        choose_pooling(config, structure, place.folder)
    else:
        refuse_form(structure, "A model that finds answers" if head == "answer-finder" else "A model of images")
    if head != "image-classifier" and config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(seed)
    return _changed(_load(_factory(head, config), place, config, fresh_head=True), name, tokenizer, structure, seed)


def load_language_model(
    name: str, tokenizer: Any, structure: Structure, *, seed: int, head: Head = "language-model"
) -> Any:
    """A pretrained causal language model, or encoder-decoder, in float32.

    Args:
        tokenizer, seed: as in `load_classifier`.
        head: which of the two.

    Raises:
        ModelError: the model cannot be found, is not in safetensors, has other weights than its configuration says, or
            is of a family that writes no text.
        RecipeError: the structure asks for what this model does not have.
    """
    refuse_form(structure, "A language model")
    place = find(name)
    config = read_config(place)
    _set_numbers(config, structure)
    return _changed(_load(_FACTORIES[head], place, config), name, tokenizer, structure, seed)


def load_untuned(name: str) -> Any:
    """A pretrained model as training would begin with it: a language model, or else a classifier, in float32.

    Raises:
        ModelError: as `load_classifier`.
    """
    config, tokenizer = read_config(find(name)), load_tokenizer(name)
    if any(kind.endswith("ForCausalLM") for kind in config.architectures or ()):
        return load_language_model(name, tokenizer, Structure(), seed=0)
    labels = [str(label) for label in range(config.num_labels)]
    return load_classifier(name, tokenizer, labels, "single_label_classification", Structure(), seed=0)


def load_saved(folder: Path, head: Head, base: str, *, held_on: torch.device | None = None) -> Any:
    """A fine-tuned model from an artifact folder, in float32.

    Args:
        base: the model under the adapters, where the artifact is adapters.
        held_on: where that is to be held in few bits, as it was while the adapters were trained; None for as it is.

    Raises:
        ModelError: the files are damaged or do not fit one another, or the base model cannot be found.
    """
    place = find(str(folder))
    config = read_config(place)
    factory = _factory(head, config)
    if not (folder / ADAPTERS).is_file():
        return _load(factory, place, config)
    check_adapters(folder)
    model = _load(factory, find(base), config, fresh_head=True)
    if held_on is not None:
        hold(model.to(held_on))
    return add_saved(model, folder)


def width_of(name: str) -> int:
    """The numbers in a hidden state of a model, as its config.json says; 1 where it does not.

    Raises:
        ModelError: it cannot be found.
    """
    found = getattr(read_config(find(name)).get_text_config(), "hidden_size", 1)
    return found if isinstance(found, int) and found > 0 else 1


def is_encoder_decoder(name: str) -> bool:
    """Whether a model reads one text and writes another, as its config.json says.

    Raises:
        ModelError: it cannot be found.
    """
    return bool(getattr(read_config(find(name)), "is_encoder_decoder", False))


def _load(factory: Any, place: Place, config: Any, *, fresh_head: bool = False) -> Any:
    """Load a model once its files, and their sizes and shapes, are known to be in order.

    Args:
        fresh_head: a classifier's head may be made anew; otherwise all weights must be there.
    """
    fetch_weights(place)
    shapes = stored_shapes(weight_files(place.folder, place.name), place.name)
    check_depth(place.folder, shapes, place.name)
    with loading(place), torch.device("meta"):
        outline = factory.from_config(config, trust_remote_code=False)
    fresh = head_modules(outline) if fresh_head else ()
    check_fit(outline, shapes, fresh, place.name)
    with loading(place):
        model, found = factory.from_pretrained(
            place.path,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # heads for other labels; any other mismatch is refused below
            output_loading_info=True,
            **place.options,
        )
    check_loaded(found, fresh, place.name)
    drawn = {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}
    for key, parameter in model.named_parameters():
        parameter.pretrained = key not in drawn
    return model


def is_pretrained(parameter: torch.Tensor) -> bool:
    """Whether a parameter's values came with the pretrained model; those of fresh heads and of adapters did not."""
    return getattr(parameter, "pretrained", False)


def _factory(head: Head, config: Any) -> Any:
    return _OWN[head] if head in _OWN and is_own(config) else _FACTORIES[head]


def _set_numbers(config: Any, structure: Structure) -> None:
    """Write into the config what needs nothing else to change."""
    _set_first(config, _DROPOUT, structure.dropout)
    for name in _HEAD_DROPOUT:
        if structure.dropout is not None and getattr(config, name, None) is not None:
            setattr(config, name, structure.dropout)
    _set_first(config, _ATTENTION_DROPOUT, structure.attention_dropout)
    _set_first(config, _ACTIVATION, structure.activation)


def _changed(model: Any, name: str, tokenizer: Any, structure: Structure, seed: int) -> Any:
    """The loaded model with the tokens and layers that the structure asks for."""
    if structure.add_tokens:
        extend_embeddings(model, pieces_of(load_tokenizer(name), tokenizer, structure.add_tokens))
    change_layers(model, structure, seed)
    if structure.makes_another_model:
        model.name_or_path = ""  # adapters alone could not be laid on what has that name
    return model


def _set_first(config: Any, names: Sequence[str], value: float | str | None) -> None:
    if value is None:
        return
    found = [name for name in names if hasattr(config, name)]
    if not found:
        expected = f"a model with one of {', '.join(names)}"
        raise refused(str(config.model_type), expected, "none", "Remove it from `structure`.")
    for name in found:
        setattr(config, name, value)
