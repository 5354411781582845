"""Words as token ids, in windows where a row is long, and from the tags of words back to entities.

A word's tag is learned and read at its first token, in the one window where that token stands farthest from an end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.special import logsumexp

from chainrule.core.spans import Span, Spans
from chainrule.core.task import Predictions
from chainrule.data.batch import Batch
from chainrule.data.encode import Encoded, joined, offsets_of, segments_of
from chainrule.data.entities import OUTSIDE, TOKENS, spans_of, tag_names, tags_of, units_of
from chainrule.errors import ModelError, Problem, Where
from chainrule.models.crf import Chain, best_tags, chain_score, log_marginals
from chainrule.tasks.objectives import with_target
from chainrule.tasks.reading import few_sequences

CHUNK_ROWS = 1024
OVERLAP = 4  # neighbouring windows share one part in so many


def prepare_tokenizer(tokenizer: Any) -> None:
    """Make sure that the tokenizer tells where its tokens stand in the text.

    Raises:
        ModelError: it does not.
    """
    if not tokenizer.is_fast:
        expected = "a fast tokenizer, which tells where a token stands in the text"
        problem = Problem(expected, "a slow one", "Choose another model.", Where(field="model.name"))
        raise ModelError("The tokenizer of this model cannot be used for this task.", [problem])


def encode(tokenizer: Any, inputs: Mapping[str, Sequence[str]], targets: Any, max_length: int) -> Encoded:
    """Tokenise texts or words, and tell which token speaks for which word.

    Args:
        inputs: JSON that `units_of` reads, under "tokens".
        targets: `Spans` of the rows; None to find them.
        max_length: longer rows are read in windows of this many tokens.

    Returns:
        `trained` marks the tokens that speak for words, `classes` holds the words' tags (0 without targets), `places`
        where the words stand.
    """
    cells = inputs[TOKENS]

    def pieces() -> Iterator[Encoded]:
        for start in range(0, len(cells), CHUNK_ROWS):
            few = cells[start : start + CHUNK_ROWS]
            chosen = None if targets is None else targets[np.arange(start, start + len(few))]
            yield _encode_few(tokenizer, list(few), chosen, max_length)

    return joined(pieces())


def _encode_few(tokenizer: Any, cells: Sequence[str], targets: Spans | None, max_length: int) -> Encoded:
    found = [units_of(cell) for cell in cells]
    room = max_length - tokenizer.num_special_tokens_to_add()
    batch = tokenizer(
        [text for text, _ in found],
        truncation=True,
        max_length=max_length,
        stride=room // OVERLAP,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    lengths = [len(ids) for ids in batch["input_ids"]]
    counts = np.bincount(batch["overflow_to_sample_mapping"], minlength=len(cells))
    spans = iter(targets.each()) if targets is not None else iter([[]] * len(cells))
    trained, classes, places, first = [], [], [], 0
    for (_, units), count, wanted in zip(found, counts.tolist(), spans, strict=True):
        windows = [np.asarray(places_of, np.int64) for places_of in batch["offset_mapping"][first : first + count]]
        first += count
        marks, words, spots = _speakers(windows, units)
        trained.append(marks)
        places.append(spots)
        classes.append(np.where(marks, tags_of(wanted, units)[words], 0) if len(units) else np.zeros(len(marks)))
    encoded = Encoded(
        ids=np.concatenate([np.asarray(ids, np.int32) for ids in batch["input_ids"]]),
        offsets=offsets_of(lengths),
        types=segments_of(batch),
        full_lengths=np.zeros(len(cells), np.int64),
        targets=targets,
        trained=np.concatenate(trained),
        classes=np.concatenate(classes).astype(np.int32),
        places=np.concatenate(places).astype(np.int32),
        sequences=offsets_of(counts),
    )
    encoded.full_lengths[:] = encoded.lengths  # windows read all of a row
    return encoded


def _speakers(
    windows: Sequence[np.ndarray], units: Sequence[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which tokens of a row's windows speak for a word, for which, and where it stands.

    Args:
        windows: (t, 2) each, where a window's tokens begin and end in the text; the same for those that are no text.
        units: where each word begins and ends.

    Returns:
        (tokens,) bool, (tokens,) positions of words, (2 · tokens,) begins and ends; of a token that covers several
        words, from the first one's begin to the last one's end.
    """
    places = np.concatenate(windows)
    if not units:
        return np.zeros(len(places), bool), np.zeros(len(places), np.int64), np.zeros(2 * len(places), np.int64)
    begins, ends = np.array(units, dtype=np.int64).T
    words = np.minimum(np.searchsorted(ends, places[:, 0], side="right"), len(units) - 1)
    last = np.maximum(np.searchsorted(begins, places[:, 1], side="left") - 1, words)
    opens = (places[:, 1] > places[:, 0]) & (places[:, 0] <= begins[words]) & (begins[words] < places[:, 1])
    margin = np.concatenate([np.minimum(np.arange(len(w)), np.arange(len(w))[::-1]) for w in windows])
    window = np.repeat(np.arange(len(windows)), [len(w) for w in windows])
    candidates = np.flatnonzero(opens)
    # the first token of a word in each window; of these the one that stands deepest in its window
    order = candidates[np.lexsort((candidates, window[candidates], words[candidates]))]
    first = np.ones(len(order), bool)
    first[1:] = (words[order][1:] != words[order][:-1]) | (window[order][1:] != window[order][:-1])
    order = order[first]
    order = order[np.lexsort((order, -margin[order], words[order]))]
    chosen = order[np.unique(words[order], return_index=True)[1]]
    marks = np.zeros(len(places), bool)
    marks[chosen] = True
    return marks, words, np.stack([begins[words], ends[last]], axis=1).ravel()


def marked(tokenizer: Any, encoded: Encoded, labels: Sequence[str]) -> str:
    """A row's tokens; those that speak for a word stand between ⟦ and ⟧, with the word's tag. A line a window."""
    names, lines = tag_names(labels), []
    tokens = tokenizer.convert_ids_to_tokens(encoded.ids.tolist())
    for start, end in pairwise(encoded.offsets.tolist()):
        words = []
        for place in range(start, end):
            speaks = encoded.trained is not None and encoded.trained[place]
            tag = names[encoded.classes[place]] if speaks and encoded.classes is not None else OUTSIDE
            told = f"{tokens[place]}/{tag}" if tag != OUTSIDE else tokens[place]
            words.append(f"⟦{told}⟧" if speaks else told)
        lines.append(" ".join(words))
    return "\n".join(lines)


def read(model: Any, batch: Batch, encoded: Encoded) -> Predictions:
    """The entities of a batch's rows, how sure each is (the mean over its words), and the mean loss of its words.

    A row's score is that of its least sure word.
    """
    part = encoded.take(batch.rows)
    if part.trained is None or part.places is None or part.sequences is None:
        raise ValueError("rows of words have tokens that speak for them")
    logits, chain = _word_logits(model, batch)
    row_of_sequence = np.repeat(np.arange(len(part)), np.diff(part.sequences))
    rows = np.repeat(row_of_sequence, np.diff(part.offsets))[part.trained]
    places = part.places.reshape(-1, 2)[part.trained]
    order = np.lexsort((places[:, 0], rows))  # windows that overlap take turns
    bounds = np.searchsorted(rows[order], np.arange(len(part) + 1))
    known = part.classes[part.trained] if encoded.targets is not None and part.classes is not None else None
    found: list[list[Span]] = []
    scores, least, losses = list[float](), np.ones(len(part)), np.zeros(len(part))
    for row, (start, end) in enumerate(pairwise(bounds.tolist())):
        few = order[start:end]
        if not len(few):
            found.append([])
            continue
        tags, sure, losses[row] = _tagged(logits[few], chain, None if known is None else known[few])
        spans = spans_of(tags.tolist(), places[few].tolist())
        found.append(spans)
        scores += [float(sure[(places[few, 0] >= s) & (places[few, 1] <= e)].mean()) for s, e, _ in spans]
        least[row] = sure.min()
    return Predictions(Spans.of(found, np.array(scores)), least, None if known is None else losses)


def _tagged(logits: np.ndarray, chain: Chain | None, known: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, float]:
    """The tags of a row's words, how probable each is, and the mean loss of the known ones (0 without).

    Args:
        logits: (words, tags) float64.
        chain: what tags score for their neighbours; None where words are tagged one by one.
        known: (words,) the true tags.
    """
    if chain is None:
        logs = logits - logsumexp(logits, axis=-1, keepdims=True)
        tags, loss = logs.argmax(-1), 0.0 if known is None else -float(logs[np.arange(len(logs)), known].mean())
    else:
        logs, total = log_marginals(logits, chain)
        tags = best_tags(logits, chain)
        loss = 0.0 if known is None else (total - chain_score(logits, known, chain)) / len(logits)
    return tags, np.exp(logs[np.arange(len(logs)), tags]), loss


def _word_logits(model: Any, batch: Batch) -> tuple[np.ndarray, Chain | None]:
    """(words, tags) float64, sequence by sequence, and the model's chain; a few sequences at a time of a long row."""
    parts = []
    for inputs, targets in few_sequences(batch):
        output = model(**inputs)
        parts.append(with_target(output.logits.float(), targets)[0].double().cpu().numpy())
    found: Chain | None = getattr(output, "chain", None)
    if found is not None:
        found = Chain(*(part.double().cpu().numpy() for part in (found.first, found.between, found.last)))
    return np.concatenate(parts), found
