"""Chats and preferences beside TRL: the same model, rows, adapters, batches, epochs and rate; loss and seconds.

smollm2 with LoRA of rank 16 on all linear layers. Both are trained in turn, each in a process of its own, and what they
wrote is judged by one judge that knows only transformers: merged weights in float32, the rows one by one. TRL has
bfloat16 autocast, fused AdamW, no gradient checkpointing and, for chats, batches grouped by length. Seconds are those
of everything from loading the model to the last step. Each run is a line of benchmarks/results/beside_trl.jsonl.

    python benchmarks/beside_trl.py --seeds 2
    python benchmarks/beside_trl.py --report
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import chainrule
from chainrule.models.catalog import model_folder
from chainrule.system.device import use_threads

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from child import keep, result_of
from workloads import DATA

RESULTS = HERE / "results" / "beside_trl.jsonl"
MODEL, RANK, BETA, BATCH = "smollm2", 16, 0.1, 8
TASKS: dict[str, dict[str, Any]] = {
    "text-generation": {"data": "alpaca_gpt4_en", "letters": 600, "epochs": 1, "rate": 2e-4, "tokens": 512},
    "preference": {"data": "dpo_en", "letters": 2500, "epochs": 2, "rate": 5e-5, "tokens": 512},
}
WHO = "chainrule", "trl"
MARGIN = 8  # tokens, for what ends a reply


def texts_of(row: dict[str, Any]) -> tuple[list[dict[str, str]], list[str]]:
    """The turns before the reply, and the reply; of a preference the better and the worse one."""
    if "messages" in row:
        return row["messages"][:-1], [row["messages"][-1]["content"]]
    return row["prompt"], [row["chosen"], row["rejected"]]


def write_rows(task: str, folder: Path) -> None:
    """The rows that are short enough for both to read whole."""
    asked, tokenizer = TASKS[task], AutoTokenizer.from_pretrained(model_folder(MODEL))

    def fits(line: str) -> bool:
        row = json.loads(line)
        before, replies = texts_of(row)
        prompt = tokenizer.apply_chat_template(before, tokenize=False, add_generation_prompt=True)
        most = max(len(tokenizer(prompt + reply)["input_ids"]) for reply in replies)
        return letters(row) <= int(asked["letters"]) and most < int(asked["tokens"]) - MARGIN

    for split in ("train", "validation", "test"):
        with (DATA / asked["data"] / f"{split}.jsonl").open(encoding="utf-8") as file:
            lines = [line for line in file if fits(line)]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def letters(row: dict[str, Any]) -> int:
    before, replies = texts_of(row)
    return sum(len(turn["content"]) for turn in before) + max(map(len, replies))


def rows_of(folder: Path, *splits: str) -> list[dict[str, Any]]:
    return [
        json.loads(line) for split in splits for line in (folder / f"{split}.jsonl").read_text("utf-8").splitlines()
    ]


def likelihoods(model: Path, tokenizer: Any, rows: list[dict[str, Any]]) -> list[list[tuple[float, int]]]:
    """Of each reply of each row: the sum of the log-probabilities of its tokens and of its end, and their number."""
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    found = []
    for row in rows:
        before, replies = texts_of(row)
        prompt = tokenizer.apply_chat_template(before, tokenize=False, add_generation_prompt=True)
        given = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        said = []
        for reply in replies:
            written = tokenizer(reply + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
            with torch.inference_mode():
                logits = network(torch.tensor([given + written])).logits[0, len(given) - 1 : -1]
            of_each = logits.log_softmax(-1).gather(1, torch.tensor(written)[:, None])
            said.append((float(of_each.sum()), len(written)))
        found.append(said)
    return found


def judge(task: str, model: Path, folder: Path) -> dict[str, float]:
    """The loss per token of replies that were not learned, or of preferences the DPO loss and how many are right."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder(MODEL))
    rows = rows_of(folder, "test")
    ours = likelihoods(model, tokenizer, rows)
    if task == "text-generation":
        return {"loss": -sum(s for row in ours for s, _ in row) / sum(n for row in ours for _, n in row)}
    before = likelihoods(Path(str(model_folder(MODEL))), tokenizer, rows)
    margins = [BETA * ((a[0][0] - b[0][0]) - (a[1][0] - b[1][0])) for a, b in zip(ours, before, strict=True)]
    losses = [-float(torch.nn.functional.logsigmoid(torch.tensor(margin))) for margin in margins]
    return {"loss": mean(losses), "reward_accuracy": mean(margin > 0 for margin in margins), "margin": mean(margins)}


def train_ours(task: str, folder: Path, out: Path, seed: int) -> float:
    asked = TASKS[task]
    settings = {
        "task": task,
        "model": {"name": MODEL, "max_length": asked["tokens"]},
        "strategy": {"name": "lora", "options": {"rank": RANK}},
        "training.epochs": asked["epochs"],
        "training.batch_size": BATCH,
        "training.evaluate_every_steps": 100_000,
        "optimizer.learning_rate": asked["rate"],
        "seed": seed,
    }
    began = time.perf_counter()
    run = chainrule.train(str(folder), out=out.with_suffix(".run"), settings=settings)
    seconds = time.perf_counter() - began
    chainrule.export(run, "hf", out)
    return seconds


def train_theirs(task: str, folder: Path, out: Path, seed: int) -> float:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    asked = TASKS[task]
    rows = []
    for row in rows_of(folder, "train"):
        before, replies = texts_of(row)
        named = zip(("completion",) if task == "text-generation" else ("chosen", "rejected"), replies, strict=True)
        rows.append({"prompt": before} | {name: [{"role": "assistant", "content": said}] for name, said in named})
    chats = task == "text-generation"
    grouped = {"train_sampling_strategy": "group_by_length"} if chats else {"beta": BETA}
    began = time.perf_counter()
    arguments = (SFTConfig if chats else DPOConfig)(
        output_dir=str(out.with_suffix(".trl")),
        per_device_train_batch_size=BATCH,
        num_train_epochs=asked["epochs"],
        learning_rate=asked["rate"],
        weight_decay=0.01,
        warmup_steps=0.1,
        max_length=asked["tokens"],
        seed=seed,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        bf16=True,
        gradient_checkpointing=False,
        optim="adamw_torch_fused",
        **grouped,
    )
    trainer = (SFTTrainer if chats else DPOTrainer)(
        model=AutoModelForCausalLM.from_pretrained(model_folder(MODEL), dtype=torch.float32),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model_folder(MODEL)),
        peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    seconds = time.perf_counter() - began
    trainer.model.merge_and_unload().float().save_pretrained(out)
    return seconds


def run_one(task: str, who: str, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "rows"
        folder.mkdir()
        write_rows(task, folder)
        out = Path(name) / "model"
        seconds = (train_ours if who == WHO[0] else train_theirs)(task, folder, out, seed)
        scores = {key: round(value, 5) for key, value in judge(task, out, folder).items()}
        counts = {split: len(rows_of(folder, split)) for split in ("train", "test")}
    return {"task": task, "trainer": who, "seed": seed, **scores, "seconds": round(seconds, 2), "rows": counts}


def untuned(task: str) -> dict[str, Any]:
    """What the model says before."""
    with tempfile.TemporaryDirectory() as name:
        write_rows(task, Path(name))
        return {
            "task": task,
            "trainer": "untuned",
            "seed": 0,
            **judge(task, Path(str(model_folder(MODEL))), Path(name)),
        }


def table(lines: list[dict[str, Any]]) -> list[str]:
    found = ["| task | trainer | seeds | loss | reward accuracy | seconds |", "|---|---|---|---|---|---|"]
    for task in TASKS:
        for who in ("untuned", *WHO):
            of = [line for line in lines if (line["task"], line["trainer"]) == (task, who)]
            if of:
                means = {
                    key: mean(line[key] for line in of)
                    for key in ("loss", "reward_accuracy", "seconds")
                    if key in of[0]
                }
                cells = (f"{means[key]:.{digits}f}" if key in means else "" for key, digits in
                         (("loss", 4), ("reward_accuracy", 3), ("seconds", 0)))  # fmt: skip
                found.append(f"| {task} | {who} | {len(of)} | {' | '.join(cells)} |")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--seeds", type=int, default=2, help="how many, from 0")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", help="make the run of this trainer and seed in this process: trl:0")
    parser.add_argument("--report", action="store_true", help="make no runs, only the table of those that are there")
    options = parser.parse_args()
    if options.one:
        who, _, seed = options.one.partition(":")
        use_threads(options.threads)
        found = untuned(options.tasks[0]) if who == "untuned" else run_one(options.tasks[0], who, int(seed))
        print(json.dumps(found), flush=True)
        return
    lines = [json.loads(line) for line in RESULTS.read_text("utf-8").splitlines()] if RESULTS.is_file() else []
    there = {(line["task"], line["trainer"], line["seed"]) for line in lines}
    wanted = [(task, "untuned", 0) for task in options.tasks]
    wanted += [(task, who, seed) for seed in range(options.seeds) for task in options.tasks for who in WHO]
    for task, who, seed in wanted if not options.report else ():
        if (task, who, seed) in there:
            continue
        lines.append(result_of(__file__, ["--tasks", task, "--one", f"{who}:{seed}"], options.threads))
        keep(RESULTS, lines[-1])
        print(json.dumps(lines[-1]), file=sys.stderr, flush=True)
    print("\n".join(table(lines)))


if __name__ == "__main__":
    main()
