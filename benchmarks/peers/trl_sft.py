"""TRL's SFTTrainer with LoRA on the chats of a workload: the peer of our `text-generation` with `lora`.

Nothing of Chainrule is used here. `default` is the trainer as it comes, given the model in float32 as it loads on a
CPU; the others are bfloat16 autocast with or without batches grouped by length, and eager attention. The loss is that
of the replies only, as ours is.

    python benchmarks/peers/trl_sft.py --model FOLDER --workload alpaca_gpt4_en --config bf16 --turns 8
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from turn import Turns
from workloads import CHATS, WORKLOADS

GROUPED = {"train_sampling_strategy": "group_by_length", "optim": "adamw_torch_fused"}
CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    "bf16": {"bf16": True, "gradient_checkpointing": False},
    "bf16-grouped": {"bf16": True, "gradient_checkpointing": False, **GROUPED},
    "bf16-eager-grouped": {"bf16": True, "gradient_checkpointing": False, **GROUPED},
}


class InTurns(TrainerCallback):  # type: ignore[misc]
    """Lets the coordinator of turns.py say when the next steps are made."""

    def __init__(self, steps: int) -> None:
        self.turns = Turns(steps)

    def on_step_begin(self, *arguments: Any, **more: Any) -> None:
        self.turns.step()


def chats(path: Path) -> Dataset:
    """The first rows as prompt and completion, so that only the reply has a loss."""
    rows = [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()[:CHATS]]
    return Dataset.from_list([{"prompt": turns[:-1], "completion": turns[-1:]} for turns in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--workload", required=True, choices=sorted(WORKLOADS))
    parser.add_argument("--config", default="default", choices=sorted(CONFIGS))
    parser.add_argument("--turns", type=int, required=True, help="steps of a turn; see turns.py")
    options = parser.parse_args()
    workload = WORKLOADS[options.workload]
    attention = "eager" if "eager" in options.config else "sdpa"
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, attn_implementation=attention),
        args=SFTConfig(
            output_dir="unused-by-the-peer",
            per_device_train_batch_size=workload.batch_size,
            learning_rate=workload.learning_rate,
            max_length=workload.max_length,
            max_steps=1_000_000,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            **CONFIGS[options.config],
        ),
        train_dataset=chats(workload.folder / "train.jsonl"),
        processing_class=AutoTokenizer.from_pretrained(options.model),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[InTurns(options.turns)],
    )
    trainer.train()


if __name__ == "__main__":
    main()
