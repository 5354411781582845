"""Which of a list of items are relevant to a query, or to a user with a history: search and recommendation."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from chainrule.core.task import FieldSpec, Task
from chainrule.data.profiles import Sampling
from chainrule.metrics import ranking
from chainrule.tasks import towers
from chainrule.tasks.candidates import LOSSES, encode, objective, read


class Options(Sampling):
    """How lists are drawn, and what scores their candidates.

    Attributes:
        form: "cross-encoder" reads each query together with each candidate; "two-towers" makes a vector of each text by
            itself, so that a text is read once, however many lists have it.
    """

    form: Literal["cross-encoder", "two-towers"] = "cross-encoder"


def _suited(options: Options) -> Task:
    if options.form == "cross-encoder":
        return TASK
    return replace(
        TASK,
        encode=towers.encode,
        read=towers.read,
        losses=towers.LOSSES,
        objective=towers.objective,
        head="encoder",
        whole_batches=True,
    )


TASK = Task(
    name="ranking",
    summary="which items are relevant to a query or a user: search and recommendation",
    fields=(
        FieldSpec("query", "text", ("query", "question", "search", "text_a"), required=False),
        FieldSpec(
            "item", "text", ("item", "document", "passage", "doc", "candidate", "text", "text_b"), required=False
        ),
        FieldSpec("relevance", "relevances", ("relevance", "label", "score", "grade", "relevant"), required=False),
        FieldSpec("user", "user", ("user_id", "userid", "user", "customer_id", "uid"), required=False),
        FieldSpec("item_id", "key", ("item_id", "itemid", "movie_id", "product_id", "iid"), required=False),
        FieldSpec("rating", "number", ("rating", "stars", "score"), required=False),
        FieldSpec("timestamp", "time", ("timestamp", "time", "date", "datetime"), required=False),
    ),
    default_model="minilm",
    primary_metric="ndcg@10",
    problem_type="",
    measure=ranking.measure,
    metrics=(*ranking.METRICS, "loss"),
    detail=ranking.detail,
    encode=encode,
    read=read,
    losses=LOSSES,
    objective=objective,
    outputs=lambda labels: ("relevance",),
    options=Options,
    suited=_suited,
    micro_batch_tokens=4096,
)
