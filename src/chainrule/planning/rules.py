"""What is recommended, and why: one table. Of the rules for a key the first that holds is taken.

A rule holds where every fact that it names has the value it names, or lies between the two numbers it names (both
included; None for no bound). What a person has set is never changed. The facts are those of `planner.facts_of`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

RACE = 'LOG.md, 2026-11-22, "Which strategies and learning rates race?"'
SOON = 'LOG.md, 2026-11-22, "How soon is it as good as the Hugging Face Trainer?"'
FEW_ROWS = 'LOG.md, 2026-11-22, "Does contrastive tuning help with few rows?"'
SCRATCH = 'LOG.md, 2026-11-22, "How good is an LSTM from scratch?"'
RATES = 'LOG.md, 2026-11-22, "Which learning rates do strategies and optimizers begin with?"'
EQUAL = 'LOG.md, 2026-11-22, "Is it as good as the Hugging Face Trainer?"'
BERT = "Devlin et al. (2019), BERT, appendix A.3"
LORA = "Hu et al. (2022), LoRA, section 4.2"
STABLE = "Mosbach et al. (2021), On the Stability of Fine-tuning BERT, section 6"
EARLY = "Prechelt (1998), Early Stopping - But When?"
SIZES = "Devlin et al. (2019), BERT, section 5.2"


@dataclass(frozen=True)
class Rule:
    """One line of the table.

    Attributes:
        key: of the recipe. "strategy" and "models" name an order of preference.
        value: for that key. Of `model.max_length`, which number of the rows' lengths it is.
        because: the reason; {facts} are filled in.
        page: of the documents that explains it.
    """

    key: str
    value: Any
    because: str
    evidence: str
    page: str
    when: Mapping[str, Any] = field(default_factory=dict)


RULES: tuple[Rule, ...] = (
    # Which model first. Those that cannot read the rows come last, whatever the goal.
    Rule(
        "models",
        "largest",
        "Of models that read the rows, a larger one reaches more.",
        SIZES,
        "docs/planning.md",
        {"goal": "quality"},
    ),
    Rule("models", "smallest", "A smaller model is faster and takes less room.", SIZES, "docs/planning.md"),
    # Which strategy first; the next one is tried where memory or time is too short for it.
    Rule(
        "strategy",
        ("full",),
        "Nothing of this model is pretrained, so all of it is trained.",
        SCRATCH,
        "docs/recipe.md",
        {"pretrained": False},
    ),
    Rule(
        "strategy",
        ("lora", "full"),
        "Adapters need no gradients and moments for the language model's own weights.",
        LORA,
        "docs/strategies.md",
        {"writes": True},
    ),
    Rule(
        "strategy",
        ("lora", "head", "full"),
        "Adapters kept apart are a few megabytes; the model itself need not be stored again.",
        LORA,
        "docs/strategies.md",
        {"goal": "size"},
    ),
    Rule(
        "strategy",
        ("gradual", "partial", "head", "full"),
        "One layer after another at a higher rate, one epoch came near full fine-tuning in a third of its time.",
        SOON,
        "docs/strategies.md",
        {"goal": "speed"},
    ),
    Rule(
        "strategy",
        ("contrastive", "gradual", "full"),
        "With {rows:,} training rows, drawing those of a class together led on two of four sets.",
        FEW_ROWS,
        "docs/strategies.md",
        {"rows": (None, 128), "head": "classifier", "labels": (2, 20)},
    ),
    Rule(
        "strategy",
        ("full", "gradual", "partial", "head"),
        "With {rows:,} training rows, training every parameter was best or near it.",
        RACE,
        "docs/strategies.md",
    ),
    Rule(
        "strategy.options.merge",
        False,
        "The adapters are kept apart from the model, as they are small.",
        LORA,
        "docs/strategies.md",
        {"goal": "size", "strategy": "lora", "writes": False},
    ),
    # How fast it learns.
    Rule(
        "optimizer.learning_rate",
        None,
        "The default of the strategy {strategy} for a model as wide as this one.",
        RATES,
        "docs/strategies.md",
    ),
    # How long.
    Rule(
        "training.epochs",
        None,
        "The default of a model from scratch, which needs longer.",
        SCRATCH,
        "docs/recipe.md",
        {"pretrained": False},
    ),
    Rule(
        "training.epochs",
        20,
        "With {rows:,} training rows, short trainings are unstable; the best epoch is kept.",
        STABLE,
        "docs/recipe.md",
        {"rows": (None, 128)},
    ),
    Rule(
        "training.epochs",
        10,
        "With {rows:,} training rows, three epochs are too few steps.",
        STABLE,
        "docs/recipe.md",
        {"rows": (129, 512)},
    ),
    Rule(
        "training.epochs",
        1,
        "One epoch was enough for it.",
        SOON,
        "docs/recipe.md",
        {"goal": "speed", "strategy": "gradual"},
    ),
    Rule(
        "training.epochs",
        5,
        "With {labels:,} labels, each has few rows in an epoch; two were far too few on 77.",
        RACE,
        "docs/recipe.md",
        {"labels": (50, None), "strategy": "full"},
    ),
    Rule(
        "training.epochs",
        3,
        "Two to four are usual for a pretrained model; the best epoch is kept.",
        BERT,
        "docs/recipe.md",
    ),
    Rule(
        "training.patience",
        3,
        "Three epochs in a row without a better one end it: the rest would rarely help.",
        EARLY,
        "docs/recipe.md",
        {"epochs": (8, None)},
    ),
    # How much at once.
    Rule(
        "training.batch_size",
        8,
        "Replies are long: eight rows hold as many tokens as many more short ones.",
        'LOG.md, 2026-11-22, "What makes a LoRA step of a language model faster?"',
        "docs/recipe.md",
        {"writes": True},
    ),
    Rule(
        "training.batch_size",
        16,
        "With {rows:,} training rows, smaller batches make more steps of them.",
        RACE,
        "docs/recipe.md",
        {"rows": (None, 512), "strategy": ("full", "gradual", "partial", "head", "lora")},
    ),
    Rule("training.batch_size", 32, "As in all comparisons that were made.", EQUAL, "docs/recipe.md"),
    Rule(
        "model.max_length",
        "high",
        "95 of 100 rows are not longer; the ends of the others are cut, which saves time.",
        "counted in these rows",
        "docs/data.md",
        {"goal": "speed"},
    ),
    Rule(
        "model.max_length",
        "longest",
        "The longest row, or as much as the model reads; rows are padded no further than their batch needs.",
        "counted in these rows",
        "docs/data.md",
    ),
    # What holds it back.
    Rule(
        "optimizer.weight_decay",
        0.01,
        "Usual for pretrained models, and what all comparisons here were made with.",
        BERT,
        "docs/recipe.md",
    ),
    Rule(
        "regularisers",
        {},
        "None: no comparison here has shown one to help.",
        "not measured",
        "docs/recipe.md",
    ),
)


def apply(key: str, facts: Mapping[str, Any]) -> Rule | None:
    """The first rule for a key that holds; None where none does."""
    return next((rule for rule in RULES if rule.key == key and _holds(rule, facts)), None)


def reason_of(rule: Rule, facts: Mapping[str, Any]) -> str:
    """Why, with the facts filled in."""
    return rule.because.format(**facts)


def _holds(rule: Rule, facts: Mapping[str, Any]) -> bool:
    return all(_fits(facts.get(name), wanted) for name, wanted in rule.when.items())


def _fits(value: Any, wanted: Any) -> bool:
    if not isinstance(wanted, tuple):
        return bool(value == wanted)
    if all(isinstance(bound, str) for bound in wanted):
        return value in wanted
    low, high = wanted
    return value is not None and (low is None or value >= low) and (high is None or value <= high)
