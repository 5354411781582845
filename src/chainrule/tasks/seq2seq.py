"""A text written of another, such as a summary or a translation: by an encoder-decoder, or by a prompted decoder."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

from pydantic import Field

from chainrule.core.task import FieldSpec, Task
from chainrule.errors import Problem, RecipeError, Where
from chainrule.metrics import tokens
from chainrule.tasks import encoder_decoder
from chainrule.tasks.conversation import marked, prepare_tokenizer
from chainrule.tasks.generated import Generated
from chainrule.tasks.language_model import LOSSES, objective, packs, read
from chainrule.tasks.prompted import Prompted


class Options(Generated):
    """What the model is given.

    Attributes:
        instruction: a text before every source; null for none.
        source_language, target_language: of a multilingual encoder-decoder such as mBART, as its tokenizer calls them
            (en_XX); null for what it was saved with.
        form: what kind of model it is; null for what its config.json says.
    """

    instruction: str | None = Field(default=None, min_length=1)
    source_language: str | None = None
    target_language: str | None = None
    form: Literal["encoder-decoder", "decoder"] | None = None


def _suited(options: Options) -> Task:
    """The table for a kind of model.

    Raises:
        ValueError: it is not known yet.
    """
    if options.form is None:
        raise ValueError("whether the model is an encoder-decoder must be settled first")
    languages = options.source_language, options.target_language
    if options.form == "decoder":
        _refuse_languages(languages)
        return replace(TASK, encode=Prompted(options.instruction))
    return replace(
        TASK,
        head="encoder-decoder",
        encode=encoder_decoder.Paired(options.instruction, languages),
        read=encoder_decoder.read,
        objective=encoder_decoder.objective,
        prepare_tokenizer=partial(encoder_decoder.prepare_tokenizer, languages=languages),
        packs=None,
    )


def _refuse_languages(languages: tuple[str | None, str | None]) -> None:
    if languages != (None, None):
        todo, where = "Say it in task.options.instruction.", Where(field="task.options.target_language")
        problem = Problem("an encoder-decoder of several languages", "a language model", todo, where)
        raise RecipeError("This model has no marks of languages.", [problem])


TASK = Task(
    name="seq2seq",
    summary="a text that is to be written of another: a summary, a translation",
    fields=(
        FieldSpec("source", "text", ("source", "text", "dialogue", "document", "article", "input", "src", "en")),
        FieldSpec(
            "target", "written", ("target", "summary", "translation", "highlights", "output", "references", "tgt", "de")
        ),
    ),
    default_model="smollm2",
    primary_metric="loss",
    problem_type="",
    measure=tokens.measure,
    metrics=("token_accuracy", "loss", "perplexity"),
    detail=tokens.detail,
    encode=Prompted(None),
    read=read,
    losses=LOSSES,
    objective=objective,
    head="language-model",
    options=Options,
    suited=_suited,
    prepare_tokenizer=prepare_tokenizer,
    best_by_loss=True,
    baseline="untuned",
    micro_batch_tokens=1536,
    packs=packs,
    marked=marked,
)
