"""Changes to a pretrained model's layers before anything else is done with it; transformers still loads the result."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from chainrule.core.recipe import Structure
from chainrule.errors import Problem, RecipeError, Where
from chainrule.models.adapters import head_modules
from chainrule.models.inspect import layer_stack
from chainrule.system.seed import kept_generators

PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")  # lists in configs with one entry a layer
TOLERANCE = 1e-3
_MESSAGE = "The model cannot be changed like this."


@dataclass(frozen=True)
class Block:
    """Names inside a layer.

    Attributes:
        outputs: the linear layers whose results are added to what goes past them.
        norms: the norms that follow those sums, in a model that has them there; else none.
    """

    outputs: tuple[str, ...]
    norms: tuple[str, ...] = ()


BLOCKS = (
    Block(("attention.output.dense", "output.dense"), ("attention.output.LayerNorm", "output.LayerNorm")),  # BERT
    Block(("attention.out_lin", "ffn.lin2"), ("sa_layer_norm", "output_layer_norm")),  # DistilBERT
    Block(("self_attn.o_proj", "mlp.down_proj")),  # Llama, Mistral, Qwen, Gemma, Phi
    Block(("attn.Wo", "mlp.Wo")),  # ModernBERT
    Block(("attn.c_proj", "mlp.c_proj")),  # GPT-2
)


def kept_layers(structure: Structure, count: int) -> list[int]:
    """Which of `count` layers stay.

    Raises:
        RecipeError: the structure names layers that do not exist or do not stay, or none stays.
    """
    keep, drop, problems = structure.keep_layers, structure.drop_layers, []
    if keep is not None and drop:
        problems.append(_problem("drop_layers", "keep_layers or drop_layers, not both", "both", "Remove one of them."))
    for key, layers in (("keep_layers", keep or ()), ("drop_layers", drop)):
        missing = [layer for layer in layers if layer >= count]
        if missing:
            expected = f"layers from 0 to {count - 1}, which this model has"
            problems.append(_problem(key, expected, _shown(missing), "Change it."))
        elif list(layers) != sorted(set(layers)):
            problems.append(_problem(key, "layers in ascending order, each once", _shown(layers), "Change it."))
    kept = [layer for layer in range(count) if (layer not in drop if keep is None else layer in keep)]
    gone = [layer for layer in structure.insert_blocks if layer not in kept]
    if not kept and not problems:
        key = "drop_layers" if keep is None else "keep_layers"
        problems.append(_problem(key, "at least one layer that stays", f"none of {count}", "Keep one."))
    if kept and gone:
        expected = f"layers out of {_shown(kept)}, those that stay"
        problems.append(_problem("insert_blocks", expected, _shown(gone), "Change it."))
    if kept and structure.reinitialise_top > len(kept):
        expected = f"at most {len(kept)}, the layers there are by then"
        problems.append(_problem("reinitialise_top", expected, str(structure.reinitialise_top), "Lower it."))
    if problems:
        raise RecipeError(_MESSAGE, problems)
    return kept


def change_layers(model: Any, structure: Structure, seed: int) -> None:
    """Drop layers, then initialise the top ones anew, then insert blocks, as the structure says.

    Raises:
        RecipeError: layers that do not exist, or changes that this model cannot take.
    """
    changes = [
        key for key in ("keep_layers", "drop_layers", "reinitialise_top", "insert_blocks") if getattr(structure, key)
    ]
    if changes and model.config.is_encoder_decoder:
        expected, got = "a model with one stack of layers", f"a {model.config.model_type}, which has two"
        raise RecipeError(_MESSAGE, [_problem(key, expected, got, "Leave it out.") for key in changes])
    count = len(layer_stack(model))
    kept = kept_layers(structure, count)
    if len(kept) < count:
        put_layers(model, kept)
    if structure.reinitialise_top:
        reinitialise(model, structure.reinitialise_top, seed)
    if structure.insert_blocks:
        insert_blocks(model, [kept.index(layer) for layer in structure.insert_blocks])
    if len(kept) < count or structure.insert_blocks:
        require_plain(model)


def put_layers(model: Any, order: Sequence[int]) -> None:
    """Make the layers those of `order`; a layer that is named again is a copy. The config follows.

    Args:
        order: places in the present layers, bottom first.
    """
    stack, config = layer_stack(model), model.config.get_text_config()
    for name in PER_LAYER:
        values = getattr(config, name, None)
        if isinstance(values, list | tuple) and len(values) == len(stack):
            setattr(config, name, [values[place] for place in order])
    config.num_hidden_layers = len(order)
    layers = [copy.deepcopy(stack[p]) if p in order[:at] else stack[p] for at, p in enumerate(order)]
    del stack[:]
    stack.extend(layers)
    for number, layer in enumerate(layers):
        for module in layer.modules():
            if "layer_idx" in module.__dict__:  # the place of its keys and values in a cache
                module.__dict__["layer_idx"] = number


def reinitialise(model: Any, top: int, seed: int) -> None:
    """Give the top layers and what stands on them the values that pretraining began with, as the model draws them.

    Zhang et al. (2021), Revisiting Few-sample BERT Fine-tuning, section 5. The pooler is among what stands on them; a
    language model's output layer and a final norm are not.

    Args:
        top: how many layers, counted from the head.
    """
    base = model.base_model
    parts = [(layer, base) for layer in layer_stack(model)[-top:]]
    for name in head_modules(model):
        parts.append((model.get_submodule(name), base if name.startswith(f"{model.base_model_prefix}.") else model))
    with kept_generators():
        torch.manual_seed(int(np.random.SeedSequence([seed, top]).generate_state(1, np.uint64)[0]))
        for part, owner in parts:
            for parameter in part.parameters():
                parameter.__dict__.pop("_is_hf_initialized", None)  # transformers' mark of what was loaded
            for module in part.modules():
                owner._init_weights(module)


def insert_blocks(model: Any, places: Sequence[int]) -> None:
    """Insert a block above each of these layers that changes nothing until it is trained.

    A block is a copy of the layer below with its output layers set to zero: the block expansion of Wu et al. (2024).
    Where a layer ends in a norm, an unchanged residual would be normed once more; so the layer below hands the scale
    and shift of its last norm up to the block, and norms that only norm follow each other.

    Raises:
        RecipeError: no layer of this kind is known, or the model would not stay as it is.
    """
    stack = layer_stack(model)
    known = next((block for block in BLOCKS if all(_has(stack[0], name) for name in block.outputs)), None)
    if known is None:
        expected = "layers like those of BERT, RoBERTa, DistilBERT, ModernBERT, GPT-2, Llama, Mistral or Qwen"
        todo = "Leave structure.insert_blocks out for this model."
        raise RecipeError(_MESSAGE, [_problem("insert_blocks", expected, str(model.config.model_type), todo)])
    before = _states(model)
    put_layers(model, sorted([*range(len(stack)), *places]))
    for number, place in enumerate(sorted(places)):
        at = place + number + 1
        _silence(stack[at - 1], stack[at], known)
    gap = float((_states(model) - before).abs().max())
    if gap > TOLERANCE * float(before.abs().max()):
        expected = "a model that is the same with blocks that add nothing"
        todo = "Leave structure.insert_blocks out for this model."
        raise RecipeError(_MESSAGE, [_problem("insert_blocks", expected, "another one", todo)])


def require_plain(model: Any) -> None:
    """Make sure that transformers builds the same weights from the config.

    Raises:
        RecipeError: it does not.
    """
    with torch.device("meta"), kept_generators():
        plain = type(model)(copy.deepcopy(model.config))
    ours, theirs = ({name: value.shape for name, value in made.state_dict().items()} for made in (model, plain))
    other = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if other:
        expected = "layers that transformers would build like this, so that it can load them"
        got = f"layers with other weights, such as {other[0]}"
        todo = "Choose other layers; the lowest may be unlike the rest."
        raise RecipeError(_MESSAGE, [Problem(expected, got, todo, Where(field="structure"))])


def _silence(below: nn.Module, block: nn.Module, known: Block) -> None:
    """Let a copy of the layer below pass on what it is given."""
    with torch.no_grad():
        for name in known.outputs:
            for parameter in block.get_submodule(name).parameters():
                parameter.zero_()
        if known.norms and _has(block, known.norms[0]):
            *inner, last = known.norms
            for norm in (below.get_submodule(last), *map(block.get_submodule, inner)):
                for name, parameter in norm.named_parameters():
                    parameter.fill_(1.0 if name == "weight" else 0.0)


def _states(model: Any) -> torch.Tensor:
    """What the layers make of some tokens."""
    ids = torch.arange(8, device=next(model.parameters()).device).remainder(model.get_input_embeddings().num_embeddings)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        states: torch.Tensor = model.base_model(input_ids=ids[None]).last_hidden_state
    model.train(was_training)
    return states


def _has(layer: nn.Module, name: str) -> bool:
    return name in dict(layer.named_modules())


def _shown(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))


def _problem(key: str, expected: str, got: str, todo: str) -> Problem:
    return Problem(expected, got, todo, Where(field=f"structure.{key}"))
