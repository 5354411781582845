"""chainrule predict"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from chainrule import api
from chainrule.cli.output import EngineName, Json, Workers, display, engine_of, print_json, print_line


def predict(
    model: Annotated[Path, typer.Argument(help="A run folder or an artifact folder.")],
    source: Annotated[str | None, typer.Argument(help="A file of rows: CSV, TSV, JSONL, JSON or Parquet.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to write: .csv, .tsv, .jsonl; vectors: .npy, .safetensors.")
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text to label instead of a file; repeatable.")] = None,
    text_a: Annotated[str | None, typer.Option(help="The first text of a pair, instead of a file.")] = None,
    text_b: Annotated[str | None, typer.Option(help="The second text of a pair, instead of a file.")] = None,
    question: Annotated[str | None, typer.Option(help="A question about --context, instead of a file.")] = None,
    context: Annotated[str | None, typer.Option(help="The text that has the answer to --question.")] = None,
    query: Annotated[str | None, typer.Option(help="What --item is to be relevant to, instead of a file.")] = None,
    item: Annotated[str | None, typer.Option(help="The text whose relevance to --query is asked.")] = None,
    top: Annotated[int | None, typer.Option(help="The best items for each user of the file, so many.")] = None,
    column: Annotated[
        list[str] | None, typer.Option(metavar="FIELD=COLUMN", help="The column that holds a field, e.g. text=review.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="The longest reply, in tokens (default 256).")] = None,
    beams: Annotated[int | None, typer.Option(help="Beams of the search for the likeliest text (default 1).")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 (the default) writes what is most likely; above 0 replies are drawn.")
    ] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the likeliest tokens of this probability.")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides what is drawn at a temperature above 0.")] = None,
    engine: EngineName = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Label new rows, or write replies to them: the file's columns with the predictions beside them."""
    texts: Any = text or None
    pairs = ({"text_a": text_a, "text_b": text_b}, {"question": question, "context": context})
    for pair in (*pairs, {"query": query, "item": item}):
        texts = _paired(pair, texts)
    fields = dict(_field(pair) for pair in column or [])
    how = {"beams": beams, "temperature": temperature, "top_p": top_p}
    flags = {"max_new_tokens": max_new_tokens, **how, "seed": seed}
    writing: Any = {name: value for name, value in flags.items() if value is not None}
    writing["engine"] = engine_of(engine, workers)
    result = api.predict(model, source, text=texts, out=out, fields=fields, top=top, display=display(), **writing)
    if isinstance(result, int):
        if as_json:
            print_json({"rows": result, "out": str(out)})
        else:
            print_line(f"{result:,} rows written to {out}")
    elif as_json:
        print_json({"predictions": result})
    elif texts is not None:
        for row in result:
            _print_answer(row)
    else:
        writer = csv.DictWriter(sys.stdout, list(result[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(result)


def _paired(pair: dict[str, str | None], texts: Any) -> Any:
    """What is given so far, or the texts of a pair of flags."""
    names = list(pair)
    if all(text is None for text in pair.values()):
        return texts
    if None in pair.values() or texts is not None:
        first, second = (f"--{name.replace('_', '-')}" for name in names)
        told = f"{first} and {second} go together, without --text."
        raise typer.BadParameter(f"{told} To name a column of the file: --column {names[0]}=COLUMN", param_hint=first)
    return {name: [text] for name, text in pair.items()}


def _print_answer(row: dict[str, Any]) -> None:
    if "predicted_entities" in row:
        for entity in row["predicted_entities"]:
            keys = ("label", "text", "start", "end", "score")
            print_line("\t".join(str(entity[key]) for key in keys))
        if not row["predicted_entities"]:
            display().say("no entities")
        return
    if "predicted_answer" in row:
        told = [row["predicted_answer"], str(row["predicted_start"]), str(row["predicted_score"])]
        print_line("\t".join(told)) if row["predicted_answer"] else display().say("no answer")
        return
    if "predicted_text" not in row:
        print_line("\t".join(str(value) for value in row.values()))
        return
    print_line(row["predicted_text"])
    if not row["predicted_finished"]:
        display().say("warning: the reply had not ended when the limit of new tokens was reached (--max-new-tokens).")


def _field(pair: str) -> tuple[str, str]:
    field, equals, column = pair.partition("=")
    if not equals:
        raise typer.BadParameter(f"{pair!r} is not FIELD=COLUMN, e.g. text=review", param_hint="--column")
    return field, column
