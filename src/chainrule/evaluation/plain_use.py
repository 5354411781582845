"""How to load an artifact without Chainrule, as the lines of Python to run."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

GENERATION, ENTITIES, ANSWERS = "text-generation", "token-classification", "question-answering"
IMAGES = "image-classification"
WRITTEN, ENCODER_DECODER, PLAIN_TEXT = "seq2seq", "encoder-decoder", "plain_text"
VECTORS = ("embedding", "sentence-similarity")
RANKING, TWO_TOWERS = "ranking", "two-towers"
_AUTO = {
    GENERATION: "AutoModelForCausalLM",
    WRITTEN: "AutoModelForCausalLM",
    ENCODER_DECODER: "AutoModelForSeq2SeqLM",
    ENTITIES: "AutoModelForTokenClassification",
    ANSWERS: "AutoModelForQuestionAnswering",
    IMAGES: "AutoModelForImageClassification",
}

_WHOLE = """from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({folder})
model = {auto}.from_pretrained({folder})"""

_ADAPTERS = """from peft import PeftModel
from transformers import AutoConfig, {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({folder})
base = {auto}.from_pretrained({base}, config=AutoConfig.from_pretrained({folder}))
model = PeftModel.from_pretrained(base, {folder})"""

_IMAGE = """

from PIL import Image

inputs = processor(images=Image.open("…").convert("RGB"), return_tensors="pt")
print(model.config.id2label[int(model.eval()(**inputs).logits.argmax())])"""

_REPLY = """

messages = [{{"role": "user", "content": {content}}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**inputs, max_new_tokens=256)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""

_TEXT = """

inputs = tokenizer({content}, truncation=True, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=256)
print(tokenizer.decode(output[0], skip_special_tokens=True))"""

_ANSWER = """

question, context = "…", "…"
inputs = tokenizer(question, context, truncation="only_second", return_tensors="pt", return_offsets_mapping=True)
inside = [part == 1 for part in inputs.sequence_ids(0)]
places = inputs.pop("offset_mapping")[0].tolist()
output = model(**inputs)
starts, ends = output.start_logits[0].tolist(), output.end_logits[0].tolist()
sums, longest = {}, model.config.max_answer_tokens
for first in range(len(inside)):
    for last in range(first, min(first + longest, len(inside))):
        if inside[first] and inside[last]:
            sums[first, last] = starts[first] + ends[last]
first, last = max(sums, key=sums.get)
beaten_by = starts[0] + ends[0] - sums[first, last]
threshold = model.config.null_score_diff_threshold  # None: there always is an answer
no_answer = threshold is not None and beaten_by >= threshold
print("no answer" if no_answer else context[places[first][0] : places[last][1]])"""

_SCORES = """

query, items = "…", ["…", "…"]
inputs = tokenizer([query] * len(items), items, truncation=True, padding=True, return_tensors="pt")
print(model(**inputs).logits[:, 0].tolist())"""


_VECTORS = """from sentence_transformers import SentenceTransformer

model = SentenceTransformer({folder})
vectors = model.encode(["…"])"""

_COSINES = """

query, items = model.encode("…"), model.encode(["…", "…"])
print((items @ query).tolist())"""


def plain_use(
    task: str, loads_in: Sequence[str], folder: str, base: str, options: Mapping[str, Any], fields: Collection[str]
) -> str:
    """Python that loads the artifact with plain libraries; empty where none does.

    Args:
        folder: the artifact's folder, as it should stand in the code.
        base: the model under adapters.
        options: the task's, as they were resolved.
        fields: of the rows that it was trained on.
    """
    if "sentence-transformers" in loads_in:
        model, use = _VECTORS.format(folder=folder).rsplit("\n", 1)
        return model + (_COSINES if task == RANKING else f"\n{use}")
    apart, told = options.get("form") == ENCODER_DECODER, options.get("instruction")
    auto = _AUTO.get(ENCODER_DECODER if apart else task, "AutoModelForSequenceClassification")
    content = json.dumps(
        f"{told}{' ' if apart else chr(10) * 2}…" if isinstance(told, str) else "…", ensure_ascii=False
    )
    reply = (_TEXT if apart or PLAIN_TEXT in fields else _REPLY).format(content=content)
    use = {GENERATION: reply, WRITTEN: reply, ANSWERS: _ANSWER, IMAGES: _IMAGE, RANKING: _SCORES}.get(task, "")
    code = ""
    if "transformers" in loads_in:
        code = _WHOLE.format(auto=auto, folder=folder) + use
    elif "peft" in loads_in:
        code = _ADAPTERS.format(auto=auto, folder=folder, base=base) + use
    if task == IMAGES:
        code = code.replace("AutoTokenizer", "AutoImageProcessor").replace("tokenizer = ", "processor = ")
    return code
