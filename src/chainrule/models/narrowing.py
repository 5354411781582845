"""What can be taken out of the layers of a model such that transformers still loads the rest as a dense model.

A config has one size for all layers. So every layer keeps as many neurons in its feed-forward part as every other, but
neurons of its own; the same holds for heads, where a config says how wide a head is. Where it does not (BERT and its
kin: a head is hidden size / heads wide), heads cannot go: since version 5 transformers knows no `pruned_heads`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from chainrule.models.inspect import layer_stack
from chainrule.models.surgery import put_layers, require_plain


@dataclass(frozen=True)
class Anchors:
    """Names inside a layer of one family.

    Attributes:
        up: the linear layers that make neurons; one that makes two halves, values and their gates, is in `halved`.
        down: the linear layer that reads them.
        attended: the linear layer that reads what all heads have seen.
        size: what the config calls the number of neurons.
        queries, keys: the linear layers that make heads, and groups of heads; empty where heads cannot go.
        halved: whether `up` makes values and gates in one.
    """

    up: tuple[str, ...]
    down: str
    attended: str
    size: str = "intermediate_size"
    queries: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    halved: bool = False


_FAMILIES = (
    Anchors(("intermediate.dense",), "output.dense", "attention.output.dense"),  # BERT, RoBERTa
    Anchors(("ffn.lin1",), "ffn.lin2", "attention.out_lin", "hidden_dim"),  # DistilBERT
    Anchors(("mlp.fc1",), "mlp.fc2", "attention.o_proj"),  # ViT
    Anchors(
        ("mlp.gate_proj", "mlp.up_proj"),
        "mlp.down_proj",
        "self_attn.o_proj",
        queries=("self_attn.q_proj",),
        keys=("self_attn.k_proj", "self_attn.v_proj"),
    ),  # Llama, Mistral, Qwen
    Anchors(("mlp.Wi",), "mlp.Wo", "attn.Wo", halved=True),  # ModernBERT
)
KNOWN = "BERT, RoBERTa, DistilBERT, ViT, ModernBERT, Llama, Mistral or Qwen"


@dataclass(frozen=True)
class Frame:
    """The sizes of a model's layers, all alike.

    Attributes:
        layers: how many there are.
        neurons: in the feed-forward part of each.
        groups: groups of heads that share keys, in each; 1 where heads cannot go.
        fixed: weights of matrix products in a layer besides those of neurons and groups.
        neuron, group: weights of one of them, and for a group what its attention computes for a token, too.
    """

    layers: int
    neurons: int
    groups: int
    fixed: float
    neuron: float
    group: float

    def work(self, layers: int, neurons: int, groups: int) -> float:
        """Multiplications for one token in the layers, were there so many of each."""
        return layers * (self.fixed + neurons * self.neuron + groups * self.group)

    @property
    def whole(self) -> float:
        """Those of the model as it is."""
        return self.work(self.layers, self.neurons, self.groups)


@dataclass(frozen=True)
class Cut:
    """What stays.

    Attributes:
        layers: their places, bottom first.
        neurons: for each layer there is now, the places of its neurons that stay.
        groups: the same of groups of heads.
    """

    layers: tuple[int, ...]
    neurons: tuple[torch.Tensor, ...]
    groups: tuple[torch.Tensor, ...]


def anchors_of(model: Any) -> Anchors | None:
    """The family that all layers of a model are of; None for another, for two stacks of layers, and for none."""
    config = getattr(model, "config", None)
    if config is None or getattr(config, "is_encoder_decoder", False) or not hasattr(model, "base_model"):
        return None
    if not any(isinstance(module, nn.ModuleList) for module in model.base_model.modules()):
        return None
    stack = layer_stack(model)
    for family in _FAMILIES:
        names = (*family.up, family.down, family.attended)
        if all(isinstance(_found(layer, name), nn.Linear) for layer in stack for name in names):
            return family if hasattr(config.get_text_config(), family.size) else None
    return None


def heads_can_go(model: Any, family: Anchors) -> bool:
    """Whether the config says how wide a head is, so that fewer of them can be loaded."""
    return bool(family.queries) and isinstance(getattr(model.config.get_text_config(), "head_dim", None), int)


def allowed_groups(model: Any, frame: Frame) -> list[int]:
    """The numbers of groups of heads that the config takes, all of them first."""
    config = model.config.get_text_config()
    allowed = []
    for groups in range(frame.groups, 0, -1):
        changed = {**config.to_dict(), **_head_counts(config, frame.groups, groups)}
        try:
            type(config).from_dict(changed).validate()
        except Exception:  # each family has a check, and an error, of its own
            continue
        allowed.append(groups)
    return allowed


def frame_of(model: Any, family: Anchors, tokens: float) -> Frame:
    """The sizes of a model's layers.

    Args:
        tokens: of a typical row; what attention computes for a token grows with it.
    """
    stack, config = layer_stack(model), model.config.get_text_config()
    layer = stack[0]
    neurons, width = (linear_of(layer, name).in_features for name in (family.down, family.attended))
    groups = int(config.num_key_value_heads) if heads_can_go(model, family) else 1
    seeing = 2 * tokens * width  # each query with each key, and each weight with each value
    whole = seeing + sum(module.weight.numel() for module in layer.modules() if isinstance(module, nn.Linear))
    for_neurons = _weights(layer, (*family.up, family.down))
    for_groups = seeing + _weights(layer, (*family.queries, *family.keys, family.attended)) if groups > 1 else 0.0
    fixed = whole - for_neurons - for_groups
    return Frame(len(stack), neurons, groups, fixed, for_neurons / neurons, for_groups / groups)


def linear_of(layer: nn.Module, name: str) -> nn.Linear:
    """A linear layer inside a layer."""
    found = layer.get_submodule(name)
    if not isinstance(found, nn.Linear):
        raise TypeError(f"{name} is a {type(found).__name__}")
    return found


def _weights(layer: nn.Module, names: Sequence[str]) -> int:
    return sum(linear_of(layer, name).weight.numel() for name in names)


def cut(model: Any, family: Anchors, made: Cut) -> None:
    """Take out what does not stay; the config follows.

    Raises:
        RecipeError: transformers would build other layers from the config.
    """
    config = model.config.get_text_config()
    before = frame_of(model, family, 0)
    stack = layer_stack(model)
    for place in made.layers:
        layer = stack[place]
        _keep_neurons(layer, family, made.neurons[place], before.neurons)
        if before.groups > 1:
            _keep_groups(layer, family, made.groups[place], before.groups)
    setattr(config, family.size, len(made.neurons[made.layers[0]]))
    if before.groups > 1:
        for name, value in _head_counts(config, before.groups, len(made.groups[made.layers[0]])).items():
            setattr(config, name, value)
    if len(made.layers) < before.layers:
        put_layers(model, made.layers)
    require_plain(model)


def _head_counts(config: Any, groups: int, kept: int) -> Mapping[str, int]:
    heads = int(config.num_attention_heads)
    return {"num_attention_heads": heads // groups * kept, "num_key_value_heads": kept}


def _keep_neurons(layer: nn.Module, family: Anchors, kept: torch.Tensor, there: int) -> None:
    rows = torch.cat([kept, kept + there]) if family.halved else kept
    for name in family.up:
        _put(layer, name, rows=rows)
    _put(layer, family.down, columns=kept)


def _keep_groups(layer: nn.Module, family: Anchors, kept: torch.Tensor, there: int) -> None:
    for names in (family.queries, family.keys):
        for name in names:
            _put(layer, name, rows=_spread(kept, linear_of(layer, name).out_features // there))
    _put(layer, family.attended, columns=_spread(kept, linear_of(layer, family.attended).in_features // there))
    attention = layer.get_submodule(family.attended.rpartition(".")[0])
    for name in ("num_heads", "num_key_value_heads"):
        if isinstance(getattr(attention, name, None), int):
            setattr(attention, name, getattr(attention, name) // there * len(kept))


def _spread(kept: torch.Tensor, width: int) -> torch.Tensor:
    """The places of all numbers of the groups that stay."""
    return (kept[:, None] * width + torch.arange(width)).flatten()


def _put(layer: nn.Module, name: str, *, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None) -> None:
    """Put a linear layer with some of its outputs, or of its inputs, in the place of the one that is there."""
    old = linear_of(layer, name)
    weight, bias = old.weight.detach(), None if old.bias is None else old.bias.detach()
    if rows is not None:
        weight, bias = weight[rows], None if bias is None else bias[rows]
    if columns is not None:
        weight = weight[:, columns]
    new = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        new.weight.copy_(weight)
        if bias is not None:
            new.bias.copy_(bias)
    parent, _, last = name.rpartition(".")
    setattr(layer.get_submodule(parent), last, new)


def _found(layer: nn.Module, name: str) -> nn.Module | None:
    return dict(layer.named_modules()).get(name)


def kept_of(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The places of the so many largest, in order; of equals the first."""
    order = torch.sort(scores, descending=True, stable=True).indices
    return torch.sort(order[:count]).values


def sizes_of(neurons: Sequence[int], groups: Sequence[int]) -> str:
    """Sizes in words, for a table."""
    told = f"{neurons[1]:,} of {neurons[0]:,} neurons"
    return told if groups[0] == 1 else f"{told}, {groups[1]} of {groups[0]} groups of heads"
