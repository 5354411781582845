"""The chain over tags: every formula against all tag sequences counted one by one, in float64."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chainrule.core.recipe import Structure
from chainrule.data.batch import IGNORED
from chainrule.errors import RecipeError
from chainrule.models.crf import (
    Chain,
    Tagger,
    best_tags,
    chain_score,
    log_marginals,
    negative_log_likelihood,
)
from chainrule.models.load import load_classifier, load_tokenizer
from chainrule.tasks.objectives import ChainObjective

pytestmark = pytest.mark.unit
SIZES = st.tuples(st.integers(1, 5), st.integers(2, 4), st.integers(0, 9))


def made(words: int, tags: int, seed: int) -> tuple[np.ndarray, Chain]:
    generator = np.random.default_rng(seed)
    chain = Chain(*(generator.normal(size=shape) for shape in ((tags,), (tags, tags), (tags,))))
    return generator.normal(size=(words, tags)), chain


def every(logits: np.ndarray, chain: Chain) -> dict[tuple[int, ...], float]:
    """The score of each tag sequence there is, added up word by word."""
    found = {}
    for tags in itertools.product(range(logits.shape[1]), repeat=len(logits)):
        score = chain.first[tags[0]] + chain.last[tags[-1]]
        score += sum(logits[place, tag] for place, tag in enumerate(tags))
        found[tags] = score + sum(chain.between[before, after] for before, after in itertools.pairwise(tags))
    return found


def in_torch(chain: Chain) -> Chain:
    return Chain(*(torch.tensor(part) for part in (chain.first, chain.between, chain.last)))


@given(SIZES)
def test_numbers_are_those_of_all_sequences_counted(size: tuple[int, int, int]) -> None:
    logits, chain = made(*size)
    scores = every(logits, chain)
    total = float(np.logaddexp.reduce(list(scores.values())))
    best = max(scores, key=lambda tags: scores[tags])
    assert tuple(best_tags(logits, chain)) == best
    assert chain_score(logits, np.array(best), chain) == pytest.approx(scores[best])
    marginals, found = log_marginals(logits, chain)
    assert found == pytest.approx(total)
    for place in range(len(logits)):
        for tag in range(logits.shape[1]):
            some = [score for tags, score in scores.items() if tags[place] == tag]
            assert marginals[place, tag] == pytest.approx(np.logaddexp.reduce(some) - total)
    loss = negative_log_likelihood(
        torch.tensor(logits)[None], torch.tensor(best)[None], torch.tensor([len(logits)]), in_torch(chain)
    )
    assert float(loss) == pytest.approx(total - scores[best])


def test_a_sequence_gives_the_same_alone_and_padded() -> None:
    logits, chain = made(5, 3, 0)
    tags, short = torch.tensor([[0, 2, 1, 1, 0], [2, 1, 0, 0, 0]]), torch.tensor(logits)[None].repeat(2, 1, 1)
    both = negative_log_likelihood(short, tags, torch.tensor([5, 2]), in_torch(chain))
    alone = negative_log_likelihood(short[1:, :2], tags[1:, :2], torch.tensor([2]), in_torch(chain))
    assert torch.equal(both[1:], alone)


def test_gradients_are_right() -> None:
    logits, chain = made(4, 3, 1)
    tags, words = torch.tensor([[0, 2, 1, 1], [1, 1, 0, 0]]), torch.tensor([4, 2])
    inputs = [torch.tensor(part, requires_grad=True) for part in (chain.first, chain.between, chain.last)]
    both = torch.tensor(np.stack([logits, -logits]), requires_grad=True)

    def loss(values: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
        return negative_log_likelihood(values, tags, words, Chain(*parts))

    assert torch.autograd.gradcheck(loss, (both, *inputs))


def test_a_chain_of_zeros_is_a_plain_classifier() -> None:
    logits, chain = made(4, 3, 2)
    chain = Chain(*(0 * part for part in (chain.first, chain.between, chain.last)))
    plain = torch.tensor(logits).log_softmax(-1)
    assert log_marginals(logits, chain)[0] == pytest.approx(plain.numpy())
    tags = torch.tensor([2, 0, 1, 1])
    loss = negative_log_likelihood(torch.tensor(logits)[None], tags[None], torch.tensor([4]), in_torch(chain))
    assert float(loss) == pytest.approx(-float(plain[torch.arange(4), tags].sum()))


def test_the_objective_reads_the_words_of_each_sequence_as_they_stand() -> None:
    logits, chain = made(6, 3, 3)
    values = torch.tensor(np.stack([logits, logits[::-1].copy(), logits]), dtype=torch.float32, requires_grad=True)
    targets = torch.full((3, 6), IGNORED)
    targets[0, [1, 3, 4]] = torch.tensor([2, 0, 1])
    targets[1, 2] = 1

    class Batch:
        inputs: dict[str, Any] = {}  # noqa: RUF012

    batch = Batch()
    batch.targets = targets  # type: ignore[attr-defined]
    output = type("Output", (), {"logits": values, "chain": in_torch(chain)})
    total, count = ChainObjective().accumulate(lambda: output, batch)
    assert count == 4
    first = negative_log_likelihood(
        values[:1, [1, 3, 4]].double(), torch.tensor([[2, 0, 1]]), torch.tensor([3]), in_torch(chain)
    )
    second = negative_log_likelihood(values[1:2, [2]].double(), torch.tensor([[1]]), torch.tensor([1]), in_torch(chain))
    assert float(total) == pytest.approx(float((first + second).detach()), rel=1e-5)
    assert values.grad is not None
    assert not values.grad[2].any()


def test_a_tagger_with_a_chain_starts_from_the_pretrained_trunk(tiny_bert: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_bert))
    made = {
        head: load_classifier(
            str(tiny_bert), tokenizer, ["O", "B-X"], "", Structure(head=head), seed=0, head="token-classifier"
        )
        for head in ("linear", "crf")
    }
    assert isinstance(made["crf"], Tagger)
    assert not any(parameter.any() for name, parameter in made["crf"].named_parameters() if name.startswith("crf."))
    names = [name for name, _ in made["linear"].base_model.named_parameters()]
    theirs = dict(made["crf"].base_model.named_parameters())
    assert all(torch.equal(theirs[name], made["linear"].base_model.get_parameter(name)) for name in names)
    with pytest.raises(RecipeError, match="cannot have this pooling and head"):
        load_classifier(str(tiny_bert), tokenizer, ["a", "b"], "", Structure(head="crf"), seed=0)
