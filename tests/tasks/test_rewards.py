"""Preferences as losses: against plain torch in float64, the reference included, gradients and memory in pieces."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from chainrule.core.recipe import Spec
from chainrule.core.task import Predictions
from chainrule.data.batch import IGNORED, collate
from chainrule.data.chat import as_text
from chainrule.data.encode import Encoded
from chainrule.metrics import preferences
from chainrule.tasks import find_task
from chainrule.tasks.conversation import prepare_tokenizer
from chainrule.tasks.rewards import LOSSES, encode, likelihoods, objective, read
from chainrule.testing.models import tiny_language_model, tiny_tokenizer

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")


def rows() -> Encoded:
    tokenizer = tiny_tokenizer(64, decoder=True)
    prepare_tokenizer(tokenizer)
    turns = [[{"role": "user", "content": text}] for text in ("a film", "the book was")]
    turns.append([*turns[0], {"role": "assistant", "content": "good"}, {"role": "user", "content": "this"}])
    pairs = [["very good", "bad"], ["warm", "cold and dull"], ["it is great", "the room"]]
    contexts = {"messages": [as_text(each) for each in turns]}
    return encode(tokenizer, contexts, [json.dumps(pair) for pair in pairs], 64)


def made(encoded: Encoded) -> Any:
    return tiny_language_model(int(encoded.ids.max()) + 1).double().eval()


def plain(model: Any, encoded: Encoded) -> torch.Tensor:
    """log p of both replies of each row, sequence by sequence, by the plain formula."""
    found = []
    for start, end in zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True):
        ids = torch.tensor(encoded.ids[start:end]).long()
        logs = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        assert encoded.trained is not None
        trained = torch.tensor(encoded.trained[start:end])[1:]
        found.append(logs[:-1][trained, ids[1:][trained]].sum())
    return torch.stack(found).view(-1, 2)


def test_only_the_last_replies_are_learned_both_of_each_row() -> None:
    encoded = rows()
    assert len(encoded) == 3
    assert encoded.sequences is not None
    assert encoded.sequences.tolist() == [0, 2, 4, 6]
    assert encoded.targets.tolist() == [[3, 2], [2, 4], [4, 3]]  # words and the end of the turn
    assert encoded.learned is not None
    assert encoded.learned.tolist() == encoded.targets.sum(1).tolist()
    batch = collate(encoded, np.array([2, 0]), pad_id=0, left=False, device=CPU)
    assert batch.targets is not None
    assert (batch.targets != IGNORED).sum(1).tolist() == [4, 3, 3, 2]
    assert len(batch) == 2


def test_a_row_of_which_one_reply_is_cut_off_is_learned_by_neither() -> None:
    tokenizer = tiny_tokenizer(64, decoder=True)
    prepare_tokenizer(tokenizer)
    context = {"messages": [as_text([{"role": "user", "content": "a film a film a film"}])] * 2}
    whole = encode(tokenizer, context, [json.dumps(["good", "bad"]), json.dumps(["it", "we"])], 64)
    pairs = [json.dumps(pair) for pair in (["good", "bad"], ["it", "we"])]
    short = encode(tokenizer, context, pairs, int(np.diff(whole.offsets)[0]) - 3)
    assert short.learned is not None
    assert short.learned.tolist() == [0, 0]
    assert (short.full_lengths > np.diff(short.offsets).max()).all()


@pytest.mark.parametrize(("name", "options"), [("dpo", {"beta": 0.3}), ("dpo", {"label_smoothing": 0.2}), ("ipo", {})])
def test_loss_and_gradients_are_those_of_the_formula(name: str, options: dict[str, float]) -> None:
    encoded = rows()
    model = made(encoded)
    generator = torch.Generator().manual_seed(1)
    before = plain(model, encoded).detach() + torch.randn(3, 2, generator=generator)
    encoded = replace(encoded, references=before.float().numpy())
    batch = collate(encoded, np.array([0, 1, 2]), pad_id=0, left=False, device=CPU)
    total, count = objective(Spec(name=name, options=options), None).accumulate(model, batch)
    found = {key: parameter.grad.clone() for key, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()

    ratios = plain(model, encoded) - torch.tensor(encoded.references).double()
    difference, beta, smoothing = (
        ratios[:, 0] - ratios[:, 1],
        options.get("beta", 0.1),
        options.get("label_smoothing", 0),
    )
    expected = (difference - 1 / (2 * beta)).square()
    if name == "dpo":
        right, wrong = (functional.logsigmoid(sign * beta * difference) for sign in (1, -1))
        expected = -(1 - smoothing) * right - smoothing * wrong
    expected.sum().backward()  # type: ignore[no-untyped-call]
    assert count == 3
    assert float(total) == pytest.approx(float(expected.sum().detach()), rel=1e-6)
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(found[key], parameter.grad, rtol=1e-5, atol=1e-7)


def test_micro_batches_add_up_to_the_whole() -> None:
    encoded = rows()
    model = made(encoded)
    made_of = objective(Spec(name="default"), None)
    grads, sums = [], []
    for pieces in ([[0, 1, 2]], [[0], [2, 1]]):
        model.zero_grad()
        sums.append(sum(float(made_of.accumulate(model, _batch(encoded, piece))[0]) for piece in pieces))
        grads.append({key: parameter.grad.clone() for key, parameter in model.named_parameters()})
    assert sums[0] == pytest.approx(sums[1], rel=1e-9)
    assert all(torch.allclose(grads[0][key], grads[1][key], atol=1e-9) for key in grads[0])


def _batch(encoded: Encoded, piece: list[int]) -> Any:
    return collate(encoded, np.array(piece), pad_id=0, left=False, device=CPU)


def test_before_training_nothing_is_preferred() -> None:
    encoded = rows()
    model = made(encoded)
    batch = _batch(encoded, [0, 1, 2])
    with torch.no_grad():
        before = likelihoods(model, batch, encoded).values
        np.testing.assert_allclose(before, plain(model, encoded).numpy(), rtol=1e-6)
        found = read(model, batch, replace(encoded, references=before.astype(np.float32)))
    assert np.abs(found.values).max() < 1e-5
    assert found.losses == pytest.approx(np.log(2), abs=1e-5)


def test_scores_of_hand_made_rows() -> None:
    said = Predictions(np.array([2.0, -1.0, 0.0, 5.0]), np.ones(4), np.array([0.5, 1.0, 0.7, 0.2]))
    found = preferences.measure(np.ones((4, 2)), said)
    assert found == pytest.approx({"reward_accuracy": 2.5 / 4, "margin": 0.15, "loss": 0.6})
    free = find_task("preference").free
    assert free is not None
    longer = free(rows())["longer"]
    assert longer.values.tolist() == [1, -1, 1]
    assert set(LOSSES) == {"dpo", "ipo"}
