"""The parts of the report below the curves: errors, classes, the data check, recipe, environment, use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from chainrule.evaluation.charts import bar, heat_map, scatter
from chainrule.evaluation.judgement import quote, short_path
from chainrule.evaluation.languages import Words, both, named, say
from chainrule.evaluation.plain_use import ANSWERS, GENERATION, RANKING, WRITTEN, plain_use
from chainrule.evaluation.quantities import count_text, finite, listed, mapping, metric_text
from chainrule.evaluation.record import Record
from chainrule.evaluation.verdicts import baseline_name

MATRIX_CLASSES = 20
TABLE_ROWS = 20
PROBLEMS = 20
_OF_LISTS = {"ndcg": "ndcg@10", "recall": "recall@10"}
_APART = ("known_users", "new_users", "new_items")


def errors(record: Record) -> dict[str, Any]:
    """Where the model errs: a heat map, a scatter, or a table of the most frequent mistakes; empty if unknown."""
    detail = mapping(record.evaluation.get("detail"))
    found: dict[str, Any] = dict.fromkeys(("heat_map", "confusions", "several", "scatter", "sample", "residuals"))
    labels = [str(label) for label in listed(detail.get("labels"))]
    matrix = _matrix(mapping(detail.get("confusion")).get("matrix"), len(labels))
    if matrix and len(labels) <= MATRIX_CLASSES:
        right = sum(row[index] for index, row in enumerate(matrix))
        about = say(
            "alt.confusion", classes=len(labels), right=count_text(right), rows=count_text(sum(map(sum, matrix)))
        )
        names = (say("chart.true"), say("chart.predicted"))
        found["heat_map"] = heat_map(matrix, labels, about=about, names=names)
    confusions = [mapping(item) for item in listed(detail.get("confusions"))]
    if confusions or "confusions" in detail:
        several = detail.get("kind") == "classes"
        found["confusions"] = {
            "several": several,
            "about": say("confusions.several") if several else None,
            "rows": [_confusion(item, confusions) for item in confusions[: 8 if found["heat_map"] else TABLE_ROWS]],
        }
        if detail.get("kind") == "spans":
            kinds = {key: count_text(value) for key, value in mapping(detail.get("errors")).items()}
            found["confusions"]["about"] = say("confusions.spans", **kinds)
        elif not several and not found["heat_map"] and confusions:
            found["confusions"]["about"] = say(
                "confusions.about", classes=len(labels), shown=min(len(confusions), TABLE_ROWS)
            )
    if detail.get("kind") == "answers":
        kinds = {key: count_text(value) for key, value in mapping(detail.get("errors")).items()}
        found["several"] = say("errors.answers", **kinds)
    if detail.get("kind") == "relation":
        keys = ("searches", "found_first", "found_in_ten")
        found["several"] = say("errors.relation", **{key: count_text(detail.get(key)) for key in keys})
    if detail.get("kind") == "lists":
        found["several"] = _lists(detail)
    found |= _regression(detail)
    per_row = mapping(detail.get("labels_per_row"))
    if per_row:
        values = {key: f"{finite(per_row.get(key)) or 0.0:.2f}" for key in ("targets", "predicted")}
        found["several"] = say("several.about", empty=count_text(detail.get("rows_without_prediction")), **values)
    return found if any(found.values()) else {}


def written(record: Record) -> dict[str, Any]:
    """A few texts that were written: {"about", "examples": [{"row", "texts": [(title, text)]}]}; empty where none."""
    told = mapping(mapping(record.evaluation.get("detail")).get("written"))
    examples = []
    for item in map(mapping, listed(told.get("examples"))):
        texts = [(say("written.source"), str(item.get("source", "")))]
        texts += [(say("written.reference"), str(text)) for text in listed(item.get("references"))]
        texts.append((say("written.model"), str(item.get("written", ""))))
        others = mapping(item.get("others")).items()
        texts += [(Words(baseline_name(name, "en"), baseline_name(name, "zh")), str(text)) for name, text in others]
        examples.append({"row": count_text(item.get("row")), "texts": texts})
    if not examples:
        return {}
    about = say("written.about", rows=count_text(told.get("rows")), of=count_text(told.get("of")))
    return {"about": about, "examples": examples}


def classes(record: Record) -> dict[str, Any]:
    """The per-class table: {"rows": [...], "worst": [...]}; `worst` only where there are many classes."""
    raw = [mapping(item) for item in listed(mapping(record.evaluation.get("detail")).get("per_class"))]
    if not raw:
        return {}
    most = max((finite(item.get("support")) or 0.0) for item in raw) or 1.0
    rows: list[dict[str, Any]] = [
        {
            "label": str(item.get("label", "")),
            "scores": [metric_text("f1", item.get(key), unit=False) for key in ("precision", "recall", "f1")],
            "bar": bar(finite(item.get("f1")) or 0.0, "bar"),
            "support": count_text(item.get("support")),
            "support_bar": bar((finite(item.get("support")) or 0.0) / most, "quiet", 60),
            "f1": finite(item.get("f1")) or 0.0,
            "seen": (finite(item.get("support")) or 0.0) > 0,
        }
        for item in raw
    ]
    if len(rows) <= TABLE_ROWS:
        return {"rows": rows, "worst": []}
    worst = sorted((row for row in rows if row["seen"]), key=lambda row: row["f1"])[:10]
    return {"rows": rows, "worst": worst}


def data_check(record: Record) -> dict[str, Any]:
    """What the check found: facts, findings with row numbers, splits, label counts; empty if there was no check."""
    check = record.check
    if not check:
        return {}
    facts = [
        (
            say("check.source"),
            both(short_path(mapping(record.resolved.get("data")).get("source") or check.get("source", ""))),
        )
    ]
    fields = mapping(check.get("fields"))
    if fields:
        pairs = [f"{name} ← {column}" if name != column else str(column) for name, column in fields.items()]
        facts.append((say("check.fields"), both(", ".join(pairs))))
    if finite(check.get("max_length")) is not None:
        facts.append((say("check.max_length"), say("check.tokens", count=count_text(check["max_length"]))))
    problems = [mapping(item) for item in listed(check.get("problems"))]
    return {
        "facts": facts,
        "findings": findings(check.get("findings")),
        "evaluated": findings(record.evaluation.get("findings")),
        "example": next((str(mapping(each).get("text") or "") for each in listed(check.get("examples"))), ""),
        "problems": [(_place(item), say("check.problem", **_told(item))) for item in problems[:PROBLEMS]],
        "more": max(0, len(problems) - PROBLEMS),
        "splits": _splits(mapping(check.get("splits"))),
        "balance": _balance(mapping(check.get("splits"))),
    }


def findings(raw: Any) -> list[dict[str, Any]]:
    """Findings for a person, the severe ones first."""
    order = {"error": 0, "warning": 1}
    found = sorted((mapping(item) for item in listed(raw)), key=lambda item: order.get(str(item.get("severity")), 2))
    return [
        {
            "severity": str(item.get("severity", "info")),
            "severity_name": named("severity", item.get("severity", "info")),
            "title": named("finding", item.get("kind", "")),
            "count": count_text(item["count"]) if item.get("count") else "",
            "split": named("split", item["split"]) if item.get("split") else None,
            "message": str(item.get("message", "")),
            "todo": str(item.get("todo", "")),
            "rows": _rows(item),
        }
        for item in found
    ]


def recipe(record: Record) -> dict[str, Any]:
    """The resolved recipe by section: {"groups": [(name, [(key, value, decided)])], "resolved": bool}; or empty."""
    source = record.resolved or record.asked
    if not source:
        return {}
    asked = dict(_flat(record.asked)) if record.resolved else {}
    groups: dict[str, list[tuple[str, str, bool]]] = {}
    for key, value in _flat(source):
        group, _, rest = key.partition(".")
        decided = (
            bool(asked) and value is not None and key in asked and asked[key] in (None, "auto") and asked[key] != value
        )
        if value == {}:
            continue
        groups.setdefault(group if rest else "", []).append((rest or group, _shown(value), decided))
    return {"groups": sorted(groups.items(), key=lambda item: item[0] == ""), "resolved": bool(record.resolved)}


def environment(record: Record) -> list[tuple[Words, str]]:
    """What the run ran on, name and value."""
    known = [(key.removeprefix("packages."), value) for key, value in _flat(record.environment) if value is not None]
    return [(named("environment", key), _shown(value)) for key, value in known]


def usage(record: Record) -> list[tuple[Words, str]]:
    """Commands to use the model, title and text; empty as long as there is none."""
    if not record.finished:
        return []
    name = quote(record.name)
    use, out = {GENERATION: ("replies", "replies"), WRITTEN: ("written", "written")}.get(
        record.task, ("predict", "labelled")
    )
    found = [(say(f"use.{use}"), f"chainrule predict {name} new.csv --out {out}.csv")]
    if record.task == ANSWERS:
        found.append((say("use.question"), f'chainrule predict {name} --question "…" --context "…"'))
    elif record.task == RANKING:
        found.append((say("use.pair"), f'chainrule predict {name} --query "…" --item "…"'))
    elif "text_b" not in mapping(record.check.get("fields")):
        found.append((say("use.text"), f'chainrule predict {name} --text "…"'))
    found.append((say("use.evaluate"), f"chainrule evaluate {name} other.csv"))
    folder, base = repr(record.name.rstrip("/") + "/artifact"), repr(str(record.manifest.get("base_model", "")))
    options = mapping(mapping(record.resolved.get("task")).get("options"))
    loads_in = listed(record.manifest.get("loads_in") or ["transformers"])
    plain = plain_use(record.task, loads_in, folder, base, options, mapping(record.manifest.get("fields")))
    return [*found, (say("use.plain"), plain)] if plain else found


def row_list(rows: Iterable[int]) -> str:
    """Row numbers with runs joined: 3, 7–9, 12."""
    parts: list[list[int]] = []
    for row in sorted(set(rows)):
        if parts and row == parts[-1][1] + 1:
            parts[-1][1] = row
        else:
            parts.append([row, row])
    return ", ".join(str(a) if a == b else f"{a}, {b}" if b == a + 1 else f"{a}–{b}" for a, b in parts)


def _matrix(raw: Any, size: int) -> list[list[float]]:
    rows = [[finite(value) or 0.0 for value in listed(row)] for row in listed(raw)]
    return rows if size and len(rows) == size and all(len(row) == size for row in rows) else []


def _confusion(item: Mapping[str, Any], every: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    most = max((finite(other.get("count")) or 0.0) for other in every) or 1.0
    return {
        "target": str(item.get("target", "")),
        "predicted": str(item.get("predicted", "")),
        "count": count_text(item.get("count")),
        "share": metric_text("recall", item.get("share")),
        "bar": bar((finite(item.get("count")) or 0.0) / most, "bar", 60),
    }


def _regression(detail: Mapping[str, Any]) -> dict[str, Any]:
    sample = mapping(detail.get("scatter"))
    pairs = [
        (x, y)
        for x, y in zip(
            map(finite, listed(sample.get("targets"))), map(finite, listed(sample.get("predictions"))), strict=False
        )
        if x is not None and y is not None
    ]
    if not pairs:
        return {}
    rows = count_text(detail.get("rows") or len(pairs))
    names = (say("chart.true"), say("chart.predicted"))
    chart = scatter([x for x, _ in pairs], [y for _, y in pairs], about=say("alt.scatter", rows=rows), names=names)
    shown = count_text(len(pairs))
    note = say("chart.sample", shown=shown, rows=rows) if shown != rows else None
    return {"scatter": chart, "sample": note, "residuals": _residuals(mapping(detail.get("residuals")))}


def _lists(detail: Mapping[str, Any]) -> Words:
    """What was ranked, and how lists fare whose user or items training rows lack."""
    values = {key: f"{finite(detail.get(key)) or 0.0:g}" for key in ("candidates", "relevant")}
    told = [say("errors.lists", lists=count_text(detail.get("rows")), **values)]
    for name, scores in mapping(detail.get("apart")).items():
        own = mapping(scores)
        metrics = {key: metric_text(metric, own.get(metric)) for key, metric in _OF_LISTS.items()}
        if name in _APART:
            told.append(say(f"errors.lists.{name}", lists=count_text(own.get("lists")), **metrics))
    return Words(" ".join(words.en for words in told), "".join(words.zh for words in told))


def _residuals(raw: Mapping[str, Any]) -> list[tuple[Words, Words]]:
    found = [
        (say(f"residuals.{key}"), both(metric_text("rmse", raw[key])))
        for key in ("mean_absolute", "mean")
        if finite(raw.get(key)) is not None
    ]
    quantiles = mapping(raw.get("quantiles"))
    for key, low, high in (("half", "0.25", "0.75"), ("most", "0.05", "0.95")):
        if finite(quantiles.get(low)) is not None and finite(quantiles.get(high)) is not None:
            ends = {"low": metric_text("rmse", quantiles[low]), "high": metric_text("rmse", quantiles[high])}
            found.append((say(f"residuals.{key}"), say("residuals.range", **ends)))
    return found


def _rows(item: Mapping[str, Any]) -> Words | None:
    rows = [int(row) for row in map(finite, listed(item.get("rows"))) if row is not None]
    if not rows:
        return None
    more = int(finite(item.get("count")) or 0) - len(rows)
    if more > 0:
        return say("check.rows.more", rows=row_list(rows), more=f"{more:,}")
    return say("check.rows", rows=row_list(rows))


def _place(problem: Mapping[str, Any]) -> str:
    where = mapping(problem.get("where"))
    parts = [short_path(where["file"])] if where.get("file") else []
    parts += [f"{key} {where[key]}" for key in ("row", "line", "field") if where.get(key) is not None]
    return ", ".join(parts)


def _told(problem: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(problem.get(key, "")) for key in ("expected", "got", "todo")}


def _splits(splits: Mapping[str, Any]) -> dict[str, Any]:
    total = sum(finite(mapping(split).get("rows")) or 0.0 for split in splits.values()) or 1.0
    lengths = list(dict.fromkeys(key for split in splits.values() for key in mapping(mapping(split).get("lengths"))))
    paths = {str(mapping(split).get("file") or "") for split in splits.values()}
    rows = [
        {
            "name": named("split", name),
            "rows": count_text(mapping(split).get("rows")),
            "share": f"{100 * (finite(mapping(split).get('rows')) or 0.0) / total:.0f}",
            "file": short_path(mapping(split).get("file") or ""),
            "lengths": [_length(mapping(mapping(split).get("lengths")).get(key)) for key in lengths],
        }
        for name, split in splits.items()
    ]
    if not rows:
        return {}
    return {"lengths": [named("length", key) for key in lengths], "rows": rows, "files": len(paths) > 1}


def _length(value: Any) -> str:
    number = finite(value)
    return "–" if number is None else f"{number:,.0f}" if number >= 30 or number == int(number) else f"{number:.1f}"


def _balance(splits: Mapping[str, Any]) -> dict[str, Any]:
    counts = {name: mapping(mapping(split).get("labels")) for name, split in splits.items()}
    counts = {name: labels for name, labels in counts.items() if labels}
    if not counts:
        return {}
    first = next(iter(counts.values()))
    labels = list(dict.fromkeys([*first, *(label for other in counts.values() for label in other)]))
    labels.sort(key=lambda label: -(finite(first.get(label)) or 0.0))
    most = max((finite(first.get(label)) or 0.0) for label in labels) or 1.0
    rows = [
        {
            "label": str(label),
            "bar": bar((finite(first.get(label)) or 0.0) / most, "bar"),
            "counts": [count_text(other.get(label, 0)) for other in counts.values()],
        }
        for label in labels
    ]
    return {"splits": [named("split", name) for name in counts], "rows": rows, "folded": len(rows) > TABLE_ROWS}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{path}.")
        else:
            yield path, value


def _shown(value: Any) -> str:
    if value is None or value in ({}, []):
        return "–"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value)
    return short_path(value)
