"""Batches: every row once an epoch, deterministic, padded exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chainrule.data.batch import IGNORED, by_length, collate, epoch_order, micro_batches, pack, packs_of
from chainrule.data.encode import Encoded, encode
from chainrule.testing.models import tiny_tokenizer

pytestmark = pytest.mark.unit
LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=200).map(np.array)
CPU = torch.device("cpu")


@given(LENGTHS, st.integers(1, 40), st.booleans(), st.integers(0, 5))
def test_every_row_comes_once_an_epoch(lengths: np.ndarray, size: int, group: bool, epoch: int) -> None:
    batches = epoch_order(lengths, size, seed=3, epoch=epoch, group_by_length=group)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert [len(batch) for batch in batches].count(size) >= len(lengths) // size
    again = epoch_order(lengths, size, seed=3, epoch=epoch, group_by_length=group)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


@given(LENGTHS, st.integers(1, 400))
def test_inference_batches_hold_every_row_within_the_token_budget(lengths: np.ndarray, tokens: int) -> None:
    batches = list(by_length(lengths, tokens))
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert all(len(batch) == 1 or lengths[batch].max() * len(batch) <= tokens for batch in batches)


def test_seeds_and_epochs_give_other_orders() -> None:
    lengths = np.arange(1, 101)
    orders = {
        tuple(np.concatenate(epoch_order(lengths, 8, seed=seed, epoch=epoch, group_by_length=True)))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 4


def test_grouping_leaves_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(5, 120, 1600)
    padded = {
        group: sum(
            int(lengths[rows].max()) * len(rows)
            for rows in epoch_order(lengths, 32, seed=0, epoch=0, group_by_length=group)
        )
        for group in (True, False)
    }
    assert padded[True] < 1.1 * lengths.sum() < 1.5 * lengths.sum() < padded[False]


def test_micro_batches_split_without_loss() -> None:
    rows, lengths = np.array([4, 0, 2, 3]), np.array([5, 99, 7, 2, 2])
    assert [list(part) for part in micro_batches(rows, lengths, 28)] == [[4, 0, 2, 3]]
    assert [list(part) for part in micro_batches(rows, lengths, 10)] == [[2], [0, 4], [3]]
    assert [list(part) for part in micro_batches(rows, lengths, 1)] == [[2], [0], [4], [3]]


@pytest.mark.parametrize("left", [False, True])
def test_collate_pads_on_the_asked_side(left: bool) -> None:
    encoded = Encoded(
        ids=np.array([5, 6, 7, 8], np.int32),
        offsets=np.array([0, 1, 4]),
        types=None,
        full_lengths=np.array([1, 3]),
        targets=np.array([1, 0]),
    )
    batch = collate(encoded, np.array([0, 1]), pad_id=9, left=left, device=CPU)
    assert batch.inputs["input_ids"].tolist() == ([[9, 9, 5], [6, 7, 8]] if left else [[5, 9, 9], [6, 7, 8]])
    assert batch.inputs["attention_mask"].tolist() == ([[0, 0, 1], [1, 1, 1]] if left else [[1, 0, 0], [1, 1, 1]])
    assert batch.targets is not None
    assert batch.targets.tolist() == [1, 0]
    assert batch.tokens == 4


def test_rows_side_by_side() -> None:
    encoded = Encoded(
        ids=np.array([5, 6, 7, 8, 9], np.int32),
        offsets=np.array([0, 1, 4, 5]),
        types=None,
        full_lengths=np.array([1, 3, 1]),
        targets=None,
        trained=np.array([True, True, False, True, False]),
    )
    batch = pack(encoded, np.array([1, 0]), device=CPU)
    assert {name: value.tolist() for name, value in batch.inputs.items()} == {
        "input_ids": [[6, 7, 8, 5]],
        "position_ids": [[0, 1, 2, 0]],
    }
    assert batch.targets is not None
    assert batch.targets.tolist() == [[IGNORED, IGNORED, 8, IGNORED]]  # what nothing stands before is not predicted
    assert batch.tokens == batch.padded_tokens == 4


@given(st.lists(st.integers(1, 600), min_size=1, max_size=40), st.integers(1, 3000))
def test_packs_hold_every_row_once_and_are_even(lengths: list[int], tokens: int) -> None:
    every, rows = np.array(lengths), np.arange(len(lengths))
    packs = packs_of(rows, every, tokens)
    assert sorted(np.concatenate(packs)) == list(rows)
    sizes = [int(every[pack].sum()) for pack in packs]
    assert len(packs) == min(len(rows), -(-sum(lengths) // tokens))
    assert max(sizes) - min(sizes) <= max(lengths)


def test_an_even_batch_needs_no_mask() -> None:
    encoded = encode(tiny_tokenizer(64), {"text": ["good film", "bad book"]}, None, 64)
    assert "attention_mask" not in collate(encoded, np.array([0, 1]), pad_id=0, left=False, device=CPU).inputs


def test_encoding_is_what_the_tokenizer_says() -> None:
    tokenizer = tiny_tokenizer(64)
    first, second = ["good film", "我很喜欢", "a"], ["bad", "不好", "the book is dull"]
    encoded = encode(tokenizer, {"text_a": first, "text_b": second}, None, 64)
    for row, pair in enumerate(zip(first, second, strict=True)):
        start, end = encoded.offsets[row], encoded.offsets[row + 1]
        plain = tokenizer(*pair)
        assert encoded.ids[start:end].tolist() == plain["input_ids"]
        assert encoded.types is not None
        assert encoded.types[start:end].tolist() == plain["token_type_ids"]


def test_truncation_is_counted() -> None:
    encoded = encode(tiny_tokenizer(64), {"text": ["a " * 30, "a"]}, None, 8)
    assert encoded.full_lengths.tolist() == [32, 3]
    assert encoded.lengths.tolist() == [8, 3]
