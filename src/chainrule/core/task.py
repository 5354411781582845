"""The Task: what a row means, which head, which loss, which metrics. A task is a table, not a trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from chainrule.core.recipe import Section, Spec
from chainrule.core.shelf import Entry, NoOptions
from chainrule.core.spans import as_arrays, from_arrays, together
from chainrule.errors import Problem, RecipeError, Where

FieldKind = Literal[
    "text",
    "words",
    "messages",
    "class",
    "classes",
    "number",
    "spans",
    "answers",
    "reply",
    "preference",
    "written",
    "image",
    "relation",
    "relevances",
    "user",
    "key",
    "time",
]
Head = Literal[
    "classifier",
    "token-classifier",
    "answer-finder",
    "encoder",
    "language-model",
    "encoder-decoder",
    "image-classifier",
]

LOWER_IS_BETTER = frozenset({"loss", "perplexity", "rmse"})  # of all metrics there are


@dataclass(frozen=True)
class FieldSpec:
    """One field of a row.

    Attributes:
        name: the field's name in recipes and flags ("text", "label", …).
        kind: "text"; "words" (a text as a list of words); "messages" (a conversation); "class" (one label); "classes"
            (several labels, joined by "|" or a JSON list); "number"; "spans" (pieces of the text, each with a label);
            "answers" (pieces of the context, each as right as the others, or none); "reply" (a text that is to be
            written); "preference" (one of two such texts); "written" (a text that is to be written of another, or
            several of which each is right); "image" (a path, or a data URI); "relation" (which texts belong
            together); "relevances" (a number for each candidate of a list, of which a file has one a row); "user" and
            "key" (which user and which item it is); "time".
        aliases: column names that are taken for this field when none is named, best first.
        required: whether every row must have it.
    """

    name: str
    kind: FieldKind
    aliases: tuple[str, ...]
    required: bool = True

    @property
    def is_input(self) -> bool:
        return self.kind in ("text", "words", "messages", "image", "user")


@dataclass(frozen=True)
class Predictions:
    """What a model says of some rows, without logits.

    Attributes:
        values: what is scored: class indexes (n,), a 0/1 matrix (n, labels), numbers (n,), `Spans` of n rows (of
            answers, the best of each row), `Lists` of scores, or of each reply the number of tokens that were the
            model's first choice (n,).
        scores: the model's confidence in each value: (n,), or (n, labels) for several labels.
        losses: the loss of each row (of a reply, words or windows: their mean), or None where the targets are unknown.
    """

    values: Any
    scores: np.ndarray
    losses: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def joined(cls, parts: Sequence[Predictions]) -> Predictions:
        """The rows of all parts, one after the other; losses only where every part has them."""
        losses = [part.losses for part in parts if part.losses is not None]
        values, scores = (together([getattr(part, name) for part in parts]) for name in ("values", "scores"))
        return cls(values, np.asarray(scores), np.concatenate(losses) if len(losses) == len(parts) else None)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything as named arrays, to be stored; `from_arrays` reads them."""
        losses = {} if self.losses is None else {"losses": np.ascontiguousarray(self.losses)}
        return {**as_arrays("values", self.values), "scores": np.ascontiguousarray(self.scores), **losses}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Predictions:
        """The opposite of `arrays`.

        Raises:
            KeyError: one of them is missing.
        """
        return cls(from_arrays("values", arrays), arrays["scores"], arrays.get("losses"))

    def take(self, rows: np.ndarray) -> Predictions:
        """Those of the rows at these positions, in that order."""
        return Predictions(self.values[rows], self.scores[rows], None if self.losses is None else self.losses[rows])


class Objective(Protocol):
    """Forward and backward of one micro-batch. Others (distillation, R-Drop, …) wrap it."""

    def accumulate(self, model: Any, batch: Any) -> tuple[Any, int]:
        """Add this micro-batch's gradients of the *summed* loss; return (loss sum as a 0-d tensor, count)."""
        ...


class Encode(Protocol):
    """Inputs (field -> texts) and targets (those of a split, or None) to token ids, at most `max_length` a row.

    Gives a `data.encode.Encoded`.
    """

    def __call__(self, tokenizer: Any, inputs: Mapping[str, Sequence[str]], targets: Any, max_length: int) -> Any: ...


class Read(Protocol):
    """One forward of a batch of encoded rows, and what the model says of them; with targets, the loss of each too."""

    def __call__(self, model: Any, batch: Any, encoded: Any) -> Predictions: ...


class MakeObjective(Protocol):
    """The base objective from the recipe's loss Spec and the training targets (arrays, `Spans`, …)."""

    def __call__(self, loss: Spec, targets: Any) -> Objective: ...


class Measure(Protocol):
    """All metrics of predictions against targets, including the primary one, by their standard names."""

    def __call__(self, targets: Any, predictions: Predictions) -> dict[str, float]: ...


class Detail(Protocol):
    """Tables for a person: per-class scores, confusion matrix, scatter. Plain JSON values."""

    def __call__(self, targets: Any, predictions: Predictions, labels: Sequence[str]) -> dict[str, Any]: ...


class PrepareTokenizer(Protocol):
    """Give a tokenizer what the task needs and it lacks; what is added is saved with the model."""

    def __call__(self, tokenizer: Any) -> None: ...


class Marked(Protocol):
    """A single encoded row as the model reads it, with what is learned of it between ⟦ and ⟧."""

    def __call__(self, tokenizer: Any, encoded: Any, labels: Sequence[str]) -> str: ...


class PrepareHead(Protocol):
    """Fit the fresh head of a model to the training targets and the task's options before step one."""

    def __call__(self, model: Any, targets: Any, options: Any) -> None: ...


class Conclude(Protocol):
    """What is said of each row once all of them have been read: ranks among the others, for instance."""

    def __call__(self, encoded: Any, read: Predictions) -> Predictions: ...


class Enrich(Protocol):
    """Other rows whose texts are put beside the training rows as sequences, before step one."""

    def check(self, targets: Any, options: Any) -> bool:
        """Whether these rows get any, by the task's options; refuses rows that cannot."""
        ...

    def find(self, encoded: Any, read: Callable[[], Predictions], options: Any) -> np.ndarray:
        """(n, k) int64 rows for each row; `read` asks the model before step one what it says of all rows."""
        ...

    def add(self, encoded: Any, found: np.ndarray) -> Any:
        """The training rows with the texts of these."""
        ...


class Calibrate(Protocol):
    """Set what a trained model decides by a threshold, from its predictions of validation; those after it."""

    def __call__(self, model: Any, targets: Any, predictions: Predictions) -> Predictions: ...


@dataclass(frozen=True)
class Task:
    """A task as a table of functions.

    Attributes:
        problem_type: transformers' name for it, written to config.json; empty where it has none.
        head: what stands on top of the pretrained trunk.
        outputs: label names -> what each of the head's outputs is called.
        measure: every metric at once, used for validation and for the point estimates of `evaluate`.
        metrics: the names of what `measure` gives where row losses are known.
        losses: what may be trained with; the first is the default.
        options: what a recipe may set at `task.options`.
        suited: the task as its options, with everything settled that the model decides, make it; None where they leave
            the table as it is.
        calibrate: what is left to be decided after the last step.
        marked: shows what is learned of a row; None where the row has one target as a whole.
        conclude: makes predictions of what was read of all rows; None where each row stands for itself.
        enrich: puts texts of other rows beside the training rows; None where they stay as they are.
        whole_batches: the loss of a row depends on the others of its batch, so that a batch is never split: what is
            too large for memory goes through the model in pieces (`Batch.at_once`).
        best_by_loss: keep the weights with the lowest validation loss instead of the best primary metric. A
            correlation does not see a wrong level or scale, so it cannot choose the weights of a regression.
        baseline: what the verdict compares with: cheap models fitted on the same rows, the untuned model itself, or
            what `free` says of encoded rows without learning anything, which also stands beside the untuned model.
        reference: reads of the model before step one what `Encoded.references` is to hold; None where it is not asked.
        read_scores: as `read`, with the probabilities of all labels (n, labels) as scores; None where `read` gives what
            there is.
        micro_batch_tokens: padded tokens of a micro-batch, where the recipe does not say; None for no such limit.
        packs: whether this model gives the same for rows side by side as for each alone; None where rows need padding.
    """

    name: str
    summary: str
    fields: tuple[FieldSpec, ...]
    default_model: str
    primary_metric: str
    problem_type: str
    measure: Measure
    metrics: tuple[str, ...]
    losses: Mapping[str, Entry]
    detail: Detail
    encode: Encode
    read: Read
    objective: MakeObjective
    head: Head = "classifier"
    outputs: Callable[[Sequence[str]], tuple[str, ...]] = tuple
    prepare_tokenizer: PrepareTokenizer | None = None
    options: type[Section] = NoOptions
    suited: Callable[[Any], Task] | None = None
    prepare_head: PrepareHead | None = None
    calibrate: Calibrate | None = None
    marked: Marked | None = None
    conclude: Conclude | None = None
    enrich: Enrich | None = None
    whole_batches: bool = False
    best_by_loss: bool = False
    baseline: Literal["fitted", "untuned", "free"] = "fitted"
    free: Callable[[Any], dict[str, Predictions]] | None = None
    reference: Read | None = None
    read_scores: Read | None = None
    micro_batch_tokens: int | None = None
    packs: Callable[[Any], bool] | None = None

    @property
    def inputs(self) -> tuple[FieldSpec, ...]:
        return tuple(field for field in self.fields if field.is_input)

    def ranking_metric(self, chosen: str | None = None) -> str:
        """What tells the best weights: the metric that was chosen, else the task's own.

        Raises:
            RecipeError: the task has no such metric.
        """
        if chosen is not None and chosen not in self.metrics:
            problem = Problem(
                where=Where(field="training.early_stopping_metric"),
                expected=f"one of {', '.join(self.metrics)}",
                got=repr(chosen),
                todo="Choose one of these metrics, or null for the task's own.",
            )
            raise RecipeError(f"The task {self.name!r} has no metric {chosen!r}.", [problem])
        return chosen or ("loss" if self.best_by_loss else self.primary_metric)

    def rank(self, metrics: Mapping[str, float], chosen: str | None = None) -> tuple[float, float]:
        """Sorts validation results: the larger, the better the weights. The second number settles a tie.

        Args:
            chosen: the metric to go by instead of the task's own.
        """
        first = self.ranking_metric(chosen)
        second = self.primary_metric if first == "loss" else "loss"
        ordered = [-metrics[name] if name in LOWER_IS_BETTER else metrics[name] for name in (first, second)]
        return ordered[0], ordered[1]

    def named(self, columns: Mapping[str, str]) -> dict[str, str]:
        """Columns by field; "label" and "text" name the target and the first input where no field is called so."""
        general = {"text": self.inputs[0].name, "label": self.target.name}
        own = {field.name for field in self.fields}
        return {name if name in own else general.get(name, name): column for name, column in columns.items()}

    @property
    def converses(self) -> bool:
        """Whether rows are conversations."""
        return self.target.kind in ("reply", "preference")

    @property
    def sees(self) -> bool:
        """Whether rows are images."""
        return self.inputs[0].kind == "image"

    @property
    def writes(self) -> bool:
        """Whether the model writes texts."""
        return self.converses or self.target.kind == "written"

    @property
    def makes_vectors(self) -> bool:
        """Whether the model makes vectors of texts, and has nothing above them."""
        return self.head == "encoder"

    @property
    def embeds(self) -> bool:
        """Whether what is predicted of a text is its vector."""
        return self.makes_vectors and self.target.kind != "relevances"

    @property
    def targets(self) -> tuple[FieldSpec, ...]:
        return tuple(field for field in self.fields if not field.is_input)

    @property
    def has_labels(self) -> bool:
        """Whether the target is, or has, names out of a fixed set."""
        return self.target.kind in ("class", "classes", "spans")

    @property
    def target(self) -> FieldSpec:
        return self.targets[0]
