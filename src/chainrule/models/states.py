"""What the layers of a model make of a batch: their inputs and outputs, and the queries, keys and values of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from chainrule.models.accelerate import every_token
from chainrule.models.adapters import plain_model
from chainrule.models.inspect import layer_stack

_BERT = ("attention.self.query", "attention.self.key", "attention.self.value")
# Families whose attention reads the layer's input as it is, and whose scores are q · k / √d and nothing else.
_ATTENTIONS = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _BERT),
    "distilbert": ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
}
ATTENTIVE = "BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA or DistilBERT"


@dataclass
class Seen:
    """What one forward has left: (s, t, hidden) of each layer, bottom first."""

    given: list[torch.Tensor] = field(default_factory=list)
    made: list[torch.Tensor] = field(default_factory=list)


@contextmanager
def layers_seen(model: Any) -> Iterator[Seen]:
    """Inside, a forward of a model of one stack of layers leaves what went into them and what came out."""
    seen, plain = Seen(), plain_model(model)

    def catch(module: Any, arguments: Sequence[Any], named: dict[str, Any], output: Any) -> None:
        seen.given.append(arguments[0] if arguments else named["hidden_states"])
        seen.made.append(output[0] if isinstance(output, tuple) else output)

    with every_token(plain):
        handles = [layer.register_forward_hook(catch, with_kwargs=True) for layer in layer_stack(plain)]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()


def queries_keys_values(model: Any, place: int, given: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Three of (s, t, hidden) in float32 or wider: what the attention of a layer makes of the layer's input.

    Raises:
        KeyError: `is_attentive` says no.
    """
    layer = layer_stack(model)[place]
    names = _ATTENTIONS[plain_model(model).config.model_type]
    return tuple(wide(layer.get_submodule(name)(given)) for name in names)


def is_attentive(model: Any) -> bool:
    """Whether `queries_keys_values` knows the model's family."""
    return getattr(plain_model(model).config, "model_type", None) in _ATTENTIONS


def wide(values: torch.Tensor) -> torch.Tensor:
    """In float32, or in what is wider already."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
