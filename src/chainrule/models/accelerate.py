"""The one place that puts the CPU kernels on a model, and takes them off again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.activations import GELUActivation, SiLUActivation
from transformers.masking_utils import bidirectional_mask_function, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from chainrule.kernels import native
from chainrule.kernels.adamw import forget_rows
from chainrule.kernels.attention import attention
from chainrule.kernels.linear import forget_rounded, narrow_exactly, widen
from chainrule.models import forwards
from chainrule.models.classifier import reads_first_token
from chainrule.models.inspect import layer_stack

NAME = "chainrule"
# Attention with four linear layers and rotary positions by halves, and nothing else.
ROTARY_ATTENTIONS = ("LlamaAttention", "MistralAttention", "Qwen2Attention")


_ROTARY_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj")
_NARROW_READERS = (forwards.Linear, forwards.Embedding)  # these read a weight in bfloat16 as well as in float32


def accelerate(model: Any, device: torch.device) -> None:
    """Let a transformers model use the CPU kernels. On other devices nothing changes."""
    if device.type != "cpu":
        return
    users = _users(model)
    for module in model.modules():
        forward = _forward_for(module, users)
        if forward is not None:
            module.forward = forward
    _join_layers(model)
    _shorten_last_layer(model)
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, _attention)
        AttentionMaskInterface.register(NAME, _mask)
        model.set_attn_implementation(NAME)


@contextmanager
def every_token(model: Any) -> Iterator[None]:
    """Inside, the last layer gives the states of all tokens, even where the head reads the first one alone."""
    layers = layer_stack(model)
    short = [layer for layer in layers if isinstance(_forward_of(layer), forwards.FirstTokenLayer)]
    kept = [layer.__dict__.pop("forward") for layer in short]
    try:
        yield
    finally:
        for layer, forward in zip(short, kept, strict=True):
            layer.forward = forward


def keep_half_gradients(model: Any) -> None:
    """Let the weights whose products are made in bfloat16 keep their gradients so, where the optimizer reads them.

    Nothing is lost, as the product that makes such a gradient rounds it anyway. For steps of one micro-batch only:
    sums of several are better made in float32.
    """
    users = _users(model)
    for module in model.modules():
        if isinstance(_forward_of(module), forwards.Linear) and native.available():
            weight = module.weight
            if users[id(weight)] > 1:  # gradients from elsewhere come in another format
                continue
            if hasattr(weight, "grad_dtype") and weight.dtype == torch.float32:  # torch 2.10 and later
                weight.grad_dtype = None


def narrow_frozen(model: Any, trained: Collection[str]) -> None:
    """Keep the weights that no step trains in bfloat16 alone, where that loses nothing: for training in bfloat16.

    Checkpoints of language models are mostly in bfloat16, so that float32 would only hold zeros more.

    Args:
        trained: names of the parameters that are trained in any phase.
    """
    reading = [module for module in model.modules() if isinstance(_forward_of(module), _NARROW_READERS)]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    users = _users(model)
    readers = Counter(id(module.weight) for module in reading)
    for module in reading:
        weight = module.weight
        free = names[id(weight)] not in trained and readers[id(weight)] == users[id(weight)]
        if free and weight.dtype == torch.float32:
            narrow_exactly(weight)


def widen_frozen(model: Any) -> None:
    """Undo `narrow_frozen`."""
    for parameter in model.parameters():
        widen(parameter)


def restore(model: Any) -> None:
    """Put torch's own parts back, so that what is saved is a plain model."""
    for module in model.modules():
        module.__dict__.pop("forward", None)
    for parameter in model.parameters():
        widen(parameter)
        forget_rounded(parameter)
        forget_rows(parameter)
    if model.config._attn_implementation == NAME:
        model.set_attn_implementation("sdpa")


def _forward_of(module: nn.Module) -> Any:
    return module.__dict__.get("forward")


def _users(model: nn.Module) -> Counter[int]:
    """How many modules use each parameter, by its id."""
    return Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)


def _forward_for(module: Any, users: Counter[int]) -> Any:
    """The faster forward of a module, told by what it is made of; None for a module that stays as it is."""
    kind = type(module)
    if kind is nn.Linear:
        return forwards.Linear(module)
    if kind is nn.Dropout:
        return forwards.Dropout(module)
    if kind is nn.Embedding:
        return _embedding(module, users)
    if hasattr(module, "lora_A") and type(forwards.plain_layer(module)) is nn.Linear:
        return forwards.Adapted(module)
    return _compiled_forward_for(module) if native.available() else None


def _compiled_forward_for(module: Any) -> Any:
    """The same for modules whose faster forward is one only with compiled kernels."""
    kind = type(module)
    forward: Any = None
    if kind is nn.LayerNorm and module.weight is not None:
        forward = forwards.Norm(module)
    elif kind.__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
        forward = forwards.RootNorm(module)
    elif kind is GELUActivation and module.act is nn.functional.gelu:
        forward = forwards.Gelu()
    elif _consists(module, dense=nn.Linear, LayerNorm=nn.LayerNorm, dropout=nn.Dropout):
        forward = forwards.Residual(module)
    elif _consists(module, dense=nn.Linear, intermediate_act_fn=GELUActivation):
        forward = forwards.Intermediate(module)
    elif _consists(module, query=nn.Linear, key=nn.Linear, value=nn.Linear, dropout=nn.Dropout):
        forward = forwards.SelfAttention(module) if _is_encoder_attention(module) else None
    elif _consists(module, gate_proj=nn.Linear, up_proj=nn.Linear, down_proj=nn.Linear, act_fn=SiLUActivation):
        forward = forwards.Gated(module)
    elif kind.__name__ in ROTARY_ATTENTIONS and _consists(module, **dict.fromkeys(_ROTARY_LAYERS, nn.Linear)):
        forward = forwards.RotaryAttention(module)
    return forward


def _join_layers(model: Any) -> None:
    """Let layers that consist of what `forwards` knows, and nothing else, be made half by half."""
    known = {"attention.self": forwards.SelfAttention, "attention.output": forwards.Residual}
    known |= {"intermediate": forwards.Intermediate, "output": forwards.Residual}
    for layer in layer_stack(model) if native.available() and native.tiles() else ():
        parts = {name: _forward_of(part) for name, part in layer.named_modules() if name in known}
        alone = {name for name, _ in layer.named_children()} == {"attention", "intermediate", "output"}
        if alone and all(isinstance(parts.get(name), kind) for name, kind in known.items()):
            layer.forward = forwards.EncoderLayer(layer)


def _shorten_last_layer(model: Any) -> None:
    if not reads_first_token(model):
        return
    last = layer_stack(model)[-1]
    attention_part = getattr(last, "attention", None)
    if isinstance(_forward_of(getattr(attention_part, "self", nn.Module())), forwards.SelfAttention):
        last.forward = forwards.FirstTokenLayer(last)


def _consists(module: nn.Module, **kinds: type[nn.Module]) -> bool:
    """Whether the module's children have exactly these names and types."""
    return {name: type(forwards.plain_layer(child)) for name, child in module.named_children()} == kinds


def _is_encoder_attention(module: Any) -> bool:
    """Whether every token may see every other, and the three layers have biases."""
    layers = [forwards.plain_layer(layer) for layer in (module.query, module.key, module.value)]
    biased = all(layer.bias is not None for layer in layers)
    sees_all = not getattr(module, "is_decoder", False) and not getattr(module, "is_causal", False)
    return biased and sees_all and hasattr(module, "num_attention_heads") and hasattr(module, "scaling")


def _embedding(layer: nn.Embedding, users: Counter[int]) -> Any:
    plain = layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse
    alone = users[id(layer.weight)] == 1  # a table that is also the output layer gets a dense gradient anyway
    large = layer.num_embeddings >= forwards.SPARSE_FROM_ENTRIES
    return forwards.Embedding(layer, sparse=plain and alone and large and native.available())


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    *rest: Any,
    attention_mask: torch.Tensor | None = None,
    **options: Any,
) -> torch.Tensor | None:
    """transformers' mask; where only padding is not to be seen, without a row of it for every query."""
    alike = options.get("mask_function") is bidirectional_mask_function and not rest
    if alike and attention_mask is not None and attention_mask.shape == (batch_size, kv_length):
        return attention_mask.bool()[:, None, None].expand(batch_size, 1, q_length, kv_length)
    made: torch.Tensor | None = sdpa_mask(
        batch_size, q_length, kv_length, *rest, attention_mask=attention_mask, **options
    )
    return made


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """transformers' attention function: ours while training in a number format and length where it is the faster."""
    needs_gradient = torch.is_grad_enabled() and query.requires_grad
    rate = float(options.get("dropout", 0.0))
    causal = attention_mask is None and query.shape[2] > 1 and _is_causal(module, options)
    half = forwards.is_half()
    plainly = options.get("position_bias") is not None  # what T5 adds to every score
    if plainly or not (needs_gradient and (rate or half or query.dtype == torch.bfloat16)):
        plain: tuple[torch.Tensor, torch.Tensor | None] = ALL_ATTENTION_FUNCTIONS["sdpa"](
            module, query, key, value, attention_mask, **options
        )
        return plain
    query, key, value = forwards.narrow(query), forwards.narrow(key), forwards.narrow(value)
    scaling = options.get("scaling") or query.shape[-1] ** -0.5
    output = attention(query, key, value, attention_mask, scaling, rate, causal)
    return output.transpose(1, 2).contiguous(), None


def _is_causal(module: nn.Module, options: dict[str, Any]) -> bool:
    asked = options.get("is_causal")
    return bool(getattr(module, "is_causal", True) if asked is None else asked)
