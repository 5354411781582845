"""Which column holds which field of the task: named by the user, recorded at training, or known by convention."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from chainrule.core.task import FieldSpec, Task
from chainrule.data.chat import MESSAGES, PLAIN, TOOLS
from chainrule.data.flaws import shorten
from chainrule.data.relations import FORMS, NEGATIVE
from chainrule.errors import DataError, Problem, Where

_PAIR = ("text_a", "text_b")
_FLAG = re.compile(r"--(?:set data\.fields\.)?([a-z_-]+)[ =]COLUMN")


def find_fields(
    columns: Sequence[str],
    task: Task,
    *,
    named: Mapping[str, str],
    recorded: Mapping[str, str] | None = None,
    with_target: bool = True,
    file: str | None = None,
) -> dict[str, str]:
    """Map the task's fields to columns.

    A column named by the user wins; then the one recorded when the model was trained, if it is there; then the
    field's aliases, in their order and whatever their case. Of a task whose text fields are all optional one is taken,
    or `text_a` and `text_b` together.

    Args:
        columns: the column names there are.
        named: field -> column, as the user asked.
        recorded: field -> column of an earlier training; it also decides between one text and a pair.
        with_target: whether the label is needed. Predicting does not need it.

    Raises:
        DataError: a named column does not exist, a field's column cannot be found, or the choice is ambiguous.
    """
    named = task.named(named)
    problems = _check_named(columns, task, named, recorded or {}, file)
    if problems:
        raise _unfit(problems, with_target)
    found = {spec.name: _find(spec, columns, named, recorded or {}) for spec in task.fields}
    if task.embeds and not with_target:
        return _one_text(task, found, named, recorded or {}, (columns, file))
    if task.target.kind == "relation":
        return _relation(found, named, recorded or {}, (columns, file))
    if task.converses:
        if _is_plain(task, found, named, with_target or PLAIN in (recorded or {})):
            return {PLAIN: str(found[PLAIN])}
        return _conversation(task, found, named, (columns, file), with_target)
    if task.target.kind == "relevances":
        return _lists(task, found, named, (columns, file), with_target)
    inputs, problems = _inputs(task, found, named, recorded, (columns, file))
    if with_target and found[task.target.name] is None:
        problems.append(_missing([task.target], columns, file))
    chosen = [name for name in inputs if found[name] is not None]
    target = [task.target.name] if with_target else []
    mapping = {name: column for name in [*chosen, *target] if (column := found[name]) is not None}
    for column in sorted({column for column in mapping.values() if list(mapping.values()).count(column) > 1}):
        names = " and ".join(name for name, other in mapping.items() if other == column)
        got = f"the column {column!r} for {names}"
        problems.append(Problem("a column of its own for each field", got, _naming(names.split(" and ")), Where(file)))
    if problems:
        raise _unfit(problems, with_target)
    return mapping


def _is_plain(task: Task, found: Mapping[str, str | None], named: Mapping[str, str], allowed: bool) -> bool:
    """Whether rows are texts, and no conversations: where they are called so, or nothing else can be made of them."""
    if found.get(PLAIN) is None or PLAIN in named:
        return PLAIN in named
    whole, others = found[MESSAGES], (task.inputs[0].name, task.target.name)
    lacking = any(found[name] is None for name in others) and not {*others, MESSAGES} & named.keys()
    return allowed and whole is None and lacking


def _conversation(
    task: Task,
    found: Mapping[str, str | None],
    named: Mapping[str, str],
    place: tuple[Sequence[str], str | None],
    with_target: bool,
) -> dict[str, str]:
    """A column of whole conversations where there is one, else the prompt, what goes with it, and the reply."""
    columns, file = place
    specs = {spec.name: spec for spec in task.fields}
    whole = next(spec.name for spec in task.fields if spec.kind == "messages")
    prompt, targets = task.inputs[0].name, [spec.name for spec in task.targets] if with_target else []
    extra = [spec.name for spec in task.inputs if spec.name not in (whole, prompt, PLAIN)]
    in_whole = task.target.kind == "reply"  # the reply is a part of the conversation
    if found[whole] is not None and (whole in named or not {prompt, task.target.name} & named.keys()):
        chosen, needed = [whole, *(name for name in extra if name in (*named, TOOLS))], [] if in_whole else targets
        chosen += needed
    elif not in_whole and with_target and found[prompt] is None:  # the replies bring their own turns
        chosen, needed = [TOOLS, *targets], targets
    else:
        needed = [prompt, *targets]
        chosen = [prompt, *extra, *targets]
    missing = [specs[name] for name in needed if found[name] is None]
    if missing:
        raise _unfit([_missing([spec], columns, file) for spec in missing], with_target)
    mapping: dict[str, str] = {}
    for name in sorted(chosen, key=lambda name: (name not in named, name in extra)):
        column = found[name]
        if column is not None and column not in mapping.values():
            mapping[name] = column
    return {name: mapping[name] for name in chosen if name in mapping}


def _relation(
    found: Mapping[str, str | None],
    named: Mapping[str, str],
    recorded: Mapping[str, str],
    place: tuple[Sequence[str], str | None],
) -> dict[str, str]:
    """An anchor with its positive, and perhaps a negative; or a text with its label.

    Where both are there, what was named decides, else what was trained on.
    """
    columns, file = place
    asked = [form for form in FORMS if any(name in named for name in form)] or [*FORMS]
    complete = [form for form in asked if all(found[name] is not None for name in form)]
    if len(complete) > 1:
        complete = [form for form in complete if all(name in recorded for name in form)] or complete
    if len(complete) != 1:
        expected = " or ".join(f"columns for {' and '.join(form)}" for form in asked)
        got = f"both, among {_list(columns)}" if complete else _list(columns)
        flags = " or ".join(" ".join(map(_flag, form)) for form in asked)
        todo = f"Say which they are: {flags}. (Pairs with a score are for --task sentence-similarity.)"
        raise _unfit([Problem(expected, got, todo, Where(file=file))], with_target=True)
    (form,) = complete
    wanted = [*form, NEGATIVE] if form == FORMS[0] else [*form]
    mapping = {name: column for name in wanted if (column := found[name]) is not None}
    if len(set(mapping.values())) < len(mapping):
        got, where = ", ".join(mapping.values()), Where(file)
        problem = Problem("a column of its own for each field", got, _naming(list(mapping)), where)
        raise _unfit([problem], with_target=True)
    return mapping


def _one_text(
    task: Task,
    found: Mapping[str, str | None],
    named: Mapping[str, str],
    recorded: Mapping[str, str],
    place: tuple[Sequence[str], str | None],
) -> dict[str, str]:
    """The one column whose texts become vectors: as named, else as recorded of the first field, else by its name."""
    known = [spec.name for spec in task.inputs]
    ordered = [name for names in (named, recorded, known) for name in names if name in known]
    column = next((found[name] for name in ordered if found[name] is not None), None)
    if column is None:
        raise _unfit([_missing([task.inputs[0]], *place)], with_target=False)
    return {"text": column}


def _lists(
    task: Task,
    found: Mapping[str, str | None],
    named: Mapping[str, str],
    place: tuple[Sequence[str], str | None],
    with_target: bool,
) -> dict[str, str]:
    """Queries with texts where the rows have both, else users with items."""
    columns, file = place
    specs = {spec.name: spec for spec in task.fields}
    texts, users = ("query", "item"), ("user", "item_id")
    whole = {form: all(found[name] is not None for name in form) for form in (texts, users)}
    by_user = whole[users] and (not whole[texts] or any(name in named for name in users))
    if not any(whole.values()):
        got = sum(found[name] is not None for name in users) > sum(found[name] is not None for name in texts)
        missing = [specs[name] for name in (users if got else texts) if found[name] is None]
        raise _unfit([_missing([spec], columns, file) for spec in missing], with_target)
    if by_user:
        chosen = [*users, *(name for name in ("rating", "timestamp") if with_target and found[name] is not None)]
    else:
        chosen = [*texts, *([task.target.name] if with_target else [])]
    if any(found[name] is None for name in chosen):
        raise _unfit([_missing([task.target], columns, file)], with_target)
    return {name: str(found[name]) for name in chosen}


def check_columns(columns: Sequence[str], fields: Mapping[str, str], file: str | None) -> list[Problem]:
    """Problems of a further split in which a column found in the first one is missing."""
    return [
        Problem(
            f"the column {column!r} as in the other splits",
            _list(columns),
            "Name the columns alike.",
            Where(file, field=name),
        )
        for name, column in fields.items()
        if column not in columns
    ]


def _find(spec: FieldSpec, columns: Sequence[str], named: Mapping[str, str], recorded: Mapping[str, str]) -> str | None:
    for mapping in (named, recorded):
        if mapping.get(spec.name) in columns:
            return mapping[spec.name]
    folded: dict[str, str] = {}
    for column in columns:
        folded.setdefault(column.casefold(), column)
    for alias in (spec.name, *spec.aliases):
        if alias in columns:
            return alias
        if alias.casefold() in folded:
            return folded[alias.casefold()]
    return None


def _inputs(
    task: Task,
    found: Mapping[str, str | None],
    named: Mapping[str, str],
    recorded: Mapping[str, str] | None,
    place: tuple[Sequence[str], str | None],
) -> tuple[list[str], list[Problem]]:
    """The names of the input fields to use."""
    columns, file = place
    specs = {spec.name: spec for spec in task.inputs}
    required = [spec.name for spec in task.inputs if spec.required]
    alternatives = [[name] for name in specs if name not in _PAIR]
    alternatives += [[*_PAIR]] if specs.keys() >= set(_PAIR) else []
    if required:
        wanted = list(specs) if recorded is None else [name for name in specs if name in recorded] or list(specs)
    else:
        by_hand = [names for names in alternatives if any(name in named for name in names)]
        before = [names for names in alternatives if any(name in (recorded or {}) for name in names)]
        complete = [names for names in alternatives if all(found[name] is not None for name in names)]
        if task.target.kind == "spans":  # what was trained on words reads texts, too
            before = [names for names in before if names in complete and not by_hand]
        possible = before or by_hand or complete
        if before and any(names not in before for names in by_hand):
            got = f"a column named for {', '.join(name for names in by_hand for name in names if name in named)}"
            expected = f"columns for {' and '.join(before[0])}, which this model was trained on"
            return [], [Problem(expected, got, _naming(before[0]), Where(file))]
        if len(possible) > 1:
            got = " and ".join(", ".join(f"{name} ({found[name]!r})" for name in names) for names in possible)
            todo = _naming([name for names in possible for name in names][:1])
            choices = ["a pair of texts" if names == [*_PAIR] else f"one {names[0]}" for names in alternatives]
            return [], [Problem(f"either {' or '.join(choices)}", f"both: {got}", todo, Where(file))]
        wanted = possible[0] if possible else []
    missing = [specs[name] for name in (required or wanted) if found[name] is None]
    if missing:
        return wanted, [_missing([spec], columns, file) for spec in missing]
    if not wanted:
        return [], [_missing(list(specs.values()), columns, file)]
    return wanted, []


def _check_named(
    columns: Sequence[str], task: Task, named: Mapping[str, str], recorded: Mapping[str, str], file: str | None
) -> list[Problem]:
    problems = []
    known = [spec.name for spec in task.fields]
    for name, column in named.items():
        where = Where(file=file, field=name)
        if name not in known:
            got = f"{name!r}"
            problems.append(Problem(f"a field of {task.name}: {', '.join(known)}", got, "Name one of these.", where))
        elif column not in columns and recorded.get(name) != column:
            problems.append(Problem(f"the column {column!r}", _list(columns), _naming([name]), where))
    return problems


def _missing(specs: Sequence[FieldSpec], columns: Sequence[str], file: str | None) -> Problem:
    names = [spec.name for spec in specs]
    wanted, todo = (
        "either text, or text_a and text_b",
        "Say which they are: --text COLUMN, or --text-a COLUMN --text-b COLUMN.",
    )
    if len(specs) > 1 and _PAIR[0] not in names:
        wanted, todo = f"either {' or '.join(names)}", f"Say which it is: {' or '.join(map(_flag, names))}."
    if len(specs) == 1:
        others = ", ".join(alias for alias in specs[0].aliases if alias != names[0])
        wanted, todo = names[0] + (f" (also found as {others})" if others else ""), _naming(names)
    if len(columns) == 1:
        separator = next((mark for mark in (";", "\t", "|") if mark in columns[0]), None)
        if separator is not None:
            todo = f"The cells seem to be separated by {separator!r}: save the file with commas, or with tabs as .tsv."
    field = specs[0].name if len(specs) == 1 else None
    return Problem(f"a column for {wanted}", _list(columns), todo, Where(file=file, field=field))


def _unfit(problems: Sequence[Problem], with_target: bool) -> DataError:
    if not with_target:  # `predict` names columns by --column: its --text is a text
        problems = [replace(problem, todo=_FLAG.sub(_by_column, problem.todo)) for problem in problems]
    return DataError("The columns of the data do not fit the task.", problems)


def _by_column(flag: re.Match[str]) -> str:
    return f"--column {flag[1].replace('-', '_')}=COLUMN"


def _naming(names: Sequence[str]) -> str:
    flags = " ".join(_flag(name) for name in names)
    return f"Say which column it is: {flags}."


def _flag(name: str) -> str:
    if name not in ("text", *_PAIR, "label", "labels", "score"):
        return f"--set data.fields.{name}=COLUMN"
    return f"--{'label' if name == 'labels' else name.replace('_', '-')} COLUMN"


def _list(columns: Sequence[str]) -> str:
    shown = ", ".join(shorten(column) for column in columns[:30])
    return f"the column{'' if len(columns) == 1 else 's'} {shown}" + (" …" if len(columns) > 30 else "")
