"""Which models are in memory: all of them, or those that were asked for last and fit into a budget.

The thread of the models decides between two batches, so that none goes while it computes. Requests whose model is not
there wait, as others wait for their turn, while another thread loads it. The one that was asked for longest ago makes
room: one without requests where there is any; else new requests of one wait until it has answered those it has.
"""

from __future__ import annotations

import gc
import math
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from chainrule.core.artifact import Artifact
from chainrule.errors import ModelError, Problem, Where
from chainrule.inference.predict import Predictor, load_predictor
from chainrule.inference.size import stored_bytes, tensor_bytes
from chainrule.models.save import weights_file
from chainrule.serving.jobs import Job
from chainrule.serving.metrics import Metrics
from chainrule.serving.refusal import RefusedError
from chainrule.serving.served import Served, load, mark_of
from chainrule.system.files import sha256
from chainrule.system.memory import return_freed

PATIENCE = 0.1  # seconds between looks for jobs that nobody waits for any more
LOOK = 1.0  # seconds between looks at the sizes of models, which have copies of some weights once they are used
RETRY = 10.0  # seconds until a model that could not be loaded is tried again


@dataclass(eq=False)
class _Version:
    """A new version of a model, on its way into the place of the one before.

    Attributes:
        size: bytes that it will take.
        taken: told of it before requests find it.
        done: what the one who brought it waits for.
    """

    name: str
    artifact: Artifact
    size: int
    taken: Callable[[Served], None]
    done: Future[Served] = field(default_factory=Future)


class Memory:
    """Loads models and lets them go. All but `renew` is called by the thread of the models.

    Attributes:
        models: by name, as requests find them; those in memory are the first to stay there.
        budget: bytes that their weights may take together; None for any number.
        changed: called, by any thread, when there is something for `admit` to do.
    """

    def __init__(
        self, models: dict[str, Served], budget: int | None, metrics: Metrics, say: Callable[[str], None]
    ) -> None:
        self.models, self.budget = models, budget
        self.changed: Callable[[], None] = lambda: None
        self._metrics, self._say = metrics, say
        self._held = [served for served in reversed(models.values()) if served.in_memory]  # asked longest ago first
        self._waiting: list[Job] = []
        self._versions: list[_Version] = []
        self._leaving: set[Served] = set()
        self._measured = 0.0  # when, by `time.monotonic`
        self._loading: tuple[Served | _Version, Future[Any]] | None = None
        self._loader = ThreadPoolExecutor(1, "loading")
        self._closed = False
        for name in models:
            self._tell(name)

    @property
    def waited_for(self) -> bool:
        """Whether jobs wait for models."""
        return bool(self._waiting)

    @property
    def patience(self) -> float | None:
        """Seconds after which `admit` is to be called, whether or not something has changed; None for no need to."""
        return PATIENCE if self._waiting else None

    def admit(self, arrived: Sequence[Job], begun: Sequence[Job]) -> tuple[list[Job], list[tuple[Job, Exception]]]:
        """Jobs, of those that have arrived or wait, whose model is there; and those that it cannot be loaded for.

        Args:
            begun: jobs that were admitted and are not answered yet; their models stay.
        """
        if self.budget is None:
            return list(arrived), []
        self._end_loading()
        if time.monotonic() > self._measured + LOOK:
            self._measure()
        self._waiting += arrived
        able = self._able()
        self._begin_loading({job.served for job in (*begun, *able)})
        able += self._able()
        unable = [job for job in self._waiting if time.monotonic() < self._now(job).retry]
        self._waiting = [job for job in self._waiting if job not in unable]
        return able, [(job, _unavailable(self._now(job))) for job in unable]

    def renew(self, name: str, artifact: Artifact, taken: Callable[[Served], None]) -> Served:
        """Load a new version beside the old one and put it in its place; called by any other thread.

        Models without requests make room. Where both versions do not fit all the same, they take more than the budget
        until the old one has answered what it has.

        Args:
            taken: told of the new version before requests find it.

        Raises:
            ModelError: it cannot be loaded, or is larger than the budget.
        """
        if self.budget is None:
            served = load(name, artifact)
            taken(served)
            self._take_its_place(served)
            return served
        version = _Version(name, artifact, stored_bytes(artifact), taken)
        refuse_large({name: version.size}, {name: artifact}, self.budget)
        self._versions.append(version)
        if self._closed:  # and perhaps nobody looks any more
            raise ModelError("The server ends.")
        self.changed()
        return version.done.result()

    def close(self) -> None:
        """Load nothing more."""
        self._closed = True
        self._loader.shutdown(cancel_futures=True)
        for version in [*self._versions, *([self._loading[0]] if self._loading else [])]:
            if isinstance(version, _Version):
                version.done.set_exception(ModelError("The server ends."))

    def _now(self, job: Job) -> Served:
        """The version that is to answer a job: its own, or another where that one has gone."""
        return job.served if job.served in self._held else self.models[job.served.name]

    def _able(self) -> list[Job]:
        """Take out of those that wait the jobs whose model is there, and those that nobody waits for any more."""
        able: list[Job] = []
        waiting, self._waiting = self._waiting, []
        for job in waiting:
            served = self._now(job)
            there = served in self._held and served not in self._leaving
            (able if there or job.dead() else self._waiting).append(job)
            if there:
                job.served = served
                self._held.remove(served)
                self._held.append(served)
        return able

    def _begin_loading(self, busy: set[Served]) -> None:
        """Let go what has been replaced, and load what is waited for longest, once there is room."""
        for served in [*self._held]:
            if self.models[served.name] is not served and served not in busy:
                self._let_go(served)
        self._leaving = set()
        wanted = self._wanted()
        if wanted is None:
            if self._over() > 0:  # with a new version beside the old one, or with copies of weights
                self._make_room(0, busy, self._held[-1])
            return
        version = wanted if isinstance(wanted, _Version) else None
        self._make_room(wanted.size, busy, self.models[wanted.name] if version else None)
        if self._leaving and version is None:
            return
        self._leaving = set()
        work = self._loader.submit(self._load, wanted)
        self._loading = wanted, work
        if version is not None:
            self._versions.remove(version)
        work.add_done_callback(lambda _: self.changed())

    def _wanted(self) -> Served | _Version | None:
        """What is to be loaded next; None for nothing, or while something is being loaded."""
        if self._loading is not None or self._versions:
            return None if self._loading is not None else self._versions[0]
        now = time.monotonic()
        wanted = (self._now(job) for job in self._waiting if not job.dead())
        return next((served for served in wanted if served not in self._held and now >= served.retry), None)

    def _make_room(self, size: int, busy: set[Served], spared: Served | None) -> None:
        """Let models without requests go until so many bytes fit; mark those that have to follow."""
        self._measure()
        over = self._over() + size
        others = [served for served in self._held if served is not spared]
        for served in sorted(others, key=lambda served: (self.models[served.name] is served, served in busy)):
            if over <= 0:
                return
            over -= served.size
            if served in busy:
                self._leaving.add(served)
            else:
                self._let_go(served)
                self._metrics.evictions.labels(served.name).inc()

    def _measure(self) -> None:
        self._measured = time.monotonic()
        for served in self._held:
            served.size = tensor_bytes(served.predictor.forward.model) or served.size
            self._tell(served.name)

    def _over(self) -> int:
        """Bytes beyond the budget; of room there is, below 0."""
        return sum(served.size for served in self._held) - (self.budget or 0)

    def _let_go(self, served: Served) -> None:
        self._held.remove(served)
        _drop_weights(served)
        self._tell(served.name)
        self._loader.submit(return_freed)

    def _load(self, wanted: Served | _Version) -> Any:
        """The work of the other thread: the model of a Served, or a Served of a new version."""
        if isinstance(wanted, Served):
            began = time.monotonic()
            predictor = self._load_again(wanted)
            self._metrics.load_seconds.labels(wanted.name).observe(time.monotonic() - began)
            return predictor
        served = load(wanted.name, wanted.artifact)
        refuse_large({served.name: served.size}, {served.name: wanted.artifact}, self.budget)
        wanted.taken(served)
        return served

    def _load_again(self, served: Served) -> Predictor:
        """The model from the files that it was loaded from before.

        Raises:
            ModelError: they have changed, or raises as `load_predictor`.
        """
        artifact = served.predictor.artifact
        manifest = Artifact.read(artifact.path).manifest
        same = manifest == artifact.manifest
        if same and mark_of(artifact) != served.mark:  # copied anew, perhaps
            same = sha256(weights_file(artifact.path)) == manifest.weights_sha256
        if not same:
            todo = "Let the server take it up: SIGHUP, or --reload."
            problem = Problem("the version that was loaded before", "another", todo, Where(file=str(artifact.path)))
            raise ModelError("The files of the model have changed.", [problem])
        return load_predictor(artifact)

    def _end_loading(self) -> None:
        if self._loading is None or not self._loading[1].done():
            return
        (wanted, work), self._loading = self._loading, None
        error = work.exception()
        if isinstance(wanted, _Version):
            if error is not None:
                wanted.done.set_exception(error)
                return
            self._take_its_place(work.result())
            wanted.done.set_result(work.result())
            return
        self._metrics.loads.labels(wanted.name, "failed" if error else "loaded").inc()
        if error is not None:
            why = error if isinstance(error, ModelError) else f"{type(error).__name__}: {error}"
            self._say(f"warning: {wanted.name} cannot be loaded: {why}")
            wanted.retry = time.monotonic() + RETRY
            return
        wanted.predictor = work.result()
        wanted.size = tensor_bytes(wanted.predictor.forward.model) or wanted.size
        self._held.append(wanted)
        self._tell(wanted.name)

    def _take_its_place(self, served: Served) -> None:
        self.models[served.name] = served
        self._held = [*self._held, served] if self.budget is not None else [*self.models.values()]
        self._tell(served.name)

    def _tell(self, name: str) -> None:
        size = sum(served.size for served in self._held if served.name == name)
        self._metrics.bytes.labels(name).set(size)


def load_all(places: Mapping[str, Path], budget: int | None, loaded: Callable[[Served], None]) -> dict[str, Served]:
    """Load the model in each place; with a budget those that fit stay in memory, the first ones before the others.

    Args:
        loaded: told of each while it is in memory.

    Raises:
        ModelError: one cannot be loaded, or is larger than the budget.
    """
    # with a budget as they lie: a link to one may lead to another version when it is loaded again
    artifacts = {name: Artifact.read(path if budget is None else path.resolve()) for name, path in places.items()}
    sizes = dict.fromkeys(artifacts, 0)
    if budget is not None:
        sizes = {name: stored_bytes(artifact) for name, artifact in artifacts.items()}
        refuse_large(sizes, artifacts, budget)
    found: dict[str, Served] = {}
    for name in artifacts if budget is None else reversed(artifacts):
        _let_last_go(found, budget, sizes[name])
        found[name] = load(name, artifacts[name])
        refuse_large({name: found[name].size}, artifacts, budget)
        loaded(found[name])
        _let_last_go(found, budget, 0)
    return {name: found[name] for name in artifacts}


def refuse_large(sizes: Mapping[str, int], artifacts: Mapping[str, Artifact], budget: int | None) -> None:
    """Refuse models that do not fit into a budget alone.

    Raises:
        ModelError: there are some; all of them are named.
    """
    problems = [
        Problem(
            f"models whose weights fit into {in_words(budget)}, which --memory allows",
            f"{name!r}, which takes {in_words(size)}",
            "Allow more, or make it smaller: chainrule compress.",
            Where(file=str(artifacts[name].path)),
        )
        for name, size in sizes.items()
        if budget is not None and size > budget
    ]
    if problems:
        raise ModelError("There are models that are larger than the memory for all of them.", problems)


def in_words(size: int) -> str:
    """Bytes in the units of --memory, not less than they are."""
    unit, letter = (2**30, "G") if size >= 2**30 else (2**20, "M")
    return f"{math.ceil(100 * size / unit) / 100:g}{letter}"


def _let_last_go(found: Mapping[str, Served], budget: int | None, size: int) -> None:
    held = [served for served in found.values() if served.in_memory]
    while budget is not None and held and sum(served.size for served in held) + size > budget:
        _drop_weights(held.pop(0))
        return_freed()


def _drop_weights(served: Served) -> None:
    """Keep of a model what is needed to check and tokenise requests; nobody else has its weights."""
    model: Any = served.predictor.forward.model
    for module in model.modules():
        vars(module).pop("forward", None)  # that of a kernel refers to its module
    gone = weakref.ref(model)
    served.predictor = replace(served.predictor, forward=replace(served.predictor.forward, model=None))
    del model, module
    if gone() is not None:  # something else in it refers to it
        gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _unavailable(served: Served) -> RefusedError:
    """What clients are told; reasons have paths in them and are for the log."""
    seconds = max(1, math.ceil(served.retry - time.monotonic()))
    told = f"The model {served.name!r} cannot be loaded now; the log of the server says why."
    return RefusedError(503, told, code="model_unavailable", headers={"Retry-After": str(seconds)})
