"""A training whose batches the workers of a Ray cluster share: Ray Train starts them, and each of them trains."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from chainrule.core.artifact import Run
from chainrule.core.recipe import Recipe, parse_recipe
from chainrule.errors import ChainruleError, ElsewhereError, LostError, Problem, RecipeError, Where
from chainrule.scaling.cluster import cluster, cores_each, take_place, where_we_are, worker_count
from chainrule.system.extras import require
from chainrule.system.files import refuse_existing, write_text
from chainrule.system.processes import PATIENCE, World, launched_world
from chainrule.system.progress import Display, Quiet, Terminal
from chainrule.system.stop import stop_requests, told_by
from chainrule.tasks.suited import task_of
from chainrule.training.data_parallel import refuse_sharing
from chainrule.training.run import require_run, resume_run, train_recipe

RESTARTS = 3  # after workers that were lost; what fails so often will fail again
TOLD, STOP = "told.txt", "stop.txt"


@dataclass(frozen=True)
class Asked:
    """What is to be trained.

    Attributes:
        recipe: None to go on with the run.
        source: where the rows are, instead of the recipe's `data.source`; None for that.
        out: the run folder, which all workers must see.
        workers: None for as many as the cluster has GPUs, or else machines.
    """

    recipe: Recipe | None
    source: Any
    out: Path
    workers: int | None


def train_with_ray(asked: Asked, display: Display) -> Run:
    """Train, or go on, with workers; where one is lost, all of them begin again from the newest checkpoint.

    Raises:
        UserError: as `train_recipe` and `resume_run`; or the cluster cannot be used.
        LostError: workers were lost again and again.
    """
    _refuse(asked)
    with cluster(asked.workers or 1) as ray:
        workers = worker_count(asked.workers, ray)
        if asked.recipe is not None:
            refuse_sharing(asked.recipe, task_of(asked.recipe), World(0, workers))
        display.say(f"Ray: {workers} workers.")
        for attempt in range(RESTARTS + 1):
            lost = _attempt(ray, asked, workers, attempt, display)
            if lost is None:
                return Run(asked.out)
            if attempt < RESTARTS:
                display.say(f"warning: a worker is lost ({lost}); all begin again from the newest checkpoint.")
    problem = Problem(
        where=Where(file=str(asked.out)),
        expected="workers that stay until the end",
        got=f"one that was lost in each of {RESTARTS + 1} attempts, at last: {lost}",
        todo=f"See why; then go on with: chainrule train --resume {asked.out} --engine ray",
    )
    raise LostError("Workers of this training were lost again and again.", [problem])


def _refuse(asked: Asked) -> None:
    """What need not wait for workers to be found wrong."""
    if asked.recipe is None:
        require_run(asked.out)
    else:
        refuse_existing(asked.out)
    if asked.source is not None and not isinstance(asked.source, str | Path):
        got, todo = type(asked.source).__name__, "Write the rows into a file that all workers see."
        problem = Problem("a file, a folder, or a catalog or hub name", got, todo, Where(field="data.source"))
        raise RecipeError("Workers read their rows themselves.", [problem])


def _attempt(ray: Any, asked: Asked, workers: int, attempt: int, display: Display) -> str | None:
    """Let workers train; why one was lost, or None where all came to the end."""
    train = require("ray.train", extra="ray", purpose="--engine ray")
    torch = require("ray.train.torch", extra="ray", purpose="--engine ray")
    threads = None if asked.recipe is None else asked.recipe.training.threads
    gpus = _wants_gpus(asked.recipe, workers, ray)
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    with _beside(asked.out) as folder, _telling(folder / TOLD, display):
        trainer = torch.TorchTrainer(
            work,
            train_loop_config={
                **where_we_are(),
                "recipe": None if asked.recipe is None else asked.recipe.model_dump(mode="json"),
                "source": None if asked.source is None else str(asked.source),
                "out": str(asked.out),
                "goes_on": attempt > 0 or asked.recipe is None,
                "told": str((folder / TOLD).resolve()),
                "stop": str((folder / STOP).resolve()),
            },
            torch_config=torch.TorchConfig(backend=backend, timeout_s=int(PATIENCE.total_seconds())),
            scaling_config=train.ScalingConfig(
                num_workers=workers, use_gpu=gpus, resources_per_worker={"CPU": cores_each(threads, workers, ray)}
            ),
            run_config=train.RunConfig(
                name="run", storage_path=str(folder.resolve()), failure_config=train.FailureConfig(max_failures=0)
            ),
        )
        try:
            _fit(trainer, folder / STOP, display)
        except train.TrainingFailedError as error:
            return _loss_of(error)
    return None


def _fit(trainer: Any, stop: Path, display: Display) -> None:
    """Wait for the end of a training; a first Ctrl-C or SIGTERM is handed on to the workers, in a file."""
    training: Future[None] = Future()

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            training.set_exception(error)
        else:
            training.set_result(None)

    threading.Thread(target=fit, daemon=True).start()  # in the main one Ray would take the signals for itself
    with stop_requests(display.say) as request:
        while not wait([training], timeout=0.5).done:
            if request.signal is not None and not stop.exists():
                write_text(stop, str(request.signal))
    training.result()


def _wants_gpus(recipe: Recipe | None, workers: int, ray: Any) -> bool:
    device = "auto" if recipe is None else recipe.training.device
    return device == "cuda" or (device == "auto" and ray.cluster_resources().get("GPU", 0) >= workers)


def _loss_of(error: Any) -> str:
    """How a worker was lost.

    Raises:
        ChainruleError: a worker was not lost, but has found something wrong.
    """
    failures: Mapping[int, Exception] = getattr(error, "worker_failures", {})
    told = [found for found in failures.values() if isinstance(found, ChainruleError)]
    own = [found for found in told if not isinstance(found, LostError | ElsewhereError)]
    elsewhere = [found for found in told if isinstance(found, ElsewhereError)]
    if own or elsewhere:
        raise (own or elsewhere)[0]
    others = [f"worker {rank}: {_line(found)}" for rank, found in failures.items() if not isinstance(found, LostError)]
    return others[0] if others else _line(error)


def _line(error: Exception) -> str:
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:200]}"


def work(asked: Mapping[str, Any]) -> None:
    """What each worker does: what the same command does in a process alone, with its share of each batch."""
    began = time.perf_counter()
    with launched_world() as world, told_by(Path(asked["stop"])):
        with world.together():
            take_place(asked)
        display = _written(Path(asked["told"])) if world.first else Quiet()
        out = Path(asked["out"])
        if world.told(lambda: asked["goes_on"] and out.exists()):
            resume_run(out, asked["source"], display, began, world)
        else:
            train_recipe(parse_recipe(asked["recipe"]), asked["source"], out, display, began, world)


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A folder beside the run for what Ray keeps meanwhile; workers on other machines see it as they see the run."""
    folder = out.with_name(f".{out.name}.ray")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _written(file: Path) -> Display:
    return Terminal(Console(file=file.open("a", encoding="utf-8", buffering=1), highlight=False, soft_wrap=True))


@contextmanager
def _telling(file: Path, display: Display) -> Iterator[None]:
    """Meanwhile, what the first worker writes into a file is said here."""
    done = threading.Event()

    def follow() -> None:
        place, last = 0, False
        while not last:
            last = done.wait(0.5)
            if not file.is_file():
                continue
            with file.open("rb") as lines:
                lines.seek(place)
                for line in lines.read().splitlines(keepends=True):
                    if line.endswith(b"\n") or last:
                        place += len(line)
                        display.say(line.decode(errors="replace").rstrip("\n"))

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        done.set()
        follower.join()
