"""The Recipe: everything that decides what a training run does, as frozen data.

A Recipe is read from YAML and command-line flags, refuses unknown keys, reports all its problems at once,
and holds names and numbers only: nothing in it can be executed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from chainrule.core.choice import Choice
from chainrule.core.parsing import merge, read_yaml, unusual_values, validation_problems
from chainrule.core.prediction import Prediction
from chainrule.errors import Problem, RecipeError, Where


class Section(BaseModel):
    """A part of a recipe: frozen, complete, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


SectionType = TypeVar("SectionType", bound=Section)


class Spec(Section):
    """Names a part on a shelf, with that part's own options. A bare string means no options."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _with_options(value: Any) -> Any:
    """Names alone, or names with nothing beside them, mean no options."""
    names = [value] if isinstance(value, str) else value
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return {name: {} for name in names}
    if isinstance(value, Mapping) and all(item is None or isinstance(item, Mapping) for item in value.values()):
        return {name: item or {} for name, item in value.items()}
    raise ValueError("names with their options, such as {l2-sp: {strength: 0.01}}, or a list of names")


def _sourced(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


def _written(value: Any) -> Any:
    """What `auto` has written, whole; in part it would be told as something that it is not."""
    try:
        return None if value is None else Choice.model_validate(value)
    except ValidationError:
        raise ValueError("what a training wrote there, unchanged, or null") from None


def _layer_numbers(value: Any) -> Any:
    """3, "0-3" and "0, 2, 4-5" as lists of numbers."""
    if isinstance(value, int) and not isinstance(value, bool):
        return [value]
    if not isinstance(value, str):
        return value
    numbers: list[int] = []
    for part in value.split(","):
        found = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part.strip())
        if found is None or int(found[1]) > int(found[2] or found[1]):
            raise ValueError("layer numbers such as [0, 2, 5] or 0-3")
        numbers += range(int(found[1]), int(found[2] or found[1]) + 1)
    return numbers


NamedSpec = Annotated[Spec, BeforeValidator(_named)]
Layers = Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_layer_numbers)]


class Clean(Section):
    """Changes to the data that are off unless asked for; each is counted and listed."""

    unicode_nfkc: bool = False
    html: bool = False
    white_space: bool = False
    exact_duplicates: bool = False


class Data(Section):
    """Where the rows come from and how they are cut.

    Attributes:
        cut_by: what decides which rows of a file without splits are held out: "time", the latest; "hash", any, the same
            each time; "auto", time where every row has one.
        time_column: the column of times; null for one that is called so.
    """

    source: str | None = None
    fields: dict[str, str] = Field(default_factory=dict)
    validation_fraction: float = Field(default=0.1, gt=0, lt=0.5)
    test_fraction: float = Field(default=0.1, gt=0, lt=0.5)
    cut_by: Literal["auto", "time", "hash"] = "auto"
    time_column: str | None = None
    on_bad_row: Literal["stop", "skip"] = "stop"
    clean: Clean = Field(default_factory=Clean)


class Model(Section):
    """The model to begin with. `max_length` is in tokens; null means what the model allows, up to 512.

    `options` say what a model that is made from the training rows is to be; a pretrained one has none.
    """

    name: str
    max_length: int | None = Field(default=None, ge=4)
    options: dict[str, Any] = Field(default_factory=dict)


class Structure(Section):
    """Changes to the model before training, made in this order. Null keeps what the pretrained model has.

    Layers go by their number in the pretrained model, 0 at the bottom.
    """

    dropout: float | None = Field(default=None, ge=0, lt=1)
    attention_dropout: float | None = Field(default=None, ge=0, lt=1)
    activation: Literal["gelu", "gelu_new", "relu", "relu2", "silu", "mish", "tanh"] | None = None
    add_tokens: tuple[str, ...] = ()
    keep_layers: Layers | None = None
    drop_layers: Layers = ()
    reinitialise_top: int = Field(default=0, ge=0)
    insert_blocks: Layers = ()
    pooling: Literal["cls", "last", "mean", "max", "attention"] | None = None
    head: Literal["linear", "mlp", "cnn", "crf"] | None = None

    @property
    def makes_another_model(self) -> bool:
        """Whether the weights, or what is computed with them, are no longer those of the pretrained model."""
        return self.model_copy(update={"dropout": None, "attention_dropout": None}) != Structure()


class Optimizer(Section):
    """The update rule. `learning_rate: null` means the strategy's own default, made to suit this rule.

    `layer_decay` multiplies the learning rate once more for every layer further below the head; null: the same for all.
    """

    name: str = "adamw"
    learning_rate: float | None = Field(default=None, gt=0)
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0)
    max_gradient_norm: float | None = Field(default=1.0, gt=0)
    options: dict[str, Any] = Field(default_factory=dict)


class Schedule(Section):
    """How the learning rate changes. `warmup` is the share of all steps that ramp up from zero."""

    name: str = "linear"
    warmup: float = Field(default=0.1, ge=0, lt=1)
    options: dict[str, Any] = Field(default_factory=dict)


class Loss(Spec):
    """What is to be made small; "default" is the task's own."""

    name: str = "default"


class Distillation(Section):
    """What a student learns from fine-tuned teachers beside the labels; without teachers nothing.

    `weight` is the share of the loss that is the teachers'. `temperature` divides logits before they become
    probabilities. With several teachers, `trust: row` gives those more say in a row that find its label likelier.
    `hidden`, `attention`, `relation` and `sentences` weigh how far the student's states are from those of one teacher,
    which is then run in every step; `layers` names the teacher's layer beside each of the student's, from the bottom;
    `relation_heads` is into how many parts queries, keys and values are cut. `unlabelled` is a file of further rows, of
    which the student learns what the teachers say; so it does of `variants` changed copies of each training row.
    """

    teachers: tuple[str, ...] = ()
    weight: float = Field(default=0.9, gt=0, le=1)
    temperature: float = Field(default=2.0, gt=0)
    trust: Literal["equal", "row"] = "equal"
    hidden: float = Field(default=0.0, ge=0)
    attention: float = Field(default=0.0, ge=0)
    relation: float = Field(default=0.0, ge=0)
    sentences: float = Field(default=0.0, ge=0)
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    relation_heads: int | None = Field(default=None, ge=1)
    unlabelled: str | None = None
    variants: int = Field(default=0, ge=0, le=1000)

    @property
    def reads_states(self) -> bool:
        """Whether the student learns more of its teacher than what it says."""
        return any((self.hidden, self.attention, self.relation, self.sentences))


class Training(Section):
    """How long, in which portions, and in which number format. `epochs: null` means as many as suit the model."""

    epochs: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, ge=1)
    minutes: float | None = Field(default=None, gt=0)
    folds: int | None = Field(default=None, ge=2)
    batch_size: int = Field(default=32, ge=1)
    micro_batch_tokens: int | None = Field(default=None, ge=1)
    group_by_length: bool = True
    packing: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: int | None = Field(default=None, ge=1, le=4096)
    deterministic: bool | None = None
    accelerate: bool = True
    trunk_cache: bool = True
    evaluate_every_steps: int | None = Field(default=None, ge=1)
    early_stopping_metric: str | None = None
    patience: int | None = Field(default=None, ge=1)
    min_delta: float = Field(default=0.0, ge=0)
    averaging: NamedSpec | None = None
    checkpoint_minutes: float = Field(default=5, gt=0)
    keep_checkpoints: int = Field(default=2, ge=1)
    track: tuple[Literal["tensorboard", "mlflow"], ...] = ()
    profile: bool = False
    watch_gradients: bool = False


class Recipe(Section):
    """All of it. Flags override the file; `--set key.path=value` reaches every key."""

    data: Annotated[Data, BeforeValidator(_sourced)] = Field(default_factory=Data)
    task: NamedSpec
    model: Annotated[Model, BeforeValidator(_named)]
    strategy: NamedSpec = Field(default_factory=lambda: Spec(name="full"))
    structure: Structure = Field(default_factory=Structure)
    optimizer: Annotated[Optimizer, BeforeValidator(_named)] = Field(default_factory=Optimizer)
    schedule: Annotated[Schedule, BeforeValidator(_named)] = Field(default_factory=Schedule)
    loss: Annotated[Loss, BeforeValidator(_named)] = Field(default_factory=Loss)
    regularisers: Annotated[dict[str, dict[str, Any]], BeforeValidator(_with_options)] = Field(default_factory=dict)
    distillation: Distillation = Field(default_factory=Distillation)
    training: Training = Field(default_factory=Training)
    seed: int = Field(default=0, ge=0, lt=2**32)
    choice: Annotated[Choice | None, BeforeValidator(_written)] = None
    prediction: Prediction | None = None

    def to_yaml(self) -> str:
        """The recipe as YAML, every key written out, in the order of the fields."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def replace(self, changes: Mapping[str, Any]) -> Recipe:
        """A copy with `changes` applied, given as {"optimizer.learning_rate": 2e-5, …}."""
        return parse_recipe(merge(self.model_dump(mode="json"), changes))


def read_recipe(path: Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Read a YAML recipe and apply `changes` (dotted keys) on top of it.

    Raises:
        RecipeError: the file is missing, is not YAML, or holds unknown keys or values out of range.
    """
    return parse_recipe(merge(read_yaml(path), changes or {}), file=str(path))


def parse_recipe(values: Any, file: str | None = None) -> Recipe:
    """Validate nested plain values into a Recipe; every problem is reported at once.

    Raises:
        RecipeError: unknown keys or values out of range.
    """
    if not isinstance(values, Mapping):
        problem = Problem(
            where=Where(file=file),
            expected="a mapping of recipe keys (data, task, model, …)",
            got=f"{type(values).__name__}",
            todo="Start from a recipe.yaml in any run folder.",
        )
        raise RecipeError("The recipe is not a mapping.", [problem])
    problems = list(unusual_values(values, Where(file=file)))
    if not problems:
        try:
            return Recipe.model_validate(values)
        except ValidationError as error:
            problems = validation_problems(error, Recipe, file)
    raise RecipeError(f"The recipe has {_count(len(problems), 'problem')}.", problems)


def parse_options(options_class: type[SectionType], spec: Spec, kind: str, field: str | None = None) -> SectionType:
    """Turn a Spec's options into the part's own typed options, refusing unknown keys.

    Args:
        kind: what the part is, used in messages ("strategy", "loss", …).
        field: where in the recipe the options are, if not at `kind`.options.
    """
    try:
        return options_class.model_validate(spec.options)
    except ValidationError as error:
        problems = validation_problems(error, options_class, None, prefix=field or f"{kind}.options")
        raise RecipeError(f"The options of {kind} {spec.name!r} are wrong.", problems) from None


def unknown_name(kind: str, name: str, known: Sequence[str], field: str | None = None) -> RecipeError:
    """The error for a name that is on no shelf, at `kind`.name unless `field` says otherwise."""
    problem = Problem(
        where=Where(field=field or f"{kind}.name"),
        expected=f"one of {', '.join(known)}",
        got=repr(name),
        todo=f"Choose one of the names; `chainrule show {_plural(kind)}` describes them.",
    )
    return RecipeError(f"There is no {kind} {name!r}.", [problem])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _plural(kind: str) -> str:
    return kind[:-1] + "ies" if kind.endswith("y") else kind + ("es" if kind.endswith("s") else "s")
