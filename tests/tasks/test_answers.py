"""Answers as tokens: learned at their ends in every window that has them whole, and found again in characters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from chainrule.core.recipe import Spec
from chainrule.core.spans import Answers, Spans
from chainrule.core.task import Predictions
from chainrule.data.batch import IGNORED, collate
from chainrule.data.encode import Encoded
from chainrule.data.texts import Texts
from chainrule.errors import ModelError
from chainrule.metrics.answers import measure
from chainrule.tasks.answers import Options, calibrate, encode, marked, prepare_model, read
from chainrule.tasks.objectives import answer_losses, answer_objective, ends_of
from chainrule.testing.models import tiny_tokenizer
from tests.tasks.test_words import byte_tokenizer

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")
TOKENIZERS = {"wordpiece": tiny_tokenizer(64), "bytes": byte_tokenizer()}
WORDS = st.lists(st.sampled_from(["good", "film", "我好", "é🙂", "xyz", "a.b"]), min_size=1, max_size=12)


def encoded_rows(tokenizer: Any, rows: list[tuple[str, str, list[tuple[int, int]]]], length: int) -> Encoded:
    contexts = Texts.of([context for _, context, _ in rows])
    spans = Spans.of([[(start, end, 0) for start, end in found] for *_, found in rows])
    inputs = {"question": Texts.of([question for question, *_ in rows]), "context": contexts}
    return encode(tokenizer, inputs, Answers(contexts, spans), length)


class Oracle(nn.Module):
    """Has large logits at the ends that it was shown, less so for "no answer"; and a configuration."""

    def __init__(self, encoded: Encoded, threshold: float | None = 0.0, longest: int = 30) -> None:
        super().__init__()
        self.encoded = encoded
        settings = {"max_answer_tokens": longest, "null_score_diff_threshold": threshold, "name_or_path": "x"}
        self.config = type("Config", (), settings)()

    def forward(self, input_ids: torch.Tensor, **more: Any) -> Any:
        assert self.encoded.classes is not None
        logits = torch.zeros(*input_ids.shape, 2)
        for place, row in enumerate(input_ids.tolist()):
            for start, end in zip(self.encoded.offsets[:-1], self.encoded.offsets[1:], strict=True):
                if row[: end - start] == self.encoded.ids[start:end].tolist():
                    classes = torch.from_numpy(self.encoded.classes[start:end].astype(np.int64))
                    height = torch.full((end - start,), 12.0)
                    height[0] = 9.0
                    logits[place, : end - start] = torch.stack([classes & 1, classes >> 1], -1) * height[:, None]
        return type("Output", (), {"start_logits": logits[..., 0], "end_logits": logits[..., 1]})


def predicted(encoded: Encoded, model: Any, order: np.ndarray) -> Predictions:
    return read(model, collate(encoded, order, pad_id=0, left=False, device=CPU), encoded)


@pytest.mark.parametrize("length", [24, 32, 64])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_is_learned_comes_back_as_the_answers_it_was_made_of(name: str, length: int) -> None:
    long = " ".join(["film"] * 9 + ["good"] + ["film"] * 9)
    rows = [
        ("it", "a film of 我好 and 🙂 the book", [(10, 12), (0, 1)]),
        ("it", long, [(45, 49)]),
        ("good", "it is", []),
        ("it", "  film ", [(2, 6)]),
    ]
    encoded = encoded_rows(TOKENIZERS[name], rows, length)
    assert encoded.sequences is not None
    assert np.diff(encoded.offsets).max() <= length
    whole = encoded_rows(TOKENIZERS[name], rows, 512)
    assert ((np.diff(encoded.sequences) > 1) == (whole.lengths > length)).all()
    order = np.array([3, 1, 0, 2])
    found = predicted(encoded, Oracle(encoded), order)
    said = [[(start, end) for start, end, _ in row] for row in found.values.each()]
    beats = dict(zip(found.values.rows.tolist(), found.values.scores.tolist(), strict=True))
    for place, row in enumerate(order):
        if rows[row][2]:
            assert said[place] == rows[row][2][:1]
            assert beats[place] > 0
        else:
            assert beats.get(place, -1.0) <= 0
    assert found.losses is not None
    assert found.losses.max() < 0.05
    assert (found.scores.sum(axis=1) <= 1 + 1e-9).all()
    alone = predicted(replace(encoded, targets=None), Oracle(encoded), order)
    assert alone.losses is None
    assert list(alone.values.each()) == list(found.values.each())


@pytest.mark.parametrize("name", TOKENIZERS)
@given(words=WORDS, place=st.integers(0, 11), length=st.sampled_from([20, 40]))
@settings(max_examples=40, deadline=None)
def test_every_window_learns_one_begin_and_one_end(name: str, words: list[str], place: int, length: int) -> None:
    context, place = " ".join(words), place % len(words)
    start = len(" ".join([*words[:place], ""]))
    encoded = encoded_rows(TOKENIZERS[name], [("it", context, [(start, start + len(words[place]))])], length)
    assert encoded.classes is not None
    assert encoded.trained is not None
    assert encoded.places is not None
    places = encoded.places.reshape(-1, 2)
    for first, last in zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True):
        classes = encoded.classes[first:last]
        assert classes.sum() == 3
        assert encoded.trained[first:last][classes > 0].all()
        begin, end = (classes & 1).argmax(), (classes >> 1).argmax()
        assert begin <= end
        piece = places[first + begin, 0], places[first + end, 1]
        assert piece in ((0, 0), (start, start + len(words[place])))
    covered = np.zeros(len(context), bool)
    for begin, end in places[encoded.trained]:
        covered[begin:end] = True
        assert not context[begin:end] or context[begin:end] == context[begin:end].strip()
    assert covered.sum() == sum(not letter.isspace() for letter in context)  # nothing is cut off


def test_a_question_that_is_too_long_is_refused_alone() -> None:
    encoded = encoded_rows(TOKENIZERS["wordpiece"], [("good " * 9, "film", [(0, 4)]), ("good", "film", [(0, 4)])], 20)
    assert encoded.refused == {0: "one of 9, where 7 have room"}
    assert encoded.learned is not None
    assert (encoded.learned > 0).tolist() == [False, True]


def test_marked_shows_the_answer_in_every_window() -> None:
    encoded = encoded_rows(TOKENIZERS["wordpiece"], [("it", "a good film", [(2, 11)]), ("it", "a film", [])], 64)
    rows = [marked(TOKENIZERS["wordpiece"], encoded.take(np.array([row])), ()) for row in range(2)]
    assert rows == ["[CLS] it [SEP] a ⟦good film⟧ [SEP]", "⟦[CLS]⟧ it [SEP] a film [SEP]"]


def test_an_answer_is_never_longer_than_said_and_never_across_windows() -> None:
    encoded = encoded_rows(TOKENIZERS["wordpiece"], [("it", "a good film was here", [(2, 20)])], 64)
    found = predicted(encoded, Oracle(encoded, threshold=None, longest=2), np.array([0]))
    ((span,),) = found.values.each()
    assert span[:2] != (2, 20)
    assert len("a good film was here"[span[0] : span[1]].split()) <= 2
    assert found.values.scores.tolist() == [1.0]


def test_a_model_that_does_not_say_how_is_refused() -> None:
    encoded = encoded_rows(TOKENIZERS["wordpiece"], [("it", "a film", [(0, 1)])], 64)
    for longest in (0, "30", None):
        with pytest.raises(ModelError, match="does not say how to read its answers"):
            predicted(encoded, Oracle(encoded, longest=longest), np.array([0]))  # type: ignore[arg-type]


class Fixed(nn.Module):
    """Has the same logits always."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, **inputs: Any) -> Any:
        return type("Output", (), {"start_logits": self.logits[..., 0], "end_logits": self.logits[..., 1]})


def test_the_loss_is_the_mean_of_two_cross_entropies_over_the_places_that_may_be_ends() -> None:
    targets = torch.tensor([[3, IGNORED, 0, 0, IGNORED], [0, IGNORED, 1, 2, 0], [0, 3, 0, 0, 0]])
    logits = torch.randn(3, 5, 2, dtype=torch.float64, requires_grad=True)
    allowed = [[0, 2, 3], [0, 2, 3, 4], [0, 1, 2, 3, 4]]
    wanted = [(0, 0), (2, 3), (1, 1)]
    expected = torch.zeros((), dtype=torch.float64)
    for row, (kept, ends) in enumerate(zip(allowed, wanted, strict=True)):
        for side in range(2):
            own = logits[row][kept][:, side]
            expected = expected + 0.5 * (own.logsumexp(0) - logits[row, ends[side], side])
    (slope,) = torch.autograd.grad(expected, logits)
    model = Fixed(logits)
    batch = type("Batch", (), {"inputs": {}, "targets": targets})
    total, count = answer_objective(Spec(name="default"), None).accumulate(model, batch)
    assert count == 3
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert logits.grad is not None
    assert torch.allclose(logits.grad, slope, atol=1e-6)
    assert not logits.grad[0, [1, 4]].any()

    def losses(values: torch.Tensor) -> torch.Tensor:
        kept = values.masked_fill((targets == IGNORED)[..., None], -torch.inf)
        return answer_losses(kept, targets).sum()

    assert torch.autograd.gradcheck(losses, logits.detach().clone().requires_grad_())
    assert ends_of(model, {}, targets).dtype == torch.float32


def said(beats: list[float], contexts: Texts) -> Predictions:
    return Predictions(Spans.of([[(0, 3, 0)]] * len(contexts), np.array(beats)), np.ones((len(contexts), 2)))


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_is_the_best_of_all_on_validation(seed: int) -> None:
    draw = np.random.default_rng(seed)
    contexts = Texts.of(["yes no"] * 30)
    spans = [[], [(0, 3, 0)], [(0, 6, 0)], [(4, 6, 0)]]
    targets = Answers(contexts, Spans.of([spans[kind] for kind in draw.integers(0, 4, 30)]))
    predictions = said(draw.integers(-4, 5, 30).astype(float).tolist(), contexts)
    model = Oracle(encoded_rows(TOKENIZERS["wordpiece"], [("it", "a", [])], 64))
    after = calibrate(model, targets, predictions)
    best = max(
        measure(
            targets, replace(predictions, values=replace(predictions.values, scores=predictions.values.scores + move))
        )["f1"]
        for move in np.arange(-6, 6.5, 0.5)
    )
    assert measure(targets, after)["f1"] == pytest.approx(best)
    moved = model.config.null_score_diff_threshold
    assert np.allclose(after.values.scores, predictions.values.scores + moved)


def test_no_threshold_where_there_always_is_an_answer() -> None:
    contexts = Texts.of(["yes no"] * 2)
    always = Answers(contexts, Spans.of([[(0, 3, 0)]] * 2))
    model = Oracle(encoded_rows(TOKENIZERS["wordpiece"], [("it", "a", [])], 64))
    prepare_model(model, always, Options(max_answer_tokens=7))
    config: Any = model.config
    assert (config.max_answer_tokens, config.null_score_diff_threshold) == (7, None)
    predictions = said([1.0, 1.0], contexts)
    assert calibrate(model, always, predictions) is predictions
    prepare_model(model, Answers(contexts, Spans.of([[(0, 3, 0)], []])), Options())
    assert (config.max_answer_tokens, config.null_score_diff_threshold) == (30, 0.0)
