"""Words as tokens: each word once, in windows where rows are long, and back to where it stood."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast

from chainrule.core.recipe import Spec
from chainrule.core.spans import Spans
from chainrule.data.batch import IGNORED, collate
from chainrule.data.encode import Encoded
from chainrule.data.entities import as_input, tag_names, tags_of, units_of
from chainrule.tasks.objectives import token_objective
from chainrule.tasks.words import encode, marked, read
from chainrule.testing.models import tiny_tokenizer

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")
TEXTS = st.lists(
    st.text(alphabet="ab film我好, \u200b.é🙂", min_size=1, max_size=40).filter(lambda text: bool(text.strip())),
    min_size=1,
    max_size=4,
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE without merges, as RoBERTa's and Qwen's are: a Chinese character is three tokens."""
    pieces = ["<s>", "</s>", "<pad>", *pre_tokenizers.ByteLevel.alphabet()]
    inner = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(name, special=True) for name in pieces[:3]])
    inner.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


TOKENIZERS = {"wordpiece": tiny_tokenizer(64), "bytes": byte_tokenizer()}


class Oracle(nn.Module):
    """Says of every token the class that it was given."""

    def __init__(self, encoded: Encoded, tags: int) -> None:
        super().__init__()
        self.encoded, self.tags = encoded, tags

    def forward(self, input_ids: torch.Tensor, **more: Any) -> Any:
        found = torch.zeros(*input_ids.shape, self.tags)
        for place, row in enumerate(input_ids.tolist()):
            for start, end in zip(self.encoded.offsets[:-1], self.encoded.offsets[1:], strict=True):
                if row[: end - start] == self.encoded.ids[start:end].tolist() and self.encoded.classes is not None:
                    wanted = torch.tensor(self.encoded.classes[start:end]).long()
                    found[place, : end - start].scatter_(1, wanted[:, None], 9.0)
        return type("Output", (), {"logits": found})


def spoken(encoded: Encoded, row: int) -> list[tuple[int, int]]:
    """Where the words that a row's tokens speak for stand."""
    part = encoded.take(np.array([row]))
    assert part.places is not None
    assert part.trained is not None
    return sorted(map(tuple, part.places.reshape(-1, 2)[part.trained].tolist()))


@pytest.mark.parametrize("name", TOKENIZERS)
@given(texts=TEXTS, length=st.integers(6, 24))
@settings(max_examples=60)
def test_every_word_that_has_a_token_speaks_once_whatever_the_windows(name: str, texts: list[str], length: int) -> None:
    cells = [as_input(text) for text in texts]
    tokenizer = TOKENIZERS[name]
    encoded, whole = (encode(tokenizer, {"tokens": cells}, None, limit) for limit in (length, 512))
    assert len(encoded) == len(texts)
    assert encoded.sequences is not None
    assert np.diff(encoded.offsets).max() <= length
    for row, cell in enumerate(cells):
        units = units_of(cell)[1]
        places = spoken(encoded, row)
        assert len(places) == len(set(places))
        assert places == spoken(whole, row)
        assert set(places) <= set(units) | {(a, b) for a, _ in units for _, b in units}
        if name == "bytes":
            assert places == units  # every byte has a token
        elif "\u200b" not in texts[row]:  # which BERT leaves out
            covered = {place for start, end in places for place in range(start, end)}
            assert covered >= {start for start, _ in units}
    learned = encoded.learned
    assert learned is not None
    assert learned.tolist() == [len(spoken(encoded, row)) for row in range(len(cells))]


@pytest.mark.parametrize("length", [8, 12, 64])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_is_learned_comes_back_as_the_entities_it_was_made_of(name: str, length: int) -> None:
    texts: list[Any] = ["a film of 我好 and the book we had", list("this"), ["good", "film"], "it"]
    cells = [as_input(text) for text in texts]
    spans = [[(2, 6, 0), (10, 12, 1), (21, 28, 1)], [], [(0, 4, 1), (5, 9, 0)], [(0, 2, 0)]]
    encoded = encode(TOKENIZERS[name], {"tokens": cells}, Spans.of(spans), length)
    model = Oracle(encoded, 5)
    order = np.array([2, 0, 3, 1])
    batch = collate(encoded, order, pad_id=0, left=False, device=CPU)
    found = read(model, batch, encoded)
    assert list(found.values.each()) == [spans[row] for row in order]
    assert found.losses is not None
    assert found.losses.max() < 0.01
    assert (found.scores > 0.99).all()
    assert len(found.values.scores) == 6
    unknown = encode(TOKENIZERS[name], {"tokens": cells}, None, length)
    batch = collate(unknown, order, pad_id=0, left=False, device=CPU)
    again = read(model, batch, unknown)
    assert again.losses is None
    assert list(again.values.each()) == [spans[row] for row in order]


def test_a_word_speaks_by_its_first_token_where_it_stands_deepest_in_a_window() -> None:
    tokenizer = tiny_tokenizer(64)
    encoded = encode(tokenizer, {"tokens": [as_input(["film"] * 9)]}, None, 8)  # six words a window, two shared
    assert encoded.sequences is not None
    assert encoded.sequences.tolist() == [0, 2]
    assert encoded.trained is not None
    parts = [encoded.trained[start:end].tolist() for start, end in ((0, 8), (8, len(encoded.ids)))]
    assert sum(map(sum, parts)) == 9
    assert parts[0][0] is parts[0][-1] is False
    assert encoded.lengths.tolist() == encoded.full_lengths.tolist() == [16]


def test_only_the_tokens_of_words_are_learned_and_the_loss_is_their_sum() -> None:
    tokenizer = tiny_tokenizer(64)
    cells = [as_input(["good", "xyz", "film"]), as_input(["it"])]
    targets = Spans.of([[(0, 4, 0), (5, 8, 1)], []])
    encoded = encode(tokenizer, {"tokens": cells}, targets, 32)
    names = tag_names(("PER", "LOC"))
    assert (
        marked(tokenizer, encoded.take(np.array([0])), ("PER", "LOC"))
        == "[CLS] ⟦good/B-PER⟧ ⟦x/B-LOC⟧ ##y ##z ⟦film⟧ [SEP]"
    )
    batch = collate(encoded, np.array([0, 1]), pad_id=0, left=False, device=CPU)
    assert batch.targets is not None
    assert batch.targets.tolist()[0] == [IGNORED, 1, 3, IGNORED, IGNORED, 0, IGNORED]
    assert batch.targets.tolist()[1] == [IGNORED, 0] + [IGNORED] * 5
    logits = torch.randn(2, 7, len(names), dtype=torch.float64, requires_grad=True)

    class Fixed(nn.Module):
        def forward(self, **inputs: Any) -> Any:
            return type("Output", (), {"logits": logits})

    total, count = token_objective(Spec(name="default"), targets).accumulate(Fixed(), batch)
    assert count == 4
    logs = logits.detach().log_softmax(-1)
    expected = -(logs[0, 1, 1] + logs[0, 2, 3] + logs[0, 5, 0] + logs[1, 1, 0])
    assert float(total) == pytest.approx(float(expected), rel=1e-5)
    assert logits.grad is not None
    assert not logits.grad[0, 3:5].any()
    assert not logits.grad[1, 2:].any()


def test_a_tag_is_that_of_the_word_that_a_span_touches() -> None:
    units = [(0, 4), (5, 8), (9, 13)]
    assert tags_of([(0, 8, 0), (10, 12, 1)], units).tolist() == [1, 2, 3]
    assert tags_of([(4, 5, 0)], units).tolist() == [0, 0, 0]
