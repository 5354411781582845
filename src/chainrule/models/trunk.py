"""The frozen bottom of a model: how high it reaches, what comes out of it, and a model that starts above it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from chainrule.models.adapters import plain_model, virtual_tokens
from chainrule.models.classifier import FAMILIES, reads_first_token
from chainrule.models.inspect import anatomy, layer_stack

_NOT_BELOW = ("id2label", "label2id", "problem_type", "num_labels", "transformers_version", "_name_or_path", "dtype")


def frozen_depth(model: Any, trained: Collection[str]) -> int:
    """How many layers from the bottom up, embeddings included, are as they were for every step.

    Args:
        trained: names of the parameters that are trained in any phase.

    Returns:
        0 where the embeddings are trained, or where the model is of a family that cannot start above them.
    """
    parts, base = anatomy(model), plain_model(model).base_model
    other = virtual_tokens(model) or hasattr(base, "embeddings_project") or model.config.model_type not in FAMILIES
    if other or any(name in trained for name in parts.embeddings):
        return 0
    touched = [any(name in trained for name in layer) for layer in parts.layers]
    return touched.index(True) if True in touched else len(touched)


def is_whole(model: Any, depth: int) -> bool:
    """Whether only the first token's state is ever read: `depth` layers are all of them, and the head reads no more."""
    return depth == len(layer_stack(model)) and reads_first_token(model)


def trunk_states(model: Any, depth: int, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the `depth`-th layer gives for a batch; the layers above are not run.

    Returns:
        (b, t, hidden), or (b, 1, hidden) of the first token where only that is read.
    """
    caught: list[torch.Tensor] = []

    def catch(module: nn.Module, arguments: Any, output: torch.Tensor) -> None:
        caught.append(output)
        raise _ReachedError

    handle = layer_stack(model)[depth - 1].register_forward_hook(catch)
    try:
        model(**inputs)
    except _ReachedError:
        pass
    finally:
        handle.remove()
    return caught[0][:, :1] if is_whole(model, depth) else caught[0]


def start_above(model: Any, depth: int) -> None:
    """Let the model take the states of the `depth`-th layer as `inputs_embeds`, until `accelerate.restore`."""
    plain_model(model).base_model.embeddings.forward = _given
    for layer in layer_stack(model)[:depth]:
        layer.forward = _same


def trunk_digest(model: Any, depth: int) -> str:
    """A hash of all that the states follow from on the model's side."""
    plain = plain_model(model)
    parts = anatomy(plain)
    below = {*parts.embeddings, *(name for layer in parts.layers[:depth] for name in layer)}
    settings = {key: value for key, value in model.config.to_dict().items() if key not in _NOT_BELOW}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, parameter in plain.named_parameters():
        if name in below:
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _given(input_ids: Any = None, *rest: Any, inputs_embeds: Any = None, **options: Any) -> Any:
    return rest[0] if inputs_embeds is None else inputs_embeds


def _same(hidden_states: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
    return hidden_states


class _ReachedError(Exception):
    """Enough of the model has run."""
