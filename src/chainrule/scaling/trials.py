"""A search whose trials workers of a Ray cluster make at the same time, on one study."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chainrule.core.study import Study
from chainrule.errors import ChainruleError, Problem, RecipeError, Where
from chainrule.hpo.search import Part, Search, help_search
from chainrule.scaling.cluster import cluster, cores_each, machines, take_place, where_we_are, worker_count
from chainrule.system.progress import Display, Quiet

LOOK_SECONDS = 1.0


def search_with_ray(folder: Path, source: Any, workers: int | None, display: Display) -> Study:
    """As `Search.go`, with the trials made by workers; the winner is trained here.

    Each worker asks the study for its next trial, so its proposals follow from all results so far.

    Raises:
        UserError: as `Search.go`; or the cluster cannot be used.
    """
    if source is not None and not isinstance(source, str | Path):
        got, todo = type(source).__name__, "Write the rows into a file that all workers see."
        problem = Problem("a file, a folder, or a catalog or hub name", got, todo, Where(field="data.source"))
        raise RecipeError("Workers read their rows themselves.", [problem])
    with cluster(workers or 1) as ray:
        count = worker_count(workers, ray)

        def make(search: Search, seconds: float) -> None:
            _make_trials(ray, search, None if source is None else str(source), count, seconds)

        search = Search(folder, source, display, make)
        if machines(ray) > 1 and search.settings.storage is None:
            todo = "Give --storage postgresql://USER@HOST/NAME, which all machines reach."
            problem = Problem("a database for several machines", "a file", todo, Where(field="storage"))
            raise RecipeError("The workers of several machines cannot share a file.", [problem])
        display.say(f"Ray: {count} workers.")
        return search.go()


def _make_trials(ray: Any, search: Search, source: str | None, workers: int, seconds: float) -> None:
    """Let workers make trials until the time or the number is spent."""
    search.at_once = workers
    done = sum(trial.state.is_finished() for trial in search.study.trials)
    wanted = search.settings.trials
    left = None if wanted is None else max(0, wanted - done)
    cores = cores_each(search.recipe.training.threads, workers, ray)
    make = ray.remote(num_cpus=cores, max_retries=0)(work)
    limits = [(seconds, None if left is None else left // workers + (n < left % workers)) for n in range(workers)]
    place, folder = where_we_are(), str(search.folder)
    waiting = [
        make.remote(place, folder, source, search.part, (number, workers), limit)
        for number, limit in enumerate(limits, start=1)
        if limit[1] != 0
    ]
    with search.display.bar("trials", max(1, search.expected)) as bar:
        while waiting:
            ready, waiting = ray.wait(waiting, timeout=LOOK_SECONDS)
            now = sum(trial.state.is_finished() for trial in search.study.get_trials(deepcopy=False))
            bar.advance(now - done, f"{now} trials")
            done = now
            for answer in ready:
                _end(ray, answer, search)


def _end(ray: Any, answer: Any, search: Search) -> None:
    """Take note of a worker's end; where one is lost the others go on.

    Raises:
        ChainruleError: as the worker has.
    """
    try:
        ray.get(answer)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ChainruleError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        told = " ".join(str(error).split())[:200]
        search.display.say(f"warning: a worker is lost ({type(error).__name__}: {told}); the others go on.")


def work(
    place: Mapping[str, str],
    folder: str,
    source: str | None,
    part: Part,
    who: tuple[int, int],
    limits: tuple[float, int | None],
) -> float:
    """What each worker does: trials of the study, with rows that it reads once.

    Args:
        who: this worker's number from 1, and how many there are.
        limits: as `help_search` takes them.
    """
    began = time.perf_counter()
    take_place(place)
    search = Search(Path(folder), source, Quiet())
    help_search(search, part, *who, limits)
    return time.perf_counter() - began
