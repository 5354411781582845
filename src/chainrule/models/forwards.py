"""Faster `forward` methods for the modules that transformers models are made of.

Each is a callable that takes a module's place in `module.forward` and reads the module's own parameters, so that names,
state and what is saved stay those of the plain model. Inside bfloat16 autocast they compute in bfloat16 throughout:
products, activations and the residual stream; norms, biases and sums are float32 inside the kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from chainrule.kernels.activation import bias_gelu, gated_silu
from chainrule.kernels.adamw import catch_up
from chainrule.kernels.attention import attention, self_attention
from chainrule.kernels.dropout import dropout
from chainrule.kernels.embedding import embedding
from chainrule.kernels.linear import half_linear, half_linears, stacked
from chainrule.kernels.norm import norm, residual_norm, root_norm

SPARSE_FROM_ENTRIES = 4096  # smaller tables are cheaper to update whole


def is_half() -> bool:
    """Whether bfloat16 autocast is on for the CPU."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def narrow(values: torch.Tensor) -> torch.Tensor:
    """`values` in bfloat16 inside autocast, unchanged outside."""
    return values.to(torch.bfloat16) if is_half() else values


class Linear:
    """nn.Linear with its weight rounded once per update instead of once per use."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        return self.product(input, self.layer.bias)

    def product(self, values: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """values · weightᵀ + bias."""
        if not is_half():
            return functional.linear(values, self.layer.weight, bias)
        return half_linear(narrow(values), self.layer.weight, bias)


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
        product = module.dense.forward.product(hidden_states, None)
        rate = module.dropout.p if module.dropout.training else 0.0
        residual = narrow(input_tensor)
        return residual_norm(product, module.dense.bias, residual, last.weight, last.bias, last.eps, rate)


class Intermediate:
    """A product with bias and GELU: the middle of a BERT-shaped layer."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        dense = self.module.dense
        return bias_gelu(dense.forward.product(hidden_states, None), dense.bias)


class Gated:
    """The gated feed-forward part of a Llama- or Qwen-shaped layer."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        module = self.module
        result: torch.Tensor = module.down_proj(gated_silu(module.gate_proj(x), module.up_proj(x)))
        return result


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
    """Queries, keys and values of a BERT-shaped layer in one product; attention with the kernels while training."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, hidden_states: torch.Tensor, attention_mask: Any = None, *rest: Any, **options: Any) -> Any:
        module = self.module
        if rest or options.get("past_key_values") is not None or not (torch.is_grad_enabled() and is_half()):
            return type(module).forward(module, hidden_states, attention_mask, *rest, **options)
        projected = self.projected(narrow(hidden_states), ("query", "key", "value"))
        heads, rate = module.num_attention_heads, module.dropout.p if module.training else 0.0
        return self_attention(projected, heads, attention_mask, module.scaling, rate), None

    def projected(self, values: torch.Tensor, names: tuple[str, ...]) -> torch.Tensor:
        """The products of the named layers side by side."""
        layers = [getattr(self.module, name) for name in names]
        weights = [layer.weight for layer in layers]
        if not is_half():
            return torch.cat([layer(values) for layer in layers], -1)
        return half_linears(values, weights, [layer.bias for layer in layers], stacked(weights))


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
        both = own.forward.projected(values, ("key", "value")).unflatten(-1, (2, heads, -1))
        key, value = both.permute(2, 0, 3, 1, 4)
        context = attention(query, key, value, seen, own.scaling, rate)
        attended = module.attention.output(context.transpose(1, 2).flatten(2), first)
        return module.output(module.intermediate(attended), attended)
