"""Make a fine-tuned model smaller or faster, as long as it stays good."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

from chainrule.api.entry import Rows, artifact_of, set_environment
from chainrule.api.exporting import rows_of_split, rows_to_judge, source_or_none
from chainrule.core.artifact import Artifact, Run, Step
from chainrule.core.recipe import Spec
from chainrule.core.request import Limits
from chainrule.errors import GateError, UserError
from chainrule.system.progress import Display, Quiet

LOSS, WORST = 0.5, 1.0  # points
LOSS_OF_TEXT, WORST_OF_TEXT = 2.0, 4.0  # hundredths of a loss per token: about as many hundredths of perplexity


def compress(
    model: str | Path | Run | Artifact,
    out: str | Path,
    *,
    to: str = "int8",
    data: Rows | None = None,
    options: Mapping[str, Any] | None = None,
    display: Display | None = None,
    **limits: Unpack[Limits],
) -> tuple[Artifact, Step]:
    """Make a model smaller or faster, and put it in place only if it is as good and, where that was the aim, faster.

    It may look at the training and validation rows; it is judged by the test rows.

    Args:
        model: a run folder or an artifact folder.
        out: the folder to make.
        to: "int8", "int4", "vocabulary", "prune" or "sparse".
        data: labelled data with a validation and a test split; by default what the model was trained on.
        options: of the way, e.g. {"rows": 100} or {"share": 0.3}.
        limits: `loss` (default 0.5; 2 where the score is a loss per token): how many points (hundredths) the task's
            score may fall; `worst` (default twice as many): how many it may have fallen at the worse end of the 95 %
            interval of the difference; `allow_slower` (default False): take it for its size alone.

    Raises:
        UserError: there is no such model or way, this model does not go with it, there are no rows, or `out` exists.
        GateError: it is worse, or no faster; it was removed again.
    """
    set_environment()
    from chainrule.compressors import COMPRESSORS
    from chainrule.compressors.base import Given
    from chainrule.core.shelf import take
    from chainrule.evaluation.handover import hand_over
    from chainrule.evaluation.parity import EXACT, Bound
    from chainrule.evaluation.speed import require_faster, speed_of
    from chainrule.inference.predict import load_predictor
    from chainrule.system.files import refuse_existing

    told, folder, artifact = display or Quiet(), Path(out), artifact_of(model)
    compressor = take(COMPRESSORS, Spec(name=to, options=dict(options or {})), "way to compress", ("--to", "--set"))()
    refuse_existing(folder)
    parent = load_predictor(artifact, device="cpu", precision="float32")
    compressor.refuse(parent)
    seen, judged = rows_to_judge(parent, data)
    train = rows_of_split(parent, data, "train")
    loss, worst = bounds_of(limits, parent.task.primary_metric)
    bound = Bound(distance=EXACT if compressor.exact else None, loss=(loss, worst))
    source = data if data is not None else source_or_none(artifact)
    given = Given(seen.encoded, train.encoded if train else None, loss, told, source, place_of(folder))
    faster = compressor.faster and not limits.get("allow_slower", False)

    def timed(made: Artifact) -> Any:
        speed = speed_of(artifact, made, judged, told)
        return require_faster(speed, step) if faster else speed

    step = f"compress --to {to}"
    try:
        manifest, done = hand_over(
            parent, folder, step, lambda place: compressor.write(parent, place, given, bound), judged, timed
        )
    except (UserError, GateError):  # after anything else, such as Ctrl-C, the same command goes on
        shutil.rmtree(given.place, ignore_errors=True)
        raise
    shutil.rmtree(given.place, ignore_errors=True)
    return Artifact(folder, manifest), done


def bounds_of(limits: Limits, metric: str) -> tuple[float, float]:
    """What a score may fall by, and what it may have fallen by at the worse end of its interval."""
    usual = (LOSS_OF_TEXT, WORST_OF_TEXT) if metric == "loss" else (LOSS, WORST)
    given = limits.get("loss"), limits.get("worst")
    loss, worst = (own if wished is None else wished for wished, own in zip(given, usual, strict=True))
    return loss / 100, worst / 100


def place_of(out: Path) -> Path:
    """Where a training that is part of a step is made, beside what comes of it."""
    return out.with_name(f".{out.name}.training")
