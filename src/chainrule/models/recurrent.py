"""An LSTM made from the training rows: its tokenizer, its embeddings, its head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from chainrule.core.recipe import Section, Structure
from chainrule.core.task import Head
from chainrule.errors import Problem, RecipeError, Where
from chainrule.models.classifier import SETTINGS, Form, PooledClassifier, choose_form, is_own
from chainrule.models.crf import LINEAR, Tagger, choose_chain
from chainrule.models.embeddings import read_embeddings
from chainrule.models.load import load_tokenizer
from chainrule.models.lstm import LSTMConfig
from chainrule.models.tokenizer import SPECIAL, make_tokenizer, natural_unit, without_types
from chainrule.models.vectors import FIELD, MAX_SIZE, read_vectors

# LOG.md, "How good is an LSTM from scratch?"
LEARNING_RATE, EPOCHS = 1e-3, 10.0
EMBEDDING_SIZE = 128  # without vectors
DROPOUT = 0.5
FORM = Form("max", "linear")  # Conneau et al. (2017), InferSent: the best of the ways to read a sentence's BiLSTM


class Options(Section):
    """What an LSTM is made with.

    Attributes:
        vocabulary: what a token is; "auto" takes characters where most letters of the training rows are of a script
            that is written without spaces, words elsewhere.
        vocabulary_size: entries at most, the most frequent ones of the training rows; a "byte" one has all 256.
        min_count: what is rarer in the training rows is unknown.
        lowercase: read upper and lower case alike.
        embedding_size: numbers of a token's embedding; null means 128, or as many as the vectors have.
        hidden_size: numbers of a token's state; with two directions half of them each.
        layers: how many, one above the other.
        bidirectional: read from both ends.
        vectors: a file of word vectors in GloVe's or word2vec's text format, to begin the embeddings with.
        pieces: the name or folder of a pretrained model, to read that model's tokens and begin with its embeddings of
            them; none of what counts words applies then.
    """

    vocabulary: Literal["auto", "word", "character", "byte"] = "auto"
    vocabulary_size: int = Field(default=30_000, ge=len(SPECIAL) + 1, le=1_000_000)
    min_count: int = Field(default=2, ge=1)
    lowercase: bool = True
    embedding_size: int | None = Field(default=None, ge=1, le=MAX_SIZE)
    hidden_size: int = Field(default=256, ge=2, le=8192)
    layers: int = Field(default=1, ge=1, le=16)
    bidirectional: bool = True
    vectors: str | None = None
    pieces: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> Options:
        if self.bidirectional and self.hidden_size % 2:
            raise ValueError("an even hidden_size where there are two directions")
        if self.vectors is not None and self.vocabulary == "byte":
            raise ValueError("words or characters where there are vectors: bytes have none")
        if self.pieces is not None and (self.vectors is not None or self.vocabulary != "auto"):
            raise ValueError("no vectors and no vocabulary beside pieces, which have both")
        return self


def tokenizer_of(options: Options, inputs: Mapping[str, Sequence[str]]) -> tuple[Any, Options]:
    """A tokenizer for rows, and the options with what is chosen for them."""
    if options.pieces is not None:
        return without_types(load_tokenizer(options.pieces)), options
    unit = natural_unit(chain.from_iterable(inputs.values())) if options.vocabulary == "auto" else options.vocabulary
    texts = chain.from_iterable(inputs.values())
    size, count = options.vocabulary_size, options.min_count
    tokenizer = make_tokenizer(texts, unit, size=size, min_count=count, lowercase=options.lowercase)
    width = options.embedding_size if options.vectors else options.embedding_size or EMBEDDING_SIZE
    return tokenizer, options.model_copy(update={"vocabulary": unit, "embedding_size": width})


def make_classifier(
    options: Options,
    tokenizer: Any,
    labels: Sequence[str],
    problem_type: str,
    structure: Structure,
    *,
    seed: int,
    head: Head = "classifier",
) -> tuple[Any, str | None]:
    """A classifier, of rows or of their tokens, in float32, and a line to tell of its vectors.

    Args:
        seed: draws the weights.

    Returns:
        The model, and the line; None without vectors.

    Raises:
        ModelError: the vectors cannot be read.
        RecipeError: pooling and head do not go together, or the vectors not with the vocabulary.
    """
    found = _begin_with(options, tokenizer)
    config = LSTMConfig(
        vocab_size=len(tokenizer),
        embedding_size=(options.embedding_size or EMBEDDING_SIZE) if found is None else found[1].shape[1],
        hidden_size=options.hidden_size,
        num_hidden_layers=options.layers,
        bidirectional=options.bidirectional,
        hidden_dropout_prob=DROPOUT if structure.dropout is None else structure.dropout,
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        problem_type=problem_type or None,
    )
    if head == "classifier":
        setattr(config, SETTINGS, asdict(FORM))
        choose_form(config, structure)
    else:
        choose_chain(config, structure)
        if not is_own(config):  # transformers has no tagger of this kind, with a chain or without
            setattr(config, SETTINGS, {"head": LINEAR})
    torch.manual_seed(seed)
    model = PooledClassifier(config) if head == "classifier" else Tagger(config)
    if found is None:
        return model, None
    places, values = (torch.from_numpy(array) for array in found)
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        table.normal_(std=float(values.std(correction=0)))  # words that are not among them begin as large as those
        table[tokenizer.pad_token_id].zero_()
        table[places] = values
    if options.pieces is not None:
        return model, f"Embeddings: {len(places):,} of {options.pieces}, {values.shape[1]:,} numbers each."
    told = f"{options.vectors} has {len(places):,} of the {len(tokenizer) - len(SPECIAL):,} entries of the vocabulary."
    return model, f"Vectors: {told}"


def _begin_with(options: Options, tokenizer: Any) -> tuple[Any, Any] | None:
    """Places in the vocabulary, and the embeddings that these begin with; None for fresh ones."""
    if options.pieces is not None:
        table = read_embeddings(options.pieces)[: len(tokenizer)].numpy()
        _require_size(options, table.shape[1])
        return np.arange(len(table)), table
    return None if options.vectors is None else _vectors(options, tokenizer)


def _vectors(options: Options, tokenizer: Any) -> tuple[Any, Any]:
    """Places in the vocabulary, and the vectors of what is there."""
    words = {word: place for word, place in tokenizer.get_vocab().items() if word not in SPECIAL}
    places, values = read_vectors(Path(str(options.vectors)), words)
    if not len(places):
        expected, got = f"vectors of some of the {len(words):,} entries of the vocabulary", "of none"
        todo = "Give vectors of the same language; see model.options.vocabulary and model.options.lowercase."
        raise RecipeError("These vectors are of no use here.", [Problem(expected, got, todo, Where(field=FIELD))])
    _require_size(options, values.shape[1])
    return places, values


def _require_size(options: Options, size: int) -> None:
    """Make sure that what embeddings begin with is as large as they are to be.

    Raises:
        RecipeError: it is not.
    """
    if options.embedding_size in (None, size):
        return
    problem = Problem(
        where=Where(field="model.options.embedding_size"),
        expected=f"{size:,}, the size of the vectors",
        got=str(options.embedding_size),
        todo="Leave it out.",
    )
    raise RecipeError("The embeddings are begun with vectors of another size.", [problem])
