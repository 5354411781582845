"""The two halves of a BERT-shaped layer in bfloat16, each one function: what its parts hand on stays in one place.

Both end in y = norm(dropout(z + bias) + x): Devlin et al. (2019), BERT, after Vaswani et al. (2017), section 3.1. Their
gradients are written out, so that no pass over memory is made for an addition, a slope or a cast alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from chainrule.kernels.attention_options import byte_mask, heads_of, options_of
from chainrule.kernels.dropout import drop_levels
from chainrule.kernels.linear import column_sums, multiply, multiply_across, multiply_gelu, on_tiles, weight_gradient
from chainrule.kernels.norm import Normed, norm_forward, norm_gradients
from chainrule.kernels.tiled_attention import attend_backward_on_tiles, attend_on_tiles, tiled


@dataclass(frozen=True)
class End:
    """The end of a half: dropout, residual sum and norm.

    Attributes:
        weight, shift: of the norm, (columns,) float32.
        dropout: its probability.
    """

    weight: torch.Tensor
    shift: torch.Tensor
    epsilon: float
    dropout: float


@dataclass(frozen=True)
class Attention:
    """How the tokens of a row look at each other: `kernels.attention.attention`.

    Attributes:
        dropout: on the softmax.
    """

    heads: int
    scaling: float
    mask: torch.Tensor | None
    dropout: float


@dataclass(frozen=True)
class Weights:
    """A linear layer.

    Attributes:
        compute: (outputs, inputs) bfloat16, what is multiplied with.
        weights: the parameters that it holds, one below the other.
        biases: theirs, float32.
    """

    compute: torch.Tensor
    weights: tuple[torch.Tensor, ...]
    biases: tuple[torch.Tensor, ...]


def fits(values: torch.Tensor, *layers: Weights) -> bool:
    """Whether these layers can be made so."""
    biased = all(len(layer.biases) == len(layer.weights) for layer in layers)
    return biased and all(on_tiles(values, layer.compute) for layer in layers)


def feed_forward(values: torch.Tensor, first: Weights, second: Weights, end: End) -> torch.Tensor:
    """norm(dropout(GELU(values · first) · second) + values).

    Args:
        values: (batch, length, columns) bfloat16.
    """
    tensors = (*first.weights, *first.biases, *second.weights, *second.biases, end.weight, end.shift)
    result: torch.Tensor = _FeedForward.apply(  # type: ignore[no-untyped-call]
        values, first.compute, second.compute, (end.epsilon, end.dropout, torch.is_grad_enabled()), *tensors
    )
    return result


def attention_half(
    values: torch.Tensor, first: Weights, second: Weights, end: End, attention: Attention
) -> torch.Tensor | None:
    """norm(dropout(attention(values · first) · second) + values), or None for a mask or heads that do not fit.

    Args:
        values: (batch, length, columns) bfloat16.
        first: queries, keys and values.
    """
    mask = byte_mask(attention.mask)
    example = values[:, None, :, : len(first.compute) // 3 // attention.heads]
    if (attention.mask is not None and mask is None) or not tiled(example, example):
        return None
    tensors = (*first.weights, *first.biases, *second.weights, *second.biases, end.weight, end.shift)
    options = options_of(len(values), attention.heads, attention.scaling, attention.dropout, False)
    result: torch.Tensor = _AttentionHalf.apply(  # type: ignore[no-untyped-call]
        values, first.compute, second.compute, (end.epsilon, end.dropout, mask, options), *tensors
    )
    return result


def _ended(
    context: Any, values: torch.Tensor, residual: torch.Tensor, end: tuple[float, float, bool], parameters: Any
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """The end of a half, and what of it is to be saved for its gradient."""
    bias, weight, shift = parameters[-3:]
    epsilon, rate, keep = end
    options = (epsilon, drop_levels(rate), 0, keep)
    result, normed = norm_forward(values, bias, residual, weight, shift, options)
    context.end = normed.drop, normed.root, normed.has
    return result, (normed.total, normed.mean, normed.deviation, weight)


def _linear_gradients(
    wanted: tuple[bool, ...], gradient: torch.Tensor, values: torch.Tensor | None, sizes: list[int]
) -> list[torch.Tensor | None]:
    """Of the weights and of the biases of one layer, of those that are wanted."""
    count = len(sizes)
    some: list[torch.Tensor | None] = [None] * count
    dweights: Sequence[torch.Tensor | None] = some
    dbiases: Sequence[torch.Tensor | None] = some
    if any(wanted[:count]) and values is not None:
        dweight, dbias = weight_gradient(gradient, values, sums=any(wanted[count:]))
        dweights = torch.split(dweight, sizes)
        dbiases = some if dbias is None else torch.split(dbias, sizes)
    elif any(wanted[count:]):
        dbiases = torch.split(column_sums(gradient), sizes)
    return [found if asked else None for found, asked in zip([*dweights, *dbiases], wanted, strict=True)]


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        values: torch.Tensor,
        first: torch.Tensor,
        second: torch.Tensor,
        end: tuple[float, float, bool],
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        flat = values.reshape(-1, values.shape[-1])
        before, after = multiply_gelu(flat, first, parameters[1], keep=end[2])
        result, saved = _ended(context, multiply(after, second), flat, end, parameters)
        learns = context.needs_input_grad[6]
        context.save_for_backward(flat, first, second, before, after if learns else None, *saved)
        return result.view(values.shape)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        flat, first, second, before, after, *normed, weight = context.saved_tensors
        wanted = context.needs_input_grad
        end = norm_gradients(gradients[0].reshape(flat.shape), Normed(*normed, *context.end), weight)
        of_second = _linear_gradients((wanted[6], False), end.values, after, [len(second)])
        inner = multiply_across(end.values, second, before=before)
        of_first = _linear_gradients(wanted[4:6], inner, flat, [len(first)])
        dvalues = multiply_across(inner, first, plus=end.residual).view(gradients[0].shape) if wanted[0] else None
        return dvalues, None, None, None, *of_first, of_second[0], end.bias, end.weight, end.shift


class _AttentionHalf(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        values: torch.Tensor,
        first: torch.Tensor,
        second: torch.Tensor,
        options: tuple[Any, ...],
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        epsilon, rate, mask, attention = options
        batch, length, columns = values.shape
        flat = values.reshape(-1, columns)
        projected = multiply(flat, first, torch.cat(parameters[3:6])).view(batch, length, -1)
        attended = projected.new_empty(batch, length, attention.heads, projected.shape[-1] // 3 // attention.heads)
        parts = heads_of(projected, attention.heads)
        softmaxes = attend_on_tiles(parts, mask, attended.transpose(1, 2), attention)
        attended = attended.view(len(flat), -1)
        result, saved = _ended(context, multiply(attended, second), flat, (epsilon, rate, attention.keep), parameters)
        context.save_for_backward(flat, first, second, projected, attended, mask, softmaxes, *saved)
        context.attention = attention
        return result.view(values.shape)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        flat, first, second, projected, attended, mask, softmaxes, *normed, weight = context.saved_tensors
        wanted, attention = context.needs_input_grad, context.attention
        end = norm_gradients(gradients[0].reshape(flat.shape), Normed(*normed, *context.end), weight)
        of_second = _linear_gradients((wanted[10], False), end.values, attended, [len(second)])
        above = multiply_across(end.values, second)
        above = above.view(*projected.shape[:2], attention.heads, -1).transpose(1, 2)
        below = torch.empty_like(projected)
        parts, into = (heads_of(whole, attention.heads) for whole in (projected, below))
        attend_backward_on_tiles(above, parts, mask, softmaxes, attention, into)
        below = below.view(len(flat), -1)
        of_first = _linear_gradients(wanted[4:10], below, flat, [len(first) // 3] * 3)
        dvalues = multiply_across(below, first, plus=end.residual).view(gradients[0].shape) if wanted[0] else None
        return dvalues, None, None, None, *of_first, of_second[0], end.bias, end.weight, end.shift
