"""The one place that puts the CPU kernels on a model, and takes them off again."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from chainrule.kernels.attention import attention
from chainrule.kernels.dropout import dropout

NAME = "chainrule"


class Dropout(nn.Module):
    """Takes the place of nn.Dropout: bytes decide on the CPU, torch's own elsewhere."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0.0:
            return values
        if values.device.type != "cpu":
            return nn.functional.dropout(values, self.p)
        return dropout(values, self.p)


def accelerate(model: Any, device: torch.device) -> None:
    """Let a transformers model use the CPU kernels. On other devices nothing changes."""
    if device.type != "cpu":
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Dropout:
                replacement = Dropout(child.p)
                replacement.training = child.training
                setattr(parent, name, replacement)
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, _attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)


def restore(model: Any) -> None:
    """Put torch's own parts back, so that what is saved is a plain model."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Dropout):
                plain = nn.Dropout(child.p)
                plain.training = child.training
                setattr(parent, name, plain)
    if model.config._attn_implementation == NAME:
        model.set_attn_implementation("sdpa")


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
    whole = attention_mask is not None or not _is_causal(module, options)
    same_heads = query.shape[1] == key.shape[1]
    if not (needs_gradient and whole and same_heads and (rate or query.dtype == torch.bfloat16)):
        plain: tuple[torch.Tensor, torch.Tensor | None] = ALL_ATTENTION_FUNCTIONS["sdpa"](
            module, query, key, value, attention_mask, **options
        )
        return plain
    scaling = options.get("scaling") or query.shape[-1] ** -0.5
    output = attention(query, key, value, attention_mask, scaling, rate)
    return output.transpose(1, 2).contiguous(), None


def _is_causal(module: nn.Module, options: dict[str, Any]) -> bool:
    asked = options.get("is_causal")
    return bool(getattr(module, "is_causal", True) if asked is None else asked)
