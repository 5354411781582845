"""What a study says: its trials as plain data, and how much each key mattered."""

from __future__ import annotations

from typing import Any

from chainrule.hpo.optuna_study import optuna, quietly
from chainrule.hpo.space import Space
from chainrule.hpo.trials import COMPLETE

ENOUGH = 4  # finished trials that importance can be told from


def trials_of(study: Any, space: Space) -> list[dict[str, Any]]:
    """Every trial in its order: number, state, values of its keys, scores after each rung, seconds, note."""
    return [
        {
            "number": trial.number,
            "state": trial.state.name.lower(),
            "values": space.values_of(trial.params),
            "metric": trial.user_attrs.get("metric"),
            "objectives": list(trial.values) if trial.values else None,
            "scores": {str(step): value for step, value in sorted(trial.intermediate_values.items())},
            "steps": trial.user_attrs.get("steps"),
            "seconds": trial.user_attrs.get("seconds"),
            "note": trial.user_attrs.get("note", ""),
        }
        for trial in study.get_trials(deepcopy=False)
    ]


def importance_of(study: Any) -> dict[str, float]:
    """Share of the variation of the score that each key explains; empty where too few trials finished, or all alike.

    Watanabe et al. (2023), PED-ANOVA; of keys that every finished trial has.
    """
    done = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == COMPLETE]
    if len(done) < ENOUGH or len({trial.values[0] for trial in done}) < 2:
        return {}
    evaluator = optuna().importance.PedAnovaImportanceEvaluator()
    with quietly():
        try:
            found = optuna().importance.get_param_importances(
                study, evaluator=evaluator, target=lambda trial: trial.values[0]
            )
        except (ValueError, RuntimeError):  # no key that all of them have, or none that varies
            return {}
    return {name: round(float(share), 4) for name, share in found.items()}
