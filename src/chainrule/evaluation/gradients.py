"""Is the backward of a model right? Any model that can be named, a tiny batch for it, and what came of it in words."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from chainrule.core.artifact import MANIFEST, Artifact, Run
from chainrule.core.report import Derivative, GradientReport, KindErrors
from chainrule.errors import Problem, UserError, Where
from chainrule.inference.predict import base_name, task_of_artifact
from chainrule.models.adapters import has_adapters, let_learn
from chainrule.models.gradcheck import (
    BFLOAT16,
    FLOAT32,
    FLOAT64,
    Batch,
    compare_gradients,
    compare_kernels,
    responsible,
)
from chainrule.models.load import load_saved, load_untuned
from chainrule.system.progress import Display

ROWS = (8, 5)  # tokens
_SHOWN = 5


def check_model(
    model: str | Path | Run | Artifact | nn.Module,
    batch: Batch | None,
    *,
    kernels: bool,
    seed: int,
    display: Display,
) -> GradientReport:
    """Compare the derivatives of every module of a model with differences of its forward.

    Args:
        model: a name or a folder, as training takes it; an artifact, or the run it lies in; or a module.
        batch: the arguments of a module; None makes one up for a transformers model that reads tokens.
        kernels: compare the CPU kernels on the model as well.

    Raises:
        UserError: there is no such model, or a batch is needed.
    """
    whole = model if isinstance(model, nn.Module) else _load(model)
    if kernels and not hasattr(whole, "config"):
        problem = Problem("a transformers model", type(whole).__name__, "Leave them out.", Where(field="kernels"))
        raise UserError("The kernels are for transformers models.", [problem])
    given = tiny_batch(whole, seed) if batch is None else batch
    found = compare_gradients(whole, given, seed=seed, display=display)
    tolerances = {FLOAT64.name: FLOAT64.tolerance}
    if kernels:
        found += compare_kernels(whole, given, seed=seed, display=display)
        tolerances |= {format.name: format.tolerance for format in (FLOAT32, BFLOAT16)}
    if not found:
        problem = Problem(
            "a model with trainable parameters", "none", "Let them need a gradient.", Where(field="model")
        )
        raise UserError("There is no derivative to compare.", [problem])
    return _report(type(model).__name__ if isinstance(model, nn.Module) else _name(model), found, tolerances)


def tiny_batch(model: Any, seed: int) -> dict[str, torch.Tensor]:
    """Random tokens for a transformers model: two short rows, the second padded where the model knows how.

    Raises:
        UserError: the model does not read tokens.
    """
    config: Any = getattr(model, "config", None)
    text: Any = config.get_text_config() if hasattr(config, "get_text_config") else None
    if getattr(text, "vocab_size", None) is None:
        problem = Problem("the model's arguments", "none", "Give them as `batch`.", Where(field="batch"))
        raise UserError(f"A batch cannot be made up for a {type(model).__name__}.", [problem])
    padding = text.pad_token_id
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, text.vocab_size, (len(ROWS), max(ROWS)), generator=generator)
    mask = torch.ones_like(ids)
    if padding is not None:
        ids[ids == padding] = (padding + 1) % text.vocab_size
        for row, length in enumerate(ROWS):
            ids[row, length:], mask[row, length:] = padding, 0
    return {"input_ids": ids, "attention_mask": mask}


def _load(model: str | Path | Run | Artifact) -> nn.Module:
    if isinstance(model, Artifact | Run):
        artifact = model if isinstance(model, Artifact) else model.artifact
    elif any(os.path.isfile(os.path.join(model, name)) for name in (MANIFEST, "recipe.yaml")):  # noqa: PTH113, PTH118
        artifact = Artifact.read(Path(model))
    else:
        whole: nn.Module = load_untuned(str(model))
        return whole
    saved: nn.Module = load_saved(artifact.path, task_of_artifact(artifact).head, base_name(artifact))
    if has_adapters(saved):
        let_learn(saved)
    return saved


def _name(model: str | Path | Run | Artifact) -> str:
    return str(model.path) if isinstance(model, Run | Artifact) else str(model)


def _report(name: str, found: Sequence[Derivative], tolerances: Mapping[str, float]) -> GradientReport:
    wrong = responsible(found)
    blamed = {derivative.module for derivative in wrong}
    around = [d.module for d in found if d.outcome == "wrong" and d.module not in blamed]
    undecided = tuple(derivative for derivative in found if derivative.outcome == "undecided")
    right = sorted((d for d in found if d.outcome == "right"), key=lambda d: d.error or 0.0, reverse=True)
    worst = [d for format in tolerances for d in [d for d in right if d.format == format][:_SHOWN]]
    report = GradientReport(
        model=name,
        text="",
        modules=len({derivative.module for derivative in found}),
        derivatives=len(found),
        tolerances=dict(tolerances),
        wrong=tuple(wrong),
        around=tuple(dict.fromkeys(around)),
        undecided=undecided,
        kinds=tuple(_kinds(found, tolerances)),
        worst=tuple(worst),
    )
    return report.model_copy(update={"text": _verdict(report)})


def _kinds(found: Sequence[Derivative], formats: Iterable[str]) -> Iterator[KindErrors]:
    by_kind: dict[str, list[Derivative]] = defaultdict(list)
    for derivative in found:
        by_kind[derivative.kind].append(derivative)
    for kind, group in sorted(by_kind.items()):
        errors = {format: [d.error for d in group if d.format == format and d.error is not None] for format in formats}
        yield KindErrors(
            kind=kind,
            modules=len({derivative.module for derivative in group}),
            derivatives=len(group),
            errors={format: max(values, default=None) for format, values in errors.items()},
        )


def _verdict(report: GradientReport) -> str:
    undecided = f" {len(report.undecided):,} could not be judged." if report.undecided else ""
    if report.ok:
        greatest = {format: max(kind.errors[format] or 0.0 for kind in report.kinds) for format in report.tolerances}
        errors = ", ".join(
            f"{error:.1e} in {name} (allowed {report.tolerances[name]:g})" for name, error in greatest.items()
        )
        judged = report.derivatives - len(report.undecided)
        return (
            f"Backward is right: {judged:,} derivatives of {report.modules:,} modules are those of the "
            f"forward. Greatest error: {errors}.{undecided}"
        )
    if not report.wrong:
        return f"Nothing could be judged. The first: {report.undecided[0].text}."
    others = dict.fromkeys(d.module or "the model itself" for d in report.wrong if d.module != report.wrong[0].module)
    also = f" Wrong too: {', '.join(others)}." if others else ""
    outer = f" Modules around that are wrong for this reason: {len(report.around):,}." if report.around else ""
    return f"Backward is wrong. The first: {report.wrong[0].text}.{also}{outer}{undecided}"
