"""A recurrent trunk: embeddings, then layers that read each row from its left, or from both ends."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

NAME, MODEL_TYPE = "lstm", "chainrule-lstm"  # in recipes, and in config.json
EMBEDDING_DEVIATION = (
    0.1  # with 1, torch's own, it learned far more slowly: LOG.md, "How good is an LSTM from scratch?"
)


class LSTMConfig(PreTrainedConfig):  # type: ignore[misc]
    """config.json of an LSTM; `hidden_size` is the width of a token's state, of which each direction makes its share.

    `hidden_dropout_prob` is the probability of dropping a value of the embeddings, between layers and below the head.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        vocab_size: int = 1000,
        embedding_size: int = 128,
        hidden_size: int = 256,
        num_hidden_layers: int = 1,
        **rest: Any,
    ) -> None:
        self.vocab_size, self.embedding_size = vocab_size, embedding_size
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers
        self.bidirectional = rest.pop("bidirectional", True)
        self.hidden_dropout_prob = rest.pop("hidden_dropout_prob", 0.0)
        super().__init__(**{"pad_token_id": 0, **rest})


class LSTMLayer(nn.Module):
    """One layer of an LSTM (Hochreiter and Schmidhuber, 1997), in one direction or in both.

    For the way back the tokens of each row are turned around, so that padding comes last both ways. Packed rows give
    the same and take five times as long on a CPU (LOG.md, "How good is an LSTM from scratch?"). It computes in the
    format of its weights, also inside autocast: a state is a sum over all tokens before it.
    """

    def __init__(self, inputs: int, outputs: int, *, bidirectional: bool) -> None:
        super().__init__()
        size = outputs // 2 if bidirectional else outputs
        self.onward = nn.LSTM(inputs, size, batch_first=True)
        self.back = nn.LSTM(inputs, size, batch_first=True) if bidirectional else None

    def forward(self, states: torch.Tensor, turned: torch.Tensor) -> torch.Tensor:
        """(b, t, outputs) of (b, t, inputs), padded on the right.

        Args:
            turned: (b, t) the places of each row's tokens from the last to the first, and then those of its padding.
        """
        with torch.autocast(states.device.type, enabled=False):
            states = states.to(next(self.parameters()).dtype)
            found: torch.Tensor = self.onward(states)[0]
            if self.back is None:
                return found
            return torch.cat([found, _ordered(self.back(_ordered(states, turned))[0], turned)], -1)


class LSTMTrunk(PreTrainedModel):  # type: ignore[misc]
    """Token ids to token states, without pretrained weights.

    Fresh weights: input weights by Glorot and Bengio (2010), equation 16; recurrent ones orthogonal (Saxe et al.,
    2014); the forget gates open (biases that sum to 1: Jozefowicz et al., 2015).
    """

    config_class = LSTMConfig
    base_model_prefix = "lstm"
    _supports_sdpa = True  # there is no attention in it that an implementation could be wrong for
    _supports_attention_backend = True

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(
            LSTMLayer(
                config.hidden_size if number else config.embedding_size,
                config.hidden_size,
                bidirectional=config.bidirectional,
            )
            for number in range(config.num_hidden_layers)
        )
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> BaseModelOutput:
        """Token states (b, t, hidden_size) of ids (b, t), or of embeddings (b, t, embedding_size): zeros where padded.

        Args:
            attention_mask: (b, t), 1 where there is a token, for rows padded on the right; None where nothing is.
        """
        states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        mask = states.new_ones(states.shape[:2]) if attention_mask is None else attention_mask
        places, lengths = torch.arange(mask.shape[1], device=mask.device), mask.long().sum(1, keepdim=True)
        turned = torch.where(places < lengths, lengths - 1 - places, places)
        for layer in self.layers:
            states = layer(self.dropout(states), turned)
        return BaseModelOutput(last_hidden_state=states.masked_fill((mask == 0)[..., None], 0))

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=EMBEDDING_DEVIATION)
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()
        elif isinstance(module, nn.LSTM):
            for name, parameter in module.named_parameters():
                if name.startswith("weight"):
                    fill = nn.init.xavier_uniform_ if "_ih_" in name else nn.init.orthogonal_
                    for gate in parameter.chunk(4):
                        fill(gate)
                else:
                    nn.init.constant_(parameter, 0.0)
                    nn.init.constant_(parameter[module.hidden_size : 2 * module.hidden_size], 0.5)


def _ordered(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """(b, t, d): the states of each row at these places (b, t), in that order."""
    return states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))
