"""Runs that are killed at any moment and taken up again, compared with the same run left alone.

A new kind of run (a phase, a state, another process) adds one line to CASES.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import chainrule
from chainrule.core.artifact import FOLDS
from chainrule.core.request import Limits
from chainrule.system.assets import cache_folder
from chainrule.testing.data import entities, reversals, searches, sentences, stripes, write_csv, write_json_lines
from chainrule.testing.models import narrow_model, tiny_chat_model, tiny_encoder_decoder, tiny_model, tiny_vision_model
from chainrule.testing.processes import prepared

ALWAYS = {
    "training.threads": 1,
    "training.precision": "bfloat16",  # a probe might choose otherwise the second time
    "training.checkpoint_minutes": 1e-9,
    "training.evaluate_every_steps": 3,
    "seed": 5,
}
GROUPS = [{"layers": "0", "method": "lora", "start": 0.3}, {"layers": "1", "method": "full", "start": 0.6}]

CLASSES, ENTITIES, REPLIES, PAIRS = "text-classification", "token-classification", "text-generation", "preference"
IMAGES, WRITTEN, VECTORS, LISTS = "image-classification", "seq2seq", "embedding", "ranking"
TEACHER = "teacher"  # in the settings of a case and among the inputs: a finished run
NARROW, UNLABELLED = "narrow", "unlabelled"  # the same: a model narrower than the teacher, rows without labels
Inputs = dict[str, tuple[Path, Path]]  # task -> data and model


@dataclass(frozen=True)
class Case:
    """One kind of run.

    Attributes:
        task: what is trained, on made-up rows of its own.
        cold: each run begins with an empty cache of its own.
        settings: of the recipe, beside ALWAYS.
        prunes: whether the teacher is pruned; then the settings are those of the training that follows.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    task: str = CLASSES
    cold: bool = False
    prunes: bool = False


_DIVERGING = {
    "training.steps": 30,
    "training.epochs": 50,
    "optimizer.learning_rate": 4.0,
    "optimizer.max_gradient_norm": None,
    "schedule.name": "constant",
    "schedule.warmup": 0.99,
}
CASES = {
    case.name: case
    for case in (
        Case("full", {"training.epochs": 2}),
        Case("full-in-pieces", {"training.steps": 9, "training.micro_batch_tokens": 64, "training.batch_size": 16}),
        Case("plain-torch", {"training.steps": 9, "training.accelerate": False, "training.precision": "float32"}),
        Case("partial-on-trunk-cache", {"strategy": "partial", "strategy.options.top": 1, "training.epochs": 3}),
        Case(
            "filling-trunk-cache", {"strategy": "partial", "strategy.options.top": 1, "training.epochs": 2}, cold=True
        ),
        Case("diverging", _DIVERGING),
        Case("two-threads", {"training.steps": 9, "training.threads": 2, "training.batch_size": 64}),
        Case("head", {"strategy": "head", "training.epochs": 3}),
        Case("gradual", {"strategy": "gradual", "training.epochs": 3}),
        Case("ema", {"training.epochs": 2, "training.averaging": "ema"}),
        Case(
            "lion-swa-regularised",
            {
                "training.epochs": 2,
                "optimizer": "lion",
                "schedule": {"name": "reduce-on-plateau", "options": {"patience": 1}},
                "regularisers": {"r-drop": {}, "fgm": {}, "mixout": {"probability": 0.3}, "l2-sp": {"strength": 0.1}},
                "training.averaging": {"name": "swa", "options": {"start": 0.3}},
            },
        ),
        Case("hybrid", {"strategy.name": "hybrid", "strategy.options.groups": GROUPS, "training.epochs": 3}),
        Case("patience", {"training.epochs": 8, "training.patience": 1, "optimizer.learning_rate": 1e-6}),
        Case(
            "structure",
            {
                "training.steps": 9,
                "structure.reinitialise_top": 1,
                "structure.insert_blocks": [1],
                "structure.add_tokens": ["filmgood"],
                "structure.pooling": "attention",
                "structure.head": "cnn",
            },
        ),
        Case("student", {"distillation.teachers": [TEACHER], "structure.keep_layers": [0], "training.steps": 9}),
        Case(
            "student-of-states",
            {
                "model": NARROW,
                "distillation.teachers": [TEACHER],
                "distillation.hidden": 1.0,
                "distillation.attention": 1.0,
                "distillation.relation": 1.0,
                "distillation.sentences": 1.0,
                "distillation.unlabelled": UNLABELLED,
                "training.steps": 9,
            },
        ),
        Case("pruned", {"training.steps": 9}, prunes=True),
        Case("folds", {"training.folds": 2, "training.steps": 4}),
        Case("lstm-folds", {"model": "lstm", "training.folds": 2, "training.steps": 4}),
        Case("entities", {"training.epochs": 2}, task=ENTITIES),
        Case("entities-crf-folds", {"loss": "crf", "training.folds": 2, "training.steps": 4}, task=ENTITIES),
        Case("lora-chat", {"strategy": "lora", "training.steps": 9, "training.batch_size": 8}, task=REPLIES),
        Case("images", {"training.epochs": 2}, task=IMAGES),
        Case("convnet-folds", {"model": "convnet", "training.folds": 2, "training.steps": 4}, task=IMAGES),
        Case("lists", {"training.steps": 9, "training.batch_size": 8}, task=LISTS),
        Case("lists-folds", {"loss": "ranknet", "training.folds": 2, "training.steps": 4}, task=LISTS),
        Case("preferences", {"strategy": "lora", "training.steps": 9, "training.batch_size": 8}, task=PAIRS),
        Case(
            "encoder-decoder", {"structure.dropout": 0.1, "training.steps": 9, "training.batch_size": 8}, task=WRITTEN
        ),
        Case(
            "vectors",
            {
                "task.options.hard_negatives": 2,
                "training.steps": 9,
                "training.batch_size": 16,
                "training.micro_batch_tokens": 100,
            },
            task=VECTORS,
        ),
    )
}


def make_inputs(folder: Path) -> Inputs:
    """Rows and a tiny model for every task of the cases."""
    rows = [
        {"instruction": f"{place} {word}", "output": f"very {word}"}
        for place in ("film", "book", "room", "phone", "it", "we", "this", "and")
        for word in ("good", "bad", "warm", "cold")
    ]
    preferred = [{"prompt": row["instruction"], "chosen": row["output"], "rejected": "it is"} for row in rows]
    bert, llama = tiny_model(folder / "bert"), tiny_chat_model(folder / "llama")
    reviews, taught = write_csv(folder / "reviews.csv", sentences(120)), folder / "teacher"
    unlabelled = [{"text": row["text"]} for row in sentences(60, seed=9)]
    settings = {"model": str(bert), "training.steps": 9, **ALWAYS}
    chainrule.train(str(reviews), out=taught, settings=settings)
    return {
        TEACHER: (taught, bert),
        NARROW: (narrow_model(folder / "narrow", bert), bert),
        UNLABELLED: (write_csv(folder / "unlabelled.csv", unlabelled), bert),
        IMAGES: (stripes(folder / "stripes", 120), tiny_vision_model(folder / "vit")),
        CLASSES: (reviews, bert),
        ENTITIES: (write_json_lines(folder / "entities.jsonl", entities(120)), bert),
        LISTS: (write_json_lines(folder / "searches.jsonl", searches(60)), bert),
        REPLIES: (write_json_lines(folder / "talks.jsonl", rows), llama),
        WRITTEN: (write_json_lines(folder / "sources.jsonl", reversals(80)), tiny_encoder_decoder(folder / "t5")),
        VECTORS: (write_json_lines(folder / "texts.jsonl", rows), bert),
        PAIRS: (write_json_lines(folder / "preferences.jsonl", preferred), llama),
    }


def work(case: Case, inputs: Inputs, out: Path) -> None:
    """Train, or go on where a run folder is there already."""
    if case.prunes:
        _prune(case, inputs, out)
        return
    if (out / "resolved.yaml").is_file():
        chainrule.resume(out)
        return
    data, model = inputs[case.task]
    settings = {"task": case.task, "model": str(model), **ALWAYS, **case.settings}
    if settings.get("distillation.teachers") == [TEACHER]:
        settings["distillation.teachers"] = [str(inputs[TEACHER][0])]
    for key, name in (("model", NARROW), ("distillation.unlabelled", UNLABELLED)):
        if settings.get(key) == name:
            settings[key] = str(inputs[name][0])
    chainrule.train(str(data), out=out, settings=settings)


def _prune(case: Case, inputs: Inputs, out: Path) -> None:
    """The same command again goes on where it was killed."""
    if (out / "artifact").is_dir():
        return
    options = {"share": 0.4, "trial_steps": 3, "settings": {**ALWAYS, **case.settings}}
    limits = Limits(loss=100.0, worst=1000.0, allow_slower=True)
    chainrule.compress(inputs[TEACHER][0], out / "artifact", to="prune", options=options, **limits)


def start(case: Case, inputs: Inputs, out: Path) -> multiprocessing.process.BaseProcess:
    """The work in a process of its own; everything it imports is there already, so that it begins at once."""
    process = prepared().Process(target=_child, args=(case, inputs, out))
    process.start()
    return process


def _child(case: Case, inputs: Inputs, out: Path) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    if case.cold:
        _use_empty_cache(_cache(out))
    work(case, inputs, out)


def finish(case: Case, inputs: Inputs, out: Path) -> None:
    """Run it to its end."""
    process = start(case, inputs, out)
    process.join()
    assert process.exitcode == 0, f"{case.name} ended with {process.exitcode}"


def kill_after(case: Case, inputs: Inputs, out: Path, seconds: float) -> bool:
    """Run it and kill it; False if it had ended by then."""
    process = start(case, inputs, out)
    process.join(seconds)
    alive = process.exitcode is None
    process.kill()
    process.join()
    assert alive or process.exitcode == 0, f"{case.name} ended with {process.exitcode}"
    return alive


def pause(case: Case, inputs: Inputs, out: Path, seconds: float) -> None:
    """Run it to its end with a pause: stopped and continued as a shell does with Ctrl-Z and fg."""
    process = start(case, inputs, out)
    process.join(seconds)
    if process.pid is not None and process.exitcode is None:
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGCONT)
    process.join()
    assert process.exitcode == 0, f"{case.name} ended with {process.exitcode}"


def weights(out: Path) -> str:
    """One hash over every weights file of the artifact, and what was predicted of folds where there are any."""
    files = sorted((out / "artifact").glob("*.safetensors"))
    assert files
    files += sorted((out / FOLDS).glob("*/predictions.safetensors"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files if path.name != "rows.safetensors")).hexdigest()


def _use_empty_cache(folder: Path) -> None:
    """But for the compiled kernels, which take long to make."""
    kernels = cache_folder() / "kernels"
    folder.mkdir(exist_ok=True)
    if kernels.is_dir() and not (folder / "kernels").exists():
        (folder / "kernels").symlink_to(kernels)
    os.environ["CHAINRULE_CACHE"] = str(folder)


def _cache(out: Path) -> Path:
    return out.with_name(f"{out.name}-cache")


def remove(out: Path) -> None:
    """A run folder, its cache, and what was half made beside it."""
    for path in [out, _cache(out), *out.parent.glob(f".{out.name}.*.partial")]:
        shutil.rmtree(path, ignore_errors=True)
