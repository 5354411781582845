"""The parts of a model by role: embeddings, layers from the bottom up, head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Anatomy:
    """Parameter names of a model by role, each parameter once.

    Attributes:
        embeddings: everything below the first layer.
        layers: one tuple of names per layer, bottom first.
        head: everything above the last layer: final norm, pooler, classifier.
    """

    embeddings: tuple[str, ...]
    layers: tuple[tuple[str, ...], ...]
    head: tuple[str, ...]


def anatomy(model: Any) -> Anatomy:
    """Find the parts of a transformers model.

    The layers are the list of modules in the base model that holds the most parameters. Of the rest, what lies outside
    the base model or is registered after the layers is head; the other parameters are embeddings.
    """
    prefix = _prefix(model)
    stack, blocks = _layer_stack(model.base_model)
    stack = prefix + stack
    layers: list[list[str]] = [[] for _ in blocks]
    embeddings, head = [], []
    seen_layers = False
    for name, _ in model.named_parameters():
        if stack and name.startswith(stack + "."):
            seen_layers = True
            layers[int(name[len(stack) + 1 :].partition(".")[0])].append(name)
        elif name.startswith(prefix) and prefix and (not seen_layers or "embed" in name.lower()):
            embeddings.append(name)
        else:
            head.append(name)
    return Anatomy(tuple(embeddings), tuple(map(tuple, layers)), tuple(head))


@dataclass(frozen=True)
class Part:
    """One layer of a model, or what lies below or above them all.

    Attributes:
        name: "embeddings", "layer 0" … or "head".
        parameters: by name.
        module: the module whose output is the part's own (of the head: the logits); empty where there is none.
    """

    name: str
    parameters: tuple[str, ...]
    module: str


def parts(model: Any) -> tuple[Part, ...]:
    """The parts of a transformers model as they follow each other, from the embeddings up; empty ones left out."""
    roles = anatomy(model)
    stack = _prefix(model) + _layer_stack(model.base_model)[0]
    below = _common_module(roles.embeddings)
    last = output_layer(model)
    found = [
        Part("embeddings", roles.embeddings, "" if f"{stack}.".startswith(f"{below}.") else below),
        *(Part(f"layer {n}", names, f"{stack}.{n}") for n, names in enumerate(roles.layers)),
        Part("head", roles.head, next(name for name, module in model.named_modules() if module is last)),
    ]
    return tuple(part for part in found if part.parameters)


def count_parameters(model: nn.Module, *, trainable_only: bool = False) -> int:
    """The number of parameters, shared ones once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


def frozen_modules(model: nn.Module) -> Iterator[nn.Module]:
    """The largest modules in which nothing is trainable and something is there to train."""
    for child in model.children():
        parameters = list(child.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            yield child
        else:
            yield from frozen_modules(child)


def output_layer(model: nn.Module) -> nn.Linear:
    """The last linear layer: the one whose outputs are the logits."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


def layer_stack(model: Any) -> nn.ModuleList:
    """The layers of the base model, bottom first."""
    return _layer_stack(model.base_model)[1]


def _layer_stack(base: nn.Module) -> tuple[str, nn.ModuleList]:
    stacks = [(name, module) for name, module in base.named_modules() if isinstance(module, nn.ModuleList)]
    if not stacks:
        return "", nn.ModuleList()
    return max(stacks, key=lambda item: sum(p.numel() for p in item[1].parameters()))


def _prefix(model: Any) -> str:
    """What the names of the base model's parts begin with."""
    return f"{model.base_model_prefix}." if hasattr(model, model.base_model_prefix) else ""


def _common_module(names: tuple[str, ...]) -> str:
    """The smallest module that holds all of these parameters."""
    steps = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return ".".join(words[0] for words in takewhile(lambda words: len(set(words)) == 1, steps))
