"""The rows of a file, predicted by workers of a Ray cluster: read and written here, in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chainrule.core.artifact import Artifact
from chainrule.errors import ChainruleError, LostError, Problem, RecipeError, Where
from chainrule.inference.generate import Writing
from chainrule.inference.predict import Predictor, load_predictor
from chainrule.inference.ranks import Row
from chainrule.inference.rows import Answered, Answering, Chunk, answers_of, open_rows, predict_file, predicted_chunks
from chainrule.scaling.cluster import cluster, cores_each, take_place, where_we_are, worker_count
from chainrule.system.device import use_threads
from chainrule.system.progress import Display

RESTARTS = 2  # of each worker; its chunk is predicted again
AHEAD = 2  # chunks that each worker has before it


class Worker:
    """Predicts in another process.

    Args:
        place: what `take_place` takes.
        path: the artifact's folder.
        cores: of its own.
    """

    def __init__(self, place: Mapping[str, str], path: str, writing: Writing | None, cores: int) -> None:
        take_place(place)
        use_threads(cores)
        self.predictor, self.writing = load_predictor(Artifact.read(Path(path))), writing

    def answer(self, texts: Mapping[str, Sequence[str]], numbers: np.ndarray) -> tuple[list[Row], np.ndarray]:
        """What is predicted of a chunk, and a mask of the rows that were longer than the model reads."""
        return answers_of(self.predictor, texts, self.writing, numbers)


def predict_with_ray(
    predictor: Predictor,
    source: Any,
    out: Path | None,
    fields: Mapping[str, str],
    how: tuple[Writing | None, int | None],
    display: Display,
) -> list[Row] | int:
    """As `predict_file`, or without `out` the rows.

    Args:
        how: how replies are written, and the number of workers.

    Raises:
        UserError: as `predict_file`; or the cluster cannot be used.
        LostError: a worker was lost again and again.
    """
    if predictor.task.target.kind == "relevances":
        todo, where = "Leave --engine out.", Where(field="engine")
        problem = Problem("a task that reads each row by itself", predictor.task.name, todo, where)
        raise RecipeError("Lists are ranked in one process.", [problem])
    writing, asked = how
    with cluster(asked or 1) as ray:
        workers = worker_count(asked, ray)
        display.say(f"Ray: {workers} workers.")
        answer = _answers(ray, predictor.artifact, writing, workers)
        if out is not None:
            return predict_file(predictor, source, out, fields, display, answer)
        chunks = predicted_chunks(predictor, open_rows(predictor, source, fields), answer)
        return [row for _, rows in chunks for row in rows]


def _answers(ray: Any, artifact: Artifact, writing: Writing | None, workers: int) -> Answering:
    cores = cores_each(None, workers, ray)
    make = ray.remote(num_cpus=cores, max_restarts=RESTARTS, max_task_retries=RESTARTS)(Worker)

    def answer(chunks: Iterable[Chunk]) -> Iterator[Answered]:
        pool = [make.remote(where_we_are(), str(artifact.path.resolve()), writing, cores) for _ in range(workers)]
        waiting: deque[tuple[Any, Any]] = deque()
        for number, (table, texts) in enumerate(chunks):
            plain = {name: list(values) for name, values in texts.items()}
            waiting.append((table, pool[number % workers].answer.remote(plain, table.rows)))
            if len(waiting) >= AHEAD * workers:
                yield _next(ray, waiting)
        while waiting:
            yield _next(ray, waiting)

    return answer


def _next(ray: Any, waiting: deque[tuple[Any, Any]]) -> Answered:
    table, answer = waiting.popleft()
    return table, *got(ray, answer)


def got(ray: Any, answer: Any) -> Any:
    """What a worker has given back, once it is there.

    Raises:
        ChainruleError: as the worker has.
        LostError: the worker is gone, and was gone as often before.
    """
    try:
        return ray.get(answer)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ChainruleError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError as error:
        begun: Any = getattr(error, "cause", None)  # of a worker that could not begin
        cause = getattr(begun, "cause", None)
        if isinstance(cause, ChainruleError):
            raise cause from None
        got = " ".join(str(error).split())[:200]
        problem = Problem("workers that stay until the end", got, "See why it ended, and begin again.")
        raise LostError("A worker is lost.", [problem]) from error
