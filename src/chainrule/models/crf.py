"""A linear-chain conditional random field over the tags of words, on top of a pretrained trunk.

Lafferty, McCallum and Pereira (2001); the form is that of Lample et al. (2016), Neural Architectures for Named Entity
Recognition, section 2.2: a tag sequence scores the sum of its words' logits, of a number for each pair of neighbouring
tags, and of one for the first and one for the last tag.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp
from torch import nn
from transformers import PreTrainedModel, initialization
from transformers.utils.generic import ModelOutput

from chainrule.core.recipe import Recipe, Structure
from chainrule.errors import ModelError, Problem, RecipeError, Where
from chainrule.models.classifier import SETTINGS, classifier_dropout, is_own, refuse_form, trunk_of

CRF, LINEAR = "crf", "linear"


@dataclass(frozen=True)
class Chain:
    """What tags score for their neighbours.

    Attributes:
        first, last: (tags,).
        between: (tags, tags), from the tag before to the tag after.
    """

    first: Any
    between: Any
    last: Any


class Transitions(nn.Module):
    """The parameters of a chain; all 0 at first, which is a plain classifier."""

    def __init__(self, tags: int) -> None:
        super().__init__()
        self.first, self.last = nn.Parameter(torch.zeros(tags)), nn.Parameter(torch.zeros(tags))
        self.between = nn.Parameter(torch.zeros(tags, tags))

    def forward(self) -> Chain:
        """The parameters in float32."""
        return Chain(self.first.float(), self.between.float(), self.last.float())


@dataclass
class TaggerOutput(ModelOutput):  # type: ignore[misc]
    """Logits (b, t, tags), and the chain over them."""

    logits: torch.Tensor | None = None
    chain: Chain | None = None


class Tagger(PreTrainedModel):  # type: ignore[misc]
    """A trunk, dropout, a linear layer on each token, and a chain where `config.chainrule_head` says so.

    The trunk's weights have the names that its family gives them, so that AutoModel loads it alone.
    """

    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        trunk = trunk_of(config)
        self.base_model_prefix = trunk.base_model_prefix
        self.add_module(self.base_model_prefix, trunk)
        self.dropout = nn.Dropout(classifier_dropout(config))
        self.classifier = nn.Linear(config.get_text_config().hidden_size, config.num_labels)
        self.crf = Transitions(config.num_labels) if chain_of(config) else None
        self.post_init()

    @classmethod
    def from_config(cls, config: Any, **options: Any) -> Tagger:
        """A tagger with fresh weights, as transformers' AutoModels make theirs."""
        return cls(config)

    def _init_weights(self, module: nn.Module) -> None:
        """Values for what no pretrained model has; transformers asks for them after it has left them open."""
        super()._init_weights(module)
        if isinstance(module, Transitions):
            for parameter in module.parameters():
                initialization.zeros_(parameter)

    def forward(
        self, input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None, **inputs: Any
    ) -> TaggerOutput:
        """The logits of token ids (b, t), or of `inputs_embeds` (b, t, d), with what else the trunk takes."""
        given = {name: value for name, value in inputs.items() if value is not None}
        states = self.base_model(input_ids=input_ids, attention_mask=attention_mask, **given).last_hidden_state
        chain = None if self.crf is None else self.crf()
        return TaggerOutput(logits=self.classifier(self.dropout(states)), chain=chain)


def with_chain(recipe: Recipe, loss: str) -> Recipe:
    """With the head that the loss needs.

    Raises:
        RecipeError: the recipe asks for another head, or for the head without the loss.
    """
    head = recipe.structure.head
    if (loss == CRF) == (head == CRF):
        return recipe
    if loss == CRF and head is None:
        return recipe.replace({"structure.head": CRF})
    problem = Problem(
        where=Where(field="structure.head"),
        expected="the head crf with the loss crf, and only there",
        got=f"the head {head} with the loss {loss}",
        todo="Set loss=crf and leave structure.head out, or leave both out.",
    )
    raise RecipeError("Head and loss do not go together.", [problem])


def chain_of(config: Any) -> bool:
    """Whether a tagger's config asks for a chain.

    Raises:
        ModelError: it says something else.
    """
    settings = getattr(config, SETTINGS)
    if settings not in ({"head": CRF}, {"head": LINEAR}):
        where, todo = Where(field=SETTINGS), "Put the config.json back as it was saved."
        problem = Problem(f"the head {CRF} or {LINEAR}", repr(settings)[:80], todo, where)
        raise ModelError("The tagger's config cannot be read.", [problem])
    return bool(settings["head"] == CRF)


def choose_chain(config: Any, structure: Structure) -> None:
    """Write into a config whether its tagger is to have a chain over the tags."""
    if structure.head == CRF:
        setattr(config, SETTINGS, {"head": CRF})
    elif is_own(config):
        delattr(config, SETTINGS)
    plain = structure.model_copy(update={"head": None}) if structure.head in (LINEAR, CRF) else structure
    refuse_form(plain, "A classifier of tokens")


def negative_log_likelihood(
    logits: torch.Tensor, tags: torch.Tensor, words: torch.Tensor, chain: Chain
) -> torch.Tensor:
    """−log p(tags), the sum over words of each sequence: Lample et al. (2016), equation 1.

    Args:
        logits: (b, w, tags) of the words, one after the other.
        tags: (b, w); any where a sequence has ended.
        words: (b,) how many each sequence has, 1 at least.

    Returns:
        (b,).
    """
    rows, width = torch.arange(len(logits), device=logits.device), logits.shape[1]
    score = chain.first[tags[:, 0]] + logits[rows, 0, tags[:, 0]]
    total = chain.first + logits[:, 0]
    for place in range(1, width):
        inside = place < words
        step = chain.between[tags[:, place - 1], tags[:, place]] + logits[rows, place, tags[:, place]]
        score = score + torch.where(inside, step, 0)
        further = torch.logsumexp(total[:, :, None] + chain.between, dim=1) + logits[:, place]
        total = torch.where(inside[:, None], further, total)
    ends = tags[rows, words - 1]
    losses: torch.Tensor = torch.logsumexp(total + chain.last, dim=1) - score - chain.last[ends]
    return losses


def best_tags(logits: np.ndarray, chain: Chain) -> np.ndarray:
    """The most probable tags (w,) of a sequence of words (w, tags): Viterbi's algorithm."""
    score, back = chain.first + logits[0], []
    for row in logits[1:]:
        paths = score[:, None] + chain.between
        back.append(paths.argmax(0))
        score = paths.max(0) + row
    tags = [int((score + chain.last).argmax())]
    for row in reversed(back):
        tags.append(int(row[tags[-1]]))
    return np.array(tags[::-1])


def log_marginals(logits: np.ndarray, chain: Chain) -> tuple[np.ndarray, float]:
    """log p(tag of each word) (w, tags), and log of the sum over all sequences: forward and backward."""
    forward, backward = np.zeros_like(logits), np.zeros_like(logits)
    forward[0], backward[-1] = chain.first + logits[0], chain.last
    for place in range(1, len(logits)):
        forward[place] = logsumexp(forward[place - 1][:, None] + chain.between, axis=0) + logits[place]
    for place in range(len(logits) - 2, -1, -1):
        backward[place] = logsumexp(chain.between + (logits[place + 1] + backward[place + 1]), axis=1)
    total = float(logsumexp(forward[-1] + chain.last))
    return forward + backward - total, total


def chain_score(logits: np.ndarray, tags: np.ndarray, chain: Chain) -> float:
    """What these tags (w,) score on words (w, tags)."""
    steps = chain.between[tags[:-1], tags[1:]].sum() if len(tags) > 1 else 0.0
    return float(chain.first[tags[0]] + logits[np.arange(len(tags)), tags].sum() + steps + chain.last[tags[-1]])
