"""Each CPU kernel against what plain torch does in its place, forward and backward, in turn.

The shapes are those of a batch of 32 × 128 tokens in MiniLM. Prints medians and the median of the ratios.
`--attention` compares attention alone at many lengths and head sizes with torch's (its flash kernel where it takes
that), `--products` matrix products with torch's; both in bfloat16.

    python benchmarks/kernels.py --threads 2
    python benchmarks/kernels.py --threads 2 --attention --products
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch.nn import functional

from chainrule.kernels.activation import bias_gelu
from chainrule.kernels.adamw import NativeAdamW, gradient_norm
from chainrule.kernels.attention import attention
from chainrule.kernels.dropout import dropout
from chainrule.kernels.linear import multiply, multiply_across, multiply_gelu, weight_gradient
from chainrule.kernels.norm import residual_norm
from chainrule.system.device import use_threads

ROWS, WIDTH, INNER, HEADS, LENGTH = 4096, 384, 1536, 12, 128
Run = Callable[[], object]


def backward(make: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> Run:
    """Forward and backward of one function."""
    leaves = [values.detach().requires_grad_() for values in inputs]

    def run() -> None:
        output = make(*leaves)
        output.backward(torch.ones_like(output))  # type: ignore[no-untyped-call]

    return run


def cases() -> dict[str, tuple[Run, Run]]:
    """name -> (plain torch, ours)."""
    x, y = torch.randn(ROWS, WIDTH).bfloat16(), torch.randn(ROWS, WIDTH).bfloat16()
    inner, bias, inner_bias = torch.randn(ROWS, INNER).bfloat16(), torch.zeros(WIDTH), torch.zeros(INNER)
    weight = torch.ones(WIDTH)
    heads = [torch.randn(32, HEADS, LENGTH, 32).bfloat16() for _ in range(3)]

    def plain_norm(values: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        summed = functional.dropout(values + bias.bfloat16(), 0.1) + rest
        return functional.layer_norm(summed.float(), (WIDTH,), weight, bias, 1e-12).bfloat16()

    def plain_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(query, key, value, dropout_p=0.1)

    return {
        "dropout of 4096 × 1536": (
            backward(lambda v: functional.dropout(v, 0.1), inner),
            backward(lambda v: dropout(v, 0.1), inner),
        ),
        "bias, dropout, residual sum, layer norm of 4096 × 384": (
            backward(plain_norm, x, y),
            backward(lambda v, r: residual_norm(v, bias, r, weight, bias, 1e-12, 0.1), x, y),
        ),
        "bias and GELU of 4096 × 1536": (
            backward(lambda v: functional.gelu(v + inner_bias.bfloat16()), inner),
            backward(lambda v: bias_gelu(v, inner_bias), inner),
        ),
        "attention of 32 × 12 × 128 × 32 with dropout": (
            backward(plain_attention, *heads),
            backward(lambda q, k, v: attention(q, k, v, None, 32**-0.5, 0.1), *heads),
        ),
        "clipping and AdamW of 10 million parameters": optimizers(10_000_000),
    }


def optimizers(count: int) -> tuple[Run, Run]:
    """A step of torch's fused AdamW with clipping, and of ours."""
    plain, mine = (torch.nn.Parameter(torch.randn(count)) for _ in range(2))
    plain.grad, mine.grad = torch.randn(count), torch.randn(count)
    theirs = torch.optim.AdamW([plain], lr=1e-5, fused=True)
    ours = NativeAdamW([{"params": [mine], "lr": 1e-5}], (0.9, 0.999), 1e-8)

    def run_theirs() -> None:
        torch.nn.utils.clip_grad_norm_([plain], 1.0)
        theirs.step()

    def run_ours() -> None:
        norm = gradient_norm([mine.grad]) if mine.grad is not None else 0.0
        ours.gradient_scale = min(1.0, 1.0 / (norm + 1e-6))
        ours.step()

    return run_theirs, run_ours


def attentions() -> dict[str, tuple[Run, Run]]:
    """Shape -> (torch's, ours): prediction, and a step without and with dropout; about as many tokens each time."""
    found: dict[str, tuple[Run, Run]] = {}
    for size, length in [
        (32, 16),
        (32, 64),
        (32, 128),
        (32, 256),
        (32, 512),
        (64, 128),
        (64, 512),
        (64, 1024),
        (128, 256),
    ]:
        batch = max(1, 4096 // length)
        parts = [torch.randn(batch, 384 // size, length, size).bfloat16() for _ in range(3)]

        def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, drop: float = 0.0) -> torch.Tensor:
            return functional.scaled_dot_product_attention(q, k, v, dropout_p=drop)

        def mine(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, drop: float = 0.0) -> torch.Tensor:
            return attention(q, k, v, None, q.shape[-1] ** -0.5, drop)

        shape = f"{batch} × {384 // size} × {length} × {size}"
        found[f"{shape}, prediction"] = (
            partial(without_gradient, plain, parts),
            partial(without_gradient, mine, parts),
        )
        found[f"{shape}, step"] = (backward(plain, *parts), backward(mine, *parts))
        dropping = (partial(plain, drop=0.1), partial(mine, drop=0.1))
        found[f"{shape}, step with dropout"] = (backward(dropping[0], *parts), backward(dropping[1], *parts))
    return found


def without_gradient(make: Callable[..., torch.Tensor], parts: list[torch.Tensor]) -> None:
    """Forward alone."""
    with torch.no_grad():
        make(*parts)


def plain_gelu(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """GELU of a linear layer."""
    return functional.gelu(functional.linear(x, w, bias))


def plain_gradients(above: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a weight and a bias."""
    return torch.mm(above.t(), x), above.sum(0)


def products() -> dict[str, tuple[Run, Run]]:
    """Shape -> (torch's, ours): a layer, a layer with GELU, and the gradients of what it reads and of its weight."""
    found: dict[str, tuple[Run, Run]] = {}
    for rows, inputs, outputs in [
        (rows, *shape) for rows in (512, 1792, 4096) for shape in ((384, 1152), (384, 1536), (1536, 384), (576, 3072))
    ]:
        x, w, above = (torch.randn(*shape).bfloat16() for shape in ((rows, inputs), (outputs, inputs), (rows, outputs)))
        bias = torch.randn(outputs)
        half, shape = bias.bfloat16(), f"{rows} × {inputs} → {outputs}"
        found[f"{shape}"] = (partial(functional.linear, x, w, half), partial(multiply, x, w, bias))
        found[f"{shape} with GELU"] = (partial(plain_gelu, x, w, half), partial(multiply_gelu, x, w, bias, keep=True))
        found[f"{shape}, gradient of x"] = (partial(torch.mm, above, w), partial(multiply_across, above, w))
        found[f"{shape}, gradient of w"] = (
            partial(plain_gradients, above, x),
            partial(weight_gradient, above, x, sums=True),
        )
    return found


def milliseconds(run: Run) -> float:
    began = time.perf_counter()
    run()
    return (time.perf_counter() - began) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--attention", action="store_true")
    parser.add_argument("--products", action="store_true")
    options = parser.parse_args()
    use_threads(options.threads)
    chosen = {**(attentions() if options.attention else {}), **(products() if options.products else {})} or cases()
    title = "work" if options.attention or options.products else "forward and backward"
    print(f"| {title} | torch, ms | ours, ms | torch / ours |\n|---|---|---|---|")
    for name, (plain, mine) in chosen.items():
        times = [(milliseconds(plain), milliseconds(mine)) for _ in range(options.repeats + 2)][2:]
        before, after = median(a for a, _ in times), median(b for _, b in times)
        print(f"| {name} | {before:.2f} | {after:.2f} | {median(a / b for a, b in times):.1f} |", flush=True)


if __name__ == "__main__":
    main()
