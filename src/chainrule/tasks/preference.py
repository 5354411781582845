"""Which of two replies is better: direct preference optimization of a language model that writes replies."""

from __future__ import annotations

import numpy as np

from chainrule.core.task import FieldSpec, Predictions, Task
from chainrule.metrics import preferences
from chainrule.tasks.conversation import marked, prepare_tokenizer
from chainrule.tasks.rewards import LOSSES, encode, likelihoods, objective, read

LONGER = "longer"


def _longer(encoded: object) -> dict[str, Predictions]:
    """Say of each row that the reply with more tokens is the better one."""
    counts = np.asarray(encoded.targets)  # type: ignore[attr-defined]
    return {LONGER: Predictions(np.sign(counts[:, 0] - counts[:, 1]).astype(np.float64), np.ones(len(counts)))}


TASK = Task(
    name="preference",
    summary="which of two replies to a prompt is better",
    fields=(
        FieldSpec("prompt", "text", ("prompt", "instruction", "question", "query", "input"), required=False),
        FieldSpec("context", "text", ("context", "input"), required=False),
        FieldSpec("system", "text", ("system", "system_prompt"), required=False),
        FieldSpec("messages", "messages", ("messages", "conversations", "conversation"), required=False),
        FieldSpec("tools", "text", ("tools",), required=False),
        FieldSpec("chosen", "preference", ("chosen", "preferred", "accepted")),
        FieldSpec("rejected", "preference", ("rejected", "dispreferred", "refused")),
    ),
    default_model="smollm2",
    primary_metric="reward_accuracy",
    problem_type="",
    measure=preferences.measure,
    metrics=("reward_accuracy", "margin", "loss"),
    detail=preferences.detail,
    encode=encode,
    read=read,
    losses=LOSSES,
    objective=objective,
    head="language-model",
    prepare_tokenizer=prepare_tokenizer,
    marked=marked,
    best_by_loss=True,
    baseline="free",
    free=_longer,
    reference=likelihoods,
    micro_batch_tokens=1536,
)
