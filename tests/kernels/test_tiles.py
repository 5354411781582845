"""Products and attention on tile registers against float64, gradients included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification

from chainrule.kernels import native
from chainrule.kernels.adapter import LowRank, adapted_linears
from chainrule.kernels.attention import attention
from chainrule.kernels.linear import half_linear_gelu, multiply, multiply_across, multiply_gelu, weight_gradient
from chainrule.kernels.rotary import Heads, Sight, rotary_attention
from chainrule.models import forwards
from chainrule.models.accelerate import accelerate, restore

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(not native.tiles(), reason="no tile registers (AMX), no compiler that knows them"),
]
SIZES = st.sampled_from([32, 64, 96, 544])
ROWS = st.sampled_from([1, 31, 32, 33, 100, 300])


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    """Numbers of about 1 in bfloat16."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).bfloat16()


def near(got: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-2) -> None:
    assert torch.isfinite(got.float()).all()
    assert got.shape == wanted.shape
    assert (got.double() - wanted).abs().max() <= tolerance * wanted.abs().max()


def threads(count: int, make: Callable[[], Any]) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return make()
    finally:
        torch.set_num_threads(before)


@given(ROWS, SIZES, SIZES, st.sampled_from([0, 32, 64]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_products(rows: int, inputs: int, outputs: int, few: int, biased: bool) -> None:
    """Rows that fill no block, weights of several steps, what goes on in a second product, and a bias."""
    x, w, bias = some(rows, inputs), some(outputs, inputs, seed=1), torch.randn(outputs) if biased else None
    more = (some(rows, few, seed=2), some(outputs, few, seed=3)) if few else None
    exact = x.double() @ w.double().t() + (0 if bias is None else bias.double())
    if more is not None:
        exact = exact + more[0].double() @ more[1].double().t()
    near(multiply(x, w, bias, more), exact)
    above = some(rows, outputs, seed=4)
    before, plus = some(rows, inputs, seed=5), some(rows, inputs, seed=6)
    point = before.double().requires_grad_()
    functional.gelu(point).sum().backward()  # type: ignore[no-untyped-call]
    assert point.grad is not None
    exact = above.double() @ w.double() * point.grad + plus.double()
    near(multiply_across(above, w, before=before, plus=plus), exact)
    if more is not None:
        across = (more[0], some(few, inputs, seed=7))
        near(
            multiply_across(above, w, more=across),
            above.double() @ w.double() + across[0].double() @ across[1].double(),
        )


@given(ROWS, SIZES, SIZES)
@settings(max_examples=30, deadline=None)
def test_the_gradient_of_a_weight(rows: int, inputs: int, outputs: int) -> None:
    gradient, values = some(rows, outputs), some(rows, inputs, seed=1)
    result, sums = weight_gradient(gradient, values, sums=True)
    near(result, gradient.double().t() @ values.double())
    assert sums is not None
    assert torch.allclose(sums.double(), gradient.double().sum(0), atol=1e-3)


def test_a_weight_that_several_threads_share_in_parts() -> None:
    """The sums of one thread would not fit its cache."""
    gradient, values = some(70, 1536), some(70, 768, seed=1)
    near(weight_gradient(gradient, values, sums=False)[0], gradient.double().t() @ values.double())


def test_gelu_is_that_of_what_is_kept() -> None:
    x, w, bias = some(75, 64) * 3, some(96, 64, seed=1), torch.randn(96)
    before, after = multiply_gelu(x, w, bias, keep=True)
    assert before is not None
    exact = x.double() @ w.double().t() + bias.double()
    near(before, exact)
    near(after, functional.gelu(exact))
    assert multiply_gelu(x, w, bias, keep=False)[0] is None


def test_any_number_of_threads_gives_the_same_bits() -> None:
    x, w, above = some(300, 96), some(544, 96, seed=1), some(300, 544, seed=2)
    query, key = some(2, 4, 50, 32).requires_grad_(), some(2, 4, 50, 32, seed=1)

    def made() -> list[torch.Tensor]:
        torch.manual_seed(0)
        context = attention(query, key, key, None, 0.2, 0.1)
        (gradient,) = torch.autograd.grad(context, query, context.detach())
        return [multiply(x, w), multiply_across(above, w), weight_gradient(above, x, sums=False)[0], context, gradient]

    for one, three in zip(threads(1, made), threads(3, made), strict=True):
        assert torch.equal(one, three)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 70), (33, 33), (160, 160), (300, 300), (40, 64)])
@pytest.mark.parametrize(("heads", "key_heads", "size"), [(2, 2, 32), (6, 2, 64), (1, 1, 128)])
def test_attention(heads: int, key_heads: int, size: int, queries: int, keys: int, causal: bool) -> None:
    """More queries than are kept together, heads that share keys, masks by query; against torch in float64."""
    batch = 2
    parts = [some(batch, heads, queries, size), some(batch, key_heads, keys, size, seed=1)]
    parts.append(some(batch, key_heads, keys, size, seed=2))
    mask = torch.rand(batch, 1, queries, keys, generator=torch.Generator().manual_seed(3)) > 0.3
    mask[..., 0] = True
    above = some(batch, heads, queries, size, seed=4)
    ours = [part.clone().requires_grad_() for part in parts]
    torch.manual_seed(5)
    result = attention(ours[0], ours[1], ours[2], mask, size**-0.5, 0.0, causal)
    result.backward(above)  # type: ignore[no-untyped-call]
    exact = [part.double().requires_grad_() for part in parts]
    wide = [part.repeat_interleave(heads // key_heads, 1) for part in exact[1:]]
    scores = exact[0] @ wide[0].transpose(-1, -2) * size**-0.5
    hidden = ~mask
    if causal:
        hidden = hidden | torch.ones(queries, keys, dtype=torch.bool).triu(1 + keys - queries)
    wanted = torch.softmax(scores.masked_fill(hidden, -1e30), -1) @ wide[1]
    wanted.backward(above.double())  # type: ignore[no-untyped-call]
    near(result, wanted, 2e-2)
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        near(mine.grad, theirs.grad, 2e-2)


def test_dropout_drops_the_same_with_and_without_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [some(2, 4, 90, 32, seed=seed) for seed in range(3)]
    found = []
    for tiles in (True, False):
        monkeypatch.setattr(native, "tiles", lambda tiles=tiles: tiles)
        inputs = [part.clone().requires_grad_() for part in parts]
        torch.manual_seed(0)
        result = attention(inputs[0], inputs[1], inputs[2], None, 0.2, 0.3)
        found.append([result, *torch.autograd.grad(result, inputs, parts[0])])
    for with_tiles, without in zip(*found, strict=True):
        near(with_tiles, without.double(), 3e-2)


@pytest.mark.parametrize("starts", [(0,), (0, 20, 75)])
def test_rotary_attention_of_rows_side_by_side(starts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    heads = Heads(6, 2, 64)
    projected = some(1, 130, 10 * 64)
    angles = torch.arange(130)[:, None] * 0.1 ** torch.arange(32)
    table = (angles.cos().repeat(1, 2)[None], angles.sin().repeat(1, 2)[None])
    found = []
    for tiles in (True, False):
        monkeypatch.setattr(native, "tiles", lambda tiles=tiles: tiles)
        values = projected.clone().requires_grad_()
        result = rotary_attention(values, heads, table, Sight(None, True, starts), 0.125, 0.0)
        found.append((result, *torch.autograd.grad(result, values, torch.ones_like(result))))
    for with_tiles, without in zip(*found, strict=True):
        near(with_tiles, without.double(), 2e-2)


@pytest.mark.parametrize("ranks", [(16,), (8, 4, 16), (32, 32)])
def test_adapters_of_ranks_that_fill_no_tile(ranks: tuple[int, ...]) -> None:
    values, compute = some(45, 64).requires_grad_(), some(96 * len(ranks), 64, seed=1)
    adapters = [
        LowRank(torch.randn(rank, 64, requires_grad=True), torch.randn(96, rank, requires_grad=True), 0.5)
        for rank in ranks
    ]
    result = adapted_linears(values, compute, None, adapters)
    above = some(*result.shape, seed=2)
    result.backward(above)  # type: ignore[no-untyped-call]
    exact = values.detach().double().requires_grad_()
    doubles = [
        (a.first.detach().double().requires_grad_(), a.second.detach().double().requires_grad_()) for a in adapters
    ]
    updates = torch.cat([0.5 * second @ first for first, second in doubles])
    wanted = exact @ (compute.double() + updates).t()
    wanted.backward(above.double())  # type: ignore[no-untyped-call]
    near(result, wanted, 2e-2)
    pairs = [(values, exact)] + [
        pair for a, b in zip(adapters, doubles, strict=True) for pair in ((a.first, b[0]), (a.second, b[1]))
    ]
    for mine, theirs in pairs:
        assert mine.grad is not None
        assert theirs.grad is not None
        near(mine.grad, theirs.grad, 3e-2)


def bert(dropout: float) -> Any:
    """Two layers whose sizes fill tiles; in training mode."""
    config = BertConfig(
        vocab_size=100, hidden_size=64, num_hidden_layers=3, num_attention_heads=2, intermediate_size=128, num_labels=2,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    torch.manual_seed(0)
    return BertForSequenceClassification(config).train()


def learned(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits of two rows, one of them padded, and the gradients of what is trained."""
    ids = torch.randint(1, 100, (2, 37), generator=torch.Generator().manual_seed(1))
    seen = torch.ones_like(ids)
    seen[1, 20:] = 0
    model.zero_grad()
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids, attention_mask=seen).logits.float()
    logits.square().sum().backward()
    return logits.detach(), {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("trained", ["", "encoder.layer.1", "bias", "encoder.layer.1.attention.self.query.weight"])
def test_layers_made_half_by_half_learn_as_plain_ones(trained: str) -> None:
    """All parameters, those of one layer, the biases alone (`bitfit`), or one weight of three multiplied as one."""
    model = bert(0.0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name)
    exact_logits, exact = learned(model.double().float())
    accelerate(model, torch.device("cpu"))
    joined = [
        layer for layer in model.bert.encoder.layer if isinstance(layer.__dict__.get("forward"), forwards.EncoderLayer)
    ]
    assert len(joined) == 2  # the last one is made for the first token alone
    logits, gradients = learned(model)
    near(logits, exact_logits.double(), 3e-2)
    assert gradients.keys() == exact.keys()
    for name, gradient in gradients.items():
        if not name.endswith("key.bias"):  # exactly 0 but for rounding
            near(gradient, exact[name], 6e-2)
    restore(model)
    assert all("forward" not in layer.__dict__ for layer in model.bert.encoder.layer)


def test_layers_made_half_by_half_drop_what_their_parts_would(monkeypatch: pytest.MonkeyPatch) -> None:
    model = bert(0.2)
    accelerate(model, torch.device("cpu"))
    logits, gradients = learned(model)
    for layer in model.bert.encoder.layer[:-1]:
        del layer.forward
    apart, of_parts = learned(model)
    near(logits, apart.double(), 3e-2)
    for name, gradient in gradients.items():
        if not name.endswith("key.bias"):
            near(gradient, of_parts[name], 6e-2)


def test_whoever_watches_a_part_sees_it() -> None:
    model = bert(0.0)
    accelerate(model, torch.device("cpu"))
    seen = []
    model.bert.encoder.layer[0].intermediate.register_forward_hook(lambda *given: seen.append(given[2].shape))
    learned(model)
    assert seen == [(2, 37, 128)]


def test_the_linear_layer_with_gelu_alone() -> None:
    values, weight, bias = some(2, 9, 64).requires_grad_(), torch.randn(96, 64, requires_grad=True), torch.randn(96)
    result = half_linear_gelu(values, weight, bias.requires_grad_())
    result.backward(some(2, 9, 96, seed=1))  # type: ignore[no-untyped-call]
    exact = [part.detach().double().requires_grad_() for part in (values, weight.bfloat16(), bias)]
    wanted = functional.gelu(functional.linear(*exact))
    wanted.backward(some(2, 9, 96, seed=1).double())  # type: ignore[no-untyped-call]
    near(result, wanted)
    for mine, theirs in zip((values, weight, bias), exact, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        near(mine.grad, theirs.grad, 2e-2)
