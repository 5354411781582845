"""A sequence classifier with a pooling and a head that transformers has no name for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from pydantic import ValidationError
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from chainrule.core.recipe import Structure
from chainrule.errors import ModelError, Problem, RecipeError, Where
from chainrule.models.lstm import LSTMConfig, LSTMTrunk
from chainrule.models.pooling import PooledHead

SETTINGS = "chainrule_head"  # the key of config.json
# Encoders whose own classifier reads the first token, and that take `inputs_embeds` through a module `embeddings`.
FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert")
_DROPOUT = ("classifier_dropout", "seq_classif_dropout", "hidden_dropout_prob")


@dataclass(frozen=True)
class Form:
    """What a classifier reads of a row's tokens (`pooling`), and what it makes of that (`head`)."""

    pooling: str
    head: str

    def __str__(self) -> str:
        return f"{self.pooling} pooling under the head {self.head!r}"


class PooledClassifier(PreTrainedModel):  # type: ignore[misc]
    """A trunk under `models.pooling.PooledHead`, as `config.chainrule_head` says.

    The trunk's weights have the names that its family gives them in a classifier, so that AutoModel loads it alone.
    """

    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        trunk = trunk_of(config)
        self.base_model_prefix = trunk.base_model_prefix
        self.add_module(self.base_model_prefix, trunk)
        size = config.get_text_config().hidden_size
        form = _settings(config)
        self.classifier = PooledHead(form.pooling, form.head, size, config.num_labels, classifier_dropout(config))
        self.post_init()

    @classmethod
    def from_config(cls, config: Any, **options: Any) -> PooledClassifier:
        """A classifier with fresh weights, as transformers' AutoModels make theirs."""
        return cls(config)

    def forward(
        self, input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None, **inputs: Any
    ) -> SequenceClassifierOutput:
        """Logits (b, labels) of token ids (b, t), or of `inputs_embeds` (b, t, d), with what else the trunk takes."""
        given = {name: value for name, value in inputs.items() if value is not None}
        states = self.base_model(input_ids=input_ids, attention_mask=attention_mask, **given).last_hidden_state
        return SequenceClassifierOutput(logits=self.classifier(states, attention_mask))


def trunk_of(config: Any) -> Any:
    """What is below a head, with fresh weights and without a pooler."""
    trunk = LSTMTrunk(config) if isinstance(config, LSTMConfig) else AutoModel.from_config(config)
    if hasattr(trunk, "pooler"):
        trunk.pooler = None
    return trunk


def classifier_dropout(config: Any) -> float:
    """The dropout below a family's own classifier."""
    rates = [getattr(config, name, None) for name in _DROPOUT]
    return float(next((rate for rate in rates if rate is not None), 0.0))


def own_form(config: Any) -> Form | None:
    """The pooling and head that transformers' own classifier of a family has; None where nobody has looked."""
    if config.model_type in FAMILIES:
        return Form("cls", "mlp")
    if config.model_type == "modernbert":
        return Form(config.classifier_pooling, "mlp")
    kind = AutoModelForSequenceClassification._model_mapping.get(type(config), object)
    return Form("last", "linear") if issubclass(kind, GenericForSequenceClassification) else None


def form_of(config: Any) -> Form | None:
    """The pooling and head of a classifier: Chainrule's where the config names one, else transformers'.

    Raises:
        ModelError: the config names some that there are not.
    """
    return _settings(config) if is_own(config) else own_form(config)


def is_own(config: Any) -> bool:
    """Whether pooling and head are Chainrule's, which plain transformers cannot build."""
    return getattr(config, SETTINGS, None) is not None


def reads_first_token(model: Any) -> bool:
    """Whether a model is a classifier whose head reads the first token's last state and nothing else."""
    classifies = isinstance(model, PooledClassifier) or type(model).__name__.endswith("ForSequenceClassification")
    form = form_of(model.config) if classifies else None
    return form is not None and form.pooling == "cls"


def choose_form(config: Any, structure: Structure) -> None:
    """Write into a config which pooling and head its classifier is to have: in transformers' terms where it has some.

    Raises:
        RecipeError: they do not go with this model or with each other.
    """
    if structure.pooling is None and structure.head is None:
        return
    if structure.head == "crf":
        expected, todo = "linear, mlp or cnn for whole rows", "Choose one of these, or --task token-classification."
        raise _refused("structure.head", expected, "crf, which is a head for the words of rows", todo)
    now, own = form_of(config), own_form(config)
    if now is None:
        raise _refused(
            "structure.pooling" if structure.pooling else "structure.head",
            f"a model of the family {', '.join(FAMILIES)}, modernbert, or a decoder such as llama or qwen2",
            str(config.model_type),
            "Leave structure.pooling and structure.head out for this model.",
        )
    head = structure.head or now.head
    pooling = structure.pooling or ("max" if head == "cnn" else now.pooling)
    if pooling == "cls" and (own is None or own.pooling == "last"):
        reader = "an LSTM is none to read a text by" if own is None else "a decoder sees no other"
        poolings = f"last, mean, max or attention, as the first token of {reader}"
        raise _refused("structure.pooling", poolings, "cls", "Choose one of these.")
    if head == "cnn" and pooling in ("cls", "last"):
        poolings = "max, mean or attention with the head 'cnn', which reads all tokens"
        raise _refused("structure.pooling", poolings, pooling, "Choose one of these, or another structure.head.")
    if config.model_type == "modernbert" and pooling in ("cls", "mean"):
        config.classifier_pooling = pooling
        own = own_form(config)
    chosen = Form(pooling, head)
    if chosen != own:
        setattr(config, SETTINGS, asdict(chosen))
    elif is_own(config):
        delattr(config, SETTINGS)


def refuse_form(structure: Structure, what: str) -> None:
    """Refuse a pooling or a head of ours on a model that reads no row as a whole."""
    for key, value in (("pooling", structure.pooling), ("head", structure.head)):
        if value is not None:
            where, todo = Where(field=f"structure.{key}"), "Leave it out."
            got = what[:1].lower() + what[1:]
            problem = Problem("a task whose head gives a few numbers a row", got, todo, where)
            raise RecipeError(f"{what} has no {key} to replace.", [problem])


def _settings(config: Any) -> Form:
    settings = getattr(config, SETTINGS)
    try:
        made = Structure.model_validate(settings)
    except ValidationError:
        made = Structure()
    if made.pooling is None or made.head is None:
        where, todo = Where(field=SETTINGS), "Put the config.json back as it was saved."
        problem = Problem("the names of a pooling and a head", repr(settings)[:80], todo, where)
        raise ModelError("The classifier's config cannot be read.", [problem])
    return Form(made.pooling, made.head)


def _refused(field: str, expected: str, got: str, todo: str) -> RecipeError:
    problem = Problem(expected, got, todo, Where(field=field))
    return RecipeError("The model cannot have this pooling and head.", [problem])
