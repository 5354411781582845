"""The parts of a model by role: embeddings, layers from the bottom up, head."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import takewhile
from typing import Any

from torch import nn

from chainrule.models.adapters import owner, plain_model


@dataclass(frozen=True)
class Anatomy:
    """Parameter names of a model by role, each parameter once.

    Attributes:
        embeddings: everything below the first layer.
        layers: one tuple of names per layer, bottom first.
        head: everything above the last layer: final norm, pooler, classifier; and what stands outside the model, such
            as an adapter's virtual tokens.
    """

    embeddings: tuple[str, ...]
    layers: tuple[tuple[str, ...], ...]
    head: tuple[str, ...]


def anatomy(model: Any) -> Anatomy:
    """Find the parts of a transformers model, with or without adapters.

    The layers are the list of modules in the base model that holds the most parameters; of an encoder-decoder one such
    list of each, the decoder's on top. Of the rest, what lies outside the base model or is registered after the layers
    is head (an encoder's last norm belongs to its last layer); the other parameters are embeddings.
    """
    plain = plain_model(model)
    prefix = f"{plain.base_model_prefix}." if hasattr(plain, plain.base_model_prefix) else ""
    stacks = [(f"{prefix}{name}.", len(blocks)) for name, blocks in _layer_stacks(plain.base_model)]
    below = {name: sum(count for _, count in stacks[:place]) for place, (name, _) in enumerate(stacks)}
    layers: list[list[str]] = [[] for _ in range(sum(count for _, count in stacks))]
    embeddings: list[str] = []
    head: list[str] = []
    seen = 0  # layers whose parameters begin
    outer = {id(parameter): name for name, parameter in model.named_parameters()}  # adapters wrap the names
    for name, parameter in plain.named_parameters():
        called = outer.pop(id(parameter))
        stack = next((stack for stack in below if name.startswith(stack)), None)
        if stack is not None:
            place = below[stack] + int(name[len(stack) :].partition(".")[0])
            layers[place].append(called)
            seen = max(seen, place + 1)
        elif name.startswith(prefix) and (prefix or len(stacks) > 1) and (not seen or "embed" in name.lower()):
            embeddings.append(called)
        elif seen < len(layers) and len(stacks) > 1:
            layers[seen - 1].append(called)
        else:
            head.append(called)
    return Anatomy(tuple(embeddings), tuple(map(tuple, layers)), (*head, *outer.values()))


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
    roles, paths = anatomy(model), {id(module): name for name, module in model.named_modules()}
    layers = [paths[id(layer)] for layer in layer_stack(plain_model(model))]
    below = _common_module(roles.embeddings)
    found = [
        Part("embeddings", roles.embeddings, "" if any(path.startswith(below) for path in layers) else below),
        *(Part(f"layer {n}", *each) for n, each in enumerate(zip(roles.layers, layers, strict=True))),
        Part("head", roles.head, paths[id(output_layer(model))]),
    ]
    return tuple(part for part in found if part.parameters)


def depths_below_head(model: Any) -> dict[str, int]:
    """Parameter name -> layers from the head down to it: 0 in the head, 1 in the top layer, most in the embeddings."""
    parts = anatomy(model)
    depths = dict.fromkeys(parts.head, 0) | dict.fromkeys(parts.embeddings, len(parts.layers) + 1)
    for depth, layer in enumerate(reversed(parts.layers), start=1):
        depths |= dict.fromkeys(layer, depth)
    return depths


def matching(model: nn.Module, pattern: str) -> list[str]:
    """The parameters whose name, from its beginning or from any dot on, matches a pattern of *, ? and [letters].

    Adapters go by the name of the weight that they are put on.
    """
    names = {name: owner(name) for name, _ in model.named_parameters()}
    return [name for name, plain in names.items() if fnmatchcase(f".{plain}", f"*.{pattern}")]


def outline(model: nn.Module) -> list[str]:
    """The names of a model's parameters, numbers of layers written once: `encoder.layer.{0-5}.output.dense.weight`."""
    found: dict[str, list[int]] = {}
    for name, _ in model.named_parameters():
        number = re.search(r"(?<=\.)\d+(?=\.)", name)
        places = found.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "{}", name, count=1), [])
        places.extend([int(number[0])] if number else [])
    return [
        name.replace("{}", f"{{{min(places)}-{max(places)}}}") if places else name for name, places in found.items()
    ]


def count_parameters(model: nn.Module) -> int:
    """The number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


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
    """The layers of the base model, bottom first; of an encoder-decoder a list made of both sides'."""
    found = [blocks for _, blocks in _layer_stacks(plain_model(model).base_model)]
    return found[0] if len(found) == 1 else nn.ModuleList(block for blocks in found for block in blocks)


def _layer_stacks(base: Any) -> list[tuple[str, nn.ModuleList]]:
    """The list of layers by its name; of an encoder-decoder those of both."""
    stacks = [(name, module) for name, module in base.named_modules() if isinstance(module, nn.ModuleList)]
    sides = ("encoder.", "decoder.") if base.config.is_encoder_decoder else ("",)
    groups = [[item for item in stacks if item[0].startswith(side)] for side in sides]
    return [max(group, key=lambda item: sum(p.numel() for p in item[1].parameters())) for group in groups if group]


def _common_module(names: tuple[str, ...]) -> str:
    """The smallest module that holds all of these parameters."""
    steps = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return ".".join(words[0] for words in takewhile(lambda words: len(set(words)) == 1, steps))
