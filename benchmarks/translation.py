"""Translation from scratch beside transformers' Seq2SeqTrainer: the same random BART, rows, batch, epochs and rate.

A BART of 3 + 3 layers and 256 hidden numbers with pieces learned from the training rows of multi30k_en_de; one epoch.
Both are trained in turn, each in a process of its own, and judged by one judge that knows only transformers: the loss
per token of the reference, in float32. The peer's batches are random: grouped by length, they come from long to short,
which took as long and cost half a unit of loss (LOG.md, "Entities again"). Each run is a line of
benchmarks/results/translation.jsonl.

    python benchmarks/translation.py --seeds 2
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

import chainrule
from chainrule.system.device import use_threads

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from child import keep, result_of
from workloads import DATA

RESULTS = HERE / "results" / "translation.jsonl"
SOURCE = DATA / "multi30k_en_de"
WHO = "chainrule", "transformers"
PIECES, BATCH, EPOCHS, RATE, LONGEST = 8000, 64, 1, 5e-4, 64


def rows_of(split: str) -> list[tuple[str, str]]:
    with (SOURCE / f"{split}.csv").open(encoding="utf-8", newline="") as file:
        return [(row["source"], row["target"]) for row in csv.DictReader(file)]


def write_model(folder: Path, seed: int) -> Path:
    """A random BART and a tokenizer of byte pairs, as a folder that both load."""
    pieces = Tokenizer(models.BPE(unk_token=None))
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    pieces.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    pieces.train_from_iterator((text for pair in rows_of("train") for text in pair), trainer)
    pieces.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(token, pieces.token_to_id(token)) for token in ("<s>", "</s>")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces, bos_token="<s>", pad_token="<pad>", eos_token="</s>", model_max_length=LONGEST
    )
    torch.manual_seed(seed)
    sides = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in
             (("layers", 3), ("attention_heads", 4), ("ffn_dim", 1024))}  # fmt: skip
    ends = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    config = BartConfig(
        vocab_size=len(tokenizer), d_model=256, max_position_embeddings=LONGEST, forced_eos_token_id=2, **sides, **ends
    )
    BartForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def judge(folder: Path, tokenizer: Any) -> dict[str, float]:
    """The loss per token of the reference, its end among them."""
    network = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    total, count = 0.0, 0
    for source, target in rows_of("test"):
        labels = torch.tensor([tokenizer(text_target=target)["input_ids"]])
        given = torch.tensor([tokenizer(source)["input_ids"]])
        with torch.inference_mode():
            total += float(network(input_ids=given, labels=labels).loss) * labels.shape[1]
        count += labels.shape[1]
    return {"loss": total / count}


def train_ours(model: Path, out: Path, seed: int) -> float:
    settings = {
        "task": "seq2seq",
        "model": {"name": str(model), "max_length": LONGEST},
        "strategy": "full",
        "training.epochs": EPOCHS,
        "training.batch_size": BATCH,
        "training.evaluate_every_steps": 100_000,
        "optimizer.learning_rate": RATE,
        "seed": seed,
    }
    began = time.perf_counter()
    run = chainrule.train(str(SOURCE), out=out.with_suffix(".run"), settings=settings)
    seconds = time.perf_counter() - began
    chainrule.export(run, "hf", out)
    return seconds


def train_theirs(model: Path, out: Path, seed: int) -> float:
    began = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(model)
    pairs = rows_of("train")
    encoded = tokenizer([source for source, _ in pairs], text_target=[target for _, target in pairs])
    network = AutoModelForSeq2SeqLM.from_pretrained(model)
    trainer = Seq2SeqTrainer(
        model=network,
        args=Seq2SeqTrainingArguments(
            output_dir=str(out.with_suffix(".hf")),
            per_device_train_batch_size=BATCH,
            num_train_epochs=EPOCHS,
            learning_rate=RATE,
            weight_decay=0.01,
            warmup_steps=0.1,
            seed=seed,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            bf16=True,
            disable_tqdm=True,
            optim="adamw_torch_fused",
        ),
        train_dataset=Dataset.from_dict({key: encoded[key] for key in ("input_ids", "attention_mask", "labels")}),
        data_collator=DataCollatorForSeq2Seq(tokenizer, network),
    )
    trainer.train()
    seconds = time.perf_counter() - began
    network.float().save_pretrained(out)
    return seconds


def run_one(who: str, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        model, out = write_model(Path(name) / "bart", seed), Path(name) / "trained"
        seconds = (train_ours if who == WHO[0] else train_theirs)(model, out, seed)
        score = judge(out, AutoTokenizer.from_pretrained(model))
    return {"trainer": who, "seed": seed, "loss": round(score["loss"], 5), "seconds": round(seconds, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, help="how many, from 0")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", help="make the run of this trainer and seed in this process: transformers:0")
    options = parser.parse_args()
    if options.one:
        who, _, seed = options.one.partition(":")
        use_threads(options.threads)
        print(json.dumps(run_one(who, int(seed))), flush=True)
        return
    lines = []
    for seed in range(options.seeds):
        for who in WHO:
            lines.append(result_of(__file__, ["--one", f"{who}:{seed}"], options.threads))
            keep(RESULTS, lines[-1])
    print("| trainer | loss per token | seconds |\n|---|---|---|")
    for who in WHO:
        of = [line for line in lines if line["trainer"] == who]
        print(f"| {who} | {mean(li['loss'] for li in of):.4f} | {mean(li['seconds'] for li in of):.0f} |")


if __name__ == "__main__":
    main()
