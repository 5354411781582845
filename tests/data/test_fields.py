"""Finding columns: by name, as recorded, by convention; and what is said when it cannot be done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from chainrule.data.fields import find_fields
from chainrule.errors import DataError
from chainrule.tasks import find_task

pytestmark = pytest.mark.unit

TASK = find_task("text-classification")
NONE: dict[str, str] = {}


def found(columns: Sequence[str], named: Mapping[str, str] = NONE, recorded: Mapping[str, str] | None = None) -> str:
    fields = find_fields(columns, TASK, named=named, recorded=recorded, file="a.csv")
    return " ".join(f"{name}={column}" for name, column in fields.items())


def failure(columns: Sequence[str], named: Mapping[str, str] = NONE, recorded: Mapping[str, str] | None = None) -> str:
    with pytest.raises(DataError) as raised:
        find_fields(columns, TASK, named=named, recorded=recorded, file="a.csv")
    return "\n".join(str(problem) for problem in raised.value.problems)


def test_columns_are_found_by_convention_in_any_case() -> None:
    assert found(["id", "Text", "LABEL"]) == "text=Text label=LABEL"
    assert found(["sentence1", "sentence2", "label"]) == "text_a=sentence1 text_b=sentence2 label=label"
    assert found(["premise", "hypothesis", "label"]) == "text_a=premise text_b=hypothesis label=label"
    assert found(["sentence", "text", "label"]) == "text=text label=label"


def test_a_named_column_wins() -> None:
    assert found(["text", "review", "stars"], {"text": "review", "label": "stars"}) == "text=review label=stars"
    assert found(["text", "sentence1", "sentence2", "label"], {"text": "text"}) == "text=text label=label"
    assert found(["a", "b", "label"], {"text_a": "a", "text_b": "b"}) == "text_a=a text_b=b label=label"


def test_the_recorded_column_is_taken_again_where_it_is_there() -> None:
    recorded = {"text": "review", "label": "stars"}
    assert found(["text", "review", "stars"], recorded=recorded) == "text=review label=stars"
    assert found(["text", "label"], recorded=recorded) == "text=text label=label"
    assert found(["text", "review", "stars"], {"text": "text"}, recorded) == "text=text label=stars"
    assert found(["text", "label"], recorded, recorded) == "text=text label=label"
    pair = {"text_a": "x", "text_b": "y", "label": "label"}
    assert found(["text", "text_a", "text_b", "label"], recorded=pair) == "text_a=text_a text_b=text_b label=label"
    assert "expected columns for text_a and text_b, which this model was trained on" in failure(
        ["text"], {"text": "text"}, pair
    )


def test_the_label_is_not_needed_to_predict() -> None:
    assert find_fields(["text"], TASK, named={}, with_target=False) == {"text": "text"}


def test_what_is_missing_is_told_with_the_columns_there_are() -> None:
    assert failure(["foo", "bar"]).splitlines() == [
        "a.csv: expected a column for either text, or text_a and text_b, got the columns 'foo', 'bar'. "
        "Say which they are: --text COLUMN, or --text-a COLUMN --text-b COLUMN.",
        "a.csv, field 'label': expected a column for label (also found as "
        f"{', '.join(alias for alias in TASK.target.aliases if alias != 'label')}), got the columns 'foo', 'bar'. "
        "Say which column it is: --label COLUMN.",
    ]
    assert failure(["text", "label"], {"text": "review"}) == (
        "a.csv, field 'text': expected the column 'review', got the columns 'text', 'label'. "
        "Say which column it is: --text COLUMN."
    )
    assert "expected a field of text-classification: text, text_a, text_b, label, got 'body'" in failure(
        ["text"], {"body": "x"}
    )
    assert "expected a column for text_b" in failure(["a", "label"], {"text_a": "a"})


def test_a_wrong_separator_is_suspected() -> None:
    assert "The cells seem to be separated by ';': save the file with commas, or with tabs as .tsv." in failure(
        ["text;label"]
    )


def test_doubt_is_not_decided_silently() -> None:
    assert "expected either one text or a pair of texts, got both: text ('text') and text_a" in failure(
        ["text", "text_a", "text_b", "label"]
    )
    assert "expected a column of its own for each field, got the column 'x' for text and label" in failure(
        ["x"], {"text": "x", "label": "x"}
    )


def test_the_advice_names_options_that_there_are() -> None:
    with pytest.raises(DataError) as raised:
        find_fields(["a", "b"], find_task("multi-label-classification"), named={"text": "a"})
    assert raised.value.problems[0].todo == "Say which column it is: --label COLUMN."
    with pytest.raises(DataError) as raised:
        find_fields(["a", "b"], find_task("text-classification"), named={}, recorded={"text": "x"}, with_target=False)
    assert raised.value.problems[0].todo == "Say which column it is: --column text=COLUMN."
