"""A reply to a conversation: chat and instruction tuning, of which only what the assistant says is learned.

And texts that are no conversations, of which every token is.
"""

from __future__ import annotations

from pydantic import Field

from chainrule.core.task import FieldSpec, Task
from chainrule.metrics import tokens
from chainrule.tasks.conversation import encode, marked, prepare_tokenizer
from chainrule.tasks.generated import Generated
from chainrule.tasks.language_model import LOSSES, objective, packs, read


class Options(Generated):
    """Fewer rows than of sources: replies are long, and the untuned model writes them, too."""

    generated: int = Field(default=32, ge=0)


TASK = Task(
    name="text-generation",
    summary="a reply to a prompt or a conversation; or plain texts, whole",
    fields=(
        FieldSpec("prompt", "text", ("prompt", "instruction", "question", "query", "input"), required=False),
        FieldSpec("context", "text", ("context", "input"), required=False),
        FieldSpec("system", "text", ("system", "system_prompt"), required=False),
        FieldSpec("messages", "messages", ("messages", "conversations", "conversation"), required=False),
        FieldSpec("tools", "text", ("tools",), required=False),
        FieldSpec("plain_text", "text", ("plain_text", "text"), required=False),
        FieldSpec("response", "reply", ("response", "output", "answer", "completion", "reply")),
    ),
    default_model="smollm2",
    primary_metric="loss",
    problem_type="",
    measure=tokens.measure,
    metrics=("token_accuracy", "loss", "perplexity"),
    detail=tokens.detail,
    encode=encode,
    read=read,
    losses=LOSSES,
    objective=objective,
    head="language-model",
    options=Options,
    prepare_tokenizer=prepare_tokenizer,
    best_by_loss=True,
    baseline="untuned",
    micro_batch_tokens=1536,
    packs=packs,
    marked=marked,
)
