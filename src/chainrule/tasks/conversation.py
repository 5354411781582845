"""Conversations as token ids, in the tokenizer's own chat template, with the tokens of the replies marked.

Which part of a rendered conversation is a reply is found for any template by rendering its beginnings: up to a reply
with the prompt that asks for it, and up to the reply's end. Each must be how the whole begins; what lies between the
two is what the model has to write, the mark that ends its turn included.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from jinja2 import TemplateError

from chainrule.data.chat import MESSAGES, REPLY, TOOLS, Turn, as_text, is_plain, turns_of
from chainrule.data.encode import Encoded, joined, offsets_of
from chainrule.errors import ModelError, Problem, Where

CHUNK_ROWS = 1024

# For tokenizers without a template of their own; it is stored with the model, so that plain transformers renders alike.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}:\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
# Before the template of a tokenizer that tells a model nothing of tools: they are told in a system message.
TOOLS_TEMPLATE = (
    "{% if tools %}{% if messages[0]['role'] == 'system' %}{% set told = messages[0]['content'] + '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set told = '' %}{% endif %}"
    "{% set messages = [{'role': 'system', 'content': told + 'You may call these functions:\n' + (tools | tojson)}]"
    " + messages %}{% endif %}"
)
_PROBE: list[Turn] = [{"role": "user", "content": "Question"}, {"role": REPLY, "content": "Answer"}]


@dataclass(frozen=True)
class Rendered:
    """A conversation as the model reads it.

    Attributes:
        text: with the prompt for the next reply at its end, if it does not end in a reply.
        replies: (start, end) in characters of what the model has to write.
    """

    text: str
    replies: tuple[tuple[int, int], ...]


_WITH_TOOLS = as_text([{"role": TOOLS, "content": ""}])[
    : -len('"content": ""}]')
]  # how the context of such rows begins


class TemplateMismatchError(Exception):
    """The chat template does not render this conversation so that its replies can be told apart."""


def prepare_tokenizer(tokenizer: Any) -> None:
    """Give the tokenizer the plain template if it has none, and make sure that replies can be found and ended.

    Raises:
        ModelError: its template does not let replies be found, or does not end them with a special token.
    """
    if tokenizer.chat_template is None and tokenizer.eos_token is not None:
        tokenizer.chat_template = PLAIN_TEMPLATE
    if not tokenizer.is_fast:
        raise _unusable("a fast tokenizer, which tells where a token stands in the text", "a slow one")
    if tokenizer.chat_template is None:
        raise _unusable("a chat template, or a token that ends a text", "neither")
    try:
        render(tokenizer, _PROBE)
    except TemplateMismatchError as error:
        raise _unusable("a chat template in which the replies can be told apart", str(error)) from None
    if end_of_turn(tokenizer) is None:
        raise _unusable("a chat template that ends a reply with a special token", "one without such an end")


def tell_tools(tokenizer: Any, contexts: Iterable[str]) -> None:
    """Let the chat template tell of tools where rows have some, and it does not; what is added is saved with the model.

    A template that cannot have it stays as it is, and is refused when rows are encoded.

    Args:
        contexts: what stands before the replies, as JSON.
    """
    turns = next((turns_of(text) for text in contexts if text.startswith(_WITH_TOOLS)), None)
    if turns is None or _tells(tokenizer, turns):
        return
    before = tokenizer.chat_template
    tokenizer.chat_template = TOOLS_TEMPLATE + before
    if not _tells(tokenizer, turns):
        tokenizer.chat_template = before


def tells_tools_first(tokenizer: Any) -> bool:
    """Whether `tell_tools` has added something."""
    return str(tokenizer.chat_template).startswith(TOOLS_TEMPLATE)


def _tells(tokenizer: Any, turns: Sequence[Turn]) -> bool:
    try:
        render(tokenizer, turns)
    except (ModelError, TemplateMismatchError):
        return False
    return True


def render(tokenizer: Any, turns: Sequence[Turn]) -> Rendered:
    """Render a conversation and find its replies.

    A text that is no conversation is rendered as it is; all of it has to be written, and so has its end.

    Raises:
        TemplateMismatchError: a beginning of the conversation is not rendered as the whole begins, or not at all.
        ModelError: the conversation has tools, and the template leaves them out.
    """
    ends_in_reply = turns[-1]["role"] == REPLY
    if is_plain(turns):
        text = turns[0]["content"] + (tokenizer.eos_token if ends_in_reply else "")
        return Rendered(text, ((0, len(text)),) if ends_in_reply else ())
    tools = json.loads(turns[0]["content"]) if turns[0]["role"] == TOOLS else None
    turns = turns[1:] if tools else turns
    render_some = partial(_apply, tokenizer, tools=tools)
    whole = render_some(turns, prompt=not ends_in_reply)
    if tools and whole == _apply(tokenizer, turns, prompt=not ends_in_reply):
        raise _without_tools()
    spans = []
    for place, turn in enumerate(turns):
        if turn["role"] != REPLY:
            continue
        start = render_some(turns[:place], prompt=True)
        last = place + 1 == len(turns)
        end = whole if last else render_some(turns[: place + 1], prompt=False)
        if not (whole.startswith(end) and end.startswith(start) and len(end) > len(start)):
            raise TemplateMismatchError(f"one that renders turn {place + 1} differently once other turns follow")
        spans.append((len(start), len(end)))
    return Rendered(whole, tuple(spans))


def encode(tokenizer: Any, inputs: Mapping[str, Sequence[str]], targets: Any, max_length: int) -> Encoded:
    """Tokenise conversations.

    Args:
        inputs: the turns before the reply, as JSON, under "messages".
        targets: (n,) replies; None to write them: then the prompt for a reply is the end of each row.
        max_length: longer rows are cut: at their end, or without replies at their beginning.

    Returns:
        With replies, `trained` marks every token of every reply and `targets` (n,) counts them. Rows that the template
        refuses are in `refused`. Texts that are no conversations are never cut: they are read in blocks of `max_length`
        tokens, sequences of one row, each of which begins with the last token of the one before.
    """
    contexts = inputs[MESSAGES]
    special = special_tokens(tokenizer)

    def pieces() -> Iterator[Encoded]:
        for start in range(0, len(contexts), CHUNK_ROWS):
            few = slice(start, start + CHUNK_ROWS)
            yield _encode_few(tokenizer, contexts[few], None if targets is None else targets[few], max_length, special)

    return joined(pieces())


def _encode_few(
    tokenizer: Any, contexts: Sequence[str], replies: Sequence[str] | None, max_length: int, special: np.ndarray
) -> Encoded:
    rendered: list[Rendered] = []
    refused: dict[int, str] = {}
    ends = ([[]] * len(contexts)) if replies is None else [[{"role": REPLY, "content": str(text)}] for text in replies]
    for row, (context, end) in enumerate(zip(contexts, ends, strict=True)):
        try:
            rendered.append(render(tokenizer, [*turns_of(context), *end]))
        except TemplateMismatchError as error:
            refused[row] = str(error)
            rendered.append(Rendered("", ()))
    ids, marks = _tokens(tokenizer, rendered, special)
    if replies is not None and len(contexts) and is_plain(turns_of(contexts[0])):  # then all are
        return _in_blocks(ids, max_length)
    full = np.array([len(row) if found.text else 0 for found, row in zip(rendered, ids, strict=True)], dtype=np.int64)
    kept = [slice(max_length) if replies is not None else slice(max(0, len(row) - max_length), None) for row in ids]
    marks = [row[some] for row, some in zip(marks, kept, strict=True)]
    ids = [row[some] for row, some in zip(ids, kept, strict=True)]
    return Encoded(
        ids=np.concatenate(ids),
        offsets=offsets_of([len(row) for row in ids]),
        types=None,
        full_lengths=full,
        targets=None if replies is None else np.array([int(row.sum()) for row in marks], dtype=np.int64),
        trained=None if replies is None else np.concatenate(marks),
        refused=refused,
    )


def _in_blocks(rows: Sequence[np.ndarray], max_length: int) -> Encoded:
    """Texts in blocks that share a token, so that each token but the first of a text is predicted once."""
    starts = [range(0, max(len(row) - 1, 1), max_length - 1) for row in rows]
    blocks = [row[start : start + max_length] for row, places in zip(rows, starts, strict=True) for start in places]
    lengths = np.array([len(block) for block in blocks])
    offsets = offsets_of(lengths)
    trained = np.ones(int(lengths.sum()), bool)
    trained[offsets[:-1][lengths > 0]] = False
    return Encoded(
        ids=np.concatenate(blocks),
        offsets=offsets,
        types=None,
        full_lengths=np.array([len(row) for row in rows], dtype=np.int64),
        targets=np.array([max(len(row) - 1, 0) for row in rows], dtype=np.int64),
        trained=trained,
        sequences=offsets_of([len(places) for places in starts]),
    )


def special_tokens(tokenizer: Any) -> np.ndarray:
    """The ids of all tokens that are no text, such as the end of a turn; one for unknown words stands for text."""
    added = (token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special)
    special = {*tokenizer.all_special_ids, *added} - {tokenizer.unk_token_id}
    return np.array(sorted(special), dtype=np.int64)


def end_of_turn(tokenizer: Any) -> int | None:
    """The id of the token that ends a reply in this tokenizer's template; None if replies have no such end."""
    rendered = [render(tokenizer, _PROBE)]
    ids, marks = _tokens(tokenizer, rendered, special_tokens(tokenizer))
    last = int(ids[0][np.flatnonzero(marks[0])[-1]])
    return last if last in special_tokens(tokenizer) else None


def ends_of(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends a reply: the template's, the tokenizer's and the model's own."""
    own = model.generation_config.eos_token_id
    found = {end_of_turn(tokenizer), tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    return sorted(int(token) for token in found if token is not None)


def end_replies(model: Any, tokenizer: Any) -> None:
    """Let the model's own settings name every end of a reply, so that plain transformers stops there, too."""
    model.generation_config.eos_token_id = ends_of(model, tokenizer)
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def marked(tokenizer: Any, encoded: Encoded, labels: Sequence[str] = ()) -> str:
    """A row as the model reads it, with what is learned between ⟦ and ⟧."""
    ids, trained = encoded.ids, encoded.trained
    learned = np.zeros(len(ids), bool) if trained is None else trained
    edges = [0, *(np.flatnonzero(np.diff(learned)) + 1).tolist(), len(ids)]
    parts = []
    for start, end in pairwise(edges):
        text = tokenizer.decode(ids[start:end], skip_special_tokens=False)
        parts.append(f"⟦{text}⟧" if start < len(ids) and learned[start] else text)
    return "".join(parts)


def _tokens(
    tokenizer: Any, rendered: Sequence[Rendered], special: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Ids and marks of each row. What follows the token that ends a reply, such as a line break, is not marked."""
    texts = [row.text for row in rendered]
    batch = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, marks = [], []
    for row, row_ids, places in zip(rendered, batch["input_ids"], batch["offset_mapping"], strict=True):
        numbers = np.asarray(row_ids, dtype=np.int32)
        starts, ends = np.asarray(places, dtype=np.int64).reshape(-1, 2).T
        mark = np.zeros(len(numbers), dtype=bool)
        for start, end in row.replies:
            inside = np.flatnonzero((ends > start) & (starts < end))
            closing = inside[np.isin(numbers[inside], special)]
            mark[inside if not len(closing) else inside[inside <= closing[-1]]] = True
        ids.append(numbers)
        marks.append(mark)
    return ids, marks


def _apply(tokenizer: Any, turns: Sequence[Turn], *, prompt: bool, tools: Any = None) -> str:
    how = {"tokenize": False, "add_generation_prompt": prompt}
    try:
        return str(tokenizer.apply_chat_template(list(turns), tools=tools, **how))
    except (TemplateError, ValueError, TypeError, IndexError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TemplateMismatchError(f"one that refuses it: {reason}") from None


def _without_tools() -> ModelError:
    problem = Problem(
        where=Where(field="data.fields.tools"),
        expected="a chat template that tells the model which tools there are",
        got="one that leaves them out",
        todo="Choose another model, give its tokenizer a chat_template that renders tools, or remove the column.",
    )
    return ModelError("The chat template of this model renders no tools.", [problem])


def _unusable(expected: str, got: str) -> ModelError:
    todo = "Choose another model, or give its tokenizer a chat_template (a Jinja text in tokenizer_config.json)."
    problem = Problem(expected=expected, got=got, todo=todo, where=Where(field="model.name"))
    return ModelError("The tokenizer of this model cannot be used for text-generation.", [problem])
