"""Make one model of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from chainrule.api.compressing import bounds_of
from chainrule.api.entry import Rows, artifact_of, set_environment
from chainrule.api.exporting import rows_to_judge
from chainrule.core.artifact import Artifact, Run, Step
from chainrule.core.recipe import Spec
from chainrule.core.request import Limits
from chainrule.system.progress import Display, Quiet


def merge(
    models: Sequence[str | Path | Run | Artifact],
    out: str | Path,
    *,
    method: str = "average",
    data: Rows | None = None,
    options: Mapping[str, Any] | None = None,
    display: Display | None = None,
    **limits: Unpack[Limits],
) -> tuple[Artifact, Step]:
    """Merge the weights of several fine-tunes of one base, and put the result in place if it is as good as the best.

    Which member is the best is found on the validation rows; the result is judged beside it on the test rows. It is as
    fast as one of them.

    Args:
        models: run folders or artifact folders, two or more.
        out: the folder to make.
        method: "average", "greedy", "slerp", "task-arithmetic", "ties" or "dare"; or "ensemble", which keeps all models
            as they are, of any architecture that reads the same tokens, and is slower by as many times.
        data: labelled data with a validation and a test split; by default what the first model was trained on.
        options: of the method, e.g. {"t": 0.3}.
        limits: `loss` and `worst` as in `compress`, beside the best member.

    Raises:
        UserError: there is no such model or method, the models do not fit one another, or there are no rows.
        GateError: the result is worse than the best member; it was removed again.
    """
    set_environment()
    from chainrule.core.shelf import take
    from chainrule.evaluation.handover import hand_over
    from chainrule.evaluation.parity import Bound
    from chainrule.merging import MERGES
    from chainrule.merging.ensembles import Together
    from chainrule.merging.members import Members, base_weights
    from chainrule.system.files import refuse_existing

    told, folder = display or Quiet(), Path(out)
    way = take(MERGES, Spec(name=method, options=dict(options or {})), "method", ("--method", "--set"))()
    refuse_existing(folder)
    if isinstance(way, Together):
        return _put_together(way, [artifact_of(model) for model in models], folder, data, told, limits)
    members = Members.read([artifact_of(model) for model in models])
    seen, judged = rows_to_judge(members.first, data)
    metric = members.first.task.primary_metric
    scores = [members.score(weights, seen.encoded) for weights in members.weights]
    for artifact, score in zip(members.artifacts, scores, strict=True):
        told.say(f"{artifact.path}: {metric} {abs(score):.4f} on validation.")
    best = members.predictor(scores.index(max(scores)))
    base = base_weights(members) if way.needs_base else None
    merged = way.merge(members.weights, base, lambda weights: members.score(weights, seen.encoded))
    step = f"merge --method {method}"
    bound = Bound(loss=bounds_of(limits, metric))
    manifest, done = hand_over(best, folder, step, lambda place: members.write(merged, place, bound), judged)
    return Artifact(folder, manifest), done


def _put_together(
    way: Any, artifacts: Sequence[Artifact], folder: Path, data: Rows | None, told: Display, limits: Limits
) -> tuple[Artifact, Step]:
    """An ensemble, judged and timed beside its best member."""
    from chainrule.evaluation.handover import hand_over
    from chainrule.evaluation.parity import Bound
    from chainrule.evaluation.speed import speed_of
    from chainrule.merging.ensembles import best_of, read_members, write_ensemble

    members = read_members(artifacts)
    seen, judged = rows_to_judge(members[0], data)
    best, scores = best_of(members, seen.encoded)
    for artifact, score in zip(artifacts, scores, strict=True):
        told.say(f"{artifact.path}: {best.task.primary_metric} {score:.4f} on validation.")
    weights, why = way.weights_of(members, seen.encoded)
    told.say(f"Weights: {', '.join(f'{weight:.3f}' for weight in weights)} ({why}).")
    bound = Bound(loss=bounds_of(limits, best.task.primary_metric))
    manifest, done = hand_over(
        best,
        folder,
        "merge --method ensemble",
        lambda place: write_ensemble(members, weights, place, bound),
        judged,
        lambda made: speed_of(best.artifact, made, judged, told),
    )
    return Artifact(folder, manifest), done
