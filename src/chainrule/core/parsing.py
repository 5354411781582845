"""Reading recipes: YAML and `--set` to plain values, and what is wrong with them in our form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import date, time
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from chainrule.errors import Problem, RecipeError, Where

MAX_RECIPE_BYTES = 200_000
MAX_DEPTH = 32  # of mappings and lists inside one another
_BAD_SCALARS = (ValueError, AttributeError, RecursionError)  # what PyYAML raises for numbers and dates that are none


def read_yaml(path: Path) -> Any:
    """The plain values of a recipe file.

    Raises:
        RecipeError: the file is missing, too large, or is not YAML.
    """
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise _unreadable(path, f"a file of at most {MAX_RECIPE_BYTES:,} bytes", f"{path.stat().st_size:,} bytes")
        text = path.read_text(encoding="utf-8")
        return _number(yaml.load(text, Loader=_Loader))
    except FileNotFoundError:
        raise _unreadable(path, "a recipe file", "no such file") from None
    except IsADirectoryError:
        raise _unreadable(path, "a recipe file", "a folder") from None
    except OSError as error:  # no permission, a name too long
        raise _unreadable(path, "a recipe file", error.strerror or str(error)) from None
    except UnicodeDecodeError as error:
        raise _unreadable(path, "UTF-8 text", f"undecodable bytes at {error.start}") from None
    except (yaml.YAMLError, *_BAD_SCALARS) as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise _unreadable(path, "valid YAML", reason, line=mark.line + 1 if mark else None) from None


def merge(values: Any, changes: Mapping[str, Any]) -> Any:
    """Copy nested `values` with dotted-key `changes` applied; a change of None removes nothing, it sets null.

    Whole sections come first, whatever the order: {"optimizer.learning_rate": …, "optimizer": "sgd"} keeps both.
    """
    if not changes:
        return values
    result = dict(values) if isinstance(values, Mapping) else values
    for key, value in sorted(changes.items(), key=lambda change: change[0].count(".")):
        head, _, rest = key.partition(".")
        if not isinstance(result, dict) or key.count(".") > MAX_DEPTH:
            problem = Problem(
                where=Where(field=key[:80]),
                expected=f"a mapping above {key[:80]!r}",
                got=_shown(result) if key.count(".") <= MAX_DEPTH else f"more than {MAX_DEPTH} keys in one another",
                todo="Remove this --set, or turn the value above it into a mapping.",
            )
            raise RecipeError(f"Cannot set {key[:80]!r}.", [problem])
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
        parsed = yaml.load(value, Loader=_Loader)
    except (yaml.YAMLError, *_BAD_SCALARS):
        parsed = value  # plain text, such as *.csv or a date that is none
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
    return Problem(where=where, expected=message[:200], got=_shown(got), todo=f"Change {path!r}.")


def unusual_values(value: Any, where: Where, depth: int = 0) -> Iterator[Problem]:
    """What a recipe never holds: texts that cannot be written, endless numbers, bytes, dates, keys that are no text."""
    if isinstance(value, Mapping | list | tuple):
        if depth == MAX_DEPTH:
            yield Problem(f"at most {MAX_DEPTH} levels", "more of them", "Write it flat.", where)
            return
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, inner in pairs:
            place = replace(where, field=f"{where.field}.{key}" if where.field else str(key))
            if isinstance(value, Mapping) and not _is_text(key):
                yield Problem("a name as the key", _shown(key), "Correct the key.", place)
            else:
                yield from unusual_values(inner, place, depth + 1)
    elif isinstance(value, str) and not _is_text(value):
        yield Problem("text that UTF-8 can write", _shown(value), "Correct the text, or rename the file.", where)
    elif isinstance(value, int) and abs(value) >= 2**63:
        got = f"one of {value.bit_length():,} bits"
        yield Problem("a whole number of at most 64 bits", got, "Choose a smaller number.", where)
    elif isinstance(value, bytes | date | time | set):
        yield Problem("text or a number", f"{type(value).__name__}: {_shown(value)}", "Put quotes around it.", where)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _shown(value: Any) -> str:
    text = ascii(value) if isinstance(value, str) and not _is_text(value) else repr(value)
    return text if len(text) <= 80 else text[:80] + "…"


def _known_keys(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    current: Any = model
    for part in location:
        if isinstance(part, int):  # an item of a list of sections
            continue
        info = getattr(current, "model_fields", {}).get(part)
        current = _section(info.annotation) if info is not None else None
    return sorted(getattr(current, "model_fields", {}))


def _section(annotation: Any) -> Any:
    """The section in a type such as `Section | None` or `tuple[Section, ...]`."""
    parts = get_args(annotation)
    return (
        next(filter(None, map(_section, parts)), None) if parts else hasattr(annotation, "model_fields") and annotation
    )


class _Loader(yaml.SafeLoader):
    """Plain YAML without aliases: a recipe needs none, and nested ones can grow without bound."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.constructor.ConstructorError(None, None, "aliases (*name) are not allowed", event.start_mark)
        return super().compose_node(parent, index)


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
