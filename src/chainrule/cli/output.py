"""How the commands speak: results on stdout, everything else on stderr, one JSON document with --json."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text as RichText

from chainrule.core.engine import Engine, outside_address
from chainrule.core.parsing import parse_setting
from chainrule.system.progress import Display, Quiet, Terminal, visible

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="Set any key of the recipe; repeatable.")
]
Text = Annotated[str | None, typer.Option(help="The column that holds the text.")]
TextA = Annotated[str | None, typer.Option(help="The column that holds the first text of a pair.")]
TextB = Annotated[str | None, typer.Option(help="The column that holds the second text of a pair.")]
Label = Annotated[str | None, typer.Option(help="The column that holds the label.")]
Score = Annotated[str | None, typer.Option(help="The column that holds the number to predict.")]
EngineName = Annotated[
    str | None, typer.Option("--engine", help="ray: workers on this machine, or on the cluster in RAY_ADDRESS.")
]
Workers = Annotated[int | None, typer.Option(min=1, help="With --engine: how many (default: one a GPU, or a machine).")]


class FromOutsideError(Exception):
    """The cluster in RAY_ADDRESS takes commands as jobs; this ends one here, before anything is read."""


def engine_of(name: str | None, workers: int | None) -> Engine | None:
    """What --engine and --workers ask for; None for this process.

    Raises:
        FromOutsideError: the command is for a cluster that this machine is not part of.
    """
    if name is not None:
        engine = Engine(name, workers)
        if outside_address() is not None:
            raise FromOutsideError
        return engine
    if workers is not None:
        raise typer.BadParameter("it goes with --engine ray", param_hint="--workers")
    return None


def display() -> Display:
    """Progress for people: stderr, always, so that stdout holds results alone."""
    return Terminal()


def quiet() -> Display:
    """No progress at all."""
    return Quiet()


def settings_of(flags: Mapping[str, Any], assignments: list[str] | None) -> dict[str, Any]:
    """Dotted recipe keys: the flags that were given, then every --set in order."""
    settings = {key: value for key, value in flags.items() if value is not None}
    return settings | dict(parse_setting(text) for text in assignments or [])


def print_json(value: Any) -> None:
    """One JSON document on stdout; numbers that JSON does not know become null."""
    text = json.dumps(_finite(value), ensure_ascii=False, indent=2, default=str) + "\n"
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode("utf-8"))  # half a surrogate pair as JSON's escape


def print_line(text: str = "") -> None:
    """A line of the result on stdout."""
    Console(highlight=False, soft_wrap=True).print(visible(text), markup=False)


def print_marked(text: str) -> None:
    """A row as a model reads it on stdout, what is learned of it between ⟦ and ⟧ and in colour."""
    marked = RichText()
    for piece in re.split("(⟦[^⟧]*⟧)", visible(text)):
        marked.append(piece, "bold green" if piece.startswith("⟦") else "dim")
    Console(highlight=False, soft_wrap=True).print(marked)


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table of the result on stdout."""
    print_line(title)  # a table's own title would be folded to the table's width
    table = Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, no_wrap=place == 0)
    for row in rows:
        table.add_row(*map(visible, row))
    Console(highlight=False, markup=False).print(table, markup=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
