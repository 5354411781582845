"""Questions with their contexts as token ids, in windows where they are long, and from logits to the answer.

An answer is learned and read as its first and its last token. A window that has not the whole of it is learned as one
without an answer, whose both ends are the first token of all (Devlin et al., 2019, BERT, section 4.3).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from pydantic import Field, ValidationError
from scipy.special import logsumexp

from chainrule.core.recipe import Section
from chainrule.core.spans import Answers, Span, Spans
from chainrule.core.task import Predictions
from chainrule.data.batch import IGNORED, Batch
from chainrule.data.encode import Encoded, joined, offsets_of, segments_of
from chainrule.errors import ModelError, Problem, Where
from chainrule.metrics.answers import tally
from chainrule.models.adapters import plain_model
from chainrule.tasks.objectives import BEGINS, ENDS, answer_losses, ends_of
from chainrule.tasks.reading import few_sequences

CHUNK_ROWS = 1024
OVERLAP = 4  # neighbouring windows share this part of a window
QUESTION, CONTEXT = "question", "context"
_LONGEST, _THRESHOLD = "max_answer_tokens", "null_score_diff_threshold"  # in config.json; the second is transformers'


class Options(Section):
    """`max_answer_tokens` is the length of the longest answer that is ever predicted."""

    max_answer_tokens: int = Field(default=30, ge=1)


def encode(tokenizer: Any, inputs: Mapping[str, Sequence[str]], targets: Any, max_length: int) -> Encoded:
    """Tokenise questions with their contexts, and tell where answers may begin and end.

    Args:
        inputs: texts under "question" and "context".
        targets: `Answers` of the rows, of which the first of each row is learned; None to find them.
        max_length: longer rows are read in windows of this many tokens, each with the whole question.

    Returns:
        `trained` marks the tokens of the context and the first token, `classes` has BEGINS and ENDS (0 without
        targets), `places` where in the context the tokens stand; nothing of a row is marked whose answer has no token.
        Rows whose question leaves less than half of a window to the context are in `refused`.
    """
    questions, contexts = inputs[QUESTION], inputs[CONTEXT]

    def pieces() -> Iterator[Encoded]:
        for start in range(0, len(questions), CHUNK_ROWS):
            few = slice(start, start + CHUNK_ROWS)
            texts = list(questions[few]), list(contexts[few])
            spans = None if targets is None else targets.spans[np.arange(start, start + len(texts[0]))]
            yield _encode_few(tokenizer, *texts, spans, max_length)

    return replace(joined(pieces()), targets=targets)


def _encode_few(
    tokenizer: Any, questions: list[str], contexts: list[str], spans: Spans | None, max_length: int
) -> Encoded:
    refused = _too_long(tokenizer, questions, max_length)
    batch = tokenizer(
        ["" if row in refused else text for row, text in enumerate(questions)],
        ["" if row in refused else text for row, text in enumerate(contexts)],
        truncation="only_second",
        max_length=max_length,
        stride=max_length // OVERLAP,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    counts = np.bincount(batch["overflow_to_sample_mapping"], minlength=len(contexts))
    wanted: Iterator[list[Span] | None] = iter([None] * len(contexts)) if spans is None else spans.each()
    trained, classes, places = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
    ends = np.cumsum(counts).tolist()
    for row, (context, answers) in enumerate(zip(contexts, wanted, strict=True)):
        solid = np.flatnonzero(np.fromiter((not letter.isspace() for letter in context), bool, len(context)))
        windows = [_window(batch, tokenizer, each, solid) for each in range(ends[row] - counts[row], ends[row])]
        marks = [np.zeros(len(mark), bool) if row in refused else mark for mark, _, _ in windows]
        learned = [np.zeros(len(mark), np.int32) for mark in marks]
        if answers is not None and not _learn(learned, windows, answers[0] if answers else None):
            marks = [np.zeros_like(mark) for mark in marks]
        trained += marks
        classes += learned
        places += [place.ravel() for _, place, _ in windows]
    encoded = Encoded(
        ids=np.concatenate([np.asarray(ids, np.int32) for ids in batch["input_ids"]]),
        offsets=offsets_of([len(ids) for ids in batch["input_ids"]]),
        types=segments_of(batch),
        full_lengths=np.zeros(len(contexts), np.int64),
        targets=None,
        trained=np.concatenate(trained),
        classes=np.concatenate(classes),
        places=np.concatenate(places).astype(np.int32),
        refused=refused,
        sequences=offsets_of(counts),
    )
    encoded.full_lengths[:] = encoded.lengths  # windows read all of a row
    return encoded


def _too_long(tokenizer: Any, questions: Sequence[str], max_length: int) -> dict[int, str]:
    """The rows whose question leaves too little room, with the number of its tokens in words."""
    most = max_length - tokenizer.num_special_tokens_to_add(pair=True) - max_length // 2
    ids = tokenizer(list(questions), add_special_tokens=False, verbose=False)["input_ids"]
    return {row: f"one of {len(each):,}, where {most:,} have room" for row, each in enumerate(ids) if len(each) > most}


def _window(batch: Any, tokenizer: Any, window: int, solid: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Which tokens may begin or end an answer (t,), where they stand in the context (t, 2), and the first of all.

    The first of all stands for "no answer": that of the whole sequence, or of its class where the tokenizer puts that
    elsewhere. It stands nowhere. White space belongs to no token.

    Args:
        solid: the characters of the context that are no white space.
    """
    ids, parts = batch["input_ids"][window], batch.sequence_ids(window)
    places = np.asarray(batch["offset_mapping"][window], np.int64).reshape(-1, 2)
    begins = np.append(solid, np.iinfo(np.int64).max)[np.searchsorted(solid, places[:, 0])]
    ends = np.insert(solid + 1, 0, 0)[np.searchsorted(solid, places[:, 1])]
    inside = np.array([part == 1 for part in parts], bool) & (begins < ends)
    first = ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
    spots = np.where(inside[:, None], np.stack([begins, ends], axis=1), 0)
    if len(ids):
        inside[first], spots[first] = True, 0
    return inside, spots, first


def _learn(
    learned: Sequence[np.ndarray], windows: Sequence[tuple[np.ndarray, np.ndarray, int]], answer: Span | None
) -> bool:
    """Mark the ends of an answer in each window that has the whole of it; False where no token is of it."""
    found = False
    solid = [places[places[:, 1] > places[:, 0]] for _, places, _ in windows]
    lowest = min((int(places[0, 0]) for places in solid if len(places)), default=0)
    highest = max((int(places[-1, 1]) for places in solid if len(places)), default=0)
    for classes, (_, places, first), own in zip(learned, windows, solid, strict=True):
        touched = np.zeros(0, np.int64)
        if answer is not None and len(own):
            start, end, _ = answer
            touched = np.flatnonzero((places[:, 1] > start) & (places[:, 0] < end) & (places[:, 1] > places[:, 0]))
            found |= bool(len(touched))
            if own[0, 0] > max(start, lowest) or own[-1, 1] < min(end, highest):  # a part of it
                touched = touched[:0]
        ends = (touched[0], touched[-1]) if len(touched) else (first, first)
        if len(classes):
            classes[ends[0]] += BEGINS
            classes[ends[1]] += ENDS
    return found or answer is None


def marked(tokenizer: Any, encoded: Encoded, labels: Sequence[str]) -> str:
    """A row's tokens, with the answer between ⟦ and ⟧, or the first token where there is none. A line a window."""
    lines, tokens = [], tokenizer.convert_ids_to_tokens(encoded.ids.tolist())
    classes = np.zeros(len(tokens), np.int32) if encoded.classes is None else encoded.classes
    for start, end in pairwise(encoded.offsets.tolist()):
        words = [
            "⟦" * bool(mark & BEGINS) + token + "⟧" * bool(mark & ENDS)
            for token, mark in zip(tokens[start:end], classes[start:end].tolist(), strict=True)
        ]
        lines.append(" ".join(words))
    return "\n".join(lines)


def prepare_model(model: Any, targets: Answers, options: Options) -> None:
    """Write into a model's settings how long answers may be, and whether "no answer" is one: as training rows have it.

    They are saved with the model, in config.json.
    """
    config = plain_model(model).config
    setattr(config, _LONGEST, options.max_answer_tokens)
    setattr(config, _THRESHOLD, None if targets.answered.all() else 0.0)


class _Settings(Options):
    """What `prepare_model` wrote; "no answer" may be this much less likely (in logits) and is said; None for never."""

    null_score_diff_threshold: float | None = None


def _settings(model: Any) -> _Settings:
    config = plain_model(model).config
    values = {name: getattr(config, name, None) for name in (_LONGEST, _THRESHOLD)}
    try:
        return _Settings.model_validate(values, strict=True)
    except ValidationError:
        where = Where(file=str(config.name_or_path), field=_LONGEST)
        todo = "Take a copy of the artifact that is whole, or train again."
        problem = Problem(f"a whole number, and a number or null at {_THRESHOLD}", repr(values)[:200], todo, where)
        raise ModelError("The configuration of this model does not say how to read its answers.", [problem]) from None


def read(model: Any, batch: Batch, encoded: Encoded) -> Predictions:
    """The best answer of each row of a batch, and the mean loss of its windows.

    Of all pieces of the context that are not too long, in all windows, it is the one with the largest sum of the logits
    of its ends. It counts by how much it beats "no answer", that being the lowest such sum at the windows' first token
    (Devlin et al., 2019, section 4.3).

    Returns:
        Spans of at most one answer a row, scored by how much it beats "no answer" and 1 where there always is one;
        scores (n, 2), the probabilities of that answer and of "no answer" among all that could be said.
    """
    part, settings = replace(encoded, targets=None).take(batch.rows), _settings(model)
    if part.trained is None or part.places is None or part.sequences is None:
        raise ValueError("contexts have tokens at which answers begin and end")
    logits, losses = list[np.ndarray](), list[np.ndarray]()
    for inputs, targets in few_sequences(batch):
        both = ends_of(model, inputs, targets)
        logits.append(both[targets != IGNORED].double().cpu().numpy())
        if encoded.targets is not None:
            losses.append(answer_losses(both, targets).double().cpu().numpy())
    sequence = np.repeat(np.arange(len(part.offsets) - 1), np.diff(part.offsets))[part.trained]
    places = part.places.reshape(-1, 2)[part.trained]
    sums, null = _sums(np.concatenate(logits), sequence, places, settings.max_answer_tokens)
    borders = np.searchsorted(sequence, part.sequences)
    threshold = settings.null_score_diff_threshold
    found: list[list[Span]] = []
    beats, scores = list[float](), np.tile([0.0, 1.0], (len(part), 1))
    for row, (start, end) in enumerate(pairwise(borders.tolist())):
        own, none = sums[:, start:end], float(null[start:end].min())
        length, begin = divmod(int(own.argmax()), end - start)
        best = float(own[length, begin])
        found.append([])
        if np.isfinite(best):
            none = none if threshold is not None else -np.inf
            scores[row] = np.exp(np.array([best, none]) - np.logaddexp(logsumexp(own), none))
            found[-1] = [(int(places[start + begin, 0]), int(places[start + begin + length, 1]), 0)]
            beats.append(1.0 if threshold is None else best - none + threshold)
    each = np.concatenate(losses) if losses else None
    mean = None if each is None else np.add.reduceat(each, part.sequences[:-1]) / np.diff(part.sequences)
    return Predictions(Spans.of(found, np.array(beats)), scores, mean)


def _sums(logits: np.ndarray, sequence: np.ndarray, places: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """The sums of logits of every answer, by its length and its first token, and of "no answer".

    Args:
        logits: (c, 2) of beginning and end at every token that may be one.
        sequence: (c,) which window it is of.
        places: (c, 2) where it stands; begin and end are the same for the token that means "no answer".

    Returns:
        (longest, c), −∞ where there is no such answer; (c,), ∞ at all other tokens.
    """
    inside = places[:, 1] > places[:, 0]
    begin, end = np.where(inside[:, None], logits, -np.inf).T
    sums = np.full((longest, len(logits)), -np.inf)
    for more in range(min(longest, len(logits))):
        few = len(logits) - more
        same = sequence[:few] == sequence[more:]
        sums[more, :few] = np.where(same, begin[:few] + end[more:], -np.inf)
    return sums, np.where(inside, np.inf, logits.sum(axis=1))


def calibrate(model: Any, targets: Answers, predictions: Predictions) -> Predictions:
    """Set how much "no answer" may be behind and is said, to what gives the best F1 on validation.

    Nothing is set where the training rows always have an answer, or the validation rows.

    Returns:
        The predictions with that threshold.
    """
    settings, spans = _settings(model), predictions.values
    if settings.null_score_diff_threshold is None or targets.answered.all():
        return predictions
    beats = np.full(len(targets), -np.inf)
    beats[spans.rows] = spans.scores
    said = tally(targets, Spans(spans.offsets, spans.bounds, np.ones_like(spans.scores)))[:, 1]
    order = np.argsort(-beats, kind="stable")
    gains = np.concatenate([np.zeros(1), np.cumsum((said - ~targets.answered)[order])])  # of answering the first k
    edges = beats[order][np.isfinite(beats[order])]
    if not len(edges):
        return predictions
    between = -(np.concatenate([[edges[0] + 2], edges]) + np.concatenate([edges, [edges[-1] - 2]])) / 2
    apart = np.concatenate([[True], edges[1:] < edges[:-1], [True]])
    choices = np.flatnonzero(apart & np.isclose(gains[: len(between)], gains[: len(between)][apart].max()))
    shift = float(between[choices[np.argmin(np.abs(between[choices]))]])
    setattr(plain_model(model).config, _THRESHOLD, settings.null_score_diff_threshold + shift)
    return replace(predictions, values=Spans(spans.offsets, spans.bounds, (spans.scores + shift).astype(np.float32)))
