"""Sources as prompts: what is cut where a row is too long, and what never is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from chainrule.data.encode import Encoded
from chainrule.data.texts import Texts
from chainrule.data.written import as_target
from chainrule.tasks.conversation import prepare_tokenizer
from chainrule.tasks.prompted import Prompted
from chainrule.testing.models import tiny_tokenizer

pytestmark = pytest.mark.unit
LONG = "the film was good and the book was bad and the room was cold"


@pytest.fixture
def tokenizer() -> Any:
    made = tiny_tokenizer(64, decoder=True)
    prepare_tokenizer(made)
    return made


def encoded(tokenizer: Any, source: str, target: str, limit: int, instruction: str | None = None) -> Encoded:
    targets = Texts.of([as_target([target, "never learned"])])
    return Prompted(instruction)(tokenizer, {"source": [source]}, targets, limit)


def learned(tokenizer: Any, rows: Encoded) -> str:
    assert rows.trained is not None
    return str(tokenizer.decode(rows.ids[rows.trained]))


def test_a_source_loses_its_end_so_that_the_target_is_whole(tokenizer: Any) -> None:
    whole = encoded(tokenizer, LONG, "film good", 64, "we had")
    assert "we had the film" in tokenizer.decode(whole.ids)
    cut = encoded(tokenizer, LONG, "film good", 28, "we had")
    assert 26 <= len(cut.ids) <= 28, "no more than needed"
    assert cut.full_lengths.tolist() == whole.full_lengths.tolist() == [len(whole.ids)]
    assert learned(tokenizer, cut) == learned(tokenizer, whole) == "film good [SEP]"
    text = tokenizer.decode(cut.ids)
    assert "we had the film was" in text
    assert "room" not in text


def test_a_target_is_cut_only_where_a_quarter_is_left_to_its_source(tokenizer: Any) -> None:
    rows = encoded(tokenizer, LONG, "good " * 30, 28)
    assert len(rows.ids) == 28
    assert tokenizer.decode(rows.ids).count("the film was good") == 1, "seven of 28 tokens"
    assert not learned(tokenizer, rows).endswith("[SEP]")


def test_what_is_to_be_written_is_asked_for_at_the_end(tokenizer: Any) -> None:
    rows = Prompted(None)(tokenizer, {"source": [LONG, "warm"]}, None, 24)
    texts = [tokenizer.decode(rows.ids[slice(*rows.offsets[row : row + 2])]) for row in range(2)]
    assert all(text.startswith("user") for text in texts)
    assert "the film" in texts[0]
    assert np.diff(rows.offsets).max() <= 24
    assert (rows.full_lengths > rows.lengths).tolist() == [True, False]
