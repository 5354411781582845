"""The model card: README.md of an artifact, in the form the Hugging Face hub reads.

Text of the user (labels, names, paths) stands in two languages of its own here: YAML, where the YAML library quotes it,
and Markdown, where every value that is put into the template is escaped unless it is marked as safe.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from chainrule.core.artifact import FOLDS, Manifest
from chainrule.core.recipe import Structure
from chainrule.core.report import EvaluationReport
from chainrule.evaluation.languages import named
from chainrule.evaluation.plain_use import (
    ANSWERS,
    ENCODER_DECODER,
    ENTITIES,
    GENERATION,
    IMAGES,
    PLAIN_TEXT,
    RANKING,
    TWO_TOWERS,
    VECTORS,
    WRITTEN,
    plain_use,
)
from chainrule.evaluation.quantities import SHARES, count_text, metric_text

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~#&{}!])")
_LIST_MARK = re.compile(r"^(\d+(?=[.)](?:\s|$))|(?=[-+=]))")
_SPACE = re.compile(r"[\s\x00-\x1f\x7f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]+")


_EXAMPLE = "Without Chainrule, `python FOLDER/example.py` runs it; that program needs {}, a tokenizer and NumPy alone."
# for formats that transformers does not load
_OTHERS = {
    "onnxruntime": _EXAMPLE.format("ONNX Runtime"),
    "openvino": _EXAMPLE.format("OpenVINO"),
    "torch": "Without Chainrule, `torch.export.load('FOLDER/model.pt2').module()` is the model, for token ids.",
    "llama.cpp": "llama.cpp and what builds on it load `FOLDER/model.gguf`; so does transformers, with `gguf_file`.",
}


def model_card(manifest: Manifest, evaluation: EvaluationReport | None) -> str:
    """The text of README.md for an artifact.

    Args:
        manifest: the artifact's chainrule.json.
        evaluation: what the numbers are taken from; None leaves the numbers of validation that the manifest has.

    Returns:
        YAML front matter as the hub expects it, and Markdown.
    """
    front = yaml.safe_dump(_front_matter(manifest, evaluation), sort_keys=False, allow_unicode=True, width=10_000)
    card: str = _template().render(
        front=Markup(front),
        manifest=manifest,
        task=named("task", manifest.task).en,
        base=_base_name(manifest),
        rows=_metric_rows(manifest, evaluation),
        evaluation=evaluation,
        measured=_measured_on(evaluation),
        folds=evaluation is not None and evaluation.split == FOLDS,
        strategy=_strategy(manifest),
        structure=_structure(manifest),
        made=_made(manifest),
        generates=manifest.task == GENERATION and PLAIN_TEXT not in manifest.fields,
        continues=PLAIN_TEXT in manifest.fields,
        writes=manifest.task == WRITTEN,
        entities=manifest.task == ENTITIES,
        answers=manifest.task == ANSWERS,
        images=manifest.task == IMAGES,
        vectors=manifest.task in VECTORS,
        towers=_has_towers(manifest),
        ranks=manifest.task == RANKING,
        plain=Markup(_code(manifest)),
        other=Markup(_OTHERS.get(manifest.loads_in[0], "")),
    )
    return card


def markdown(value: object) -> str:
    """A value as literal Markdown text on one line: nothing in it is markup, a link, or a new table cell."""
    if isinstance(value, Markup):
        return str(value)
    text = _SPECIAL.sub(r"\\\1", _SPACE.sub(" ", str(value)).strip())
    text = _LIST_MARK.sub(r"\1\\", text)
    return text.replace("\\<", "&lt;").replace("\\>", "&gt;").replace("://", "&#58;//").replace("www.", "www&#46;")


def _front_matter(manifest: Manifest, evaluation: EvaluationReport | None) -> dict[str, Any]:
    front: dict[str, Any] = {"library_name": manifest.loads_in[0], "pipeline_tag": _pipeline(manifest)}
    if _HUB_ID.match(manifest.base_model):
        front["base_model"] = manifest.base_model
    front["tags"] = ["chainrule", manifest.task]
    front["metrics"] = [name for name in _ordered(manifest, evaluation) if name != "loss"]
    if evaluation is not None:
        dataset = {"name": _data_name(evaluation.data), "type": "custom"}
        if evaluation.split and evaluation.split != FOLDS:
            dataset["split"] = evaluation.split
        metrics = [
            {"type": name, "value": round(estimate.value, 6), "name": named("metric", name).en}
            for name, estimate in evaluation.metrics.items()
        ]
        result = {
            "task": {"type": _pipeline(manifest), "name": manifest.task},
            "dataset": dataset,
            "metrics": metrics,
        }
        front["model-index"] = [{"name": f"{_base_name(manifest)}-{manifest.task}", "results": [result]}]
    return front


def _pipeline(manifest: Manifest) -> str:
    if manifest.task == WRITTEN:
        return "text2text-generation" if _options(manifest).get("form") == ENCODER_DECODER else GENERATION
    if manifest.task == RANKING and not _has_towers(manifest):
        return "text-ranking"
    if manifest.task in VECTORS or _has_towers(manifest):
        return "sentence-similarity"
    return manifest.task if manifest.task in (GENERATION, ENTITIES, ANSWERS, IMAGES) else "text-classification"


def _options(manifest: Manifest) -> dict[str, Any]:
    """What the recipe says of the task."""
    task = manifest.recipe.get("task")
    options = task.get("options") if isinstance(task, dict) else None
    return options if isinstance(options, dict) else {}


def _has_towers(manifest: Manifest) -> bool:
    """Whether the model ranks by the cosine of two vectors."""
    return manifest.task == RANKING and _options(manifest).get("form") == TWO_TOWERS


def _code(manifest: Manifest) -> str:
    """Python for the card; a base model's name is the user's text, so it stands there as a Python string."""
    base = json.dumps(_base_name(manifest), ensure_ascii=True)
    code = plain_use(manifest.task, manifest.loads_in, '"FOLDER"', base, _options(manifest), manifest.fields)
    return code.replace("`", "\\x60")


def _metric_rows(manifest: Manifest, evaluation: EvaluationReport | None) -> list[tuple[str, str, str]]:
    rows = []
    for name in _ordered(manifest, evaluation):
        shown = named("metric", name).en
        label = f"{shown}, %" if name in SHARES else shown
        if evaluation is None:
            rows.append((label, metric_text(name, manifest.metrics[name], unit=False), "–"))
            continue
        estimate = evaluation.metrics[name]
        low, high = (metric_text(name, value, unit=False) for value in (estimate.low, estimate.high))
        rows.append((label, metric_text(name, estimate.value, unit=False), f"{low} to {high}"))
    return rows


def _ordered(manifest: Manifest, evaluation: EvaluationReport | None) -> list[str]:
    names = manifest.metrics if evaluation is None else evaluation.metrics
    return sorted(names, key=lambda name: (name != manifest.primary_metric, name == "loss", name))


def _measured_on(evaluation: EvaluationReport | None) -> str:
    if evaluation is None:
        return "the validation split"
    if evaluation.split == FOLDS:
        count = evaluation.detail[FOLDS]["count"]
        return (
            f"{count_text(evaluation.rows)} rows of {_data_name(evaluation.data)} by cross-validation in {count} folds"
        )
    split = f"the {evaluation.split} split" if evaluation.split else "all rows"
    return f"{split} of {_data_name(evaluation.data)} ({count_text(evaluation.rows)} rows)"


def _strategy(manifest: Manifest) -> str:
    return str(manifest.recipe.get("strategy", {}).get("name", ""))


def _structure(manifest: Manifest) -> str:
    """What was changed of the model before training, as key and value."""
    structure = Structure.model_validate(manifest.recipe.get("structure", {}))
    return _listed(structure.model_dump(mode="json", exclude_defaults=True))


def _made(manifest: Manifest) -> str:
    """What a model without pretrained weights was made with, as key and value; empty for others."""
    options = manifest.recipe.get("model", {}).get("options")
    return _listed(options) if isinstance(options, dict) else ""


def _listed(values: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{key} {', '.join(map(str, value)) if isinstance(value, list) else value}" for key, value in values.items()
    )


def _base_name(manifest: Manifest) -> str:
    name = manifest.base_model
    return name if _HUB_ID.match(name) else _data_name(name)


def _data_name(path: str) -> str:
    """The last part of a path: a card is made to be handed on, folders of this machine are not."""
    return _SPACE.sub(" ", PurePosixPath(path.replace("\\", "/")).name or path).strip()


@lru_cache(maxsize=1)
def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("chainrule.evaluation", "templates"),
        autoescape=False,  # not HTML: `finalize` escapes every value for Markdown
        finalize=markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("model_card.md")
