"""Which tokens of a conversation are learned, in any template."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chainrule.data.chat import MESSAGES, as_text, beginning_of, prompt_of, turns_of
from chainrule.data.encode import Encoded
from chainrule.errors import ModelError
from chainrule.tasks.conversation import (
    PLAIN_TEMPLATE,
    TemplateMismatchError,
    encode,
    end_of_turn,
    marked,
    prepare_tokenizer,
    render,
    tell_tools,
    tells_tools_first,
)
from chainrule.testing.models import tiny_tokenizer

pytestmark = pytest.mark.unit

CHATML = (
    "{% for m in messages %}{{ '[CLS]' + m['role'] + '\n' + m['content'] + '[SEP]\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[CLS]assistant\n' }}{% endif %}"
)
ALTERNATING = CHATML.replace(
    "%}{{ '[CLS]' + m",
    "%}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '[CLS]' + m",
    1,
)
ONLY_LAST = (
    "{% for m in messages %}{{ m['role'] }}: "
    "{% if m['role'] == 'assistant' and not loop.last %}…{% else %}{{ m['content'] }}{% endif %}[SEP]{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
NO_END = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + ' ' }}{% endfor %}assistant: "


def tokenizer_with(template: str | None) -> Any:
    tokenizer = tiny_tokenizer(64, decoder=True)
    tokenizer.add_special_tokens({"cls_token": "[CLS]"})
    tokenizer.chat_template = template
    return tokenizer


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def learned(tokenizer: Any, encoded: Encoded, row: int = 0) -> str:
    assert encoded.trained is not None
    span = slice(encoded.offsets[row], encoded.offsets[row + 1])
    return str(tokenizer.decode(encoded.ids[span][encoded.trained[span]]))


def replies(*texts: str) -> np.ndarray:
    return np.array(texts, dtype=object)


@pytest.mark.parametrize("template", [None, CHATML, ALTERNATING], ids=["plain", "chatml", "alternating"])
def test_every_reply_and_its_end_is_learned_and_nothing_else(template: str | None) -> None:
    tokenizer = tokenizer_with(template)
    prepare_tokenizer(tokenizer)
    encoded = encode(tokenizer, {MESSAGES: [as_text(turns("a film", "good", "a book"))]}, replies("bad room"), 64)
    assert learned(tokenizer, encoded) == "good [SEP] bad room [SEP]"
    assert encoded.targets is not None
    assert encoded.targets.tolist() == [5]
    text = marked(tokenizer, encoded.take(np.array([0])))
    assert text.count("⟦") == 2
    assert "⟦bad room [SEP]⟧" in text
    assert "⟦good [SEP]⟧" in text


def test_what_is_read_is_what_plain_transformers_renders() -> None:
    tokenizer = tokenizer_with(None)
    prepare_tokenizer(tokenizer)
    talk = turns("a film", "good", "a book", "bad")
    encoded = encode(tokenizer, {MESSAGES: [as_text(talk[:-1])]}, replies("bad"), 64)
    assert encoded.ids.tolist() == tokenizer.apply_chat_template(talk, return_dict=False)
    prompt = encode(tokenizer, {MESSAGES: [as_text(talk[:-1])]}, None, 64)
    asked = tokenizer.apply_chat_template(talk[:-1], add_generation_prompt=True, return_dict=False)
    assert prompt.ids.tolist() == asked == encoded.ids.tolist()[: len(asked)]
    assert prompt.trained is None
    assert prompt.targets is None


def test_a_tokenizer_without_a_template_keeps_the_plain_one(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(None)
    prepare_tokenizer(tokenizer)
    assert tokenizer.chat_template == PLAIN_TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    assert type(tokenizer).from_pretrained(tmp_path).chat_template == PLAIN_TEMPLATE


def test_rows_longer_than_the_limit() -> None:
    tokenizer = tokenizer_with(CHATML)
    contexts = {MESSAGES: [prompt_of("a film"), prompt_of("a " * 30)]}
    encoded = encode(tokenizer, contexts, replies("good film", "bad"), 9)
    assert encoded.lengths.tolist() == [9, 9]
    assert encoded.full_lengths.tolist()[0] > 9
    assert encoded.targets is not None
    assert encoded.targets.tolist()[1] == 0, "no token of the reply is left"
    prompts = encode(tokenizer, contexts, None, 9)
    assert tokenizer.decode(prompts.ids[prompts.offsets[1] :]).endswith("assistant"), "the end of a prompt is kept"


def test_a_conversation_the_template_refuses_is_told_apart() -> None:
    tokenizer = tokenizer_with(ALTERNATING)
    twice = as_text([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    encoded = encode(tokenizer, {MESSAGES: [twice, prompt_of("a")]}, replies("good", "bad"), 64)
    assert encoded.refused == {0: "one that refuses it: roles must alternate"}
    assert encoded.targets is not None
    assert encoded.targets[0] == 0
    assert encoded.lengths[0] == 0
    kept = encoded.take(np.array([1]))
    assert learned(tokenizer, kept) == "bad [SEP]"
    assert kept.lengths.tolist() == [encoded.lengths[1]]


def test_a_template_that_hides_earlier_replies() -> None:
    tokenizer = tokenizer_with(ONLY_LAST)
    prepare_tokenizer(tokenizer)
    assert render(tokenizer, turns("a", "good")).replies
    with pytest.raises(TemplateMismatchError, match="turn 2 differently once other turns follow"):
        render(tokenizer, turns("a", "good", "b", "bad"))


def test_a_template_without_an_end_of_turn() -> None:
    tokenizer = tokenizer_with(NO_END)
    with pytest.raises(ModelError) as caught:
        prepare_tokenizer(tokenizer)
    assert caught.value.problems[0].where.field == "model.name"


def test_end_of_turn() -> None:
    tokenizer = tokenizer_with(CHATML)
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids("[SEP]")


WITH_TOOLS = "{% if tools %}[CLS]{{ tools | map(attribute='name') | join(' ') }}[SEP]{% endif %}" + CHATML
TOOLS = as_text([{"role": "tools", "content": '[{"name": "film"}, {"name": "book"}]'}, *turns("a room")])


def test_tools_are_handed_to_the_template() -> None:
    tokenizer = tokenizer_with(WITH_TOOLS)
    encoded = encode(tokenizer, {MESSAGES: [TOOLS, as_text(turns("a room"))]}, replies("film", "warm"), 64)
    first, second = (tokenizer.decode(encoded.ids[slice(*encoded.offsets[row : row + 2])]) for row in range(2))
    assert first.startswith("[CLS] film book [SEP] [CLS] user a room")
    assert second.startswith("[CLS] user a room")
    assert learned(tokenizer, encoded) == "film [SEP]"


def test_a_template_that_leaves_tools_out_is_refused() -> None:
    with pytest.raises(ModelError, match="The chat template of this model renders no tools") as caught:
        encode(tokenizer_with(CHATML), {MESSAGES: [TOOLS]}, replies("film"), 64)
    assert str(caught.value.problems[0]) == (
        "field 'data.fields.tools': expected a chat template that tells the model which tools there are, got one that "
        "leaves them out. Choose another model, give its tokenizer a chat_template that renders tools, or remove the "
        "column."
    )


def test_tools_are_told_in_a_system_message_where_the_template_tells_of_none() -> None:
    tokenizer = tokenizer_with(CHATML)
    one = {"role": "tools", "content": '[{"name": "film"}]'}
    asked = [one, {"role": "system", "content": "be warm"}, *turns("a room")]
    plain = [as_text(turns("a room")), as_text(turns("a book"))]
    before = tokenizer.chat_template
    tell_tools(tokenizer, plain)
    assert tokenizer.chat_template == before, "rows without tools change nothing"
    texts = [render(tokenizer, turns_of(text)).text for text in plain]
    tell_tools(tokenizer, [*plain, TOOLS])
    assert tells_tools_first(tokenizer)
    assert [render(tokenizer, turns_of(text)).text for text in plain] == texts
    told = 'You may call these functions:\n[{"name": "film"}'
    expected = render(tokenizer, [{"role": "system", "content": told + ', {"name": "book"}]'}, *turns("a room")])
    assert render(tokenizer, turns_of(TOOLS)).text == expected.text
    both = render(tokenizer, [{"role": "system", "content": f"be warm\n\n{told}]"}, *turns("a room")])
    assert render(tokenizer, asked).text == both.text
    encoded = encode(tokenizer, {MESSAGES: [TOOLS]}, replies("film"), 256)
    assert learned(tokenizer, encoded) == "film [SEP]"


def test_a_template_that_knows_no_system_is_left_as_it_is() -> None:
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    tokenizer = tokenizer_with(strict)
    tell_tools(tokenizer, [TOOLS])
    assert tokenizer.chat_template == strict
    own = tokenizer_with(WITH_TOOLS)
    tell_tools(own, [TOOLS])
    assert own.chat_template == WITH_TOOLS


def test_plain_texts_are_learned_whole_and_in_blocks() -> None:
    tokenizer = tokenizer_with(None)
    prepare_tokenizer(tokenizer)
    texts = ["a good film was it", "warm", "the book is very bad and the film was really cold"]
    encoded = encode(tokenizer, {MESSAGES: [beginning_of(text) for text in texts]}, replies("", "", ""), 5)
    assert encoded.sequences is not None
    assert encoded.trained is not None
    assert np.diff(encoded.sequences).tolist() == [2, 1, 3]
    assert np.diff(encoded.offsets).max() == 5
    for row, text in enumerate(texts):
        own = encoded.take(np.array([row]))
        assert own.trained is not None
        whole = tokenizer(text)["input_ids"]
        assert own.ids[own.trained].tolist() == [*whole[1:], tokenizer.eos_token_id], "each once, and one end"
        assert own.targets.tolist() == [len(whole)]
        blocks = np.split(own.ids, own.offsets[1:-1])
        assert all(before[-1] == after[0] for before, after in pairwise(blocks)), "what follows is told from it"


def test_a_plain_text_to_go_on_from_has_no_end() -> None:
    tokenizer = tokenizer_with(None)
    prepare_tokenizer(tokenizer)
    encoded = encode(tokenizer, {MESSAGES: [beginning_of("a good film")]}, None, 8)
    assert encoded.ids.tolist() == tokenizer("a good film")["input_ids"]
