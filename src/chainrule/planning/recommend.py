"""From the rules to a recipe for one model with one strategy, with the reason for each key."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from chainrule.core.plan import Reason
from chainrule.core.recipe import Recipe, Spec
from chainrule.core.task import Task
from chainrule.models.adapters import has_peft
from chainrule.models.scratch import SCRATCH
from chainrule.planning.limits import Limits
from chainrule.planning.models import Candidate
from chainrule.planning.profile import Fit
from chainrule.planning.rules import Rule, apply, reason_of
from chainrule.strategies import STRATEGIES
from chainrule.tasks.prepare import Prepared
from chainrule.training.completion import rate_of

LENGTH = "model.max_length"
KEYS = (
    "training.epochs",
    "training.batch_size",
    "optimizer.learning_rate",
    "strategy.options.merge",
    "training.patience",
    "optimizer.weight_decay",
    "regularisers",
)
Facts = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What somebody wants.

    Attributes:
        recipe: with what was set; `settled` are the dotted keys of it.
        models: to choose from, by name.
        goal: quality, speed or size.
    """

    recipe: Recipe
    settled: Collection[str]
    models: tuple[str, ...]
    goal: str
    limits: Limits

    def holds(self, key: str) -> bool:
        """Whether a key, or one above it, was set."""
        return any(key == name or key.startswith(f"{name}.") for name in self.settled)


def facts_of(asked: Asked, task: Task, model: Candidate, prepared: Prepared) -> Facts:
    """What the rules go by."""
    return {
        "goal": asked.goal,
        "rows": len(prepared.encoded["train"]),
        "labels": len(prepared.report.labels),
        "head": task.head,
        "writes": task.writes,
        "pretrained": model.name not in SCRATCH,
        "parameters": model.parameters,
        "epochs": asked.recipe.training.epochs,
        "strategy": None,
    }


def strategies_for(asked: Asked, task: Task, facts: Facts) -> list[tuple[Spec, Reason]]:
    """Those that come into question, the preferred first; the one that was asked for alone."""
    if asked.holds("strategy.name") and facts["pretrained"]:
        spec = asked.recipe.strategy
        return [(spec, as_asked("strategy", spec.name))]
    rule = _rule("strategy", facts)
    fitting = [name for name in rule.value if STRATEGIES[name].misfit(task) is None and (name != "lora" or has_peft())]
    told = _reason(rule, "strategy", None, facts)
    other = f"{rule.value[0]} comes first in the order of preference ({{}}); this is what fits."
    texts = [told.text if name == rule.value[0] else other.format(told.text.rstrip(".")) for name in fitting]
    return [
        (Spec(name=name), told.model_copy(update={"value": name, "text": text}))
        for name, text in zip(fitting, texts, strict=True)
    ]


def recommend(asked: Asked, spec: Spec, why: Reason, model: Candidate, facts: Facts) -> tuple[Recipe, list[Reason]]:
    """The recipe, and the reasons in the order of its keys.

    Args:
        why: the reason for the strategy.
        facts: of the model; the strategy is added here.
    """
    facts = facts | {"strategy": spec.name}
    changes: Facts = {"model.name": model.name, "strategy": spec.model_dump(mode="json")}
    reasons, chosen = [why], asked.recipe.replace(changes)
    for key in KEYS:
        rule = apply(key, facts)
        if rule is None:
            continue
        if asked.holds(key):
            reasons.append(as_asked(key, value_at(asked.recipe, key)))
        else:
            changes[key] = _value(rule, chosen)
            reasons.append(_reason(rule, key, changes[key], facts))
        if key == "training.epochs":
            facts["epochs"] = reasons[-1].value
    if asked.holds(LENGTH):
        reasons.append(as_asked(LENGTH, asked.recipe.model.max_length))
    elif model.fit.longest:
        rule = _rule(LENGTH, facts)
        changes[LENGTH] = _length(rule, model.fit)
        reasons.append(_reason(rule, LENGTH, changes[LENGTH], facts))
    return asked.recipe.replace(changes), reasons


def fewer_epochs(reason: Reason, recipe: Recipe, limits: Limits) -> Reason:
    """The reason for the epochs, where there is no time for those that were recommended."""
    if reason.key != "training.epochs" or reason.value == recipe.training.epochs:
        return reason
    text = f"As many of {reason.value:g} as fit into {limits.minutes:g} minutes. {reason.text}"
    return reason.model_copy(update={"value": recipe.training.epochs, "text": text})


def as_asked(key: str, value: Any) -> Reason:
    """For what was set."""
    return Reason(key=key, value=value, text="As you set it.", evidence="asked for", page="docs/recipe.md")


def seen(key: str, value: Any, text: str, page: str) -> Reason:
    """For what a measurement has decided."""
    return Reason(key=key, value=value, text=text, evidence="measured here", page=page)


def value_at(recipe: Recipe, key: str) -> Any:
    """What a recipe has at a dotted key."""
    value: Any = recipe.model_dump(mode="json")
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _rule(key: str, facts: Facts) -> Rule:
    rule = apply(key, facts)
    if rule is None:
        raise ValueError(f"a rule for {key} must hold")
    return rule


def _reason(rule: Rule, key: str, value: Any, facts: Facts) -> Reason:
    return Reason(key=key, value=value, text=reason_of(rule, facts), evidence=rule.evidence, page=rule.page)


def _value(rule: Rule, recipe: Recipe) -> Any:
    """What the rule says; for None, what is usual for the model and the strategy."""
    if rule.value is None and rule.key == "optimizer.learning_rate":
        return rate_of(recipe.replace({rule.key: None}))
    name = recipe.model.name
    return SCRATCH[name].epochs if rule.value is None and rule.key == "training.epochs" else rule.value


def _length(rule: Rule, fit: Fit) -> int:
    return min(fit.limit, max(4, fit.longest if rule.value == "longest" else fit.high))
