"""What a search may choose from: keys of the recipe, each with its choices or its range."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from chainrule.core.parsing import read_yaml, validation_problems
from chainrule.core.recipe import Recipe, Section, parse_recipe
from chainrule.core.task import Task
from chainrule.errors import Problem, RecipeError, UserError, Where
from chainrule.models.adapters import has_peft
from chainrule.models.place import find, read_config
from chainrule.models.scratch import SCRATCH
from chainrule.strategies import STRATEGIES, make_strategy

RATE = "optimizer.learning_rate"
STRATEGY = "strategy.name"
FORBIDDEN = (
    "data",
    "task.name",
    "seed",
    "choice",
    "prediction",
    "training.minutes",
    "training.folds",
    "training.track",
)
ENCODERS = ("full", "gradual", "partial", "lora", "head")
FOR_LANGUAGE_MODELS = ("lora", "full")


def _listed(value: Any) -> Any:
    return {"choices": value} if isinstance(value, list) else value


class Parameter(Section):
    """One key: `choices`, or numbers from `low` to `high`.

    Attributes:
        log: spread evenly over powers of ten.
        step: whole numbers, or multiples, apart.
        times_default: of the learning rate: times the default of the trial's own strategy and optimizer.
        when: other keys -> values; in other trials the key is left alone.
    """

    choices: tuple[Any, ...] | None = Field(default=None, min_length=1)
    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = Field(default=None, gt=0)
    times_default: bool = False
    when: dict[str, tuple[Any, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _whole(self) -> Parameter:
        if (self.choices is None) == (self.low is None or self.high is None):
            raise ValueError("choices, or low and high")
        if self.low is not None and self.high is not None:
            if not self.low < self.high:
                raise ValueError("a low below high")
            if self.log and (self.low <= 0 or self.step is not None):
                raise ValueError("with log, a low above 0 and no step")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether its values are whole numbers."""
        numbers = (self.low, self.high, self.step)
        return self.step is not None and all(number is None or float(number).is_integer() for number in numbers)

    def suggest(self, trial: Any, key: str) -> Any:
        """The value of an Optuna trial."""
        if self.choices is not None:
            stored = range(len(self.choices)) if self._nested else self.choices
            return self.value_of(trial.suggest_categorical(key, list(stored)))
        if self.is_whole:
            return trial.suggest_int(key, int(self.low or 0), int(self.high or 0), step=int(self.step or 1))
        return trial.suggest_float(key, self.low, self.high, log=self.log, step=self.step)

    def value_of(self, stored: Any) -> Any:
        """What a stored parameter means: of choices that are lists, their place is stored."""
        return self.choices[stored] if self.choices is not None and self._nested else stored

    @property
    def _nested(self) -> bool:
        return any(isinstance(choice, list | tuple | dict) for choice in self.choices or ())


class Space(Section):
    """All keys, in the order in which they are chosen; a key may depend on those before it."""

    parameters: dict[str, Annotated[Parameter, BeforeValidator(_listed)]]

    def applies(self, key: str, chosen: Mapping[str, Any]) -> bool:
        """Whether a key is chosen beside those that were chosen before it."""
        return all(chosen.get(other) in values for other, values in self.parameters[key].when.items())

    def suggest(self, trial: Any) -> dict[str, Any]:
        """Values of an Optuna trial, as dotted keys of the recipe."""
        chosen: dict[str, Any] = {}
        for key, parameter in self.parameters.items():
            if self.applies(key, chosen):
                chosen[key] = parameter.suggest(trial, key)
        return chosen

    def values_of(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """The same of a trial that was made before."""
        return {key: self.parameters[key].value_of(value) for key, value in stored.items() if key in self.parameters}

    def to_yaml(self) -> str:
        """As a file for --space."""
        shown = {
            key: parameter.model_dump(mode="json", exclude_defaults=True) for key, parameter in self.parameters.items()
        }
        return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)


def read_space(path: Path, recipe: Recipe) -> Space:
    """The space of a YAML file: dotted keys, each with a list of choices or {low, high, log, step, when}.

    Raises:
        RecipeError: it cannot be read, is empty, or has keys or values that the recipe does not.
    """
    values = read_yaml(path)
    if not isinstance(values, Mapping) or not values:
        got = "nothing" if not values else type(values).__name__
        todo = "Name keys with choices or ranges, such as training.batch_size: [16, 32]; or leave --space out."
        problem = Problem("dotted keys of a recipe, each with its choices or its range", got, todo, Where(str(path)))
        raise RecipeError("The space is empty." if not values else "The space is not a mapping.", [problem])
    return space_of(values, recipe, str(path))


def space_of(values: Mapping[str, Any], recipe: Recipe, file: str | None = None) -> Space:
    """A space from plain values, with every key tried on the recipe.

    Raises:
        RecipeError: as `read_space`.
    """
    try:
        space = Space.model_validate({"parameters": dict(values)})
    except ValidationError as error:
        problems = validation_problems(error, Space, file)
        raise RecipeError("The space is wrong.", problems) from None
    problems = [problem for key in space.parameters for problem in _wrong(space, key, recipe, file)]
    if problems:
        raise RecipeError("The space does not go together with the recipe.", problems)
    return space


def _wrong(space: Space, key: str, recipe: Recipe, file: str | None) -> list[Problem]:
    """What is wrong with a key: unknown, not to be searched, depending on what is not before it, or with bad values."""
    parameter, where = space.parameters[key], Where(file=file, field=key)
    if any(key == name or key.startswith(f"{name}.") for name in FORBIDDEN):
        return [Problem("a key that trials may differ in", key, "Set it in the recipe instead.", where)]
    before = list(space.parameters)[: list(space.parameters).index(key)]
    missing = [other for other in parameter.when if other not in before]
    if missing:
        return [Problem("keys that stand before it under `when`", ", ".join(missing), "Put them first.", where)]
    if parameter.times_default and key != RATE:
        return [Problem(f"times_default with {RATE} alone", key, "Leave it out.", where)]
    given = {other: values[0] for other, values in parameter.when.items()}
    tried: list[Any] = list(parameter.choices) if parameter.choices is not None else [parameter.low, parameter.high]
    found: list[Problem] = []
    for value in tried:
        whole = int(value or 0) if parameter.choices is None and parameter.is_whole else value
        try:
            changed = parse_recipe(_with(recipe, given | {key: whole}).model_dump(mode="json"))
            if key.startswith("strategy"):
                make_strategy(changed.strategy)
        except UserError as error:
            found += [Problem(each.expected, each.got, each.todo, where) for each in error.problems]
            break
    return found


def _with(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with other values; another strategy begins without the options of the one before."""
    if STRATEGY in changes and changes[STRATEGY] != recipe.strategy.name:
        recipe = recipe.replace({"strategy.options": {}})
    return recipe.replace(changes)


def changed(recipe: Recipe, values: Mapping[str, Any], default_rate: Any) -> Recipe:
    """The recipe of a trial.

    Args:
        default_rate: recipe -> the learning rate that suits its strategy and optimizer.
    """
    factor = values.get(RATE)
    found = _with(recipe, {key: value for key, value in values.items() if key != RATE})
    if factor is None:
        return found
    return found.replace({RATE: float(f"{default_rate(found) * factor:.4g}") if default_rate is not None else factor})


def default_space(recipe: Recipe, task: Task, *, with_structure: bool) -> dict[str, Any]:
    """Where to look when nobody says: the strategy, its rate and what goes with it.

    Args:
        with_structure: fewer layers and a shorter length, too: for latency and size.
    """
    found: dict[str, Any] = {}
    pretrained = recipe.model.name not in SCRATCH
    if pretrained:
        names = FOR_LANGUAGE_MODELS if task.writes else ENCODERS
        fitting = [name for name in names if STRATEGIES[name].misfit(task) is None and (name != "lora" or has_peft())]
        found[STRATEGY] = fitting
        layers = _layers(recipe)
        if "partial" in fitting:
            found["strategy.options.top"] = {
                "low": 1,
                "high": max(2, layers - 1),
                "step": 1,
                "when": {STRATEGY: ["partial"]},
            }
        if "lora" in fitting:
            found["strategy.options.rank"] = {"choices": [4, 8, 16, 32], "when": {STRATEGY: ["lora"]}}
        if with_structure and layers > 2:
            kept = [list(range(count)) for count in sorted({layers // 3 or 1, layers // 2, 2 * layers // 3}) if count]
            found["structure.keep_layers"] = {"choices": [None, *kept]}
    found[RATE] = {"low": 0.1, "high": 4.0, "log": True, "times_default": True}
    found["training.batch_size"] = [4, 8, 16] if task.writes else [16, 32, 64]
    found["schedule.warmup"] = {"low": 0.0, "high": 0.3}
    found["optimizer.weight_decay"] = {"low": 1e-4, "high": 0.1, "log": True}
    return found


def _layers(recipe: Recipe) -> int:
    config = read_config(find(recipe.model.name))
    return int(getattr(config, "num_hidden_layers", 0) or 0)
