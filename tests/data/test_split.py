"""Cutting: deterministic, stratified, equal texts on one side, and recognised again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainrule.data.split import Cut, cut_folds, cut_rows, hash_texts, keep_labels_in_train, strata_of_numbers
from chainrule.data.targets import Labels

pytestmark = pytest.mark.unit

FRACTIONS = {"test": 0.1, "validation": 0.1}


def hashes(count: int, start: int = 0) -> np.ndarray:
    return hash_texts([[f"text {number}" for number in range(start, start + count)]])


def test_hashes_are_the_same_everywhere_and_tell_fields_apart() -> None:
    assert hash_texts([["你好", "a"]]).tolist() == [15910808664728542293, 3405396810240292928]
    assert hash_texts([["ab"], ["c"]]).tolist() != hash_texts([["a"], ["bc"]]).tolist()
    assert hash_texts([[], []]).dtype == np.uint64


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 4)), min_size=1, max_size=120))
def test_a_cut_is_a_partition_that_keeps_equal_texts_together(rows: list[tuple[int, int]]) -> None:
    texts = hash_texts([[str(text) for text, _ in rows]])
    strata = np.array([label for _, label in rows], dtype=np.int64)
    parts = cut_rows(texts, strata, FRACTIONS)
    if parts is None:
        return
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(rows)))
    assert all(len(indices) for indices in parts.values())
    sides = [set(texts[indices].tolist()) for indices in parts.values()]
    assert len(set().union(*sides)) == sum(len(side) for side in sides)
    order = np.random.default_rng(0).permutation(len(rows))
    shuffled = cut_rows(texts[order], strata[order], FRACTIONS)
    assert shuffled is not None
    for name, indices in parts.items():
        assert sorted(order[shuffled[name]].tolist()) == indices.tolist()


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 4)), min_size=1, max_size=120),
    st.integers(2, 7),
    st.integers(0, 2**32 - 1),
)
def test_folds_keep_equal_texts_together_and_strata_apart(rows: list[tuple[int, int]], folds: int, seed: int) -> None:
    texts = hash_texts([[str(text) for text, _ in rows]])
    strata = np.array([label for _, label in rows], dtype=np.int64)
    fold = cut_folds(texts, strata, folds, seed)
    assert all(len(set(fold[texts == text])) == 1 for text in texts)
    assert set(fold.tolist()) <= set(range(folds))
    order = np.random.default_rng(0).permutation(len(rows))
    assert cut_folds(texts[order], strata[order], folds, seed).tolist() == fold[order].tolist()
    if len(set(texts.tolist())) == len(rows):
        counts = np.array([[np.sum(fold[strata == code] == k) for k in range(folds)] for code in set(strata.tolist())])
        assert (np.ptp(counts, axis=1) <= 1).all()
        assert np.ptp(counts.sum(axis=0)) <= 1


def test_another_seed_deals_out_otherwise() -> None:
    strata = np.arange(60) % 3
    first, again, other = (cut_folds(hashes(60), strata, 5, seed).tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_shares_are_kept_in_every_stratum() -> None:
    strata = np.repeat([0, 1, 2], [700, 250, 50])
    parts = cut_rows(hashes(1000), strata, FRACTIONS)
    assert parts is not None
    for name, wanted in (("train", [560, 200, 40]), ("validation", [70, 25, 5]), ("test", [70, 25, 5])):
        assert np.bincount(strata[parts[name]]).tolist() == wanted


def test_a_further_row_hardly_moves_the_others() -> None:
    strata = np.arange(501) % 3
    before = cut_rows(hashes(500), strata[:500], FRACTIONS)
    after = cut_rows(hashes(501), strata, FRACTIONS)
    assert before is not None
    assert after is not None
    for name in before:
        assert len(set(before[name].tolist()) ^ (set(after[name].tolist()) - {500})) <= 4


def test_too_few_rows_are_not_cut() -> None:
    assert cut_rows(hashes(2), np.zeros(2, np.int64), FRACTIONS) is None
    assert cut_rows(hashes(3), np.zeros(3, np.int64), FRACTIONS) is not None
    assert cut_rows(np.zeros(100, np.uint64), np.zeros(100, np.int64), FRACTIONS) is None
    assert cut_rows(hashes(0), np.zeros(0, np.int64), FRACTIONS) is None


def test_every_label_ends_up_in_train() -> None:
    texts = hashes(4)
    parts = {"train": np.array([0, 1]), "test": np.array([2, 3])}
    moved = keep_labels_in_train(parts, texts, Labels.of([("a",), ("a",), ("a", "b"), ("a",)]))
    assert moved is not None
    assert moved["train"].tolist() == [0, 1, 2]
    assert keep_labels_in_train(parts, texts, Labels.of([("a",), ("a",), ("b",), ("c",)])) is None


def test_numbers_are_stratified_by_quantiles() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    strata = strata_of_numbers(values)
    assert np.bincount(strata).tolist() == [100] * 10
    assert len(set(strata_of_numbers(np.zeros(5)).tolist())) == 1
    assert strata_of_numbers(np.zeros(0)).tolist() == []


def test_a_cut_knows_its_file_and_its_rows_again() -> None:
    rows = hashes(10)
    cut = Cut("abc", {"train": np.sort(rows[:8]), "test": np.sort(rows[8:])})
    again = Cut.from_arrays(cut.arrays(), "abc")
    assert again.matches("abc", hashes(3))
    assert again.matches("other", rows[::-1])
    assert not again.matches("other", hashes(11))
    assert not Cut(None, {}).matches(None, hashes(0))
    assert again.apply(rows[::-1])["test"].tolist() == [0, 1]
