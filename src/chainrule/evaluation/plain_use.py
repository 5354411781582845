"""How to load an artifact without Chainrule, as the lines of Python to run."""

from __future__ import annotations

from collections.abc import Sequence

GENERATION, ENTITIES = "text-generation", "token-classification"
_AUTO = {GENERATION: "AutoModelForCausalLM", ENTITIES: "AutoModelForTokenClassification"}

_WHOLE = """from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({folder})
model = {auto}.from_pretrained({folder})"""

_ADAPTERS = """from peft import PeftModel
from transformers import AutoConfig, {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({folder})
base = {auto}.from_pretrained({base}, config=AutoConfig.from_pretrained({folder}))
model = PeftModel.from_pretrained(base, {folder})"""

_REPLY = """

messages = [{"role": "user", "content": "…"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**inputs, max_new_tokens=256)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""


def plain_use(task: str, loads_in: Sequence[str], folder: str, base: str) -> str:
    """Python that loads the artifact with plain libraries; empty where none does.

    Args:
        folder: the artifact's folder, as it should stand in the code.
        base: the model under adapters.
    """
    auto = _AUTO.get(task, "AutoModelForSequenceClassification")
    reply = _REPLY if task == GENERATION else ""
    if "transformers" in loads_in:
        return _WHOLE.format(auto=auto, folder=folder) + reply
    if "peft" in loads_in:
        return _ADAPTERS.format(auto=auto, folder=folder, base=base) + reply
    return ""
