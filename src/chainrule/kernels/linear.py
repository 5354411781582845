"""A linear layer in bfloat16 whose weights stay float32: cast once per update instead of once per use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from chainrule.kernels import native
from chainrule.kernels.activation import bias_gelu, gelu_gradient

MOST_TERMS = 8192  # of a product on tiles: the right side of 32 columns of more does not stay in the cache


def rounded(weight: Any) -> torch.Tensor:
    """`weight` in bfloat16: itself, or a copy kept with the parameter, cast again only when that has changed."""
    if weight.dtype == torch.bfloat16:
        return weight.detach()  # type: ignore[no-any-return]
    copy: torch.Tensor | None = getattr(weight, "rounded", None)
    if copy is None or weight.rounded_version != weight._version:
        with torch.inference_mode(False), torch.no_grad():
            copy = torch.empty_like(weight, dtype=torch.bfloat16) if copy is None else copy
            copy.copy_(weight)
        set_rounded(weight, copy)
    return copy


def set_rounded(weight: Any, copy: torch.Tensor) -> None:
    """Say that `copy` holds the present values of `weight` in bfloat16."""
    weight.rounded, weight.rounded_version = copy, weight._version


def is_rounded(weight: torch.Tensor) -> bool:
    """Whether a copy in bfloat16 is kept with this parameter."""
    return hasattr(weight, "rounded")


def forget_rounded(weight: Any) -> None:
    """Drop the copy."""
    weight.__dict__.pop("rounded", None)
    weight.__dict__.pop("rounded_version", None)
    weight.__dict__.pop("stack", None)


def half_linear(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """values · weightᵀ + bias in bfloat16.

    Args:
        values: (…, inputs) bfloat16.
        weight: (outputs, inputs) float32; what is read is its copy in bfloat16. Or a frozen one in bfloat16.
        bias: (outputs,) float32, or None.

    Returns:
        (…, outputs) bfloat16.
    """
    return half_linears(values, [weight], [] if bias is None else [bias], rounded(weight))


def half_linears(
    values: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor], compute: torch.Tensor
) -> torch.Tensor:
    """Several linear layers of the same input as one product.

    Args:
        values: (…, inputs) bfloat16.
        weights: (outputs, inputs) float32 each.
        biases: (outputs,) float32 each; empty for none.
        compute: (sum of outputs, inputs), the weights in bfloat16 one below the other: `stacked(weights)`.

    Returns:
        (…, sum of outputs) bfloat16.
    """
    result: torch.Tensor = _HalfLinears.apply(  # type: ignore[no-untyped-call]
        values, compute, len(weights), *weights, *biases
    )
    return result


def stacked(weights: Sequence[Any]) -> torch.Tensor:
    """The weights in bfloat16 one below the other, in one piece of memory that their `rounded` copies share."""
    copies = [rounded(weight) for weight in weights]
    shared = [getattr(weight, "stack", None) for weight in weights]
    first = shared[0]
    if first is not None and len(first) == sum(map(len, weights)) and all(other is first for other in shared):
        return first  # type: ignore[no-any-return]
    with torch.inference_mode(False), torch.no_grad():
        stack = torch.cat(copies)
    for weight, part in zip(weights, torch.split(stack, [len(copy) for copy in copies]), strict=True):
        if weight.dtype == torch.bfloat16:
            weight.data = part
        else:
            set_rounded(weight, part)
        weight.stack = stack
    return stack


def narrow_exactly(weight: Any) -> bool:
    """Keep a frozen float32 parameter in bfloat16 alone, half the memory, if that loses nothing.

    Returns:
        Whether every value was the same in bfloat16.
    """
    with torch.no_grad():
        narrow = weight.detach().to(torch.bfloat16)
        if not torch.equal(narrow.float(), weight):
            return False
    forget_rounded(weight)
    weight.data = narrow
    weight.narrowed = True
    return True


def widen(weight: Any) -> None:
    """Make a parameter of `narrow_exactly` float32 again."""
    if weight.__dict__.pop("narrowed", False):
        forget_rounded(weight)
        weight.data = weight.data.float()


def half_linear_gelu(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """GELU of `half_linear`, in one pass where there are tiles; the arguments are the same."""
    compute = rounded(weight)
    if not on_tiles(values, compute):
        return bias_gelu(half_linear(values, weight, None), bias)
    result: torch.Tensor = _LinearGelu.apply(values, compute, weight, bias, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return result


class _LinearGelu(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        values: torch.Tensor,
        compute: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        keep: bool,
    ) -> torch.Tensor:
        flat = values.reshape(-1, values.shape[-1])
        before, after = multiply_gelu(flat, compute, bias, keep=keep)
        context.save_for_backward(flat if weight.requires_grad else None, compute, before)
        return after.view(*values.shape[:-1], len(compute))

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flat, compute, before = context.saved_tensors
        wanted = context.needs_input_grad
        inner, _ = gelu_gradient(gradients[0].reshape(before.shape), before, None)
        dvalues = multiply_across(inner, compute).view(*gradients[0].shape[:-1], -1) if wanted[0] else None
        dweight = dbias = None
        if wanted[2]:
            dweight, dbias = weight_gradient(inner, flat, sums=wanted[3])
        elif wanted[3]:
            dbias = column_sums(inner)
        return dvalues, None, dweight, dbias, None


class _HalfLinears(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, values: torch.Tensor, compute: torch.Tensor, count: int, *parameters: torch.Tensor
    ) -> torch.Tensor:
        weights, biases = parameters[:count], parameters[count:]
        learns = any(weight.requires_grad for weight in weights)
        context.save_for_backward(values if learns else None, compute)
        context.sizes = [len(weight) for weight in weights]
        bias = torch.cat(biases) if len(biases) > 1 else (biases[0] if biases else None)
        return multiply(values, compute, bias)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        values, compute = context.saved_tensors
        gradient, sizes = gradients[0], context.sizes
        flat = gradient.reshape(-1, gradient.shape[-1])
        wanted, count = context.needs_input_grad, len(sizes)
        for_weights, for_biases = wanted[3 : 3 + count], wanted[3 + count :]
        dvalues = multiply_across(flat, compute).view(*gradient.shape[:-1], -1) if wanted[0] else None
        dweights: Sequence[torch.Tensor | None] = [None] * count
        dbiases: Sequence[torch.Tensor | None] = [None] * len(for_biases)
        if any(for_weights):
            dweight, dbias = weight_gradient(flat, values.reshape(-1, values.shape[-1]), sums=any(for_biases))
            dweights = torch.split(dweight, sizes)
            if dbias is not None:
                dbiases = torch.split(dbias, sizes)
        elif any(for_biases):
            dbiases = torch.split(column_sums(flat), sizes)
        return dvalues, None, None, *dweights, *dbiases


def multiply(
    values: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    more: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """values · weightᵀ + bias, plus the product of `more`.

    Args:
        values: (…, inputs) bfloat16.
        weight: (outputs, inputs) bfloat16.
        bias: (outputs,), or None.
        more: (rows, few) and (outputs, few) bfloat16, or None.

    Returns:
        (…, outputs) bfloat16.
    """
    flat = values.reshape(-1, values.shape[-1])  # of more than two dimensions torch may make a batch of products
    if on_tiles(flat, weight) and (more is None or more[0].shape[1] % 32 == 0):
        result = flat.new_empty(len(flat), len(weight))
        _product(flat, weight, Ends(bias=bias, more=more, y=result))
    else:
        result = functional.linear(flat, weight, None if bias is None else bias.to(weight.dtype))
        if more is not None:
            result.addmm_(more[0], more[1].t())
    return result.view(*values.shape[:-1], len(weight))


def multiply_across(
    values: torch.Tensor,
    weight: torch.Tensor,
    *,
    before: torch.Tensor | None = None,
    plus: torch.Tensor | None = None,
    more: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """values · weight plus the product of `more`, times the slope of GELU at `before`, plus `plus`.

    That is the gradient of what a layer reads.

    Args:
        values: (rows, outputs) bfloat16.
        weight: (outputs, inputs) bfloat16.
        before, plus: (rows, inputs) bfloat16, or None; only where `on_tiles`.
        more: (rows, few) and (few, inputs) bfloat16, or None.

    Returns:
        (rows, inputs) bfloat16.
    """
    if on_tiles(values, weight) and len(weight) <= MOST_TERMS and (more is None or more[0].shape[1] % 32 == 0):
        result = values.new_empty(len(values), weight.shape[1])
        _product(values, weight, Ends(more=more, before=before, plus=plus, y=result), across=True)
        return result
    result = torch.mm(values, weight)
    return result if more is None else result.addmm_(*more)


def multiply_gelu(
    values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, keep: bool
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """values · weightᵀ + bias where it is to be kept, and GELU of it, on tiles: (rows, outputs) each."""
    before = values.new_empty(len(values), len(weight)) if keep else None
    after = values.new_empty(len(values), len(weight))
    _product(values, weight, Ends(bias=bias, y=before, after=after))
    return before, after


def on_tiles(values: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether a product of these is made on tiles."""
    half = values.dtype == weight.dtype == torch.bfloat16
    return half and weight.shape[0] % 32 == weight.shape[1] % 32 == 0 and native.tiles()


class Ends(NamedTuple):
    """What is done with a product before it is written to `y`, and where else it goes: cpp/tiled_product.hpp."""

    bias: torch.Tensor | None = None
    more: tuple[torch.Tensor, torch.Tensor] | None = None
    before: torch.Tensor | None = None
    plus: torch.Tensor | None = None
    y: torch.Tensor | None = None
    after: torch.Tensor | None = None


def _product(values: torch.Tensor, weight: torch.Tensor, ends: Ends, *, across: bool = False) -> None:
    outputs = weight.shape[1] if across else weight.shape[0]
    more = (None, None) if ends.more is None else tuple(part.contiguous() for part in ends.more)
    few = 0 if ends.more is None else ends.more[0].shape[1]
    bias = None if ends.bias is None else ends.bias.float()
    sizes = (*values.shape, outputs, few, int(across))
    read = (values.contiguous(), weight.contiguous(), *more, bias, ends.before, ends.plus)
    native.call("product", *read, ends.y, ends.after, *sizes)


def weight_gradient(
    gradient: torch.Tensor, values: torch.Tensor, *, sums: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """gradientᵀ · values, and the column sums of the gradient where they are asked for.

    Args:
        gradient: (rows, outputs) bfloat16.
        values: (rows, inputs) bfloat16.

    Returns:
        (outputs, inputs) bfloat16, and (outputs,) float32 or None.
    """
    outputs, inputs = gradient.shape[1], values.shape[1]
    half = gradient.dtype == values.dtype == torch.bfloat16
    if not (half and outputs % 32 == inputs % 32 == 0 and native.tiles()):
        return torch.mm(gradient.t(), values), column_sums(gradient) if sums else None
    result = gradient.new_empty(outputs, inputs)
    total = torch.zeros(outputs) if sums else None
    rows = len(gradient)
    native.call("weight_gradient", gradient.contiguous(), values.contiguous(), result, total, rows, outputs, inputs)
    return result, total


def column_sums(values: torch.Tensor) -> torch.Tensor:
    """(rows, columns) -> (columns,) float32."""
    if not native.usable(values):
        return values.sum(0, dtype=torch.float32)
    values = values.contiguous()
    sums = torch.zeros(values.shape[1])
    native.call("column_sum", native.is_half(values), values, sums, *values.shape)
    return sums
