"""`hyperparameter_search` of the Hugging Face Trainer (Optuna), one workload, one seed: the peer of `chainrule search`.

Nothing of Chainrule is used here. bfloat16 autocast, batches grouped by length, fused AdamW; each trial is scored on
all validation rows after each third of its steps, where the pruner may end it. The best trial's settings are trained
whole once more, as no trial's weights are kept, and judged once on test. Prints one JSON line.

    python benchmarks/peers/hf_search.py --model FOLDER --workload trec --asked '{"trials": 20, …}'
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from peers.hf_trainer import BEST, Encoded, label_names, read, score
from workloads import WORKLOADS

ARGUMENTS = {  # of the Trainer, by the keys of the space
    "optimizer.learning_rate": "learning_rate",
    "training.batch_size": "per_device_train_batch_size",
    "schedule.warmup": "warmup_steps",  # below 1 it is a share
    "optimizer.weight_decay": "weight_decay",
}


def suggested(trial: optuna.Trial, space: dict[str, Any]) -> dict[str, Any]:
    """The Trainer's arguments of a trial."""
    found: dict[str, Any] = {}
    for key, choice in space.items():
        if isinstance(choice, list):
            found[ARGUMENTS[key]] = trial.suggest_categorical(key, choice)
        else:
            found[ARGUMENTS[key]] = trial.suggest_float(
                key, choice["low"], choice["high"], log=choice.get("log", False)
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--workload", required=True, choices=sorted(WORKLOADS))
    parser.add_argument("--asked", required=True, type=json.loads, help="space, trials, startup, epochs, seed, drawn")
    options = parser.parse_args()
    workload, asked = WORKLOADS[options.workload], options.asked
    set_seed(asked["seed"])
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    splits = {split: read(workload, split) for split in ("train", "validation", "test")}
    names = label_names(workload, splits["train"])
    rows = {split: Encoded(tokenizer, workload, found, names) for split, found in splits.items()}

    def measured(results: Any) -> dict[str, float]:
        return {"score": score(workload, np.asarray(results.predictions), np.asarray(results.label_ids))}

    def fresh() -> Any:
        return AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=len(names))

    def trainer_of(**settings: Any) -> Trainer:
        arguments: dict[str, Any] = {
            "output_dir": "unused-by-the-peer",
            "per_device_eval_batch_size": 64,
            "num_train_epochs": asked["epochs"],
            "warmup_steps": 0.5,  # a share, so that shares of trials are not made whole numbers
            "seed": asked["seed"],
            "save_strategy": "no",
            "eval_strategy": "steps",
            "eval_steps": 1 / 3,
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "bf16": True,
            **BEST,
            **settings,
        }
        return Trainer(
            model_init=fresh,
            args=TrainingArguments(**arguments),
            train_dataset=rows["train"],
            eval_dataset=rows["validation"],
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=measured,
        )

    study = optuna.create_study  # the Trainer's backend calls it, and gives back the best trial alone
    made: list[optuna.Study] = []

    def kept(**how: Any) -> optuna.Study:
        made.append(study(**how))
        return made[-1]

    optuna.create_study = kept
    began = time.perf_counter()
    best: Any = trainer_of().hyperparameter_search(
        hp_space=lambda trial: suggested(trial, asked["space"]),
        compute_objective=lambda metrics: metrics["eval_score"],
        n_trials=asked["trials"],
        direction="maximize",
        backend="optuna",
        sampler=optuna.samplers.TPESampler(seed=asked["drawn"], n_startup_trials=asked["startup"]),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=asked["startup"]),
    )
    seconds_of_trials = time.perf_counter() - began
    winner = trainer_of(**{ARGUMENTS[key]: value for key, value in best.hyperparameters.items()}, eval_strategy="no")
    winner.train()
    winner.args.train_sampling_strategy = "random"  # grouped by length, predictions would come in another order
    scores = {split: winner.predict(rows[split]).metrics["test_score"] for split in ("validation", "test")}
    states = [trial.state.name.lower() for trial in made[0].trials]
    print(
        json.dumps(
            {
                "selected": best.objective,
                **scores,
                "seconds_of_trials": round(seconds_of_trials, 2),
                "finished": states.count("complete"),
                "pruned": states.count("pruned"),
                "failed": states.count("fail"),
                "best": best.hyperparameters,
                "first": made[0].trials[0].params,
            }
        )
    )


if __name__ == "__main__":
    main()
