"""Search for a smaller or faster model that reaches a target."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chainrule.api.entry import Rows, artifact_of, name_of, set_environment
from chainrule.api.exporting import rows_of_split, rows_to_judge, source_or_none
from chainrule.core.artifact import Artifact, Run
from chainrule.core.target import Expected, TargetReport, parse_target
from chainrule.errors import ModelError, Problem, Where
from chainrule.system.files import read_json, refuse_existing, write_json
from chainrule.system.progress import Display, Quiet

if TYPE_CHECKING:
    from chainrule.compressors.ladder import Material

ASKED, TOLD, PAGE = "target.json", "report.json", "report.html"


def reach_target(
    model: str | Path | Run | Artifact,
    target: str,
    out: str | Path,
    *,
    data: Rows | None = None,
    options: Mapping[str, Any] | None = None,
    display: Display | None = None,
) -> TargetReport:
    """Prune, distil, cut the vocabulary and quantise until a target is reached, keeping each step only if it holds.

    What goes on is decided on validation rows. What is chosen is judged once by the test rows; where it holds there,
    too, it lies in `out`/artifact. The same call goes on where it was stopped.

    Args:
        model: a run folder or an artifact folder.
        target: such as "latency 4x, loss 1pt", beside the model itself: latency (x, ms), speed (x), size (x, MB);
            loss (0.5pt) and worst (twice that) are what the score may fall by, and at the worse end of the interval.
        out: the folder to make.
        data: labelled data with a training, a validation and a test split; by default what it was trained on.
        options: of pruning, e.g. {"epochs": 1}.

    Raises:
        UserError: there is no such model, the target cannot be read, there are no rows, or `out` is something else.
    """
    set_environment()
    from chainrule.compressors.ladder import Ladder
    from chainrule.evaluation.target_page import write_target_page

    told, folder, wished = display or Quiet(), Path(out), parse_target(target)
    artifact = artifact_of(model)
    named = None if data is None else name_of(data)
    parent = artifact.manifest.weights_sha256
    asked = {"target": target, "parent": parent, "data": named, "options": dict(options or {})}
    file = folder / ASKED
    if not (file.is_file() and read_json(file) == asked):
        refuse_existing(folder)
    if (folder / TOLD).is_file():
        return TargetReport.model_validate(read_json(folder / TOLD))
    material = _material(artifact, data, options or {}, told)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, asked)
    report = Ladder(material, wished, folder, told).go()
    write_target_page(folder / PAGE, report)
    write_json(folder / TOLD, report.model_dump(mode="json"))
    return report


def plan_target(
    model: str | Path | Run | Artifact,
    target: str,
    *,
    data: Rows | None = None,
    options: Mapping[str, Any] | None = None,
    display: Display | None = None,
) -> list[Expected]:
    """The steps that `reach_target` may take, and about how many seconds each of them will; nothing is made.

    Raises:
        UserError: as `reach_target`.
    """
    set_environment()
    from chainrule.compressors.ladder import expected

    artifact, wished = artifact_of(model), parse_target(target)
    run = artifact.run_folder
    spent = read_json(run / "summary.json") if run is not None and (run / "summary.json").is_file() else {}
    return expected(_material(artifact, data, options or {}, display or Quiet()), wished, spent)


def _material(artifact: Artifact, data: Rows | None, options: Mapping[str, Any], display: Display) -> Material:
    from chainrule.compressors.base import Given
    from chainrule.compressors.ladder import Material
    from chainrule.compressors.pruning import Options
    from chainrule.core.recipe import Spec, parse_options
    from chainrule.inference.predict import load_predictor

    parse_options(Options, Spec(name="prune", options=dict(options)), "way to compress", "--set")
    parent = load_predictor(artifact, device="cpu", precision="float32")
    if parent.task.writes:
        where = Where(file=str(artifact.path))
        problem = Problem("a model that classifies, scores or finds", "one that writes text", "Use --prune.", where)
        raise ModelError("There is no target mode for this model.", [problem])
    seen, judged = rows_to_judge(parent, data)
    train = rows_of_split(parent, data, "train")
    source = data if data is not None else source_or_none(artifact)
    given = Given(seen.encoded, train.encoded if train else None, 0.0, display, source, artifact.path)
    return Material(parent, source, seen, judged, given, options)
