from __future__ import annotations

import pytest
import yaml

from chainrule.core.artifact import Manifest
from chainrule.core.report import Estimate, EvaluationReport, Verdict
from chainrule.evaluation.report import model_card

pytestmark = pytest.mark.unit


def _manifest(**changes: object) -> Manifest:
    given: dict[str, object] = {
        "chainrule_version": "0.1.0",
        "task": "text-classification",
        "labels": ("negative", "positive"),
        "inputs": ("text",),
        "fields": {"text": "review"},
        "max_length": 128,
        "base_model": "minilm",
        "recipe": {"strategy": {"name": "full", "options": {}}},
        "metrics": {"loss": 0.31, "accuracy": 0.912},
        "primary_metric": "accuracy",
        "data": {},
        "loads_in": ("transformers",),
        "weights_sha256": "ab" * 32,
    }
    return Manifest.model_validate(given | changes)


def _evaluation(data: str = "reviews.csv") -> EvaluationReport:
    return EvaluationReport(
        artifact="reviews",
        task="text-classification",
        data=data,
        split="test",
        metrics={"accuracy": Estimate(value=0.9, low=0.88, high=0.92)},
        primary_metric="accuracy",
        verdict=Verdict(text="Better than TF-IDF by 4.1 points (95 % 2.6 to 5.7)."),
        rows=1_204,
    )


def _front(card: str) -> dict[str, object]:
    start, front, _ = card.split("---\n", 2)
    assert start == ""
    parsed = yaml.safe_load(front)
    assert isinstance(parsed, dict)
    return parsed


def test_the_front_matter_is_what_the_hub_reads() -> None:
    front = _front(model_card(_manifest(), _evaluation()))
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "text-classification"
    assert "base_model" not in front
    assert _front(model_card(_manifest(base_model="org/model"), None))["base_model"] == "org/model"
    assert front["model-index"] == [
        {
            "name": "minilm-text-classification",
            "results": [
                {
                    "task": {"type": "text-classification", "name": "text-classification"},
                    "dataset": {"name": "reviews.csv", "type": "custom", "split": "test"},
                    "metrics": [{"type": "accuracy", "value": 0.9, "name": "accuracy"}],
                }
            ],
        }
    ]


def test_the_card_says_how_good_the_model_is_and_on_what() -> None:
    card = model_card(_manifest(), _evaluation())
    assert "**Better than TF-IDF by 4.1 points (95 % 2.6 to 5.7).**" in card
    assert "Measured on the test split of reviews.csv (1,204 rows)." in card
    assert "\n\n| metric | value | 95 % interval |\n|---|---:|---:|\n| accuracy, % | 90.0 | 88.0 to 92.0 |\n\n" in card


def test_without_an_evaluation_the_numbers_are_those_of_validation() -> None:
    card = model_card(_manifest(), None)
    assert "| accuracy, % | 91.2 | – |\n| loss | 0.310 | – |" in card
    assert "flatters the numbers" in card


def test_what_users_wrote_is_literal_text() -> None:
    labels = (
        "<script>alert(1)</script>",
        "a|b",
        "[x](javascript:1) *y*",
        "- \n---\nlicense: mit",
        "https://example.org",
    )
    data = '/home/somebody/secret/"evil": [1]\n---\nx.csv'
    card = model_card(_manifest(labels=labels, base_model="/home/somebody/model"), _evaluation(data))
    assert "<script>" not in card
    assert "a\\|b" in card
    assert "\\[x\\](javascript:1) \\*y\\*" in card
    assert "3. \\- --- license: mit" in card
    assert "https://" not in card
    assert "/home/somebody" not in card
    assert "license" not in _front(card)


def test_a_regression_names_its_number() -> None:
    card = model_card(
        _manifest(task="regression", labels=("score",), metrics={"pearson": 0.87}, primary_metric="pearson"), None
    )
    assert "the number score." in card
    assert "## Labels" not in card


def test_a_changed_structure_and_a_head_of_our_own_are_told() -> None:
    structure = {"dropout": None, "keep_layers": [0, 2], "pooling": "mean", "add_tokens": ["<mol>"]}
    recipe = {"strategy": {"name": "full", "options": {}}, "structure": structure}
    card = model_card(_manifest(loads_in=("chainrule",), recipe=recipe), None)
    assert _front(card)["library_name"] == "chainrule"
    assert "\nChanged before training: add\\_tokens &lt;mol&gt;; keep\\_layers 0, 2; pooling mean.\n" in card
    assert "Its pooling and head are Chainrule's; without Chainrule" in card
    assert "AutoModelForSequenceClassification" not in card
    assert "Changed before" not in model_card(_manifest(), None)
