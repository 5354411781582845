"""The shelf of models without pretrained weights: name -> options, what reads the rows, the model itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chainrule.core.recipe import Model, Recipe, Section, Spec, parse_options
from chainrule.core.task import Head, Task
from chainrule.errors import Problem, RecipeError, Where
from chainrule.models import convnet, lstm, recurrent
from chainrule.models.place import weights_hash
from chainrule.system.files import sha256


@dataclass(frozen=True)
class Scratch:
    """A kind of model that is made from the training rows.

    Attributes:
        heads: what may stand on top of it.
        tasks: what these heads are for, in words.
        structure: the keys of a recipe's `structure` that it has.
        reader: options and the training rows by field -> what brings rows to the model (a tokenizer, or an image
            processor), and the options with what the rows decide.
        make: options, reader, labels, problem type and structure, and by name seed and head -> the model, and a line
            to tell about it or None.
        learning_rate, epochs: where the recipe does not say.
    """

    options: type[Section]
    heads: tuple[Head, ...]
    tasks: str
    structure: tuple[str, ...]
    reader: Callable[[Any, Mapping[str, Sequence[str]]], tuple[Any, Any]]
    make: Callable[..., tuple[Any, str | None]]
    learning_rate: float
    epochs: float
    purpose: str


SCRATCH: dict[str, Scratch] = {
    lstm.NAME: Scratch(
        options=recurrent.Options,
        heads=("classifier", "token-classifier"),
        tasks="a task with a few numbers a row or a word",
        structure=("dropout", "pooling", "head"),
        reader=recurrent.tokenizer_of,
        make=recurrent.make_classifier,
        learning_rate=recurrent.LEARNING_RATE,
        epochs=recurrent.EPOCHS,
        purpose="an LSTM made from the training rows, of any language: classification, pairs, regression, entities; "
        "nothing is downloaded",
    ),
    convnet.NAME: Scratch(
        options=convnet.Options,
        heads=("image-classifier",),
        tasks="a task of images",
        structure=(),
        reader=convnet.processor_of,
        make=convnet.make_classifier,
        learning_rate=convnet.LEARNING_RATE,
        epochs=convnet.EPOCHS,
        purpose="a small convolutional network made for the training images; nothing is downloaded",
    ),
}


def options_of(model: Model) -> Any:
    """What a model that is made from the rows is made with; None for a pretrained one.

    Raises:
        RecipeError: there are no such options.
    """
    if model.name in SCRATCH:
        return parse_options(SCRATCH[model.name].options, Spec(name=model.name, options=model.options), "model")
    if model.options:
        where, todo = (
            Where(field="model.options"),
            f"Leave them out; they are for the models {' and '.join(map(repr, SCRATCH))}.",
        )
        problem = Problem("no options, as this model is pretrained", ", ".join(model.options), todo, where)
        raise RecipeError("A pretrained model is as it is.", [problem])
    return None


def refuse_misfit(recipe: Recipe, task: Task) -> None:
    """Make sure that a recipe asks for nothing that a model made from the rows does not have, if that is its model.

    Raises:
        RecipeError: it does, or the model has no such options.
    """
    if options_of(recipe.model) is None:
        return
    made, problems = SCRATCH[recipe.model.name], []
    if recipe.strategy.name != "full":
        expected, todo = "full, as nothing of this model is pretrained", "Leave --strategy out."
        problems.append(Problem(expected, repr(recipe.strategy.name), todo, Where(field="strategy.name")))
    if task.head not in made.heads:
        problems.append(Problem(made.tasks, task.name, "Choose another model.", Where(field="task.name")))
    changed = recipe.structure.model_dump(mode="json", exclude_defaults=True)
    for key in changed.keys() - set(made.structure):
        kept = f"{', '.join(made.structure)} alone" if made.structure else "nothing"
        expected, todo = (
            f"{kept}: the others change what is pretrained",
            "Leave it out; model.options say how this model is made.",
        )
        problems.append(Problem(expected, repr(changed[key]), todo, Where(field=f"structure.{key}")))
    if problems:
        raise RecipeError(f"The model {recipe.model.name!r} is trained from scratch.", problems)


def first_weights_hash(model: Model) -> str | None:
    """The SHA-256 of the file that a model's weights begin as, where they lie in a single one on this machine."""
    options = options_of(model)
    if options is None:
        return weights_hash(model.name)
    if pieces := getattr(options, "pieces", None):
        return weights_hash(pieces)
    file = Path(getattr(options, "vectors", None) or "")
    return sha256(file) if file.is_file() else None


def describe() -> list[dict[str, Any]]:
    """The rows of `chainrule show catalog`."""
    return [
        {
            "name": name,
            "kind": "from scratch",
            "options": made.options().model_dump(mode="json"),
            "purpose": made.purpose,
        }
        for name, made in SCRATCH.items()
    ]
