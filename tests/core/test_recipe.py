"""Recipes: complete, frozen, no unknown keys, every problem at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainrule.core.parsing import merge, parse_setting
from chainrule.core.recipe import Recipe, parse_recipe, read_recipe
from chainrule.errors import RecipeError
from chainrule.strategies import make_strategy
from chainrule.tasks import find_task
from chainrule.training.optimizers import make_optimizer
from chainrule.training.schedules import make_schedule

pytestmark = pytest.mark.unit

MINIMAL = {"task": "text-classification", "model": "minilm"}


def messages(error: RecipeError) -> list[str]:
    return [str(problem) for problem in error.problems]


def test_a_minimal_recipe_is_completed_with_defaults() -> None:
    recipe = parse_recipe(MINIMAL)
    assert (recipe.task.name, recipe.model.name, recipe.strategy.name) == ("text-classification", "minilm", "full")
    assert set(Recipe.model_fields) == {
        "data", "task", "model", "strategy", "structure", "optimizer", "schedule", "loss", "regularisers",
        "distillation", "training", "seed", "choice", "prediction",
    }  # fmt: skip


def test_yaml_written_out_reads_back_the_same(tmp_path: Path) -> None:
    recipe = parse_recipe(MINIMAL | {"data": "reviews.csv", "seed": 7})
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml(), encoding="utf-8")
    assert read_recipe(file) == recipe


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(MINIMAL | {"optimiser": "adamw", "optimizer": {"learning_rate": -1.0}, "seed": -3})
    assert caught.value.message == "The recipe has 3 problems."
    assert messages(caught.value) == [
        "field 'optimizer.learning_rate': expected greater than 0, got -1.0. Change 'optimizer.learning_rate'.",
        "field 'seed': expected greater than or equal to 0, got -3. Change 'seed'.",
        "field 'optimiser': expected one of the keys choice, data, distillation, loss, model, optimizer, prediction, "
        "regularisers, schedule, seed, strategy, structure, task, training, got the unknown key 'optimiser'. Correct "
        "the spelling or remove it.",
    ]


def test_an_unknown_key_below_a_section_lists_the_keys_of_that_section() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(MINIMAL | {"structure": {"droput": 0.1}})
    assert messages(caught.value) == [
        "field 'structure.droput': expected one of the keys activation, add_tokens, attention_dropout, drop_layers, "
        "dropout, head, insert_blocks, keep_layers, pooling, reinitialise_top, got the unknown key 'droput'. "
        "Correct the spelling or remove it."
    ]


@pytest.mark.parametrize(
    ("value", "layers"),
    [("0-2", (0, 1, 2)), ("0, 2,4-5", (0, 2, 4, 5)), (3, (3,)), ("3", (3,)), ([0, 2], (0, 2)), ([], ())],
)
def test_layers_can_be_written_as_numbers_and_ranges(value: Any, layers: tuple[int, ...]) -> None:
    recipe = parse_recipe(MINIMAL | {"structure": {"keep_layers": value}})
    assert recipe.structure.keep_layers == layers
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe


def test_what_is_no_layer_number_says_what_one_is() -> None:
    structure = {"keep_layers": "5-3", "drop_layers": [-1], "insert_blocks": "top", "pooling": "sum"}
    with pytest.raises(RecipeError) as caught:
        parse_recipe(MINIMAL | {"structure": structure})
    assert messages(caught.value) == [
        "field 'structure.keep_layers': expected layer numbers such as [0, 2, 5] or 0-3, got '5-3'. "
        "Change 'structure.keep_layers'.",
        "field 'structure.drop_layers.0': expected greater than or equal to 0, got -1. "
        "Change 'structure.drop_layers.0'.",
        "field 'structure.insert_blocks': expected layer numbers such as [0, 2, 5] or 0-3, got 'top'. "
        "Change 'structure.insert_blocks'.",
        "field 'structure.pooling': expected 'cls', 'last', 'mean', 'max' or 'attention', got 'sum'. "
        "Change 'structure.pooling'.",
    ]


def test_only_dropout_leaves_the_model_what_it_is() -> None:
    structures = [{"dropout": 0.2}, {"keep_layers": [0]}, {"pooling": "mean"}]
    made = [parse_recipe(MINIMAL | {"structure": structure}).structure for structure in structures]
    assert [structure.makes_another_model for structure in made] == [False, True, True]


def test_a_missing_model_says_what_to_set() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe({"task": "regression"})
    assert messages(caught.value) == [
        "field 'model': expected a value, got nothing. Set 'model' in the recipe or by its flag."
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"- a list", "expected a mapping of recipe keys (data, task, model, …), got list."),
        (b"task: [unclosed", "line 1: expected valid YAML, got expected ',' or ']', but got '<stream end>'."),
        (b"task: \xff\xfe", "expected UTF-8 text, got undecodable bytes at 6."),
        (b"a: &x [1]\nb: *x", "line 2: expected valid YAML, got aliases (*name) are not allowed."),
        (b"task: !!python/object/apply:os.system [id]", "could not determine a constructor for the tag"),
        (b"task: !!python/name:os.system", "could not determine a constructor for the tag"),
        (b"task: !!python/module:os", "could not determine a constructor for the tag"),
        (b"seed: " + b"9" * 5_000, "expected valid YAML, got Exceeds the limit"),
        (b"seed: 2001-99-99", "expected valid YAML, got month must be in 1..12."),
        (b"seed: !!int abc", "expected valid YAML, got invalid literal for int"),
        (b"seed: !!timestamp abc", "expected valid YAML, got "),
        (b"task: a\0b", "expected valid YAML, got unacceptable character #x0000"),
        (b"a: " + b"x" * 200_000, "expected a file of at most 200,000 bytes, got 200,003 bytes."),
    ],
)
def test_unreadable_recipes_say_what_is_wrong(tmp_path: Path, content: bytes, problem: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        read_recipe(file)
    assert problem in messages(caught.value)[0]


def test_aliases_that_grow_without_bound_are_not_followed(tmp_path: Path) -> None:
    names = "abcdefghi"
    laughs = "a: &a [x, x, x, x, x, x, x, x]\n"
    laughs += "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 8)}]\n" for a, b in pairwise(names))
    file = tmp_path / "recipe.yaml"
    file.write_text(laughs, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        read_recipe(file)
    assert "line 2: expected valid YAML, got aliases (*name) are not allowed." in messages(caught.value)[0]
    flow = ", ".join(f"&{b} [{', '.join([f'*{a}'] * 8)}]" for a, b in pairwise(names))
    assert parse_setting(f"x=[&a [x], {flow}]")[1] == f"[&a [x], {flow}]"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model": "\ud800"}, r"field 'model': expected text that UTF-8 can write, got '\ud800'."),
        ({"data": {"fields": {"text": "\udcff"}}}, "field 'data.fields.text': expected text that UTF-8 can write"),
        ({"seed": 16**5_000}, "field 'seed': expected a whole number of at most 64 bits, got one of 20,001 bits."),
        ({"strategy": {"name": "lora", "options": {"a": b"x"}}}, "expected text or a number, got bytes: b'x'."),
        ({"loss": {"name": "a", "options": {"b": date(2001, 1, 1)}}}, "field 'loss.options.b': expected text or a"),
        ({None: 1}, "field 'None': expected a name as the key, got None."),
        ({"loss": {"name": "a", "options": {"b": {1: 2}}}}, "field 'loss.options.b.1': expected a name as the key"),
        ({"training": {"threads": 10**12}}, "field 'training.threads': expected less than or equal to 4096"),
    ],
)
def test_values_that_no_recipe_has(changes: dict[Any, Any], problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(MINIMAL | changes)
    assert problem in messages(caught.value)[0]


def test_values_inside_one_another_end_somewhere() -> None:
    deep: Any = 1
    for _ in range(300):
        deep = {"a": deep}
    with pytest.raises(RecipeError) as caught:
        parse_recipe(MINIMAL | {"loss": {"name": "a", "options": deep}})
    assert "expected at most 32 levels, got more of them." in messages(caught.value)[0]
    with pytest.raises(RecipeError, match="more than 32 keys in one another"):
        parse_recipe(merge(MINIMAL, {".".join("a" * 3_000): 1}))


SHELVES: dict[str, Callable[[Recipe], Any]] = {
    "task": lambda recipe: find_task(recipe.task.name),
    "strategy": lambda recipe: make_strategy(recipe.strategy),
    "optimizer": lambda recipe: make_optimizer(recipe.optimizer, []),
    "schedule": lambda recipe: make_schedule(recipe.schedule, 9),
    "loss": lambda recipe: find_task("text-classification").objective(recipe.loss, np.array([0, 1])),
}


@pytest.mark.parametrize("shelf", SHELVES)
@pytest.mark.parametrize("name", ["os.system", "builtins:eval", "../strategy", "__import__('os')"])
def test_a_path_to_code_is_a_name_that_is_on_no_shelf(shelf: str, name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        SHELVES[shelf](parse_recipe(MINIMAL | {shelf: name}))
    assert caught.value.message == f"There is no {shelf} {name!r}."


def test_a_missing_recipe_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe(tmp_path / "none.yaml")
    assert messages(caught.value) == [
        f"{tmp_path / 'none.yaml'}: expected a recipe file, got no such file. Correct the recipe file."
    ]


def test_deep_nesting_is_refused_not_crashed_on(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("task: " + "[" * 100_000, encoding="utf-8")
    with pytest.raises(RecipeError):
        read_recipe(file)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("optimizer.learning_rate=2e-5", "optimizer.learning_rate", 2e-5),
        ("strategy.options.top=2", "strategy.options.top", 2),
        ("training.group_by_length=false", "training.group_by_length", False),
        ("training.minutes=null", "training.minutes", None),
        ("data.fields.text=my column", "data.fields.text", "my column"),
        ("optimizer.options.betas=[0.9, 0.98]", "optimizer.options.betas", [0.9, 0.98]),
        ("data.source=*.csv", "data.source", "*.csv"),
        ("data.source=2001-99-99", "data.source", "2001-99-99"),
        ("data.source=!!python/name:os.system", "data.source", "!!python/name:os.system"),
        ("data.source=&a [*a]", "data.source", "&a [*a]"),
        ("data.source=" + "[" * 2_000, "data.source", "[" * 2_000),
        ("data.source=" + "9" * 5_000, "data.source", "9" * 5_000),
    ],
)
def test_settings_are_read_as_yaml(text: str, key: str, value: Any) -> None:
    assert parse_setting(text) == (key, value)


def test_a_setting_without_an_equals_sign() -> None:
    with pytest.raises(RecipeError, match="Cannot read --set 'epochs'"):
        parse_setting("epochs")


def test_settings_reach_below_a_shorthand() -> None:
    recipe = parse_recipe(MINIMAL).replace({"strategy": "partial", "strategy.options.top": 1})
    assert recipe.strategy.name == "partial"
    assert recipe.strategy.options == {"top": 1}


def test_a_setting_cannot_go_below_a_number() -> None:
    with pytest.raises(RecipeError, match=r"Cannot set 'seed\.low'|Cannot set 'low'"):
        parse_recipe(MINIMAL | {"seed": 1}).replace({"seed.low": 2})


@pytest.mark.parametrize(
    "given",
    ["r-drop", ["r-drop"], {"r-drop": None}, {"r-drop": {}}],
)
def test_regularisers_are_names_with_their_options(given: Any) -> None:
    assert parse_recipe(MINIMAL | {"regularisers": given}).regularisers == {"r-drop": {}}
    recipe = parse_recipe(MINIMAL).replace({"regularisers.l2-sp.strength": 0.01, "regularisers.fgm": None})
    assert recipe.regularisers == {"l2-sp": {"strength": 0.01}, "fgm": {}}


def test_a_name_and_what_stands_below_it_are_kept_in_any_order() -> None:
    changes = {"optimizer.learning_rate": 0.01, "optimizer": "sgd"}
    for ordered in (changes, dict(reversed(changes.items()))):
        optimizer = parse_recipe(merge(MINIMAL, ordered)).optimizer
        assert (optimizer.name, optimizer.learning_rate) == ("sgd", 0.01)


def test_options_of_the_tasks_own_loss_need_no_name() -> None:
    recipe = parse_recipe(merge(MINIMAL, {"loss.options.gamma": 1.0}))
    assert (recipe.loss.name, recipe.loss.options) == ("default", {"gamma": 1.0})


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"regularisers": [{"name": "fgm"}]},
            "field 'regularisers': expected names with their options, such as {l2-sp: {strength: 0.01}}, or a list of "
            "names, got [{'name': 'fgm'}]. Change 'regularisers'.",
        ),
        (
            {"training.averaging": {"name": "ema", "decay": 0.9}},
            "field 'training.averaging.decay': expected one of the keys name, options, got the unknown key 'decay'. "
            "Correct the spelling or remove it.",
        ),
        (
            {"training.averaging.options.decay": 0.9},
            "field 'training.averaging.name': expected a value, got nothing. Set 'training.averaging.name' in the "
            "recipe or by its flag.",
        ),
        (
            {"training.min_delta": -0.1},
            "field 'training.min_delta': expected greater than or equal to 0, got -0.1. Change 'training.min_delta'.",
        ),
    ],
)
def test_wrong_forms_say_what_is_right(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(merge(MINIMAL, changes))
    assert messages(caught.value) == [problem]


@given(st.dictionaries(st.text(max_size=8), st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists)))
def test_any_mapping_is_a_recipe_or_a_recipe_error(values: dict[str, Any]) -> None:
    with contextlib.suppress(RecipeError):
        assert parse_recipe(values).task.name


@given(st.dictionaries(st.sampled_from(["a", "a.b", "a.b.c", "d"]), st.integers(), max_size=3))
def test_merge_never_changes_its_input(changes: dict[str, int]) -> None:
    values: dict[str, Any] = {"a": {"b": {"c": 0}}, "d": {}}
    with contextlib.suppress(RecipeError):
        merge(values, changes)
    assert values == {"a": {"b": {"c": 0}}, "d": {}}
