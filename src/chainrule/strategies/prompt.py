"""A few vectors before every text, and nothing else of a model, through PEFT: Lester et al. (2021), prompt tuning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field

from chainrule.core.recipe import Optimizer, Section
from chainrule.core.task import Task
from chainrule.errors import Problem, RecipeError, Where
from chainrule.models.adapters import head_modules, kind_of, peft_library, put_on, refuse_alone
from chainrule.models.lstm import LSTMTrunk
from chainrule.strategies.adapted import adapter_phases
from chainrule.strategies.base import Phase


def misfit(task: Task) -> str | None:
    """Why virtual tokens cannot be put before what a task's models read; None where they can."""
    if task.sees:
        return "virtual tokens stand before words, and images have none"
    if task.head == "encoder-decoder":
        return "virtual tokens would have to stand before what the encoder reads and before what the decoder does"
    if task.makes_vectors:
        return "a vector would be pooled from the virtual tokens, too"
    if task.head != "answer-finder":
        return None
    return "PEFT does not tell a model that finds answers which tokens are the question's once others stand before them"


class Options(Section):
    """`tokens` is the number of vectors; they begin as those of tokens drawn from the model's own table."""

    tokens: int = Field(default=20, ge=1)


class Prompt:
    """Virtual tokens are trained, and a classifier's head. They stay apart: no weight can take them in."""

    default_learning_rate = 3e-2
    width_exponent = 0.0

    def __init__(self, options: Options) -> None:
        self.options = options

    def prepare(self, model: Any, tell: Callable[[str], None]) -> Any:
        """Put virtual tokens before what the model reads.

        Raises:
            RecipeError: a classifier that reads the last token, which it cannot find in padded rows without their ids;
                or a model without attention.
            MissingExtraError: PEFT is not installed.
        """
        peft = peft_library("The strategy 'prompt'")
        kind = kind_of(model)
        if isinstance(model.base_model, LSTMTrunk):
            where, todo = Where(field="strategy.name"), "Use --strategy full, or another model."
            problem = Problem("a model with attention, whose tokens all see the prompt", "an LSTM", todo, where)
            raise RecipeError("The strategy 'prompt' does not go together with this model.", [problem])
        if kind == "SEQ_CLS" and not _finds_its_token(model):
            problem = Problem(
                where=Where(field="strategy.name"),
                expected="a classifier that reads the first token of a text, such as BERT",
                got=f"a {model.config.model_type}, which reads the last one and finds it by token ids alone",
                todo="Use --strategy lora, or another model.",
            )
            raise RecipeError("The strategy 'prompt' does not go together with this classifier.", [problem])
        refuse_alone(model)
        tell("The artifact will be the virtual tokens alone, which PEFT loads beside the base model.")
        config = peft.PromptTuningConfig(
            num_virtual_tokens=self.options.tokens,
            prompt_tuning_init="SAMPLE_VOCAB",
            modules_to_save=list(head_modules(model)) or None,
            task_type=kind,
        )
        return put_on(model, config)

    def phases(self, model: Any, optimizer: Optimizer, steps: int) -> list[Phase]:
        return adapter_phases(model, optimizer)

    def finish(self, model: Any) -> Any:
        return model


def _finds_its_token(model: Any) -> bool:
    """Whether padding changes nothing where a classifier is given vectors instead of ids: tried on this very model."""
    ids = torch.arange(6, device=model.device).remainder(model.config.get_text_config().vocab_size)[None]
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        vectors = model.get_input_embeddings()(ids)
        alone = model(inputs_embeds=vectors[:, :4]).logits
        padded = model(
            inputs_embeds=vectors, attention_mask=(torch.arange(6, device=ids.device) < 4).long()[None]
        ).logits
    model.train(was_training)
    return bool(torch.allclose(alone, padded, atol=1e-4))
