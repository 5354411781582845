"""From a recipe and its rows to the job: the model, changed as the recipe says, with what it is to learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from chainrule.core.recipe import Recipe, parse_options
from chainrule.core.task import Task
from chainrule.errors import DataError
from chainrule.inference.predict import forward_of
from chainrule.kernels import native
from chainrule.models import scratch
from chainrule.models.accelerate import accelerate
from chainrule.models.adapters import plain_model
from chainrule.models.classifier import PooledClassifier, form_of
from chainrule.models.crf import Tagger
from chainrule.models.inspect import count_parameters, layer_stack
from chainrule.models.load import load_classifier, load_language_model
from chainrule.models.lstm import LSTMTrunk
from chainrule.strategies import make_strategy
from chainrule.system.device import choose_device, has_bfloat16
from chainrule.system.progress import Display
from chainrule.system.seed import seed_everything
from chainrule.tasks import encoder_decoder
from chainrule.tasks.conversation import end_replies
from chainrule.tasks.language_model import check_model
from chainrule.tasks.prepare import Prepared
from chainrule.tasks.suited import task_of
from chainrule.training.companions import with_companions
from chainrule.training.distillation import distilled
from chainrule.training.job import Job, planned_steps, trained_names
from chainrule.training.regularisers import regularised
from chainrule.training.state_teacher import with_states


def make_job(recipe: Recipe, prepared: Prepared, display: Display, run: Path | None = None) -> Job:
    """Model and kernels, ready for step one on rows that are ready.

    Args:
        run: the folder of the run that goes on or is made again, if it has begun.
    """
    task, strategy = task_of(recipe), make_strategy(recipe.strategy)
    device = choose_device(recipe.training.device)
    seed_everything(recipe.seed)
    model = _load(recipe, task, prepared, display).to(device)
    _tell_structure(model, recipe, task, display)
    options = parse_options(task.options, recipe.task, "task")
    untuned = forward_of(model, prepared.tokenizer, device, "float32")
    train, companions = with_companions(task, untuned, prepared.encoded["train"], options, display, run)
    model = strategy.prepare(model, display.say)
    targets = train.targets
    if targets is None:
        raise DataError("The training rows have no labels.")
    if task.prepare_head is not None:
        task.prepare_head(model, targets, options)
    if recipe.training.accelerate:
        if device.type == "cpu" and native.must_build():
            display.say("Compiling the CPU kernels, once: some seconds …")
        accelerate(plain_model(model), device)
    train, objective = distilled(recipe, task, prepared, train, task.objective(recipe.loss, targets), display)
    objective, strategy = with_states(objective, strategy, model, recipe, prepared)
    fast = "bfloat16" if has_bfloat16(device) else "float32"
    job = Job(
        model=model,
        task=task,
        objective=objective,
        strategy=strategy,
        train=train,
        validation=prepared.encoded["validation"],
        row_numbers=prepared.dataset.splits["train"].places.rows,
        forward=forward_of(model, prepared.tokenizer, device, fast),
        companions=companions,
    )
    trained = trained_names(job, recipe, planned_steps(recipe, len(job.train)))
    return replace(job, objective=regularised(job.objective, recipe.regularisers, model, trained))


def _load(recipe: Recipe, task: Task, prepared: Prepared, display: Display) -> Any:
    if task.writes:
        name, tokenizer = recipe.model.name, prepared.tokenizer
        model = load_language_model(name, tokenizer, recipe.structure, seed=recipe.seed, head=task.head)
        if task.head == "encoder-decoder":
            encoder_decoder.begin_targets(model, tokenizer)
            encoder_decoder.check_model(model)
        else:
            check_model(model)
            end_replies(model, tokenizer)
        return model
    labels, kind, options = task.outputs(prepared.dataset.labels), task.problem_type, scratch.options_of(recipe.model)
    if options is None:
        name, structure = recipe.model.name, recipe.structure
        tokenizer = prepared.tokenizer
        return load_classifier(name, tokenizer, labels, kind, structure, seed=recipe.seed, head=task.head)
    make = scratch.SCRATCH[recipe.model.name].make
    model, told = make(options, prepared.tokenizer, labels, kind, recipe.structure, seed=recipe.seed, head=task.head)
    if told is not None:
        display.say(told)
    return model


def _tell_structure(model: Any, recipe: Recipe, task: Task, display: Display) -> None:
    """What has become of the model, and what will load it: before step one, not after the last."""
    changed = recipe.structure.makes_another_model
    if changed:
        display.say(f"Structure: {len(layer_stack(model))} layers, {count_parameters(model):,} parameters.")
    if isinstance(model.base_model, LSTMTrunk):
        display.say(
            "The artifact will load in Chainrule alone, because transformers has no such LSTM; its tokenizer will load "
            "with transformers' PreTrainedTokenizerFast."
        )
    elif isinstance(model, PooledClassifier):
        family, form = model.config.model_type, form_of(model.config)
        display.say(
            f"The artifact will load in Chainrule alone, because transformers has no {form} for {family}; "
            "what is below the head will load with transformers' AutoModel."
        )
    elif isinstance(model, Tagger):
        display.say(
            "The artifact will load in Chainrule alone, because transformers has no CRF; what is below it will load "
            "with transformers' AutoModel."
        )
    if changed and task.baseline == "untuned":
        display.say("The verdict will compare with this changed model as it is before step one.")
