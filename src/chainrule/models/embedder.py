"""A model that makes one vector of a text, in the form that sentence-transformers reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.utils import ModelOutput

from chainrule.core.recipe import Structure
from chainrule.errors import ModelError, Problem, RecipeError, Where
from chainrule.models.classifier import trunk_of
from chainrule.models.pooling import POOLINGS
from chainrule.system.files import read_json, write_json

SETTING = "chainrule_pooling"  # the key of config.json
MODULES, POOLING_FOLDER, LIMIT = "modules.json", "1_Pooling", "sentence_bert_config.json"
# what sentence-transformers calls the poolings
_MODES = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "last": "pooling_mode_lasttoken",
}
_CHAIN = (("", "Transformer"), (POOLING_FOLDER, "Pooling"), ("2_Normalize", "Normalize"))


@dataclass
class Vectors(ModelOutput):  # type: ignore[misc]
    """`vectors`: (b, d) of length one, float32 or wider."""

    vectors: torch.Tensor | None = None


class Embedder(PreTrainedModel):  # type: ignore[misc]
    """A trunk, a pooling of its last states, and division by the length: nothing beside the trunk has weights."""

    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        trunk = trunk_of(config)
        self.base_model_prefix = trunk.base_model_prefix
        self.add_module(self.base_model_prefix, trunk)
        self.pool = POOLINGS[pooling_of(config)]
        self.post_init()

    @classmethod
    def from_config(cls, config: Any, **options: Any) -> Embedder:
        """A model with fresh weights, as transformers' AutoModels make theirs."""
        return cls(config)

    def forward(
        self, input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None, **inputs: Any
    ) -> Vectors:
        """Vectors (b, d) of token ids (b, t), or of `inputs_embeds` (b, t, d), with what else the trunk takes."""
        given = {name: value for name, value in inputs.items() if value is not None}
        states = self.base_model(input_ids=input_ids, attention_mask=attention_mask, **given).last_hidden_state
        with torch.autocast(states.device.type, enabled=False):
            wide = states if states.dtype == torch.float64 else states.float()
            return Vectors(functional.normalize(self.pool(wide, attention_mask), dim=-1))


def choose_pooling(config: Any, structure: Structure, folder: Path) -> None:
    """Write into a config how tokens become a vector.

    As the structure says; else as the model was saved by sentence-transformers or by Chainrule; else the last token of
    a decoder, whose other tokens have not seen the whole text, and the mean over the tokens of an encoder.

    Args:
        folder: of the pretrained model.

    Raises:
        RecipeError: a pooling with weights of its own, or a head.
        ModelError: a model that reads one text and writes another.
    """
    if getattr(config, "is_encoder_decoder", False):
        todo = "Choose another model."
        problem = Problem("an encoder, or a decoder", f"both at once ({config.model_type})", todo, Where(field="model"))
        raise ModelError("This model makes no vector of a text.", [problem])
    if structure.head is not None:
        raise _refused("structure.head", "nothing above the pooling", structure.head, "Leave it out.")
    if structure.pooling is not None and structure.pooling not in POOLINGS:
        expected = f"{', '.join(POOLINGS)}, which sentence-transformers has, too"
        raise _refused("structure.pooling", expected, structure.pooling, "Choose one of these.")
    kind = AutoModelForSequenceClassification._model_mapping.get(type(config), object)
    own = "last" if issubclass(kind, GenericForSequenceClassification) else "mean"
    if own == "last" and structure.pooling == "cls":
        poolings = "last, mean or max, as the first token of a decoder sees no other"
        raise _refused("structure.pooling", poolings, "cls", "Choose one of these.")
    saved = getattr(config, SETTING, None) or _saved_pooling(folder)
    setattr(config, SETTING, structure.pooling or saved or own)


def pooling_of(config: Any) -> str:
    """The name of a model's pooling.

    Raises:
        ModelError: the config names none that there is.
    """
    found = getattr(config, SETTING, None)
    if found not in POOLINGS:
        where, todo = Where(field=SETTING), "Put the config.json back as it was saved."
        raise ModelError(
            "The model's config cannot be read.",
            [Problem(f"one of {', '.join(POOLINGS)}", repr(found)[:80], todo, where)],
        )
    return str(found)


def describe(folder: Path, config: Any, max_length: int | None) -> None:
    """Write beside a trunk and its tokenizer what sentence-transformers needs to make the same vectors."""
    chosen, size = pooling_of(config), config.get_text_config().hidden_size
    chain = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (path, kind) in enumerate(_CHAIN)
    ]
    write_json(folder / MODULES, chain)
    for path, _ in _CHAIN[1:]:
        (folder / path).mkdir()
    modes = {mode: name == chosen for name, mode in _MODES.items()}
    write_json(folder / POOLING_FOLDER / "config.json", {"word_embedding_dimension": size, **modes})
    write_json(folder / LIMIT, {"max_seq_length": max_length, "do_lower_case": False})


def _saved_pooling(folder: Path) -> str | None:
    """How sentence-transformers pools with this model; None where it does not say, or in a way of its own."""
    file = folder / POOLING_FOLDER / "config.json"
    if not file.is_file():
        return None
    settings = read_json(file)
    if settings.get("pooling_mode") in POOLINGS:
        return str(settings["pooling_mode"])
    on = [name for name, mode in _MODES.items() if settings.get(mode) is True]
    return on[0] if len(on) == 1 else None


def _refused(field: str, expected: str, got: str, todo: str) -> RecipeError:
    return RecipeError("A model of vectors cannot have this.", [Problem(expected, got, todo, Where(field=field))])
