"""How far a student's inner states are from its teacher's, row by row.

Hidden states: Romero et al. (2015), FitNets, section 2.2; Jiao et al. (2020), TinyBERT, equation 8, with one projection
for all layers. Attention: Wang et al. (2020), MiniLM, equation 7. Relations of queries, keys and values: Wang et al.
(2021), MiniLMv2, section 3.1. Relations of rows: Park et al. (2019), Relational Knowledge Distillation, section 3.2,
with cosines as in Tung and Mori (2019), Similarity-Preserving Knowledge Distillation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from chainrule.core.recipe import Distillation
from chainrule.models.states import layers_seen, queries_keys_values, wide
from chainrule.tasks.objectives import logits_of

UNSEEN = -1e9  # a score that no softmax sees; of −∞ the divergence would be no number


class Projection(nn.Module):
    """States as wide as the student's to states as wide as the teacher's. No `nn.Linear`, so that it is no head."""

    def __init__(self, student: int, teacher: int, seed: int) -> None:
        super().__init__()
        drawn = torch.randn(teacher, student, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(drawn / student**0.5)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return functional.linear(states, self.weight.to(states.dtype))


@dataclass(frozen=True)
class States:
    """Of a batch of s sequences.

    Attributes:
        hidden: (s, t, hidden) of each layer that is looked at, bottom first.
        attended: queries, keys and values (s, t, hidden) of the last of them; None where nobody asks.
    """

    hidden: tuple[torch.Tensor, ...]
    attended: tuple[torch.Tensor, ...] | None


@dataclass(frozen=True)
class StateLosses:
    """The weighted sum of the losses that a recipe asks for.

    Attributes:
        layers: the teacher's layer beside each of the student's.
        heads: of attention, as many in both models.
        relation_heads: into which queries, keys and values are cut for their relations.
        projection: None where both are as wide.
    """

    options: Distillation
    layers: tuple[int, ...]
    heads: int
    relation_heads: int
    projection: Projection | None = None

    def read(
        self, model: Any, inputs: Mapping[str, torch.Tensor], *, teacher: bool = False
    ) -> tuple[torch.Tensor, States]:
        """The logits of a batch, and the states on the way to them."""
        places = self.layers if teacher else range(len(self.layers))
        with layers_seen(model) as seen:
            logits = logits_of(model, inputs)
        tokens = inputs["input_ids"].shape[1]  # a trained prompt stands before them
        hidden = tuple(wide(seen.made[place][:, -tokens:]) for place in places)
        if not (self.options.attention or self.options.relation):
            return logits, States(hidden, None)
        top = places[-1]
        return logits, States(hidden, queries_keys_values(model, top, seen.given[top][:, -tokens:]))

    def of_rows(self, student: States, teacher: States, mask: torch.Tensor) -> torch.Tensor:
        """(s,) for each sequence.

        Args:
            mask: (s, t), 1 at tokens and 0 at padding.
        """
        options, mask = self.options, mask.bool()
        with torch.autocast(mask.device.type, enabled=False):
            total = student.hidden[-1].new_zeros(len(mask))
            if options.hidden:
                layers = zip(self._projected(student.hidden), teacher.hidden, strict=True)
                each = [hidden_distance(own, wanted, mask) for own, wanted in layers]
                total = total + options.hidden * torch.stack(each).mean(0)
            if options.sentences:
                total = total + options.sentences * sentence_distance(student.hidden[-1], teacher.hidden[-1], mask)
            if student.attended is None or teacher.attended is None:
                return total
            if options.attention:
                look = relation_distance(student.attended[:2], teacher.attended[:2], self.heads, mask)
                total = total + options.attention * look
            if options.relation:
                pairs = zip(student.attended, teacher.attended, strict=True)
                heads = self.relation_heads
                each = [relation_distance((own, own), (wanted, wanted), heads, mask) for own, wanted in pairs]
                total = total + options.relation * torch.stack(each).mean(0)
        return total

    def _projected(self, hidden: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        return hidden if self.projection is None else [self.projection(states) for states in hidden]


def hidden_distance(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(s,) the mean squared difference of two states (s, t, hidden), over numbers and tokens."""
    return mean_of_tokens((student - teacher).square().mean(-1), mask)


def relation_distance(
    student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], heads: int, mask: torch.Tensor
) -> torch.Tensor:
    """(s,) KL(teacher ‖ student) of how much each token looks at each other, the mean over heads and tokens.

    Args:
        student, teacher: what looks and what is looked at, (s, t, width); both are cut into `heads`.
    """
    own, wanted = (log_relations(looking, seen, heads, mask) for looking, seen in (student, teacher))
    apart = (wanted.exp() * (wanted - own)).sum(-1).mean(1)
    return mean_of_tokens(apart, mask)


def log_relations(looking: torch.Tensor, seen: torch.Tensor, heads: int, mask: torch.Tensor) -> torch.Tensor:
    """(s, heads, t, t) log softmax(a · bᵀ / √d) over the tokens that are no padding."""
    first, second = (_in_heads(states, heads) for states in (looking, seen))
    scores = first @ second.transpose(-1, -2) / first.shape[-1] ** 0.5
    return functional.log_softmax(scores.masked_fill(~mask[:, None, None], UNSEEN), -1)


def _in_heads(states: torch.Tensor, heads: int) -> torch.Tensor:
    """(s, heads, t, width) of (s, t, heads · width)."""
    return states.view(*states.shape[:2], heads, -1).transpose(1, 2)


def sentence_distance(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(s,) the mean squared difference of the cosines between a sequence and each other one of the batch.

    Its vector is the mean of its tokens' states; 0 where it is alone.
    """
    if len(mask) < 2:
        return 0.0 * student.flatten(1).sum(1)
    apart = (_cosines(student, mask) - _cosines(teacher, mask)).square()
    return apart.sum(1) / (len(mask) - 1)  # its cosine with itself is 1 in both


def _cosines(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    vectors = functional.normalize(mean_of_tokens(states, mask), dim=-1)
    return vectors @ vectors.T


def mean_of_tokens(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(s,) or (s, d) of (s, t) or (s, t, d), padding left out."""
    shares = mask.to(values.dtype) / mask.sum(1, keepdim=True).clamp_min(1)
    return torch.einsum("st,st...->s...", shares, values)
