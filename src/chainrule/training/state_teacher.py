"""Whether a student can learn its teacher's inner states, and what stands beside what."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import Any

from chainrule.core.recipe import Distillation, Recipe
from chainrule.core.task import Objective
from chainrule.errors import Problem, RecipeError, Where
from chainrule.inference.predict import Predictor
from chainrule.models.adapters import plain_model
from chainrule.models.inspect import layer_stack
from chainrule.models.lstm import LSTMTrunk
from chainrule.models.states import ATTENTIVE, is_attentive
from chainrule.strategies.base import Strategy
from chainrule.tasks.prepare import Prepared
from chainrule.training.distillation import Distilled
from chainrule.training.projecting import Projecting
from chainrule.training.states import Projection, StateLosses

ROWS = 20  # that both tokenizers read


def with_states(
    objective: Objective, strategy: Strategy, model: Any, recipe: Recipe, prepared: Prepared
) -> tuple[Objective, Strategy]:
    """A student's objective with its teacher's states, and its strategy with what that needs; else both as they are.

    Args:
        model: the student; it gets a projection where the teacher is wider or narrower.

    Raises:
        RecipeError: the student cannot learn the states of this teacher.
    """
    options = recipe.distillation
    if not (isinstance(objective, Distilled) and options.reads_states):
        return objective, strategy
    if len(objective.teachers) > 1:
        got, todo = f"{len(objective.teachers)}", "Name one, or let what they say be all that is learned."
        raise _refused("one teacher whose states are learned", got, todo, "distillation.teachers")
    teacher = objective.teachers[0]
    _require_stack(teacher.forward.model, teacher.artifact.manifest.runtime, "distillation.teachers")
    _require_stack(model, "torch", "model.name")
    _require_same_tokens(teacher, prepared)
    losses = _losses(model, teacher.forward.model, options)
    own, wide = _width_of(model), _width_of(teacher.forward.model)
    if options.hidden and own != wide:
        projection = Projection(own, wide, recipe.seed).to(next(model.parameters()).device)
        losses, strategy = replace(losses, projection=projection), Projecting(strategy, model, projection)
    return replace(objective, states=losses), strategy


def beside(student: int, teacher: int) -> tuple[int, ...]:
    """The teacher's layer beside each of a student's, spread evenly, the top beside the top.

    Jiao et al. (2020), section 4.1, the uniform strategy.
    """
    return tuple(max(0, int((place + 1) * teacher / student + 0.5) - 1) for place in range(student))


def _losses(model: Any, teacher: Any, options: Distillation) -> StateLosses:
    own, there = len(layer_stack(model)), len(layer_stack(teacher))
    if options.layers is None and options.hidden and own > there:
        expected, todo = f"at most {there} layers, as its teacher has", "Leave out layers, or set distillation.layers."
        raise _refused(expected, f"{own}", todo, "distillation.hidden")
    layers = beside(own, there) if options.layers is None else options.layers
    if len(layers) != own or max(layers) >= there:
        expected = f"{own} numbers of layers from 0 to {there - 1}, one for each of the student's"
        got, todo = ", ".join(map(str, layers)) or "none", "Leave it out for layers that are spread evenly."
        raise _refused(expected, got, todo, "distillation.layers")
    heads = relation_heads = 1
    if options.attention or options.relation:
        _require_attention(model, "model.name")
        _require_attention(teacher, "distillation.teachers")
        heads = _same_heads(model, teacher) if options.attention else 1
        relation_heads = _relation_heads(model, teacher, options) if options.relation else 1
    return StateLosses(options, layers, heads, relation_heads)


def _require_stack(model: Any, runtime: str, field: str) -> None:
    plain = plain_model(model) if runtime == "torch" else None
    if plain is None:
        got = f"one for {runtime}" if runtime != "ensemble" else "an ensemble"
    elif isinstance(plain.base_model, LSTMTrunk):
        got = "an LSTM"
    elif plain.config.is_encoder_decoder:
        got = "an encoder-decoder"
    elif plain.main_input_name != "input_ids":
        got = "a model of images"
    else:
        return
    raise _refused("a transformers model of one stack of layers that reads tokens", got, RESPONSE, field)


def _require_same_tokens(teacher: Predictor, prepared: Prepared) -> None:
    field, own, other = "distillation.teachers", prepared.tokenizer, teacher.tokenizer
    expected = "a teacher that reads the student's tokens, where its states are learned"
    if other.get_vocab() != own.get_vocab():
        raise _refused(expected, f"another vocabulary: {teacher.artifact.path}", RESPONSE, field)
    texts: Iterable[Any] = next(iter(prepared.dataset.splits["train"].inputs.values()))
    alike = set(own.model_input_names) == set(other.model_input_names)
    if not alike or any(own(str(text)) != other(str(text)) for text in islice(texts, ROWS)):
        raise _refused(expected, f"one that cuts texts in another way: {teacher.artifact.path}", RESPONSE, field)
    longest = teacher.artifact.manifest.max_length
    if longest is not None and prepared.max_length > longest:
        todo = f"Set model.max_length={longest}."
        raise _refused(f"rows of at most {longest} tokens, as its teacher reads", f"{prepared.max_length}", todo, field)


def _require_attention(model: Any, field: str) -> None:
    if not is_attentive(model):
        got, todo = plain_model(model).config.model_type, "Learn hidden states and sentences alone."
        raise _refused(f"{ATTENTIVE}, where attention or relations are learned", got, todo, field)


def _same_heads(model: Any, teacher: Any) -> int:
    own, there = (int(plain_model(each).config.num_attention_heads) for each in (model, teacher))
    if own != there:
        todo = "Learn relations instead (distillation.relation): they are cut into heads of their own."
        raise _refused(f"{there} heads, as its teacher has", f"{own}", todo, "distillation.attention")
    return own


def _relation_heads(model: Any, teacher: Any, options: Distillation) -> int:
    """As many as the recipe says, else as the teacher has."""
    heads = options.relation_heads or int(plain_model(teacher).config.num_attention_heads)
    widths = _width_of(model), _width_of(teacher)
    if any(width % heads for width in widths):
        expected = f"a number that divides {widths[0]} and {widths[1]}, the widths of student and teacher"
        raise _refused(expected, f"{heads}", "Set distillation.relation_heads.", "distillation.relation_heads")
    return heads


def _width_of(model: Any) -> int:
    return int(plain_model(model).config.get_text_config().hidden_size)


RESPONSE = "Choose another teacher, or learn what it says alone: no hidden, attention, relation and sentences."


def _refused(expected: str, got: str, todo: str, field: str) -> RecipeError:
    return RecipeError(
        "The student cannot learn its teacher's states.", [Problem(expected, got, todo, Where(field=field))]
    )
