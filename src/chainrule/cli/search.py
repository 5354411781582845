"""chainrule search"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from chainrule import api
from chainrule.cli.output import (
    EngineName,
    Json,
    Set,
    Workers,
    display,
    engine_of,
    print_json,
    print_line,
    print_table,
    settings_of,
)
from chainrule.core.study import PAGE, Study

SHOWN = 10  # trials of the printed table


def search(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe file: what all trials have in common.")] = None,
    space: Annotated[Path | None, typer.Option(help="A YAML file: keys with choices or ranges.")] = None,
    budget: Annotated[str | None, typer.Option(help="Time for all of it: 30m, 2h, 90s.")] = None,
    out: Annotated[Path | None, typer.Option(help="The study's folder to make.")] = None,
    trials: Annotated[int | None, typer.Option(min=2, help="At most so many; else as many as fit.")] = None,
    sampler: Annotated[str | None, typer.Option(help="tpe (the default), cmaes, gp, nsga2, random.")] = None,
    pruner: Annotated[str | None, typer.Option(help="median (the default), hyperband, none.")] = None,
    storage: Annotated[str | None, typer.Option(help="An Optuna RDB URL, to share trials between workers.")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides everything random.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the study in this folder; takes no other flags.")
    ] = None,
    engine: EngineName = None,
    workers: Workers = None,
    assignments: Set = None,
    as_json: Json = False,
) -> None:
    """Try many recipes within a time, train the best whole, and judge it once on rows that nothing was chosen by."""
    how = {"budget": budget, "trials": trials, "sampler": sampler, "pruner": pruner, "storage": storage}
    if resume is not None:
        given = [
            value for value in (recipe, space, out, seed, *how.values(), *(assignments or [])) if value is not None
        ]
        if given:
            told = "it takes no other argument but --engine, --workers and --json"
            raise typer.BadParameter(told, param_hint="--resume")
        _tell(api.resume_search(resume, display=display(), engine=engine_of(engine, workers)), as_json)
        return
    for name, value in (("RECIPE", recipe), ("--budget", budget), ("--out", out)):
        if value is None:
            raise typer.BadParameter("it must be given", param_hint=name)
    asked = engine_of(engine, workers)
    study = api.search(
        recipe=recipe,
        out=out or "",
        space=space,
        how={name: value for name, value in (how | {"engine": asked}).items() if value is not None},
        settings=settings_of({"seed": seed}, assignments),
        display=display(),
    )
    _tell(study, as_json)


def _tell(study: Study, as_json: bool) -> None:
    if as_json:
        print_json(study.summary)
    else:
        _print(study)


def _print(study: Study) -> None:
    told = study.summary
    name = told["metric"]
    done = [trial for trial in told["trials"] if trial["state"] == "complete"]
    done.sort(key=lambda trial: -trial["objectives"][0])
    rows = [[str(trial["number"]), f"{trial['metric']:.4f}", _values(trial["values"])] for trial in done[:SHOWN]]
    print_table(f"the best of {len(told['trials'])} trials", ["trial", name, "values"], rows)
    for key, share in told["importance"].items():
        print_line(f"{share:.0%} of the variation: {key}")
    print_line(f"winner: trial {told['best']['number']}, {_values(told['best']['values'])}")
    print_line(f"{name} in its trial {told['selected']:.4f}; trained whole, on validation {told['validation']:.4f}")
    if told["test"] is None:
        print_line("There is no test split: the score of the best of many trials is too good.")
    else:
        test = told["test"]
        print_line(
            f"{name} on test, once: {test['value']:.4f} ({test['low']:.4f} to {test['high']:.4f}); "
            f"winner's curse, its trial's score above that: {told['winners_curse']:+.4f}"
        )
        print_line(f"verdict on test: {told['verdict']}")
    print_line(f"run: {told['run']}")
    print_line(f"report: {study.path / PAGE}")


def _values(values: dict[str, Any]) -> str:
    shown = {key: f"{value:.3g}" if isinstance(value, float) else json.dumps(value) for key, value in values.items()}
    return ", ".join(f"{key}={value}" for key, value in shown.items())
