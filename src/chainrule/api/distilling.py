"""Teach a smaller model what a fine-tuned one knows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Unpack

from chainrule.api.entry import artifact_of, set_environment
from chainrule.api.exporting import rows_of_split, source_or_none
from chainrule.core.artifact import Artifact, Run, Step
from chainrule.core.request import StudentLimits
from chainrule.errors import Problem, RecipeError
from chainrule.system.progress import Display, Quiet

SHARE_KEPT = 0.97  # of the teacher's score


def distill(
    model: str | Path | Run | Artifact,
    student: str,
    out: str | Path,
    *,
    data: str | None = None,
    display: Display | None = None,
    **limits: Unpack[StudentLimits],
) -> tuple[Run, Step]:
    """Train a student on what a fine-tuned model says of the training rows, and judge it beside its teacher.

    Where the student is some layers of the teacher, those that stay are chosen by short trainings.

    Args:
        model: the teacher: a run folder or an artifact folder.
        student: "self:3" for three layers of the teacher, "lstm", or the name or folder of another model.
        out: the run folder to make.
        data: what it learns from; by default what the teacher was trained on.
        limits: `epochs` (by default twice the teacher's); `kept` (default 0.97): the share of the teacher's score, on
            the test rows, that the student must reach; `allow_slower` (default False): take it for its size alone;
            `settings`: keys of its recipe, e.g. {"distillation.hidden": 1.0}.

    Raises:
        UserError: there is no such teacher, student or data, or `out` exists.
        GateError: the student is worse than that, or no faster; its run stays.
    """
    set_environment()
    from chainrule.compressors.students import train_student, with_step
    from chainrule.evaluation.parity import Bound, compare, require
    from chainrule.evaluation.speed import require_faster, speed_of
    from chainrule.inference.predict import load_predictor
    from chainrule.system.files import refuse_existing

    told, folder, artifact = display or Quiet(), Path(out), artifact_of(model)
    refuse_existing(folder)
    teacher = load_predictor(artifact)
    source = data if data is not None else source_or_none(artifact)
    if source is None:
        problem = Problem("data to learn from", "none: the teacher does not lie in its run", "Name it: --data DATA")
        raise RecipeError("There is nothing to learn from.", [problem])
    longer = {} if limits.get("epochs") is None else {"training.epochs": limits["epochs"]}
    settings = {**longer, **limits.get("settings", {})}
    made = train_student(teacher, student, source, folder, settings, told)
    step = f"compress --distill {student}"
    learner = load_predictor(made.artifact)  # only its run knows which rows it has not learned from
    unseen = rows_of_split(learner, None, "test") or rows_of_split(learner, None, "validation")
    judged = replace(unseen, encoded=teacher.encode(unseen.inputs, unseen.encoded.targets))
    parity = compare(teacher, learner, judged)
    speed = speed_of(artifact, made.artifact, judged, told)
    done = Step(step=step, parent_sha256=artifact.manifest.weights_sha256, parity=parity, speed=speed)
    with_step(made, artifact, done)
    outcome = f"the run stays in {folder}"
    require(parity, Bound(kept=limits.get("kept", SHARE_KEPT)), step, outcome)
    if not limits.get("allow_slower", False):
        require_faster(speed, step, outcome)
    return made, done
