"""Faster `forward` methods for the modules that transformers models are made of.

Each is a callable that takes a module's place in `module.forward` and reads the module's own parameters, so that names,
state and what is saved stay those of the plain model. Inside bfloat16 autocast they compute in bfloat16 throughout:
products, activations and the residual stream; norms, biases and sums are float32 inside the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from chainrule.kernels import encoder
from chainrule.kernels.activation import bias_gelu, gated_silu
from chainrule.kernels.adamw import catch_up
from chainrule.kernels.adapter import LowRank, adapted_linears
from chainrule.kernels.attention import attention, self_attention
from chainrule.kernels.dropout import dropout
from chainrule.kernels.embedding import embedding
from chainrule.kernels.linear import half_linear_gelu, half_linears, rounded, stacked
from chainrule.kernels.norm import norm, residual_norm, root_norm
from chainrule.kernels.rotary import Heads, Sight, rotary_attention

SPARSE_FROM_ENTRIES = 4096  # smaller tables are cheaper to update whole


def is_half() -> bool:
    """Whether bfloat16 autocast is on for the CPU."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def narrow(values: torch.Tensor) -> torch.Tensor:
    """`values` in bfloat16 inside autocast, unchanged outside."""
    return values.to(torch.bfloat16) if is_half() else values


def plain_layer(layer: Any) -> Any:
    """The linear layer itself, where PEFT has put an adapter around it."""
    return layer.base_layer if hasattr(layer, "lora_A") else layer


def product(layers: Sequence[Any], values: torch.Tensor, *, biased: bool = True) -> torch.Tensor:
    """What linear layers of the same input give, side by side: one product where they allow it.

    Args:
        layers: nn.Linear, or PEFT's around it.
        values: (…, inputs).
        biased: with their biases.
    """
    adapters = [_adapters(layer) for layer in layers]
    plain = [plain_layer(layer) for layer in layers]
    weights = [layer.weight for layer in plain]
    biases = [layer.bias for layer in plain if biased and layer.bias is not None]
    count = {None if found is None else len(found) for found in adapters}
    if is_half() and len(biases) in (0, len(layers)):
        if count == {0}:
            return half_linears(narrow(values), weights, biases, _compute(weights))
        if count == {1} and not any(parameter.requires_grad for parameter in [*weights, *biases]):
            bias = torch.cat(biases) if biases else None
            return adapted_linears(narrow(values), _compute(weights), bias, [found[0] for found in adapters if found])
    if len(layers) == 1:
        return _alone(layers[0], values, biased)
    return torch.cat([product([layer], values, biased=biased) for layer in layers], -1)


def _compute(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    return rounded(weights[0]) if len(weights) == 1 else stacked(weights)


def _alone(layer: Any, values: torch.Tensor, biased: bool) -> torch.Tensor:
    """One layer by torch or PEFT."""
    bias = plain_layer(layer).bias
    if layer is plain_layer(layer):
        return functional.linear(values, layer.weight, bias if biased else None)
    result: torch.Tensor = type(layer).forward(layer, values)
    return result if biased or bias is None else result - bias.to(result.dtype)


def _adapters(layer: Any) -> list[LowRank] | None:
    """The adapters that take part in a layer's product, none or one; None for what only PEFT can work out."""
    if layer is plain_layer(layer):
        return []
    if layer.merged:
        return None
    if layer.disable_adapters:
        return []
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(names) != 1 or names[0] in layer.lora_variant:
        return [] if not names else None
    name = names[0]
    first, second, drop = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
    drops = drop.training and getattr(drop, "p", 0.0) > 0
    if drops or second.bias is not None or first.weight.dtype != torch.float32:
        return None
    return [LowRank(first.weight, second.weight, layer.scaling[name])]


class Linear:
    """nn.Linear with its weight rounded once per update instead of once per use."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        return product([self.layer], input)


class Adapted:
    """PEFT's linear layer with a low-rank adapter, without casts and sums of its own."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(self, x: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        if rest or options:
            result: torch.Tensor = type(self.layer).forward(self.layer, x, *rest, **options)
            return result
        return product([self.layer], x)


class Norm:
    """nn.LayerNorm in one pass."""

    def __init__(self, layer: nn.LayerNorm) -> None:
        self.layer = layer

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        return norm(narrow(input), self.layer.weight, self.layer.bias, self.layer.eps)


class RootNorm:
    """The root-mean-square norm of Llama and Qwen in one pass."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return root_norm(narrow(hidden_states), self.layer.weight, self.layer.variance_epsilon)


class Dropout:
    """nn.Dropout with cheap masks."""

    def __init__(self, layer: nn.Dropout) -> None:
        self.layer = layer

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        return dropout(input, self.layer.p) if self.layer.training else input


class Gelu:
    """The exact GELU."""

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        return bias_gelu(narrow(input), None)


class Residual:
    """A product with bias, dropout, the residual sum and its norm: the end of both halves of a BERT-shaped layer."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        module, last = self.module, self.module.LayerNorm
        values = product([module.dense], hidden_states, biased=False)
        bias = plain_layer(module.dense).bias
        rate = module.dropout.p if module.dropout.training else 0.0
        residual = narrow(input_tensor)
        return residual_norm(values, bias, residual, last.weight, last.bias, last.eps, rate)


class Intermediate:
    """A product with bias and GELU: the middle of a BERT-shaped layer."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        dense = self.module.dense
        if is_half() and dense is plain_layer(dense):
            return half_linear_gelu(narrow(hidden_states), dense.weight, dense.bias)
        return bias_gelu(product([dense], hidden_states, biased=False), plain_layer(dense).bias)


class Gated:
    """The gated feed-forward part of a Llama- or Qwen-shaped layer."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        module = self.module
        return product([module.down_proj], gated_silu(product([module.gate_proj, module.up_proj], x)))


class Embedding:
    """nn.Embedding whose gradient holds only the rows that were used."""

    def __init__(self, layer: nn.Embedding, *, sparse: bool) -> None:
        self.layer, self.sparse = layer, sparse

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        layer = self.layer
        catch_up(layer.weight, input)
        if self.sparse and layer.weight.requires_grad and torch.is_grad_enabled():
            return embedding(layer.weight, input, layer.padding_idx)
        return functional.embedding(input, layer.weight, layer.padding_idx)


class SelfAttention:
    """Queries, keys and values of a BERT-shaped layer in one product, and attention with the kernels, in bfloat16."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, hidden_states: torch.Tensor, attention_mask: Any = None, *rest: Any, **options: Any) -> Any:
        module = self.module
        if rest or options.get("past_key_values") is not None or not is_half():
            return type(module).forward(module, hidden_states, attention_mask, *rest, **options)
        projected = product([module.query, module.key, module.value], hidden_states)
        heads, rate = module.num_attention_heads, module.dropout.p if module.training else 0.0
        return self_attention(projected, heads, attention_mask, module.scaling, rate), None


class RotaryAttention:
    """The attention of a Llama- or Qwen-shaped layer, its four products included, while training in bfloat16."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Any = None,
        attention_mask: Any = None,
        past_key_values: Any = None,
        **options: Any,
    ) -> Any:
        module = self.module
        if past_key_values is not None or not (torch.is_grad_enabled() and is_half()):
            given = position_embeddings, attention_mask, past_key_values
            return type(module).forward(module, hidden_states, *given, **options)
        projected = product([module.q_proj, module.k_proj, module.v_proj], hidden_states)
        queries, keys = (plain_layer(layer).out_features for layer in (module.q_proj, module.k_proj))
        heads = Heads(queries // module.head_dim, keys // module.head_dim, module.head_dim)
        rate = module.attention_dropout if module.training else 0.0
        starts = _starts(options.get("position_ids")) if _sees_all_before(module) else (0,)
        sight = Sight(attention_mask, module.is_causal, starts)
        context = rotary_attention(projected, heads, position_embeddings, sight, module.scaling, rate)
        return product([module.o_proj], context), None


def _sees_all_before(module: Any) -> bool:
    """Whether a token sees every token before it, and not only some window of them."""
    windows = getattr(module, "sliding_window", None), getattr(module.config, "sliding_window", None)
    return module.is_causal and windows == (None, None)


def _starts(places: torch.Tensor | None) -> tuple[int, ...]:
    """Where rows begin that stand side by side in a batch of one: transformers takes a jump of positions for it."""
    if places is None or len(places) != 1:
        return (0,)
    return (0, *(torch.nonzero(places[0, 1:] != places[0, :-1] + 1).flatten() + 1).tolist())


class EncoderLayer:
    """A BERT-shaped layer as two functions, its two halves, in bfloat16 where the processor has tiles."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.parts = [part for part in module.modules() if part is not module]

    def __call__(self, hidden_states: torch.Tensor, attention_mask: Any = None, *rest: Any, **options: Any) -> Any:
        module, own = self.module, self.module.attention.self
        asked = options.get("past_key_values") is not None or options.get("output_attentions") or any(rest)
        layers = [(own.query, own.key, own.value), (module.attention.output.dense,)]
        layers += [(module.intermediate.dense,), (module.output.dense,)]
        plain = all(layer is plain_layer(layer) for group in layers for layer in group)
        if plain and is_half() and not asked and not any(part._forward_hooks for part in self.parts):
            values = narrow(hidden_states)
            project, join, widen, close = (_weights(group) for group in layers)
            rate = own.dropout.p if own.training else 0.0
            look = encoder.Attention(own.num_attention_heads, own.scaling, attention_mask, rate)
            attended = None
            if encoder.fits(values, project, join, widen, close):
                attended = encoder.attention_half(values, project, join, _end(module.attention.output), look)
            if attended is not None:
                return encoder.feed_forward(attended, widen, close, _end(module.output))
        return type(module).forward(module, hidden_states, attention_mask, *rest, **options)


def _weights(layers: Sequence[Any]) -> encoder.Weights:
    weights = tuple(layer.weight for layer in layers)
    return encoder.Weights(_compute(weights), weights, tuple(layer.bias for layer in layers if layer.bias is not None))


def _end(module: Any) -> encoder.End:
    last = module.LayerNorm
    return encoder.End(last.weight, last.bias, last.eps, module.dropout.p if module.dropout.training else 0.0)


class FirstTokenLayer:
    """The last BERT-shaped layer under a head that reads the first token: only that token's output is made."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, hidden_states: torch.Tensor, attention_mask: Any = None, *rest: Any, **options: Any) -> Any:
        module, own = self.module, self.module.attention.self
        cached = options.get("past_key_values") is not None or options.get("output_attentions")
        if cached or any(part is not None for part in rest):
            return type(module).forward(module, hidden_states, attention_mask, *rest, **options)
        values = narrow(hidden_states)
        first, heads = values[:, :1], own.num_attention_heads
        rate = own.dropout.p if own.training else 0.0
        seen = None if attention_mask is None else attention_mask[:, :, :1]
        query = own.query(first).unflatten(-1, (heads, -1)).transpose(1, 2)
        both = product([own.key, own.value], values)
        key, value = both.view(*both.shape[:2], 2, heads, -1).permute(2, 0, 3, 1, 4)
        context = attention(query, key, value, seen, own.scaling, rate)
        attended = module.attention.output(context.transpose(1, 2).flatten(2), first)
        return module.output(module.intermediate(attended), attended)
