"""The Recipe: everything that decides what a training run does, as frozen data.

A Recipe is read from YAML and command-line flags, refuses unknown keys, reports all its problems at once,
and holds names and numbers only: nothing in it can be executed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from chainrule.errors import Problem, RecipeError, Where

MAX_RECIPE_BYTES = 1_000_000


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


def _sourced(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


NamedSpec = Annotated[Spec, BeforeValidator(_named)]


class Clean(Section):
    """Changes to the data that are off unless asked for; each is counted and listed."""

    unicode_nfkc: bool = False
    html: bool = False
    white_space: bool = False
    exact_duplicates: bool = False


class Data(Section):
    """Where the rows come from and how they are cut."""

    source: str | None = None
    fields: dict[str, str] = Field(default_factory=dict)
    validation_fraction: float = Field(default=0.1, gt=0, lt=0.5)
    test_fraction: float = Field(default=0.1, gt=0, lt=0.5)
    on_bad_row: Literal["stop", "skip"] = "stop"
    clean: Clean = Field(default_factory=Clean)


class Model(Section):
    """The pretrained model. `max_length` is in tokens; null means what the model allows, up to 512."""

    name: str
    max_length: int | None = Field(default=None, ge=4)


class Structure(Section):
    """Changes to the model before training. Null keeps what the pretrained model has."""

    dropout: float | None = Field(default=None, ge=0, lt=1)
    attention_dropout: float | None = Field(default=None, ge=0, lt=1)


class Optimizer(Section):
    """The update rule. `learning_rate: null` means the strategy's own default."""

    name: str = "adamw"
    learning_rate: float | None = Field(default=None, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    max_gradient_norm: float | None = Field(default=1.0, gt=0)
    options: dict[str, Any] = Field(default_factory=dict)


class Schedule(Section):
    """How the learning rate changes. `warmup` is the share of all steps that ramp up from zero."""

    name: str = "linear"
    warmup: float = Field(default=0.1, ge=0, lt=1)
    options: dict[str, Any] = Field(default_factory=dict)


class Training(Section):
    """How long, in which portions, and in which number format."""

    epochs: float = Field(default=3, gt=0)
    steps: int | None = Field(default=None, ge=1)
    minutes: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=32, ge=1)
    micro_batch_tokens: int | None = Field(default=None, ge=1)
    group_by_length: bool = True
    packing: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: int | None = Field(default=None, ge=1)
    accelerate: bool = True
    trunk_cache: bool = True
    evaluate_every_steps: int | None = Field(default=None, ge=1)
    patience: int | None = Field(default=None, ge=1)
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
    loss: NamedSpec = Field(default_factory=lambda: Spec(name="default"))
    training: Training = Field(default_factory=Training)
    seed: int = Field(default=0, ge=0, lt=2**32)

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
    return parse_recipe(merge(_read_yaml(path), changes or {}), file=str(path))


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
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problems = validation_problems(error, Recipe, file)
        raise RecipeError(f"The recipe has {_count(len(problems), 'problem')}.", problems) from None


def parse_options(options_class: type[SectionType], spec: Spec, shelf: str) -> SectionType:
    """Turn a Spec's options into the part's own typed options, refusing unknown keys.

    Args:
        shelf: the recipe key the Spec came from, used in messages ("strategy", "loss", …).
    """
    try:
        return options_class.model_validate(spec.options)
    except ValidationError as error:
        problems = validation_problems(error, options_class, None, prefix=f"{shelf}.options")
        raise RecipeError(f"The options of {shelf} {spec.name!r} are wrong.", problems) from None


def unknown_name(shelf: str, name: str, known: Sequence[str]) -> RecipeError:
    """The error for a Spec whose name is on no shelf."""
    problem = Problem(
        where=Where(field=f"{shelf}.name"),
        expected=f"one of {', '.join(known)}",
        got=repr(name),
        todo=f"Choose one of the names; `chainrule show {_plural(shelf)}` describes them."
        if shelf in ("strategy", "task")
        else "Choose one of the names.",
    )
    return RecipeError(f"There is no {shelf} {name!r}.", [problem])


def merge(values: Any, changes: Mapping[str, Any]) -> Any:
    """Copy nested `values` with dotted-key `changes` applied; a change of None removes nothing, it sets null."""
    if not changes:
        return values
    result = dict(values) if isinstance(values, Mapping) else values
    for key, value in changes.items():
        head, _, rest = key.partition(".")
        if not isinstance(result, dict):
            problem = Problem(
                where=Where(field=key),
                expected=f"a mapping above {key!r}",
                got=repr(result),
                todo="Remove this --set, or turn the value above it into a mapping.",
            )
            raise RecipeError(f"Cannot set {key!r}.", [problem])
        if not rest:
            result[head] = value
            continue
        below = result.get(head)
        if isinstance(below, str):  # shorthand: `task: NAME`, `data: SOURCE`
            below = {"source" if head == "data" else "name": below}
        result[head] = merge({} if below is None else below, {rest: value})
    return result


def parse_setting(text: str) -> tuple[str, Any]:
    """Parse one `--set key.path=value`; the value is read as YAML, so 2, true, null and [1, 2] mean what they say."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        problem = Problem(
            where=Where(field="--set"),
            expected="key.path=value",
            got=repr(text),
            todo="Try --set optimizer.learning_rate=2e-5.",
        )
        raise RecipeError(f"Cannot read --set {text!r}.", [problem])
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        parsed = value
    return key.strip(), _number(parsed)


def validation_problems(
    error: ValidationError, model: type[BaseModel], file: str | None, prefix: str = ""
) -> list[Problem]:
    """pydantic's findings in our form: where, expected, got, what to do."""
    problems = []
    for item in error.errors(include_url=False):
        path = ".".join(str(part) for part in (*([prefix] if prefix else []), *item["loc"]))
        problems.append(_problem(item, path, model, file))
    return problems


def _problem(item: Any, path: str, model: type[BaseModel], file: str | None) -> Problem:
    where = Where(file=file, field=path)
    kind, got = item["type"], item["input"]
    if kind == "extra_forbidden":
        known = _known_keys(model, item["loc"][:-1])
        return Problem(
            where=where,
            expected=f"one of the keys {', '.join(known)}" if known else "no such key",
            got=f"the unknown key {str(item['loc'][-1])!r}",
            todo="Correct the spelling or remove it.",
        )
    if kind == "missing":
        return Problem(
            where=where, expected="a value", got="nothing", todo=f"Set {path!r} in the recipe or by its flag."
        )
    message = str(item["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")
    shown = repr(got)
    return Problem(
        where=where,
        expected=message[:200],
        got=shown if len(shown) <= 80 else shown[:80] + "…",
        todo=f"Change {path!r}.",
    )


def _known_keys(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    current: Any = model
    for part in location:
        info = getattr(current, "model_fields", {}).get(part)
        current = info.annotation if info is not None else None
    return sorted(getattr(current, "model_fields", {}))


class _NumberLoader(yaml.SafeLoader):
    """Plain YAML without aliases: a recipe needs none, and nested ones can grow without bound."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.constructor.ConstructorError(None, None, "aliases (*name) are not allowed", event.start_mark)
        return super().compose_node(parent, index)


def _read_yaml(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise _unreadable(path, f"a file of at most {MAX_RECIPE_BYTES:,} bytes", f"{path.stat().st_size:,} bytes")
        text = path.read_text(encoding="utf-8")
        return _number(yaml.load(text, Loader=_NumberLoader))
    except FileNotFoundError:
        raise _unreadable(path, "a recipe file", "no such file") from None
    except IsADirectoryError:
        raise _unreadable(path, "a recipe file", "a folder") from None
    except OSError as error:  # no permission, a name too long
        raise _unreadable(path, "a recipe file", error.strerror or str(error)) from None
    except UnicodeDecodeError as error:
        raise _unreadable(path, "UTF-8 text", f"undecodable bytes at {error.start}") from None
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise _unreadable(path, "valid YAML", reason, line=mark.line + 1 if mark else None) from None


def _unreadable(path: Path, expected: str, got: str, line: int | None = None) -> RecipeError:
    problem = Problem(
        where=Where(file=str(path), line=line), expected=expected, got=got, todo="Correct the recipe file."
    )
    return RecipeError(f"Cannot read the recipe {path}.", [problem])


def _number(value: Any) -> Any:
    """YAML 1.1 reads 2e-5 as text; people mean the number."""
    if isinstance(value, dict):
        return {key: _number(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_number(item) for item in value]
    if isinstance(value, str) and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _plural(shelf: str) -> str:
    return shelf[:-1] + "ies" if shelf.endswith("y") else shelf + "s"
